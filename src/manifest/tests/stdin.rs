//! Standard input, for real: the test program runs itself as the reader.

use std::io::Write;
use std::process::{Command, Stdio};

use ostler_manifest::{Input, load};

/// Set in the child, which is this program with the one test below.
const CHILD: &str = "OSTLER_TEST_READS_STDIN";

#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    match load(&[Input::Stdin]) {
        Ok(documents) => {
            for document in documents {
                println!("\n<{} {}>", document.origin.file, document.json);
            }
        }
        Err(errors) => {
            for error in errors {
                println!("\n<{error}>");
            }
        }
    }
}

/// What the child says of its standard input, between the angle brackets.
fn read(stdin: Stdio, text: &str) -> String {
    let temp = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, "1")
        .current_dir(temp.path())
        .stdin(stdin)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(text.as_bytes()).unwrap();
    }
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let (from, to) = (output.find('<').unwrap(), output.rfind('>').unwrap());
    output[from + 1..to].replace(temp.path().to_str().unwrap(), "HERE")
}

#[test]
fn manifests_come_from_standard_input_and_paths_from_the_current_directory() {
    let json = r#"{"apiVersion": "ostler.dev/v1", "kind": "Process", "metadata": {"name": "a"}, "spec": {"command": ["./x"]}}"#;
    let yaml = "apiVersion: ostler.dev/v1\nkind: Process\nmetadata: {name: a}\nspec: {command: [./x]}\n";
    for text in [json, yaml] {
        let seen = read(Stdio::piped(), text);
        assert!(seen.starts_with("<stdin> {"), "{seen}");
        assert!(seen.contains(r#""command":["HERE/x"]"#) && seen.contains(r#""workingDir":"HERE""#), "{seen}");
    }
    let seen = read(Stdio::piped(), "a: [");
    assert!(seen.contains("--> <stdin>:1:"), "{seen}");
    assert!(read(Stdio::null(), "").contains("there is no object in it"));
}

#[test]
fn standard_input_without_end_is_not_read_to_the_end() {
    let zeroes = std::fs::File::open("/dev/zero").unwrap();
    assert!(read(zeroes.into(), "").contains("larger than 8 MiB"));
}

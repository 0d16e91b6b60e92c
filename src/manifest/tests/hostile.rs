//! Inputs that mean harm, or are no manifests at all: refused in little time and memory.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ostler_manifest::{Diagnostic, Input, MAX_FILE, load};

fn text(name: &str, text: impl Into<Vec<u8>>) -> Input {
    Input::Text { name: name.to_owned(), text: text.into(), base: PathBuf::from("/") }
}

fn path(path: impl AsRef<Path>) -> Input {
    Input::Path { path: path.as_ref().to_owned(), recursive: true }
}

/// Far above what is needed, so that a slow machine does not fail; far below what anything quadratic would take.
const SOON: Duration = Duration::from_secs(60);

fn refused(input: Input) -> Diagnostic {
    let start = Instant::now();
    let mut errors = load(&[input]).expect_err("must be refused");
    assert!(start.elapsed() < SOON, "took {:?}", start.elapsed());
    errors.swap_remove(0)
}

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";

#[test]
fn deep_nesting_is_refused() {
    for (name, deep) in [
        ("a.yaml", "[".repeat(100_000)),
        ("a.yaml", "{a: ".repeat(100_000)),
        ("a.yaml", "- ".repeat(100_000)),
        ("a.yaml", "? ".repeat(100_000)),
        ("a.yaml", (0..2_000).map(|n| " ".repeat(n) + "a:\n").collect()),
        ("a.json", "[".repeat(100_000)),
        ("a.json", "{\"a\":".repeat(100_000)),
    ] {
        let error = refused(text(name, deep));
        assert!(error.line >= 1, "{error}");
    }
    let chain: String =
        (1..40).fold("a0: &a0 [[[x]]]\n".to_owned(), |all, n| all + &format!("a{n}: &a{n} [[[*a{}]]]\n", n - 1));
    assert!(refused(text("a.yaml", chain)).message.contains("levels deep"));
}

#[test]
fn alias_bombs_are_refused() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let before = vec![format!("*a{}", n - 1); 10].join(", ");
        bomb = format!("{bomb}a{n}: &a{n} [{before}]\n");
    }
    assert!(refused(text("a.yaml", bomb)).message.contains("aliases"));
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 100_000].join(", "));
    assert!(refused(text("a.yaml", long)).message.contains("aliases"));
    let merges = (1..200).fold("a0: &a0 {x0: y}\n".to_owned(), |all, n| {
        all + &format!("a{n}: &a{n} {{x{n}: y, <<: [{}]}}\n", vec![format!("*a{}", n - 1); 10].join(", "))
    });
    assert!(load(&[text("a.yaml", merges)]).is_err());
}

#[test]
fn what_is_not_text_is_refused_with_its_place() {
    let error = refused(text("a.yaml", b"a: b\nc: \xff\n".to_vec()));
    assert_eq!((error.line, error.column, error.message.as_str()), (2, 4, "this byte is not UTF-8"));
    let error = refused(text("a.yaml", b"a: b\nc: x\0y\n".to_vec()));
    assert_eq!((error.line, error.column), (2, 5));
    assert!(error.message.contains("NUL"));
    let units: Vec<u16> = NAMESPACE.encode_utf16().collect();
    let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
    for (mark, bytes) in [(&b"\xff\xfe"[..], &little), (b"\xfe\xff", &big), (b"", &little), (b"", &big)] {
        assert!(refused(text("a.yaml", [mark, bytes].concat())).message.contains("UTF-16"), "{mark:?}");
    }
}

#[test]
fn byte_order_marks_and_any_line_ends_are_read() {
    for yaml in [
        format!("\u{feff}{NAMESPACE}"),
        NAMESPACE.replace('\n', "\r\n"),
        format!("\u{feff}{}", NAMESPACE.replace('\n', "\r\n")),
        NAMESPACE.replace('\n', "\r"),
        NAMESPACE.trim_end().to_owned(),
    ] {
        let documents =
            load(&[text("a.yaml", yaml.clone())]).unwrap_or_else(|errors| panic!("{yaml:?}: {}", errors[0]));
        assert_eq!(documents[0].place("metadata.name"), (3, 18), "{yaml:?}");
        assert_eq!(documents[0].name, "a");
    }
    let json = "\u{feff}{\"apiVersion\": \"v1\",\r\n\t\"kind\": \"Namespace\", \"metadata\": {\"name\": \"a\"}}\r\n";
    assert_eq!(load(&[text("a.json", json)]).unwrap()[0].place("kind"), (2, 10));
}

#[test]
fn what_is_too_large_is_not_read() {
    let temp = tempfile::tempdir().unwrap();
    let large = temp.path().join("large.yaml");
    // Without data blocks: nothing on the disk, and 100 GiB for whoever reads it.
    fs::File::create(&large).unwrap().set_len(100 << 30).unwrap();
    assert_eq!(refused(path(&large)).message, "larger than 8 MiB");
    assert_eq!(refused(text("a.yaml", vec![b' '; MAX_FILE as usize + 1])).message, "larger than 8 MiB");
    let files: Vec<Input> = (0..9).map(|_| text("a.yaml", [b"#".repeat(MAX_FILE as usize - 100)].concat())).collect();
    let errors = load(&files).unwrap_err();
    assert_eq!(errors.last().unwrap().message, "more than 64 MiB of manifests at once");
}

#[test]
fn many_documents_are_read_and_more_are_refused() {
    let many = |count: usize| {
        (0..count).map(|n| "---\n".to_owned() + &NAMESPACE.replace("a}", &format!("n{n}}}"))).collect::<String>()
    };
    let start = Instant::now();
    assert_eq!(load(&[text("a.yaml", many(10_000))]).unwrap().len(), 10_000);
    assert!(start.elapsed() < SOON);
    assert!(refused(text("a.yaml", many(10_001))).message.contains("10000 documents"));
    assert!(refused(text("a.yaml", "---\n".repeat(1 << 20))).message.contains("10000 documents"));
    let items = vec!["{}"; 20_000].join(", ");
    let list = format!("{{apiVersion: v1, kind: List, items: [{items}]}}");
    assert!(load(&[text("a.yaml", list)]).unwrap_err().len() <= 200);
}

const HEAD: &str = "apiVersion: ostler.dev/v1\nkind: Process\nmetadata: {name: web}\nspec:\n  command: [x]\n";

#[test]
fn much_of_anything_takes_little_time() {
    let fill = |unit: &str| unit.repeat((1 << 18) / unit.len());
    for unit in [
        "[]",
        "- a\n",
        "a: b\n",
        "a",
        "\"",
        "\\",
        "#\n",
        "&a ",
        "*a ",
        "! ",
        "%X\n",
        "{a: ",
        "\t",
        "? a\n",
        "|\n",
        "'",
        "\r",
        "é",
        ": ",
        "a: &a b\n",
    ] {
        for name in ["a.yaml", "a.json"] {
            refused(text(name, fill(unit)));
        }
    }
    refused(text("a.yaml", format!("a: \"{}", fill("\\u0041"))));
    refused(text("a.yaml", format!("a: [{}", fill("x, "))));
    // One long line, with errors and objects all over it.
    refused(text("a.json", format!("{{{}\"a\":1}}", fill("\"a\":1,"))));
    refused(text("a.yaml", format!("{{{}\"a\":1}}", fill("\"a\":1,"))));
    refused(text("a.yaml", format!("[{}]", fill("yes, "))));
    refused(text("a.json", format!("{{\"kind\":\"List\",\"items\":[{}{{}}]}}", fill("{},"))));
    refused(text("a.yaml", format!("{HEAD}  env: [{}]\n", fill("{name: =},"))));
}

#[test]
fn only_regular_files_are_opened() {
    let temp = tempfile::tempdir().unwrap();
    let fifo = temp.path().join("fifo.yaml");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert!(refused(path(&fifo)).message.contains("a pipe, not a regular file"));
    // Nor when it is found in a directory, nor through a link.
    assert!(refused(path(temp.path())).message.contains("a pipe"));
    let socket = temp.path().join("socket.yaml");
    let _listener = UnixListener::bind(&socket).unwrap();
    assert!(refused(path(&socket)).message.contains("a socket"));
    let link = temp.path().join("link.yaml");
    std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
    assert!(refused(path(&link)).message.contains("a device"));
    std::os::unix::fs::symlink(temp.path(), temp.path().join("loop")).unwrap();
    assert!(load(&[path(temp.path())]).unwrap_err().len() == 3);
    let dangling = temp.path().join("dangling.yaml");
    std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
    assert!(refused(path(&dangling)).message.contains("No such file"));
}

#[test]
fn what_may_not_be_read_says_so() {
    // The error of the system is what counts; root may read everything, but nobody may read a directory as a file.
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(refused(path(file.join("below"))).message.contains("Not a directory"));
    let name = "n".repeat(300);
    assert!(refused(path(temp.path().join(name))).message.contains("File name too long"));
}

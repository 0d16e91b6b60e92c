//! What is refused, and how it is said.

use std::fs;
use std::path::PathBuf;

use ostler_manifest::{Diagnostic, Input, load};

fn text(text: impl AsRef<[u8]>) -> Input {
    Input::Text { name: "web.yaml".to_owned(), text: text.as_ref().to_vec(), base: PathBuf::from("/") }
}

fn errors(yaml: impl AsRef<[u8]>) -> Vec<Diagnostic> {
    load(&[text(yaml)]).expect_err("must be refused")
}

const HEAD: &str = "apiVersion: ostler.dev/v1\nkind: Process\nmetadata: {name: web}\nspec:\n";

/// The only error of a Process with these lines in its spec, from line 5 on.
fn error(spec: &str) -> Diagnostic {
    let mut all = errors(format!("{HEAD}{spec}"));
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

#[test]
fn a_mistyped_field_is_shown_with_its_line_and_the_nearest_name() {
    let shown = error("  command: [x]\n  stop:\n    gracePeriode: 5s\n").to_string();
    let expected = r#"error: unknown field "gracePeriode"; did you mean "gracePeriod"?
  --> web.yaml:7:5
   |
 7 |     gracePeriode: 5s
   |     ^^^^^^^^^^^^"#;
    assert_eq!(shown, expected);
}

#[test]
fn errors_are_at_the_value_the_key_or_the_nearest_field_around() {
    for (spec, line, column, message) in [
        ("  command: [x]\n  replicas: three\n", 6, 13, "expected u32"),
        ("  command: [x]\n  replicas: -1\n", 6, 13, "expected u32"),
        ("  command: x\n", 5, 12, "expected a sequence"),
        ("  command: []\n", 5, 3, "a program is needed"),
        ("  replicas: 1\n", 4, 1, "command is missing"),
        ("  command: [x]\n  restartPolicy: always\n", 6, 18, "did you mean \"Always\""),
        ("  command: [x]\n  ports:\n  - name: a\n    port: 0\n", 8, 11, "a port number"),
        ("  command: [x]\n  env:\n  - {name: A}\n  - {name: A}\n", 8, 12, "given twice"),
        ("  command: [x]\n  stop: {signal: SIGTREM}\n", 6, 18, "SIGTERM"),
    ] {
        let error = error(spec);
        assert!(error.message.contains(message), "{}", error.message);
        assert_eq!((error.line, error.column), (line, column), "{error}");
    }
}

#[test]
fn every_error_of_every_file_is_reported() {
    let inputs = [
        text(format!("{HEAD}  command: [x]\n  stop: {{signal: NOPE}}\n  logs: {{maxFiles: 1}}\n---\nkind: Proces\n")),
        Input::Path { path: PathBuf::from("/nowhere/at/all.yaml"), recursive: false },
        text("a: [\n"),
        text("[]"),
    ];
    let errors = load(&inputs).unwrap_err();
    let lines: Vec<u32> = errors.iter().map(|error| error.line).collect();
    assert_eq!(lines.len(), 6, "{errors:#?}");
    assert_eq!(lines[2..4], [9, 0]);
    assert!(errors[3].message.ends_with(": No such file or directory"), "{}", errors[3]);
    assert!(errors[5].message.contains("mapping"));
}

#[test]
fn text_without_quotes_that_is_a_number_or_a_truth_value_is_refused_with_advice() {
    for (value, hint) in [("8080", "\"8080\""), ("true", "\"true\""), ("1.0", "\"1.0\""), ("", "\"\""), ("~", "\"\"")] {
        let error = error(&format!("  command: [x]\n  env:\n  - name: A\n    value: {value}\n"));
        assert!(error.message.contains("expected a string"), "{}", error.message);
        assert!(error.hint.as_ref().is_some_and(|text| text.contains(hint)), "{error}");
        assert_eq!(error.line, 8);
    }
    let error = error("  command: [x]\n  stop: {gracePeriod: 5}\n");
    assert!(error.message.contains("with a unit"), "{error}");
}

#[test]
fn duplicate_keys_are_refused_with_both_places() {
    let error = error("  command: [x]\n  env: []\n  env: []\n");
    assert_eq!((error.line, error.column), (7, 3));
    assert_eq!(error.message, "key \"env\" is given twice; first in line 6, column 3");
    let json = r#"{"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "a", "name": "b", "name": "c"}}"#;
    let found = errors(json);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|error| error.line == 2 && error.message.contains("line 2, column 22")), "{found:?}");
}

#[test]
fn the_same_object_twice_is_refused_with_both_places() {
    let process = format!("{HEAD}  command: [x]\n");
    let other = Input::Text { name: "b.yaml".to_owned(), text: process.clone().into_bytes(), base: PathBuf::from("/") };
    let found = load(&[text(&process), other]).unwrap_err();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].file.as_str(), found[0].line), ("b.yaml", 3));
    assert_eq!(found[0].message, "Process web is given twice; first in web.yaml:3:18");
    let elsewhere = process.replace("{name: web}", "{name: web, namespace: n}");
    assert_eq!(load(&[text(&process), text(&elsewhere)]).unwrap().len(), 2);
}

#[test]
fn what_only_yaml_can_say_is_refused() {
    for (yaml, message) in [
        ("? [a]\n: b\n", "a key must be a word"),
        ("a: !ruby/object x\n", "means nothing here"),
        ("a: !!binary aGk=\n", "means nothing here"),
        ("a: !!map []\n", "means nothing here"),
        ("a: &a [*a]\n", "part of what it refers to"),
        ("a: *b\n", "not valid YAML"),
        ("a:\n\tb: c\n", "tabs disallowed"),
        ("a: 'x\n", "not valid YAML"),
        ("a: b: c\n", "not valid YAML"),
    ] {
        let found = errors(yaml);
        assert!(found.iter().any(|error| error.message.contains(message)), "{yaml}: {found:#?}");
    }
}

#[test]
fn broken_json_is_refused_at_its_place() {
    for (json, column, message) in [
        ("{\"a\": 1,}", 9, "a key in double quotes"),
        ("[1 2]", 4, "',' or ']'"),
        ("{\"a\" 1}", 6, "':'"),
        ("{'a': 1}", 2, "a key in double quotes"),
        ("[01]", 2, "not a number"),
        ("[1e999]", 2, "too large"),
        ("[\"a", 2, "no end"),
        ("[\"\\x\"]", 2, "invalid escape"),
        ("[", 1, "found the end"),
        ("nul", 1, "a value"),
    ] {
        let input = Input::Text { name: "a.json".to_owned(), text: json.as_bytes().to_vec(), base: PathBuf::from("/") };
        let found = load(&[input]).unwrap_err();
        assert!(found[0].message.contains(message), "{json}: {}", found[0]);
        if json != "[" {
            assert_eq!((found[0].line, found[0].column), (1, column), "{json}");
        }
    }
}

#[test]
fn nothing_to_apply_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let input = |recursive| Input::Path { path: temp.path().to_owned(), recursive };
    for yaml in ["", "# only this\n", "---\n---\n", "null\n", "\u{feff}"] {
        assert_eq!(errors(yaml)[0].message, "there is no object in it", "{yaml:?}");
    }
    assert!(load(&[input(false)]).unwrap_err()[0].message.contains("no .yaml"));
    fs::create_dir(temp.path().join("sub")).unwrap();
    assert!(load(&[input(false)]).unwrap_err()[0].hint.is_some());
    assert!(load(&[input(true)]).unwrap_err()[0].message.contains("no .yaml"));
    fs::write(temp.path().join("a.yaml"), "# later\n").unwrap();
    assert_eq!(load(&[input(true)]).unwrap_err()[0].message, "there is no object in it");
}

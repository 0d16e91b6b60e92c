//! What good manifests become.

use std::fs;
use std::path::{Path, PathBuf};

use ostler_manifest::{Diagnostic, Document, Input, load, quote_doubtful};
use serde_json::{Value, json};

fn text(text: &str) -> Input {
    Input::Text { name: "web.yaml".to_owned(), text: text.as_bytes().to_vec(), base: PathBuf::from("/srv/app") }
}

fn good(yaml: &str) -> Vec<Document> {
    load(&[text(yaml)]).unwrap_or_else(|errors| panic!("{}", errors[0]))
}

fn bad(yaml: &str) -> Vec<Diagnostic> {
    load(&[text(yaml)]).expect_err("must be refused")
}

fn directory(path: &Path) -> Input {
    Input::Path { path: path.to_owned(), recursive: false }
}

/// A Process with these lines in its spec, from line 5 on.
fn process(spec: &str) -> String {
    format!("apiVersion: ostler.dev/v1\nkind: Process\nmetadata: {{name: web}}\nspec:\n  command: [x]\n{spec}\n")
}

const OBJECT: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: NAME}\n";

fn namespace(name: &str) -> String {
    OBJECT.replace("NAME", name)
}

#[test]
fn documents_come_in_order_with_their_places_and_empty_ones_are_left_out() {
    let yaml = format!("---\n---\n# nothing\n---\n{}---\n\n{}...\n", namespace("a"), namespace("b"));
    let documents = good(&yaml);
    let seen: Vec<_> = documents.iter().map(|d| (d.name.as_str(), d.origin.line, d.origin.column)).collect();
    assert_eq!(seen, [("a", 5, 1), ("b", 10, 1)]);
    assert_eq!(documents[0].api_version, "v1");
    assert_eq!(documents[0].kind, "Namespace");
    assert_eq!(documents[0].namespace, None);
    assert_eq!(documents[0].origin.file, "web.yaml");
}

#[test]
fn objects_come_as_written_without_defaults() {
    let documents = good(&process("  ports: [{name: http, port: auto}]\n  backoff: {factor: 2.5, max: 1m}"));
    let expected = json!({"apiVersion": "ostler.dev/v1", "kind": "Process", "metadata": {"name": "web"}, "spec": {
        "command": ["x"], "ports": [{"name": "http", "port": "auto"}], "backoff": {"factor": 2.5, "max": "1m"},
        "workingDir": "/srv/app"}});
    assert_eq!(documents[0].json, expected);
}

#[test]
fn fields_are_found_at_their_place_or_at_the_nearest_field_around_it() {
    let yaml = "apiVersion: ostler.dev/v1\nkind: Process\nmetadata:\n  name: web\n  labels:\n    app.kubernetes.io/name: web\n\
                spec:\n  command: [x]\n  ports:\n  - {name: a, port: auto}\n  - name: é\u{7684}\n    port: 80\n";
    let errors = bad(yaml);
    assert_eq!((errors[0].line, errors[0].column), (11, 11));
    let documents = good(&yaml.replace("é\u{7684}", "b"));
    let place = |field| documents[0].place(field);
    assert_eq!(place("spec.ports[1].port"), (12, 11));
    assert_eq!(place("spec.ports[0].port"), (10, 21));
    assert_eq!(place("spec.ports"), (9, 3));
    assert_eq!(place("spec.ports[1].nope.deeper"), (11, 5));
    assert_eq!(place("spec.ports[7].port"), (9, 3));
    assert_eq!(place("spec.workingDir"), (7, 1));
    assert_eq!(place("metadata.labels.app.kubernetes.io/name"), (6, 29));
    assert_eq!(place(""), (1, 1));
    assert_eq!(place("]["), (1, 1));
}

#[test]
fn json_is_read_by_name_and_by_look() {
    let object = r#" {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "annotations": {"x": "\uD83D\uDE00\/"}}}"#;
    for name in ["a.json", "<stdin>"] {
        let text = format!("{object}\n{}", object.replace("\"a\"", "\"b\"")).into_bytes();
        let documents = load(&[Input::Text { name: name.to_owned(), text, base: PathBuf::from("/") }]).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].json["metadata"]["annotations"]["x"], "\u{1f600}/");
        assert_eq!((documents[1].origin.line, documents[1].origin.column), (2, 2));
        assert_eq!(documents[1].place("metadata.name"), (2, 65));
    }
    // YAML may begin with a brace too.
    assert_eq!(good("{apiVersion: v1, kind: Namespace, metadata: {name: a}}").len(), 1);
}

#[test]
fn lists_are_expanded() {
    let yaml = "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: '7'}\nitems:\n- apiVersion: v1\n  kind: Namespace\n  \
                metadata: {name: a}\n- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n";
    let documents = good(yaml);
    assert_eq!(documents[1].name, "b");
    assert_eq!(documents[1].origin.line, 8);
    assert!(good("{apiVersion: v1, kind: List, items: []}").is_empty());
    for (bad_list, message, line) in [
        ("apiVersion: v1\nkind: List\n", "items is missing", 1),
        ("apiVersion: v1\nkind: List\nitems: {}\n", "list of objects", 3),
        ("apiVersion: v1\nkind: List\nitem: []\nitems: []\n", "did you mean \"items\"", 3),
        ("kind: List\nitems: [{kind: Namespac}]\n", "did you mean Namespace", 2),
    ] {
        let errors = bad(bad_list);
        assert!(errors.iter().any(|e| e.message.contains(message) && e.line == line), "{bad_list}: {errors:?}");
    }
}

#[test]
fn what_the_daemon_sets_is_dropped() {
    let yaml = process("  replicas: 2").replace(
        "{name: web}",
        "{name: web, uid: u, resourceVersion: '7', generation: 3, creationTimestamp: null, deletionTimestamp: x, \
             deletionGracePeriodSeconds: 3, managedFields: [{}], ownerReferences: [], finalizers: [a], labels: {a: b}}",
    ) + "status: {anything: at all}\n";
    let documents = good(&yaml);
    assert_eq!(documents[0].json["metadata"], json!({"name": "web", "labels": {"a": "b"}}));
    assert_eq!(documents[0].json.get("status"), None);
    assert!(bad(&yaml.replace("uid: u", "uidd: u"))[0].message.contains("did you mean \"uid\""));
}

#[test]
fn what_was_written_with_its_defaults_can_be_applied_again() {
    let words = [
        "yes",
        "on",
        "0644",
        "1e3",
        "null",
        "~",
        "",
        "a: b",
        "- x",
        "2026-01-31",
        "é\u{1f600}",
        "x\ny\n",
        "\u{1b}",
        "0x1f",
        "<<",
    ];
    let env: Vec<_> = words.iter().enumerate().map(|(n, w)| json!({"name": format!("V{n}"), "value": w})).collect();
    let object = json!({"apiVersion": "ostler.dev/v1", "kind": "Process", "metadata": {"name": "web"},
        "spec": {"command": ["x"], "env": env, "workingDir": "/tmp"}});
    let full = ostler_core::Applicable::from_json(&object).unwrap().to_json();
    let documents = good(&quote_doubtful(&serde_yaml::to_string(&full).unwrap()));
    assert_eq!(documents[0].json["spec"], full["spec"]);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [full]});
    assert_eq!(good(&serde_json::to_string_pretty(&list).unwrap())[0].json["spec"], full["spec"]);
}

#[test]
fn paths_of_a_process_are_resolved_against_its_manifest() {
    for (program, expected) in [
        ("./server", "/srv/app/server"),
        ("bin/server", "/srv/app/bin/server"),
        ("../../../../server", "/server"),
        ("/usr//bin/../bin/x", "/usr/bin/x"),
        ("server", "server"),
        ("$(HOME)/server", "$(HOME)/server"),
    ] {
        let documents = good(&process("").replace("[x]", &format!("[{program}, ./untouched]")));
        assert_eq!(documents[0].json["spec"]["command"], json!([expected, "./untouched"]));
    }
    for (directory, expected) in [("", "/srv/app"), (".", "/srv/app"), ("../data", "/srv/data"), ("/tmp/./x", "/tmp/x")]
    {
        let documents = good(&process(&format!("  workingDir: '{directory}'")));
        assert_eq!(documents[0].json["spec"]["workingDir"], expected);
    }
    assert_eq!(good(&namespace("a"))[0].json.get("spec"), None);
    assert_eq!(bad(&process("  workingDir: 7"))[0].line, 6);
}

#[test]
fn a_file_is_resolved_against_its_own_directory() {
    let temp = tempfile::tempdir().unwrap();
    let deep = temp.path().join("deep");
    fs::create_dir(&deep).unwrap();
    fs::write(deep.join("a.yaml"), process("").replace("[x]", "[./x]")).unwrap();
    let documents = load(&[directory(&temp.path().join("./deep/../deep/a.yaml"))]).unwrap();
    assert_eq!(documents[0].json["spec"]["command"][0], deep.join("x").to_str().unwrap());
    assert_eq!(documents[0].json["spec"]["workingDir"], deep.to_str().unwrap());
}

#[test]
fn directories_are_read_in_order_without_what_is_hidden_or_something_else() {
    let temp = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = temp.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    for name in ["b.yml", "a.yaml", "sub/c.yaml", ".hidden.yaml", ".git/d.yaml", "notes.txt", "z.yaml.bak"] {
        let stem: String = name.chars().filter(char::is_ascii_lowercase).collect();
        write(name, &namespace(&stem));
    }
    write("0.json", r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "zero"}}"#);
    write("empty.yaml", "# nothing yet\n");
    let names = |recursive| {
        let input = Input::Path { path: temp.path().to_owned(), recursive };
        load(&[input]).unwrap().into_iter().map(|d| d.name).collect::<Vec<_>>()
    };
    assert_eq!(names(false), ["zero", "ayaml", "byml"]);
    assert_eq!(names(true), ["zero", "ayaml", "byml", "subcyaml"]);
}

#[test]
fn anchors_and_merge_keys_work() {
    let yaml = process(
        "  stop: &stop {signal: SIGINT, gracePeriod: 5s}\n  env:\n  - &a {name: A, value: &v x}\n  - <<: *a\n    name: B\n  \
         - {<<: [{name: C}, *a]}",
    );
    let documents = good(&yaml);
    assert_eq!(
        documents[0].json["spec"]["env"],
        json!([{"name": "A", "value": "x"}, {"name": "B", "value": "x"}, {"name": "C", "value": "x"}])
    );
    assert!(bad(&process("  stop: {<<: 5s}"))[0].message.contains("merged"));
    assert!(bad(&process("  stop: {<<: {}, <<: {}}"))[0].message.contains("given twice"));
}

/// What a word in YAML is to the reader: text comes through, anything else is named by the error about it.
fn read(yaml: &str) -> Value {
    let object = process(&format!("  env: [{{name: A, value: {yaml}}}]"));
    match load(&[text(&object)]) {
        Ok(documents) => documents[0].json["spec"]["env"][0]["value"].clone(),
        Err(errors) => {
            let message = &errors[0].message;
            let value = message.split('`').nth(1);
            let null = message.contains("null").then_some("null");
            serde_json::from_str(value.or(null).unwrap_or_else(|| panic!("{message}"))).unwrap()
        }
    }
}

#[test]
fn scalars_follow_the_core_schema() {
    for (yaml, value) in [
        ("7", json!(7)),
        ("+7", json!(7)),
        ("-7", json!(-7)),
        ("0x1F", json!(31)),
        ("0o17", json!(15)),
        ("0", json!(0)),
        ("1.5", json!(1.5)),
        (".5", json!(0.5)),
        ("1e3", json!(1000.0)),
        ("18446744073709551615", json!(u64::MAX)),
        ("true", json!(true)),
        ("FALSE", json!(false)),
        ("~", json!(null)),
        ("", json!(null)),
        ("'7'", json!("7")),
        ("\"a\\tb\"", json!("a\tb")),
        ("!!str 7", json!("7")),
        ("! 7", json!("7")),
        ("1.2.3", json!("1.2.3")),
        ("12:30", json!("12:30")),
        ("-x", json!("-x")),
        ("infinity", json!("infinity")),
        ("+", json!("+")),
        ("1_000", json!("1_000")),
        ("'yes'", json!("yes")),
        ("yesterday", json!("yesterday")),
    ] {
        assert_eq!(read(yaml), value, "{yaml}");
    }
    for doubtful in ["yes", "No", "ON", "off", "0644", "-007", ".inf", "-.INF", ".nan", "1e999"] {
        let errors = bad(&process(&format!("  env: [{{name: A, value: {doubtful}}}]")));
        let hint = errors[0].hint.as_ref().unwrap();
        assert!(hint.contains(&format!("in quotes: \"{doubtful}\"")), "{hint}");
        assert_eq!((errors[0].line, errors[0].column), (6, 26));
    }
}

#[test]
fn doubtful_words_are_put_in_quotes_and_nothing_else_is_touched() {
    for (before, after) in [
        ("a: yes\nb: 'no'\nc: [off, 0644, x]\n", "a: yes\nb: 'no'\nc: [off, 0644, x]\n"),
        ("# no\nd: |\n  yes\ne: \"on\"\n", "# no\nd: |\n  yes\ne: \"on\"\n"),
        ("a: {", "a: {"),
    ] {
        let after = after.replace(": yes", ": 'yes'").replace("off", "'off'").replace("0644", "'0644'");
        assert_eq!(quote_doubtful(before), after);
        assert_eq!(quote_doubtful(&after), after);
    }
}

//! Files of each format, with many keys each, and what becomes of them.
//!
//! The expected manifests and notes are beside the inputs. `OSTLER_BLESS=1 cargo test -p ostler-import` writes them anew; read
//! the difference before keeping it.

use std::fs;
use std::path::{Path, PathBuf};

use ostler_import::{Effect, Format, detect, import, to_yaml};
use ostler_manifest::{Input, load};

const FIXTURES: [(&str, Format); 9] = [
    ("hsu-architecture/input.yaml", Format::Hsu),
    ("hsu-programs/input.yaml", Format::Hsu),
    ("process-compose/input.yaml", Format::ProcessCompose),
    ("procfile/Procfile", Format::Procfile),
    ("supervisord/supervisord.conf", Format::Supervisord),
    ("pm2/ecosystem.json", Format::Pm2),
    ("systemd/web@1.service", Format::Systemd),
    ("systemd/mysql.service", Format::Systemd),
    ("systemd/cleanup.service", Format::Systemd),
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Compares a text with the one that is kept, or keeps it.
fn golden(path: &Path, found: &str) {
    if std::env::var_os("OSTLER_BLESS").is_some() {
        fs::write(path, found).unwrap();
        return;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert!(found == expected, "{} is not what came out:\n{found}", path.display());
}

#[test]
fn files_become_the_expected_manifests_and_notes() {
    for (file, format) in FIXTURES {
        let path = fixtures().join(file);
        let text = fs::read_to_string(&path).unwrap();
        let imported = import(file, &text, None).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(imported.format, format, "{file}");
        let notes: Vec<String> = imported.notes.iter().map(|note| format!("{}: {note}\n", note.line)).collect();
        golden(&path.with_extension("expected.yaml"), &to_yaml(&imported.objects).unwrap());
        golden(&path.with_extension("expected.notes"), &notes.concat());
    }
}

#[test]
fn what_is_printed_is_valid_and_reads_back_as_it_was() {
    for (file, _) in FIXTURES {
        let text = fs::read_to_string(fixtures().join(file)).unwrap();
        let objects = import(file, &text, None).unwrap().objects;
        let yaml = to_yaml(&objects).unwrap();
        let input = Input::Text { name: "imported.yaml".to_owned(), text: yaml.into_bytes(), base: "/base".into() };
        let documents = load(&[input]).unwrap_or_else(|found| panic!("{file}: {}", found[0]));
        assert_eq!(documents.len(), objects.len(), "{file}");
        for (document, mut object) in documents.into_iter().zip(objects) {
            if object["kind"] == "Process" {
                let spec = &mut object["spec"];
                let absolute = |path: &str| {
                    let path = path.strip_prefix("./").unwrap_or(path);
                    if path.starts_with('/') { path.to_owned() } else { format!("/base/{path}") }
                };
                let dir = spec["workingDir"].as_str().map_or_else(|| "/base".to_owned(), absolute);
                spec["workingDir"] = dir.into();
                if spec["command"][0].as_str().is_some_and(|program| program.contains('/')) {
                    // A program that climbs out of the directory is compared by its end.
                    let program = spec["command"][0].as_str().unwrap().to_owned();
                    let read = document.json["spec"]["command"][0].as_str().unwrap().to_owned();
                    assert!(read.starts_with('/') && read.ends_with(program.rsplit("./").next().unwrap()), "{read}");
                    spec["command"][0] = read.into();
                }
            }
            assert_eq!(document.json, object, "{file}");
        }
    }
}

#[test]
fn every_line_with_a_key_that_is_unknown_has_a_note() {
    for (file, _) in FIXTURES {
        let text = fs::read_to_string(fixtures().join(file)).unwrap();
        let notes = import(file, &text, None).unwrap().notes;
        for (index, line) in text.lines().enumerate() {
            if ["nonsense", "colour", "unheard_of", "Unheard"].iter().any(|word| line.contains(word)) {
                let number = index as u32 + 1;
                let found = notes.iter().find(|note| note.line == number && note.effect == Effect::Lost);
                assert!(found.is_some_and(|note| note.message.contains("not known")), "{file}:{number}: {notes:?}");
            }
        }
    }
}

#[test]
fn formats_are_told_apart_without_their_names() {
    for (file, format) in FIXTURES {
        let text = fs::read_to_string(fixtures().join(file)).unwrap();
        assert_eq!(detect("<stdin>", &text), Some(format), "{file}");
    }
    assert_eq!(detect("x.service", ""), Some(Format::Systemd));
    assert_eq!(detect("Procfile.dev", ""), Some(Format::Procfile));
    for text in
        ["", "just words\n", "a: {b: c}\n", "apiVersion: v1\nkind: List\nitems:\n- a\n", "[section]\nkey=value\n"]
    {
        assert_eq!(detect("<stdin>", text), None, "{text}");
    }
}

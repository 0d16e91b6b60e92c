//! Whatever comes in: no panic, and every error has a place inside its file.

use std::path::PathBuf;

use ostler_manifest::{Input, load};
use proptest::prelude::*;
use proptest::sample::Index;

const MANIFESTS: [&str; 4] = [
    include_str!("../../../manifests/web.yaml"),
    include_str!("../../../manifests/jobs-like.yaml"),
    include_str!("../../../manifests/namespaces.yaml"),
    r#"{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}]}"#,
];

/// Pieces that mean something to a reader of YAML or JSON.
const PIECES: [&str; 28] = [
    "\t",
    "\n",
    "\r\n",
    "---\n",
    "...\n",
    "  ",
    "- ",
    ": ",
    "? ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&a ",
    "*a",
    "<<: *a\n",
    "!!str ",
    "|\n",
    ">-\n",
    "\"",
    "'",
    "#",
    "%YAML 1.2\n",
    "\u{feff}",
    "\0",
    "yes",
    "\u{85}",
];

fn check(name: &str, text: Vec<u8>) -> Result<(), TestCaseError> {
    let content = String::from_utf8_lossy(&text).into_owned();
    // Line ends as YAML has them.
    let lines = content.replace("\r\n", "\n").replace('\r', "\n").split('\n').count();
    let input = Input::Text { name: name.to_owned(), text, base: PathBuf::from("/") };
    let Err(errors) = load(&[input]) else { return Ok(()) };
    prop_assert!(!errors.is_empty());
    for error in errors {
        let whole = error.message == "there is no object in it" || error.message.contains("UTF-16");
        prop_assert!(
            whole || (error.line >= 1 && error.line as usize <= lines),
            "line {} of {lines}: {error}",
            error.line
        );
        prop_assert!(whole || error.column >= 1);
        prop_assert!(!error.to_string().chars().any(|c| c.is_control() && c != '\n'), "{error}");
    }
    Ok(())
}

/// One change to a text.
#[derive(Clone, Debug)]
enum Change {
    Insert(Index, usize),
    Remove(Index, usize),
    Byte(Index, u8),
    Copy(Index, Index, usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<Index>(), 0..PIECES.len()).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (any::<Index>(), 1..30_usize).prop_map(|(at, length)| Change::Remove(at, length)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (any::<Index>(), any::<Index>(), 1..60_usize).prop_map(|(from, to, length)| Change::Copy(from, to, length)),
    ]
}

fn mutate(text: &mut Vec<u8>, change: &Change) {
    let slots = text.len() + 1;
    match change {
        Change::Insert(at, piece) => {
            let at = at.index(slots);
            text.splice(at..at, PIECES[*piece].bytes());
        }
        Change::Remove(at, length) => {
            let at = at.index(slots);
            text.drain(at..(at + length).min(slots - 1));
        }
        Change::Byte(at, byte) => {
            let at = at.index(slots);
            text.insert(at, *byte);
        }
        Change::Copy(from, to, length) => {
            let from = from.index(slots);
            let copy = text[from..(from + length).min(slots - 1)].to_vec();
            let to = to.index(slots);
            text.splice(to..to, copy);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), json: bool) {
        check(if json { "a.json" } else { "a.yaml" }, bytes)?;
    }

    #[test]
    fn arbitrary_pieces_never_panic(pieces in proptest::collection::vec(0..PIECES.len() + 1, 0..60), json: bool) {
        let text: String = pieces.into_iter().map(|piece| PIECES.get(piece).copied().unwrap_or("word")).collect();
        check(if json { "a.json" } else { "a.yaml" }, text.into_bytes())?;
    }

    #[test]
    fn mutated_manifests_are_read_or_refused_with_a_place(
        which in 0..MANIFESTS.len(), changes in proptest::collection::vec(change(), 1..6),
    ) {
        let mut text = MANIFESTS[which].as_bytes().to_vec();
        for change in &changes {
            mutate(&mut text, change);
        }
        check("a.yaml", text)?;
    }
}

//! What a Source has brought: a durable list beside the object, in parts, because an object may have 1 MiB only.
//!
//! An object is in the list before it is applied, and leaves it after it is deleted. Only what is in the list is ever
//! deleted because it left the directory.

use std::fmt;

use ostler_core::Kind;
use ostler_core::object::{key, parse_key};
use ostler_store::{Expect, Key, Op, Store};

/// Names an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Item {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty where the kind has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Item {
    /// The object's key in the store.
    pub fn key(&self) -> Key {
        key(self.kind, &self.namespace, &self.name).into()
    }

    /// What a key of the store names.
    pub fn parse(key: &str) -> Option<Self> {
        let (kind, namespace, name) = parse_key(key)?;
        Some(Self { kind, namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for Item {
    /// `process/web`, with the namespace in front unless it is "default".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() && self.namespace != "default" {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}/{}", self.kind.singular(), self.name)
    }
}

/// Objects in one part: at most about half a megabyte with the longest names there are.
const PART: usize = 3000;

/// What the keys of the lists of all Sources begin with that have ever had this name.
pub fn of_name(source: &str) -> String {
    format!("inventory/{source}/")
}

/// What the keys of a Source's list begin with. One that is made again under the same name has brought nothing yet.
fn prefix(source: &str, uid: &str) -> String {
    format!("inventory/{source}/{uid}.")
}

/// The number of a part.
fn number(key: &Key) -> Option<usize> {
    key.name().rsplit_once('.')?.1.parse().ok()
}

/// The list, in the order in which the objects were applied.
pub fn read(store: &dyn Store, source: &str, uid: &str) -> Vec<Item> {
    let mut parts = store.list(&prefix(source, uid)).entries;
    parts.sort_by_key(|part| number(&part.key).unwrap_or(usize::MAX));
    let keys = parts.iter().flat_map(|part| serde_json::from_slice::<Vec<String>>(&part.value).unwrap_or_default());
    keys.filter_map(|key| Item::parse(&key)).collect()
}

/// What makes the list this one.
pub fn write(store: &dyn Store, source: &str, uid: &str, items: &[Item]) -> Vec<Op> {
    let known = store.list(&prefix(source, uid)).entries;
    let mut ops = Vec::new();
    let parts = items.chunks(PART).count();
    for (number, part) in items.chunks(PART).enumerate() {
        let keys: Vec<Key> = part.iter().map(Item::key).collect();
        let value = serde_json::to_vec(&keys.iter().map(Key::as_str).collect::<Vec<_>>()).unwrap_or_default();
        let key: Key = format!("{}{number}", prefix(source, uid)).into();
        if !known.iter().any(|entry| entry.key == key && entry.value == value) {
            ops.push(Op::put(key, value, Expect::Any));
        }
    }
    for entry in known {
        if number(&entry.key).is_none_or(|number| number >= parts) {
            ops.push(Op::delete(entry.key, Expect::Any));
        }
    }
    ops
}

#[cfg(test)]
mod tests {
    use ostler_store::{Durability, MemoryStore};

    use super::*;

    fn item(number: usize) -> Item {
        Item { kind: Kind::Process, namespace: "n".repeat(63), name: format!("{number:063}") }
    }

    #[tokio::test]
    async fn long_lists_are_kept_in_parts_that_fit_and_in_their_order() {
        let store = MemoryStore::new();
        let items: Vec<Item> = (0..10_000).rev().map(item).collect();
        let ops = write(&store, "apps", "u1", &items);
        assert!(ops.len() > 1);
        store.commit(ops, Durability::Durable).await.unwrap();
        assert_eq!(read(&store, "apps", "u1"), items);
        assert!(write(&store, "apps", "u1", &items).is_empty(), "what is stored is not written again");
        assert!(read(&store, "app", "u1").is_empty());
        assert!(read(&store, "apps", "u2").is_empty(), "one that is made again has brought nothing");
        store.commit(write(&store, "apps", "u1", &items[..5]), Durability::Durable).await.unwrap();
        assert_eq!(read(&store, "apps", "u1"), items[..5]);
        store.commit(write(&store, "apps", "u1", &[]), Durability::Durable).await.unwrap();
        assert!(store.list(&of_name("apps")).entries.is_empty());
    }
}

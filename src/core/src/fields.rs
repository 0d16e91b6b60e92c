//! Who set which field: server-side apply over plain JSON.
//!
//! Pure. A [`FieldSet`] is a set of leaves. Maps are merged key by key; a list whose items all have a `name` is merged
//! item by item; any other list is one leaf. Published as `fieldsV1`, as in Kubernetes.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// One step into a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// A field of an object.
    Field(String),
    /// The item of a list that has this name.
    Item(String),
}

/// The way to a leaf.
pub type Path = Vec<Step>;

/// Leaves, by their paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(BTreeSet<Path>);

/// Somebody else set a field to another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Who.
    pub manager: String,
    /// Which field.
    pub path: Path,
}

impl FromIterator<Path> for FieldSet {
    fn from_iter<I: IntoIterator<Item = Path>>(paths: I) -> Self {
        Self(paths.into_iter().collect())
    }
}

impl FieldSet {
    /// The leaves of a value.
    pub fn of(value: &Value) -> Self {
        let mut set = Self::default();
        collect(value, &mut Vec::new(), &mut set.0);
        set
    }

    /// The leaves as people write them.
    pub fn shown(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|path| show(path))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the leaves of another set.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Takes away what is in another set, or lies below or above it: a value that became a map is a field all the same.
    pub fn remove(&mut self, other: &Self) {
        self.0.retain(|path| !other.touches(path));
    }

    /// Whether the set has this leaf, one above it, or one below it.
    fn touches(&self, path: &[Step]) -> bool {
        (0..path.len()).any(|length| self.0.contains(&path[..length])) || self.covers(path)
    }

    /// Whether the set has this leaf or one below it.
    fn covers(&self, path: &[Step]) -> bool {
        self.0.range(path.to_vec()..).next().is_some_and(|next| next.starts_with(path))
    }

    /// As `fieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut root = Map::new();
        for path in &self.0 {
            let mut place = &mut root;
            for step in path {
                let key = match step {
                    Step::Field(name) => format!("f:{name}"),
                    Step::Item(name) => format!("k:{}", serde_json::json!({ "name": name })),
                };
                let next = place.entry(key).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(next) = next else { unreachable!("only objects are inserted") };
                place = next;
            }
        }
        Value::Object(root)
    }

    /// From `fieldsV1`; what is not understood is left out.
    pub fn from_json(value: &Value) -> Self {
        fn walk(value: &Value, path: &mut Path, set: &mut BTreeSet<Path>) {
            let Value::Object(map) = value else { return };
            if map.is_empty() && !path.is_empty() {
                set.insert(path.clone());
            }
            for (key, below) in map {
                let step = if let Some(name) = key.strip_prefix("f:") {
                    Step::Field(name.to_owned())
                } else if let Some(item) = key.strip_prefix("k:")
                    && let Ok(item) = serde_json::from_str::<Value>(item)
                    && let Some(name) = item["name"].as_str()
                {
                    Step::Item(name.to_owned())
                } else {
                    continue;
                };
                path.push(step);
                walk(below, path, set);
                path.pop();
            }
        }
        let mut set = Self::default();
        walk(value, &mut Vec::new(), &mut set.0);
        set
    }
}

/// A path as people write it.
pub fn show(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Field(name) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(name);
            }
            Step::Item(name) => {
                text.push('[');
                text.push_str(name);
                text.push(']');
            }
        }
    }
    text
}

/// What an object has that neither its manifest says nor the object before had: topmost fields, scalars with their values.
pub fn defaulted(after: &Value, manifest: &Value, before: &Value) -> Vec<String> {
    fn walk(after: &Value, manifest: &Value, before: &Value, path: &str, found: &mut Vec<String>) {
        let Value::Object(fields) = after else { return };
        for (key, value) in fields {
            let place = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let missing = |value: &Value| value.get(key).is_none_or(Value::is_null);
            match value {
                _ if !missing(manifest) => walk(value, &manifest[key], &before[key], &place, found),
                _ if !missing(before) => {}
                Value::Null => {}
                Value::Object(map) if map.is_empty() => {}
                Value::Array(items) if items.is_empty() => {}
                Value::String(text) => found.push(format!("{place}={text}")),
                Value::Number(_) | Value::Bool(_) => found.push(format!("{place}={value}")),
                Value::Object(_) | Value::Array(_) => found.push(place),
            }
        }
    }
    let mut found = Vec::new();
    walk(after, manifest, before, "", &mut found);
    found
}

/// What applying comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// The object's new content.
    pub value: Value,
    /// What the manager owns from now on.
    pub owned: FieldSet,
    /// Fields that other managers had set to other values; nothing may be written unless they are overruled.
    pub conflicts: Vec<Conflict>,
}

/// Applies `config` of one manager to `live`: its fields are set; what the manager owned before (`owned`) and no longer
/// mentions is removed unless somebody else (`others`) owns it, too.
pub fn apply(live: &Value, config: &Value, owned: &FieldSet, others: &[(String, FieldSet)]) -> Merged {
    let wanted = FieldSet::of(config);
    let mut conflicts = Vec::new();
    for path in &wanted.0 {
        if agrees(get(live, path), get(config, path)) {
            continue;
        }
        for (manager, set) in others {
            if set.touches(path) {
                conflicts.push(Conflict { manager: manager.clone(), path: path.clone() });
            }
        }
    }
    let mut value = live.clone();
    for path in &owned.0 {
        let is_free = |path: &[Step]| !wanted.covers(path) && !others.iter().any(|(_, set)| set.touches(path));
        if is_free(path) {
            // With a block that nobody mentions any more go the defaults that were filled in beside what was. A list is no
            // such block: its other items may have come by themselves.
            let least = if path[0] == Step::Field("metadata".to_owned()) { 3 } else { 2 };
            let whole = (least..path.len())
                .find(|length| matches!(path[*length], Step::Field(_)) && is_free(&path[..*length]))
                .unwrap_or(path.len());
            remove(&mut value, &path[..whole]);
        }
    }
    for path in &wanted.0 {
        if let Some(leaf) = get(config, path).filter(|leaf| !agrees(get(&value, path), Some(leaf))) {
            set(&mut value, path, leaf.clone());
        }
    }
    Merged { value, owned: wanted, conflicts }
}

/// Whether a value is what is asked for; `{}` asks for a map, whatever is in it.
fn agrees(live: Option<&Value>, wanted: Option<&Value>) -> bool {
    live == wanted
        || (live.is_some_and(Value::is_object) && *wanted.unwrap_or(&Value::Null) == Value::Object(Map::new()))
}

/// The leaves that an update from one value to another set anew, and those it took away.
pub fn changes(before: &Value, after: &Value) -> (FieldSet, FieldSet) {
    let (old, new) = (FieldSet::of(before), FieldSet::of(after));
    let set = new.0.iter().filter(|path| get(before, path) != get(after, path)).cloned().collect();
    let gone = old.0.into_iter().filter(|path| get(after, path).is_none()).collect();
    (FieldSet(set), FieldSet(gone))
}

fn collect(value: &Value, path: &mut Path, set: &mut BTreeSet<Path>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, below) in map {
                path.push(Step::Field(key.clone()));
                collect(below, path, set);
                path.pop();
            }
        }
        Value::Array(items) => match names(items) {
            Some(names) => {
                for (name, item) in names.into_iter().zip(items) {
                    path.push(Step::Item(name.to_owned()));
                    collect(item, path, set);
                    path.pop();
                }
            }
            None => drop(set.insert(path.clone())),
        },
        _ => drop(set.insert(path.clone())),
    }
}

/// The names of the items, if each has one and no two the same.
fn names(items: &[Value]) -> Option<Vec<&str>> {
    let names: Option<Vec<&str>> = items.iter().map(|item| item.get("name")?.as_str()).collect();
    let names = names.filter(|names| !names.is_empty())?;
    let distinct: BTreeSet<&&str> = names.iter().collect();
    (distinct.len() == names.len()).then_some(names)
}

/// What is at a path.
pub fn get<'a>(value: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Field(name) => value.get(name),
        Step::Item(name) => value.as_array()?.iter().find(|item| item["name"] == name.as_str()),
    })
}

fn set(value: &mut Value, path: &[Step], leaf: Value) {
    let Some((step, rest)) = path.split_first() else {
        *value = leaf;
        return;
    };
    match step {
        Step::Field(name) => {
            if !value.is_object() {
                *value = Value::Object(Map::new());
            }
            if let Value::Object(map) = value {
                set(map.entry(name.clone()).or_insert(Value::Null), rest, leaf);
            }
        }
        Step::Item(name) => {
            if value.as_array().is_none_or(|items| !items.is_empty() && names(items).is_none()) {
                *value = Value::Array(Vec::new());
            }
            if let Value::Array(items) = value {
                let at = items.iter().position(|item| item["name"] == name.as_str()).unwrap_or_else(|| {
                    items.push(serde_json::json!({ "name": name }));
                    items.len() - 1
                });
                set(&mut items[at], rest, leaf);
            }
        }
    }
}

/// Removes a leaf, and what is empty without it.
fn remove(value: &mut Value, path: &[Step]) {
    let Some((step, rest)) = path.split_first() else { return };
    match step {
        Step::Field(name) => {
            let Value::Object(map) = value else { return };
            if rest.is_empty() {
                map.remove(name);
            } else if let Some(below) = map.get_mut(name) {
                remove(below, rest);
                let is_empty = match below {
                    Value::Object(map) => map.is_empty(),
                    Value::Array(items) => items.is_empty(),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
                };
                if is_empty {
                    map.remove(name);
                }
            }
        }
        Step::Item(name) => {
            let Value::Array(items) = value else { return };
            if let Some(at) = items.iter().position(|item| item["name"] == name.as_str()) {
                if rest.is_empty() || rest == [Step::Field("name".to_owned())] {
                    items.remove(at);
                } else {
                    remove(&mut items[at], rest);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_filled_in_is_named_by_its_topmost_field() {
        let manifest = serde_json::json!({"spec": {"command": ["a"], "stop": {"signal": "SIGINT"}}});
        let after = serde_json::json!({"spec": {"command": ["a"], "replicas": 1, "backoff": {"max": "5m"}, "env": [],
            "stop": {"signal": "SIGINT", "gracePeriod": "10s"}}});
        let found = defaulted(&after, &manifest, &Value::Null);
        assert_eq!(found, ["spec.backoff", "spec.replicas=1", "spec.stop.gracePeriod=10s"]);
        let before = serde_json::json!({"spec": {"replicas": 1, "backoff": {"max": "5m"}}});
        assert_eq!(defaulted(&after, &manifest, &before), ["spec.stop.gracePeriod=10s"]);
    }

    fn owned(value: &Value) -> FieldSet {
        FieldSet::of(value)
    }

    #[test]
    fn sets_survive_being_written_down() {
        let set = owned(&json!({"spec": {"replicas": 2, "command": ["a", "b"], "env": [{"name": "A", "value": "1"}],
            "stop": {"signal": "SIGINT"}, "ports": []}, "metadata": {"labels": {"app.kubernetes.io/x": "y"}}}));
        assert_eq!(FieldSet::from_json(&set.to_json()), set);
        assert_eq!(set.to_json()["f:spec"]["f:command"], json!({}));
        assert_eq!(set.to_json()["f:spec"]["f:env"]["k:{\"name\":\"A\"}"], json!({"f:name": {}, "f:value": {}}));
    }

    #[test]
    fn a_field_of_somebody_else_stays() {
        let live =
            json!({"spec": {"command": ["a"], "replicas": 5}, "metadata": {"labels": {"mine": "1", "theirs": "2"}}});
        let before = json!({"spec": {"command": ["a"]}, "metadata": {"labels": {"mine": "1"}}});
        let config = json!({"spec": {"command": ["b"]}});
        let merged = apply(&live, &config, &owned(&before), &[]);
        assert!(merged.conflicts.is_empty());
        assert_eq!(
            merged.value,
            json!({"spec": {"command": ["b"], "replicas": 5}, "metadata": {"labels": {"theirs": "2"}}})
        );
    }

    #[test]
    fn setting_what_somebody_else_set_otherwise_is_a_conflict_and_agreeing_is_not() {
        let live = json!({"spec": {"replicas": 5, "command": ["a"]}});
        let others = [("ostler scale".to_owned(), owned(&json!({"spec": {"replicas": 5}})))];
        let merged = apply(&live, &json!({"spec": {"replicas": 3, "command": ["a"]}}), &FieldSet::default(), &others);
        assert_eq!(merged.conflicts.len(), 1);
        assert_eq!(
            (merged.conflicts[0].manager.as_str(), show(&merged.conflicts[0].path).as_str()),
            ("ostler scale", "spec.replicas")
        );
        let merged = apply(&live, &json!({"spec": {"replicas": 5}}), &FieldSet::default(), &others);
        assert!(merged.conflicts.is_empty());
    }

    #[test]
    fn items_of_a_list_are_merged_by_name() {
        let live = json!({"spec": {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}});
        let others = [("editor".to_owned(), owned(&json!({"spec": {"env": [{"name": "B", "value": "2"}]}})))];
        let before = json!({"spec": {"env": [{"name": "A", "value": "1"}]}});
        let merged = apply(&live, &json!({"spec": {"env": [{"name": "C", "value": "3"}]}}), &owned(&before), &others);
        assert_eq!(merged.value["spec"]["env"], json!([{"name": "B", "value": "2"}, {"name": "C", "value": "3"}]));
        let merged = apply(&live, &json!({"spec": {}}), &owned(&before), &[]);
        assert_eq!(merged.value["spec"]["env"], json!([{"name": "B", "value": "2"}]));
    }

    #[test]
    fn what_nobody_mentions_any_more_is_removed_but_not_what_two_own() {
        let live = json!({"spec": {"user": "app", "group": "app"}});
        let mine = owned(&json!({"spec": {"user": "app", "group": "app"}}));
        let others = [("other".to_owned(), owned(&json!({"spec": {"group": "app"}})))];
        let merged = apply(&live, &json!({"spec": {"command": ["x"]}}), &mine, &others);
        assert_eq!(merged.value, json!({"spec": {"group": "app", "command": ["x"]}}));
    }

    #[test]
    fn a_block_that_is_left_out_goes_with_the_defaults_in_it() {
        let live = json!({"spec": {"stop": {"signal": "SIGINT", "gracePeriod": "10s"}, "command": ["a"]}});
        let before = owned(&json!({"spec": {"stop": {"signal": "SIGINT"}, "command": ["a"]}}));
        let merged = apply(&live, &json!({"spec": {"command": ["a"]}}), &before, &[]);
        assert_eq!(merged.value, json!({"spec": {"command": ["a"]}}));
        let others = [("editor".to_owned(), owned(&json!({"spec": {"stop": {"gracePeriod": "10s"}}})))];
        let merged = apply(&live, &json!({"spec": {"command": ["a"]}}), &before, &others);
        assert_eq!(merged.value, json!({"spec": {"command": ["a"], "stop": {"gracePeriod": "10s"}}}));
    }

    #[test]
    fn an_empty_map_asks_for_the_map_and_not_for_its_emptiness() {
        let live = json!({"spec": {"circuitBreaker": {"failures": 3}, "command": ["a"]}});
        let others = [("editor".to_owned(), owned(&json!({"spec": {"circuitBreaker": {"failures": 3}}})))];
        let merged = apply(&live, &json!({"spec": {"circuitBreaker": {}}}), &FieldSet::default(), &others);
        assert!(merged.conflicts.is_empty());
        assert_eq!(merged.value, live);
        let merged = apply(&json!({"spec": {}}), &json!({"spec": {"circuitBreaker": {}}}), &FieldSet::default(), &[]);
        assert_eq!(merged.value, json!({"spec": {"circuitBreaker": {}}}));
    }

    #[test]
    fn an_atomic_list_belongs_to_who_set_it() {
        let live = json!({"spec": {"command": ["a", "b"]}});
        let others = [("other".to_owned(), owned(&live))];
        let merged = apply(&live, &json!({"spec": {"command": ["a", "c"]}}), &FieldSet::default(), &others);
        assert_eq!(show(&merged.conflicts[0].path), "spec.command");
        assert_eq!(merged.value, json!({"spec": {"command": ["a", "c"]}}));
    }

    #[test]
    fn an_update_owns_what_it_changed_and_disowns_what_it_removed() {
        let (set, gone) = changes(
            &json!({"spec": {"replicas": 1, "user": "app", "command": ["a"]}}),
            &json!({"spec": {"replicas": 2, "command": ["a"]}}),
        );
        assert_eq!(set, owned(&json!({"spec": {"replicas": 2}})));
        assert_eq!(gone, owned(&json!({"spec": {"user": "app"}})));
        let mut known = owned(&json!({"spec": {"replicas": 1, "command": ["a"]}}));
        known.remove(&set);
        assert_eq!(known, owned(&json!({"spec": {"command": ["a"]}})));
    }
}

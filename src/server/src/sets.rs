//! Sets: what `ostler apply --set NAME` brings belongs together, and `--prune` deletes what is no longer brought.
//!
//! Membership is a label that only Ostler writes, so the members are what the store says, with no list beside it that
//! could be out of step. What is applied, and what is deleted because of it, is decided together and committed at once.

use std::collections::{BTreeMap, HashSet};

use ostler_core::graph::{self, Edges, Node};
use ostler_core::kinds::{DeletionLimit, Job, Process, SET, SOURCE};
use ostler_core::object::key;
use ostler_core::{Applicable, Kind, Metadata, name};
use ostler_gitops::plan::{self, Policy};
use ostler_gitops::{Item, inhabitants};
use ostler_store::{Op, Store};
use serde::Deserialize;

use crate::apply::{Decided, Wanted};
use crate::error::{ApiError, Reason};
use crate::ownership::Mode;
use crate::service::Service;

/// The set of a request, and what happens to what left it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set<'a> {
    pub(crate) name: &'a str,
    /// It is deleted.
    pub(crate) prune: bool,
    /// However much it is.
    pub(crate) allow: bool,
}

impl Set<'_> {
    /// Whether the set may be applied so.
    pub(crate) fn check(self, wanted: &[Wanted]) -> Result<(), ApiError> {
        name::dns_label(self.name)
            .map_err(|why| ApiError::bad(format!("the name of the set, {:?}: {why}", self.name)))?;
        if self.prune && wanted.is_empty() {
            return Err(ApiError::bad("nothing is pruned because there is nothing to apply")
                .hint(format!("`ostler delete` with -l {SET}={} deletes all of a kind", self.name)));
        }
        Ok(())
    }
}

/// Whether an object that exists may be written with this membership; what keeps it otherwise.
pub(crate) fn claim(store: &dyn Store, set: Option<&str>, live: &Applicable, mode: Mode) -> Result<(), String> {
    let Some(wanted) = set else { return Ok(()) };
    let metadata = live.metadata();
    let current = metadata.labels.get(SET);
    match mode {
        Mode::Update if current.is_some_and(|current| current == wanted) => Ok(()),
        Mode::Update => Err(format!("the label {SET} is set by `ostler apply --set`; it can only be taken away")),
        Mode::Apply { .. } => {
            if let Some(source) = source_of(store, &metadata.annotations) {
                return Err(format!(
                    "it belongs to source/{source}, which keeps it applied, and cannot be brought by the set \
                     {wanted:?} too; take it out of the directory of the source, or out of the manifests"
                ));
            }
            match current {
                Some(other) if other != wanted => Err(format!(
                    "it belongs to the set {other:?}, which brought it first; to take it out of that set: ostler label \
                     {}/{} {SET}-",
                    live.kind().singular(),
                    metadata.name
                )),
                Some(_) | None => Ok(()),
            }
        }
    }
}

/// The set that an object is in when it is written over another one.
pub(crate) fn membership(new: &Applicable, old: &Metadata, mode: Mode) -> Option<String> {
    let metadata = new.metadata();
    let wanted = metadata.labels.get(SET).cloned();
    match mode {
        Mode::Update => wanted,
        // A Source takes what it brings, whoever brought it before.
        Mode::Apply { .. } if metadata.annotations.contains_key(SOURCE) => wanted,
        Mode::Apply { .. } => wanted.or_else(|| old.labels.get(SET).cloned()),
    }
}

/// The Source that keeps an object applied.
fn source_of<'a>(store: &dyn Store, annotations: &'a BTreeMap<String, String>) -> Option<&'a str> {
    let source = annotations.get(SOURCE)?;
    store.get(&key(Kind::Source, "", source).into()).map(|_| source.as_str())
}

impl Service {
    /// Decides what leaves a set: the operations that delete it.
    pub(crate) fn prune(&self, set: Set<'_>, dry_run: bool, decided: &mut Decided) -> Result<Vec<Op>, ApiError> {
        let applied = decided.objects.iter().map(|object| Item {
            kind: object.kind,
            namespace: object.namespace.clone(),
            name: object.name.clone(),
        });
        let applied: HashSet<Item> = applied.collect();
        let members = members(&*self.store, set.name);
        let plan = |allowed: bool| {
            let policy = Policy { prune: true, limit: DeletionLimit::default(), allowed };
            plan::prune(&members, |item| applied.contains(item), policy, |_| true, |it| inhabitants(&*self.store, it))
        };
        let (pruned, refused) = match plan(set.allow) {
            Ok(pruned) => (pruned, String::new()),
            Err(why) => {
                let message = format!("of the set {:?}, {why}; nothing was changed", set.name);
                if !dry_run {
                    let hint = "add --allow-prune if that is what you want; `ostler diff --prune` shows it";
                    return Err(ApiError::new(Reason::Forbidden, message).hint(hint));
                }
                (plan(true).unwrap_or_default(), message)
            }
        };
        let mut ops = Vec::new();
        for item in &pruned.delete {
            if let Some(entry) = self.store.get(&item.key()) {
                ops.extend(self.deletion(item.kind, &entry, None)?);
            }
        }
        (decided.pruned, decided.kept, decided.refused) = (pruned.delete, pruned.keep, refused);
        Ok(ops)
    }
}

/// The part of an object that says whether it is of a set.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    metadata: Meta,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    deletion_timestamp: Option<String>,
    creation_timestamp: Option<String>,
    owner_references: Vec<serde::de::IgnoredAny>,
}

/// What a set has brought and still has: first what others need.
fn members(store: &dyn Store, set: &str) -> Vec<Item> {
    let mut members = Vec::new();
    let mut edges = Edges::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_applicable()) {
        for entry in store.list(&format!("{}/", kind.plural())).entries {
            // Most objects are in no set, and need not be read.
            if !contains(&entry.value, SET) {
                continue;
            }
            let Head { metadata } = serde_json::from_slice(&entry.value).unwrap_or_default();
            let is_member = metadata.labels.get(SET).is_some_and(|other| other == set);
            let goes = metadata.deletion_timestamp.is_some();
            // What a CronJob has made of a template with the label is the CronJob's.
            if !is_member || goes || !metadata.owner_references.is_empty() {
                continue;
            }
            if source_of(store, &metadata.annotations).is_some() {
                continue;
            }
            let Some(item) = Item::parse(entry.key.as_str()) else { continue };
            let depends_on = match kind {
                Kind::Process => serde_json::from_slice(&entry.value).map(|it: Process| it.spec.depends_on),
                Kind::Job => {
                    serde_json::from_slice(&entry.value).map(|it: Job| it.spec.template.spec().depends_on.clone())
                }
                Kind::Namespace
                | Kind::ConfigMap
                | Kind::Secret
                | Kind::CronJob
                | Kind::Instance
                | Kind::Source
                | Kind::External
                | Kind::Event => Ok(Vec::new()),
            };
            let node = node(&item);
            let on = depends_on.unwrap_or_default().iter().map(|it| Node::of(it, &item.namespace)).collect();
            edges.insert(node, on);
            members.push((item, metadata.creation_timestamp));
        }
    }
    let heights = graph::heights(&edges);
    members.sort_by_cached_key(|(item, created)| {
        (rank(item.kind), heights.get(&node(item)).copied().unwrap_or(0), created.clone(), item.name.clone())
    });
    members.into_iter().map(|(item, _)| item).collect()
}

fn contains(json: &[u8], word: &str) -> bool {
    json.windows(word.len()).any(|window| window == word.as_bytes())
}

fn node(item: &Item) -> Node {
    Node::new(item.kind, item.namespace.as_str(), item.name.as_str())
}

/// What has to be there before others, whatever they say.
fn rank(kind: Kind) -> u8 {
    match kind {
        Kind::Namespace => 0,
        Kind::ConfigMap | Kind::Secret => 1,
        Kind::Process | Kind::Job | Kind::CronJob | Kind::Source | Kind::External | Kind::Instance | Kind::Event => 2,
    }
}

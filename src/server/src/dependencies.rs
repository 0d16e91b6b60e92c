//! Refuses dependencies that go round in a circle: each would wait for the next for ever.

use std::collections::BTreeSet;
use std::sync::Arc;

use ostler_core::graph::{self, Edges, Node};
use ostler_core::kinds::{Dependency, Job, Process};
use ostler_core::{Applicable, Kind};
use ostler_store::{Expect, Key, Op, Store};

use crate::error::Cause;
use crate::select::Selection;

/// Written with every change that adds dependencies. Two of them at the same time could each add half of a cycle.
const GUARD: &str = "meta//dependencies";

/// What an object depends on.
fn depends_on(object: &Applicable) -> &[Dependency] {
    match object {
        Applicable::Process(process) => &process.spec.depends_on,
        Applicable::Job(job) => &job.spec.template.spec().depends_on,
        Applicable::Namespace(_)
        | Applicable::ConfigMap(_)
        | Applicable::Secret(_)
        | Applicable::CronJob(_)
        | Applicable::Source(_)
        | Applicable::External(_) => &[],
    }
}

/// Complains of the objects whose dependencies come back to them, once they are stored; what is to be stored with them
/// lest another request adds the other half of a cycle.
pub(crate) fn check(store: &Arc<dyn Store>, wanted: &[&Applicable], causes: &mut Vec<Cause>) -> Option<Op> {
    let namespaces: BTreeSet<&str> = wanted
        .iter()
        .filter(|object| !depends_on(object).is_empty())
        .map(|object| object.metadata().namespace.as_str())
        .collect();
    if namespaces.is_empty() {
        return None;
    }
    let key: Key = GUARD.into();
    let expect = store.get(&key).map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
    for namespace in namespaces {
        let mut edges = stored(store, namespace);
        let here = || wanted.iter().copied().enumerate().filter(|(_, object)| object.metadata().namespace == namespace);
        for (_, object) in here() {
            let node = Node::new(object.kind(), object.metadata().name.as_str());
            edges.insert(node, depends_on(object).iter().map(Node::of).collect());
        }
        let mut told: BTreeSet<Node> = BTreeSet::new();
        for (index, object) in here().filter(|(_, object)| !depends_on(object).is_empty()) {
            let node = Node::new(object.kind(), object.metadata().name.as_str());
            let Some(cycle) = graph::cycle(&edges, &node) else { continue };
            // One complaint for each cycle is enough.
            if cycle.iter().any(|node| told.contains(node)) {
                continue;
            }
            let next = cycle.iter().position(|other| *other == node).and_then(|at| cycle.get(at + 1).or(cycle.get(1)));
            let place = depends_on(object).iter().position(|it| next.is_some_and(|next| Node::of(it) == *next));
            let path = if object.kind() == Kind::Job { "spec.template.dependsOn" } else { "spec.dependsOn" };
            causes.push(Cause {
                object: index,
                field: place.map_or_else(|| path.to_owned(), |place| format!("{path}[{place}]")),
                message: format!("a cycle, in which each waits for the next: {}", graph::path(&cycle)),
            });
            told.extend(cycle);
        }
    }
    Some(Op::put(key, Vec::new(), expect))
}

/// What is in the store already.
fn stored(store: &Arc<dyn Store>, namespace: &str) -> Edges {
    let mut edges = Edges::new();
    let nodes = |dependencies: &[Dependency]| dependencies.iter().map(Node::of).collect::<Vec<_>>();
    for entry in store.list(&Selection::all(Kind::Process, namespace).prefix()).entries {
        if let Ok(process) = serde_json::from_slice::<Process>(&entry.value) {
            edges.insert(Node::new(Kind::Process, entry.key.name()), nodes(&process.spec.depends_on));
        }
    }
    for entry in store.list(&Selection::all(Kind::Job, namespace).prefix()).entries {
        if let Ok(job) = serde_json::from_slice::<Job>(&entry.value) {
            edges.insert(Node::new(Kind::Job, entry.key.name()), nodes(&job.spec.template.spec().depends_on));
        }
    }
    edges
}

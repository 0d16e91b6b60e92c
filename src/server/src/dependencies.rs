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
    if wanted.iter().all(|object| depends_on(object).is_empty()) {
        return None;
    }
    let key: Key = GUARD.into();
    let expect = store.get(&key).map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
    let node = |object: &Applicable| {
        let metadata = object.metadata();
        Node::new(object.kind(), metadata.namespace.as_str(), metadata.name.as_str())
    };
    let on = |object: &Applicable| -> Vec<Node> {
        depends_on(object).iter().map(|it| Node::of(it, &object.metadata().namespace)).collect()
    };
    let new: Edges = wanted.iter().map(|object| (node(object), on(object))).collect();
    let edges = with_stored(store, &new);
    let mut told: BTreeSet<Node> = BTreeSet::new();
    for (index, object) in wanted.iter().enumerate().filter(|(_, object)| !depends_on(object).is_empty()) {
        let node = node(object);
        let Some(cycle) = graph::cycle(&edges, &node) else { continue };
        // One complaint for each cycle is enough.
        if cycle.iter().any(|node| told.contains(node)) {
            continue;
        }
        let next = cycle.iter().position(|other| *other == node).and_then(|at| cycle.get(at + 1).or(cycle.get(1)));
        let place = on(object).iter().position(|it| next.is_some_and(|next| it == next));
        let path = if object.kind() == Kind::Job { "spec.template.dependsOn" } else { "spec.dependsOn" };
        causes.push(Cause {
            object: index,
            field: place.map_or_else(|| path.to_owned(), |place| format!("{path}[{place}]")),
            message: format!("a cycle, in which each waits for the next: {}", graph::path(&cycle)),
        });
        told.extend(cycle);
    }
    Some(Op::put(key, Vec::new(), expect))
}

/// New edges, and those in the store of every namespace that they lead to.
fn with_stored(store: &Arc<dyn Store>, new: &Edges) -> Edges {
    let mut edges = Edges::new();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let starts = new.iter().filter(|(_, on)| !on.is_empty()).flat_map(|(node, on)| [node].into_iter().chain(on));
    let mut open: BTreeSet<String> = starts.map(|node| node.namespace.clone()).collect();
    while let Some(namespace) = open.pop_first() {
        let found = stored(store, &namespace);
        open.extend(found.values().flatten().map(|node| &node.namespace).filter(|it| !seen.contains(*it)).cloned());
        seen.insert(namespace);
        open.retain(|namespace| !seen.contains(namespace));
        edges.extend(found);
    }
    edges.extend(new.iter().map(|(node, on)| (node.clone(), on.clone())));
    edges
}

/// What is in the store already.
fn stored(store: &Arc<dyn Store>, namespace: &str) -> Edges {
    let mut edges = Edges::new();
    let nodes = |dependencies: &[Dependency]| dependencies.iter().map(|it| Node::of(it, namespace)).collect::<Vec<_>>();
    for entry in store.list(&Selection::all(Kind::Process, namespace).prefix()).entries {
        if let Ok(process) = serde_json::from_slice::<Process>(&entry.value) {
            edges.insert(Node::new(Kind::Process, namespace, entry.key.name()), nodes(&process.spec.depends_on));
        }
    }
    for entry in store.list(&Selection::all(Kind::Job, namespace).prefix()).entries {
        if let Ok(job) = serde_json::from_slice::<Job>(&entry.value) {
            let on = nodes(&job.spec.template.spec().depends_on);
            edges.insert(Node::new(Kind::Job, namespace, entry.key.name()), on);
        }
    }
    edges
}

//! What applying would do to running things, and in which order: hands the planners a world as it would be then.

use std::collections::{BTreeMap, BTreeSet};

use ostler_core::forecast::{Declared, Forecast, Member, forecast};
use ostler_core::graph::Node;
use ostler_core::kinds::{Instance, Job, Namespace, Process};
use ostler_core::object::key;
use ostler_core::{Kind, config};
use ostler_gitops::Item;

use crate::apply::{Applied, Outcome};
use crate::select::Selection;
use crate::service::{Service, now};

impl Service {
    /// What happens to instances when these objects are applied and those deleted. Of a dry run.
    pub(crate) fn forecast(&self, applied: &[Applied], pruned: &[Item]) -> Forecast {
        let mut declared: BTreeMap<Node, Declared> = BTreeMap::new();
        for object in applied.iter().filter(|object| object.outcome != Outcome::Unchanged) {
            if let Some(known) = parse(object.kind, &object.after) {
                declared.insert(known.node(), known);
            }
        }
        for object in applied.iter().filter(|object| object.outcome == Outcome::Configured) {
            self.reconfigured(object, applied, &mut declared);
        }
        for item in pruned.iter().chain(&self.inside(pruned)) {
            let stored = self.store.get(&item.key());
            let Some(mut going) = stored.and_then(|entry| parse(item.kind, &entry.value)) else { continue };
            let metadata = match &mut going {
                Declared::Process(process) => &mut process.metadata,
                Declared::Job(job) => &mut job.metadata,
            };
            metadata.deletion_timestamp = metadata.deletion_timestamp.or(Some(now()));
            declared.insert(going.node(), going);
        }
        if declared.is_empty() {
            return Forecast::default();
        }
        // What they wait for is as it is, and so is what that waits for.
        let mut open: Vec<Node> = declared.keys().cloned().collect();
        while let Some(node) = open.pop() {
            let Some(known) = declared.get(&node) else { continue };
            let targets: Vec<Node> = known.depends_on().iter().map(|it| Node::of(it, &node.namespace)).collect();
            for target in targets {
                if !declared.contains_key(&target)
                    && let Some(entry) = self.store.get(&key(target.kind, &target.namespace, &target.name).into())
                    && let Some(known) = parse(target.kind, &entry.value)
                {
                    declared.insert(target.clone(), known);
                    open.push(target);
                }
            }
        }
        let going = pruned.iter().filter(|item| item.kind == Kind::Namespace).map(|item| item.name.as_str());
        let going: BTreeSet<&str> = going.collect();
        let member = |(node, object): (Node, Declared)| Member {
            instances: self.instances_to_foretell(&node),
            namespace_goes: going.contains(node.namespace.as_str()) || self.goes(&node.namespace),
            object,
        };
        forecast(declared.into_iter().map(member).collect(), now())
    }

    /// Processes that are replaced because a ConfigMap or Secret of theirs is another one.
    fn reconfigured(&self, object: &Applied, applied: &[Applied], declared: &mut BTreeMap<Node, Declared>) {
        let Some(origin) = config::Origin::of(object.kind) else { return };
        let restarts = |process: &Process| config::restarts_on(&process.spec, origin, &object.name);
        let stored = self.store.list(&Selection::all(Kind::Process, &object.namespace).prefix()).entries;
        let known = applied.iter().filter(|it| it.kind == Kind::Process && it.namespace == object.namespace);
        let known: BTreeMap<&str, &[u8]> = known.map(|it| (it.name.as_str(), &*it.after)).collect();
        let names: BTreeSet<&str> = stored.iter().map(|entry| entry.key.name()).chain(known.keys().copied()).collect();
        let stored: BTreeMap<&str, &[u8]> = stored.iter().map(|entry| (entry.key.name(), &*entry.value)).collect();
        for name in names {
            let node = Node::new(Kind::Process, object.namespace.as_str(), name);
            if !declared.contains_key(&node)
                && let Some(other) = known.get(name).or_else(|| stored.get(name))
                && let Some(Declared::Process(process)) = parse(Kind::Process, other)
                && restarts(&process)
            {
                declared.insert(node.clone(), Declared::Process(process));
            }
            // What its hash will be is known when it is resolved; that it is another one is enough.
            if let Some(Declared::Process(process)) = declared.get_mut(&node)
                && restarts(process)
            {
                process.status.config_hash.push('+');
            }
        }
    }

    /// What is in namespaces that go.
    fn inside(&self, pruned: &[Item]) -> Vec<Item> {
        let namespaces = pruned.iter().filter(|item| item.kind == Kind::Namespace);
        namespaces.flat_map(|namespace| ostler_gitops::inhabitants(&*self.store, &namespace.name)).collect()
    }

    fn goes(&self, namespace: &str) -> bool {
        let entry = self.store.get(&key(Kind::Namespace, "", namespace).into());
        let namespace = entry.and_then(|entry| serde_json::from_slice::<Namespace>(&entry.value).ok());
        namespace.is_some_and(|namespace| namespace.metadata.is_deleting())
    }

    fn instances_to_foretell(&self, node: &Node) -> Vec<Instance> {
        let prefix = format!("{}/{}/{}-", Kind::Instance.plural(), node.namespace, node.name);
        let entries = self.store.list(&prefix).entries;
        let instances = entries.iter().filter_map(|entry| serde_json::from_slice::<Instance>(&entry.value).ok());
        let is_own = |instance: &Instance| {
            instance.spec.owner() == node.name && instance.spec.job.is_some() == (node.kind == Kind::Job)
        };
        let mut instances: Vec<Instance> = instances.filter(is_own).collect();
        instances.sort_by_key(|instance| instance.spec.ordinal);
        instances
    }
}

/// What owns instances, from its JSON; nothing of other kinds.
fn parse(kind: Kind, json: &[u8]) -> Option<Declared> {
    match kind {
        Kind::Process => serde_json::from_slice::<Box<Process>>(json).ok().map(Declared::Process),
        Kind::Job => serde_json::from_slice::<Box<Job>>(json).ok().map(Declared::Job),
        Kind::Namespace
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::CronJob
        | Kind::Instance
        | Kind::Source
        | Kind::External
        | Kind::Event => None,
    }
}

//! `ostler graph`: who depends on whom, and how far each one is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use ostler_core::Metadata;
use ostler_core::graph::Node;
use ostler_core::kinds::{Dependency, GROUP, Instance, Job, Process, STOPPED_AT};
use ostler_core::why::{is_troubled, waits_for};
use ostler_rpc::v1;
use serde::de::DeserializeOwned;

use crate::client::{Client, selector};
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::Kind;
use crate::targets;

/// Show what depends on what, as a tree or for Graphviz
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ostler graph
  ostler graph process/web
  ostler graph -o dot | dot -Tsvg > graph.svg")]
pub(crate) struct Args {
    /// process/NAME…, job/NAME…: only those and what they depend on
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// text or dot
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    Text,
    Dot,
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let namespace = ctx.settings.namespace().to_owned();
    let mut roots = Vec::new();
    if !args.targets.is_empty() {
        for target in targets::parse(&args.targets)? {
            if !matches!(target.kind, Kind::Process | Kind::Job) || target.names.is_empty() {
                return Err(Error::usage(
                    "only processes and jobs depend on something",
                    "write process/NAME or job/NAME",
                ));
            }
            roots.extend(target.names.iter().map(|name| Node::new(target.kind, namespace.as_str(), name)));
        }
    }
    let mut client = Client::connect(&ctx.settings).await?;
    for root in &roots {
        client.get(root.kind, &namespace, &root.name).await?;
    }
    let processes: Vec<Process> = all(&mut client, Kind::Process).await?;
    let jobs: Vec<Job> = all(&mut client, Kind::Job).await?;
    let instances: Vec<Instance> = all(&mut client, Kind::Instance).await?;
    let graph = Graph::new(namespace, &processes, &jobs, &instances);
    if graph.own().next().is_none() {
        ctx.note("No resources found")?;
    }
    let roots = if roots.is_empty() { graph.roots() } else { roots };
    let text = match args.output {
        Form::Text => graph.text(&roots),
        Form::Dot => graph.dot(&roots),
    };
    ctx.out.write_all(text.as_bytes())?;
    Ok(Exit::Ok)
}

/// Of all namespaces: a dependency may lead into another one.
async fn all<T: DeserializeOwned>(client: &mut Client, kind: Kind) -> Result<Vec<T>, Error> {
    let parse = |object: &v1::Object| Ok(serde_json::from_slice(&object.json)?);
    client.list(selector(kind, "")).await?.iter().map(parse).collect()
}

/// One Process or Job, or a name that a dependency has and nothing else.
#[derive(Debug, Default)]
struct Known {
    /// "2/3 available"
    state: String,
    good: bool,
    group: Option<String>,
    on: Vec<(Node, Dependency)>,
    /// Its instances wait for these.
    waits: BTreeSet<Node>,
}

struct Graph {
    /// The namespace that is looked at; of others, only what it leads to.
    namespace: String,
    nodes: BTreeMap<Node, Known>,
}

impl Graph {
    fn new(namespace: String, processes: &[Process], jobs: &[Job], instances: &[Instance]) -> Self {
        let mut nodes = BTreeMap::new();
        let mut of: BTreeMap<(bool, &str, &str), Vec<&Instance>> = BTreeMap::new();
        for instance in instances {
            let owner = (instance.spec.job.is_some(), instance.metadata.namespace.as_str(), instance.spec.owner());
            of.entry(owner).or_default().push(instance);
        }
        let own = |is_job: bool, metadata: &Metadata| {
            of.get(&(is_job, metadata.namespace.as_str(), metadata.name.as_str())).cloned().unwrap_or_default()
        };
        for process in processes {
            let Metadata { namespace, name, .. } = &process.metadata;
            let own = own(false, &process.metadata);
            let (available, wanted) = (process.status.available_replicas, process.spec.replicas());
            let mut state = format!("{available}/{wanted} available");
            if process.metadata.is_deleting() {
                state.push_str(", being deleted");
            } else if process.metadata.annotations.contains_key(STOPPED_AT) {
                state.push_str(", stopped by hand");
            } else if available < wanted
                && let Some(troubled) = own.iter().find(|instance| is_troubled(instance))
            {
                let _ = write!(state, ", {}", troubled.status.reason);
            }
            let completed =
                wanted > 0 && own.iter().filter(|it| it.status.reason == "Completed").count() as u32 >= wanted;
            if completed {
                "completed".clone_into(&mut state);
            }
            let known = Known {
                state,
                good: completed || available >= wanted,
                group: process.metadata.labels.get(GROUP).cloned(),
                on: targets_of(namespace, &process.spec.depends_on),
                waits: waits(namespace, &process.spec.depends_on, &own),
            };
            nodes.insert(Node::new(Kind::Process, namespace, name), known);
        }
        for job in jobs {
            let Metadata { namespace, name, .. } = &job.metadata;
            let on = &job.spec.template.spec().depends_on;
            let finished = job.status.finished().map(|condition| condition.kind.as_str());
            let (done, wanted) = (job.status.succeeded, job.spec.completions);
            let known = Known {
                state: match finished {
                    Some(how) => how.to_lowercase(),
                    None if job.spec.is_suspended() => format!("{done}/{wanted} completed, suspended"),
                    None => format!("{done}/{wanted} completed"),
                },
                good: done >= wanted,
                group: job.metadata.labels.get(GROUP).cloned(),
                on: targets_of(namespace, on),
                waits: waits(namespace, on, &own(true, &job.metadata)),
            };
            nodes.insert(Node::new(Kind::Job, namespace, name), known);
        }
        let missing: BTreeSet<Node> =
            nodes.values().flat_map(|known| known.on.iter().map(|(node, _)| node.clone())).collect();
        for node in missing {
            nodes.entry(node).or_insert_with(|| Known { state: "does not exist".to_owned(), ..Known::default() });
        }
        Self { namespace, nodes }
    }

    /// The nodes of the namespace that is looked at.
    fn own(&self) -> impl Iterator<Item = (&Node, &Known)> {
        self.nodes.iter().filter(|(node, _)| node.namespace == self.namespace)
    }

    fn shown(&self, node: &Node) -> String {
        node.seen_from(&self.namespace)
    }

    /// Those that nobody in the namespace depends on. In a graph without cycles, everything can be reached from them.
    fn roots(&self) -> Vec<Node> {
        let needed: BTreeSet<&Node> = self.own().flat_map(|(_, known)| known.on.iter().map(|(node, _)| node)).collect();
        self.own().map(|(node, _)| node).filter(|node| !needed.contains(node)).cloned().collect()
    }

    fn text(&self, roots: &[Node]) -> String {
        let mut text = String::new();
        let mut seen = BTreeSet::new();
        for root in roots {
            self.branch(&mut text, root, None, &mut Vec::new(), &mut seen);
        }
        text
    }

    /// A node and what it depends on; `lasts` says of each level above whether it was the last there.
    fn branch(
        &self,
        text: &mut String,
        node: &Node,
        edge: Option<(&Dependency, bool)>,
        lasts: &mut Vec<bool>,
        seen: &mut BTreeSet<Node>,
    ) {
        let Some(known) = self.nodes.get(node) else { return };
        if let Some((last, above)) = lasts.split_last() {
            for last in above {
                text.push_str(if *last { "   " } else { "│  " });
            }
            text.push_str(if *last { "└─ " } else { "├─ " });
        }
        text.push_str(&self.shown(node));
        if let Some((dependency, waits)) = edge {
            let _ = write!(text, " ({}{})", dependency.condition().name(), if waits { ", waited for" } else { "" });
        }
        let _ = write!(text, "  {}", known.state);
        if let Some(group) = &known.group {
            let _ = write!(text, "  [{group}]");
        }
        let again = !seen.insert(node.clone());
        text.push_str(if again && !known.on.is_empty() { "  (above)\n" } else { "\n" });
        if again {
            return;
        }
        for (index, (next, dependency)) in known.on.iter().enumerate() {
            let waits = known.waits.contains(next);
            lasts.push(index + 1 == known.on.len());
            self.branch(text, next, Some((dependency, waits)), lasts, seen);
            lasts.pop();
        }
    }

    fn dot(&self, roots: &[Node]) -> String {
        let mut reached: BTreeSet<&Node> = BTreeSet::new();
        let mut open: Vec<&Node> = self.nodes.keys().filter(|node| roots.contains(node)).collect();
        while let Some(node) = open.pop() {
            if reached.insert(node) {
                let on = self.nodes[node].on.iter();
                open.extend(on.filter_map(|(next, _)| Some(self.nodes.get_key_value(next)?.0)));
            }
        }
        let mut text = "digraph ostler {\n  rankdir=LR;\n  node [shape=box, style=filled];\n".to_owned();
        let mut groups: BTreeMap<&str, Vec<&Node>> = BTreeMap::new();
        for node in &reached {
            let known = &self.nodes[*node];
            let color = if known.good { "palegreen" } else { "lightsalmon" };
            let node_name = self.shown(node);
            let _ = writeln!(text, "  \"{node_name}\" [label=\"{node_name}\\n{}\", fillcolor={color}];", known.state);
            if let Some(group) = &known.group {
                groups.entry(group).or_default().push(node);
            }
        }
        for (group, members) in groups {
            let members: Vec<String> = members.iter().map(|node| format!("\"{}\";", self.shown(node))).collect();
            let _ = writeln!(text, "  subgraph \"cluster_{group}\" {{ label=\"{group}\"; {} }}", members.join(" "));
        }
        for node in &reached {
            let known = &self.nodes[*node];
            for (next, dependency) in &known.on {
                let style = if known.waits.contains(next) { ", style=bold, color=red" } else { "" };
                let (from, to, label) = (self.shown(node), self.shown(next), dependency.condition().name());
                let _ = writeln!(text, "  \"{from}\" -> \"{to}\" [label=\"{label}\"{style}];");
            }
        }
        text.push_str("}\n");
        text
    }
}

/// What an object of a namespace depends on.
fn targets_of(namespace: &str, on: &[Dependency]) -> Vec<(Node, Dependency)> {
    on.iter().map(|dependency| (Node::of(dependency, namespace), dependency.clone())).collect()
}

/// What some of the instances wait for.
fn waits(namespace: &str, on: &[Dependency], instances: &[&Instance]) -> BTreeSet<Node> {
    let nodes = on.iter().map(|dependency| Node::of(dependency, namespace));
    nodes.filter(|node| instances.iter().any(|instance| waits_for(instance, node))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn process(name: &str, on: &serde_json::Value, available: u32) -> Process {
        let object = json!({"apiVersion": "ostler.dev/v1", "kind": "Process",
            "metadata": {"name": name, "namespace": "shop", "labels": if name == "db" { json!({GROUP: "data"}) } else { json!({}) }},
            "spec": {"command": ["true"], "dependsOn": on}, "status": {"availableReplicas": available}});
        serde_json::from_value(object).unwrap()
    }

    fn shop() -> Graph {
        let web = process("web", &json!([{"process": "api"}, {"process": "db", "condition": "Started"}]), 0);
        let api = process("api", &json!([{"process": "db"}, {"job": "migrate"}]), 0);
        let waiting = json!({"apiVersion": "ostler.dev/v1", "kind": "Instance", "metadata": {"name": "api-0", "namespace": "shop"},
            "spec": {"process": "api", "ordinal": 0, "revision": "x", "template": {"command": ["true"]}},
            "status": {"reason": "DependencyNotReady", "message": "waits for job/migrate (Completed): there is none of that name"}});
        Graph::new(
            "shop".to_owned(),
            &[web, api, process("db", &json!([]), 1)],
            &[],
            &[serde_json::from_value(waiting).unwrap()],
        )
    }

    #[test]
    fn the_tree_has_every_edge_once_and_says_what_is_waited_for() {
        let graph = shop();
        assert_eq!(
            graph.text(&graph.roots()),
            "\
process/web  0/1 available
├─ process/api (Ready)  0/1 available, DependencyNotReady
│  ├─ process/db (Ready)  1/1 available  [data]
│  └─ job/migrate (Completed, waited for)  does not exist
└─ process/db (Started)  1/1 available  [data]
"
        );
    }

    #[test]
    fn dot_has_nodes_edges_and_groups_of_what_can_be_reached() {
        let graph = shop();
        let dot = graph.dot(&[Node::new(Kind::Process, "shop", "api")]);
        assert!(dot.starts_with("digraph ostler {\n") && dot.ends_with("}\n"));
        assert!(dot.contains("\"process/api\" -> \"process/db\" [label=\"Ready\"];"), "{dot}");
        assert!(
            dot.contains("\"process/api\" -> \"job/migrate\" [label=\"Completed\", style=bold, color=red];"),
            "{dot}"
        );
        assert!(dot.contains("subgraph \"cluster_data\" { label=\"data\"; \"process/db\"; }"), "{dot}");
        assert!(!dot.contains("process/web"), "{dot}");
    }
}

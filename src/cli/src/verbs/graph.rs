//! `ostler graph`: who depends on whom, and how far each one is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

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
            roots.extend(target.names.iter().map(|name| Node::new(target.kind, name)));
        }
    }
    let mut client = Client::connect(&ctx.settings).await?;
    for root in &roots {
        client.get(root.kind, &namespace, &root.name).await?;
    }
    let processes: Vec<Process> = all(&mut client, Kind::Process, &namespace).await?;
    let jobs: Vec<Job> = all(&mut client, Kind::Job, &namespace).await?;
    let instances: Vec<Instance> = all(&mut client, Kind::Instance, &namespace).await?;
    let graph = Graph::new(&processes, &jobs, &instances);
    if graph.nodes.is_empty() {
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

async fn all<T: DeserializeOwned>(client: &mut Client, kind: Kind, namespace: &str) -> Result<Vec<T>, Error> {
    let parse = |object: &v1::Object| Ok(serde_json::from_slice(&object.json)?);
    client.list(selector(kind, namespace)).await?.iter().map(parse).collect()
}

/// One Process or Job, or a name that a dependency has and nothing else.
#[derive(Debug, Default)]
struct Known {
    /// "2/3 available"
    state: String,
    good: bool,
    group: Option<String>,
    on: Vec<Dependency>,
    /// Its instances wait for these.
    waits: BTreeSet<Node>,
}

struct Graph {
    nodes: BTreeMap<Node, Known>,
}

impl Graph {
    fn new(processes: &[Process], jobs: &[Job], instances: &[Instance]) -> Self {
        let mut nodes = BTreeMap::new();
        for process in processes {
            let name = &process.metadata.name;
            let own = || instances.iter().filter(|it| it.spec.job.is_none() && it.spec.process == *name);
            let (available, wanted) = (process.status.available_replicas, process.spec.replicas());
            let mut state = format!("{available}/{wanted} available");
            if process.metadata.is_deleting() {
                state.push_str(", being deleted");
            } else if process.metadata.annotations.contains_key(STOPPED_AT) {
                state.push_str(", stopped by hand");
            } else if available < wanted
                && let Some(troubled) = own().find(|instance| is_troubled(instance))
            {
                let _ = write!(state, ", {}", troubled.status.reason);
            }
            let completed = wanted > 0 && own().filter(|it| it.status.reason == "Completed").count() as u32 >= wanted;
            if completed {
                "completed".clone_into(&mut state);
            }
            let known = Known {
                state,
                good: completed || available >= wanted,
                group: process.metadata.labels.get(GROUP).cloned(),
                on: process.spec.depends_on.clone(),
                waits: waits(&process.spec.depends_on, own()),
            };
            nodes.insert(Node::new(Kind::Process, name), known);
        }
        for job in jobs {
            let own = || instances.iter().filter(|it| it.spec.job.is_some() && it.spec.owner() == job.metadata.name);
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
                on: job.spec.template.spec().depends_on.clone(),
                waits: waits(&job.spec.template.spec().depends_on, own()),
            };
            nodes.insert(Node::new(Kind::Job, &job.metadata.name), known);
        }
        let missing: BTreeSet<Node> = nodes.values().flat_map(|known| known.on.iter().map(Node::of)).collect();
        for node in missing {
            nodes.entry(node).or_insert_with(|| Known { state: "does not exist".to_owned(), ..Known::default() });
        }
        Self { nodes }
    }

    /// Those that nobody depends on. In a graph without cycles, everything can be reached from them.
    fn roots(&self) -> Vec<Node> {
        let needed: BTreeSet<Node> = self.nodes.values().flat_map(|known| known.on.iter().map(Node::of)).collect();
        self.nodes.keys().filter(|node| !needed.contains(node)).cloned().collect()
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
        let _ = write!(text, "{node}");
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
        for (index, dependency) in known.on.iter().enumerate() {
            let next = Node::of(dependency);
            let waits = known.waits.contains(&next);
            lasts.push(index + 1 == known.on.len());
            self.branch(text, &next, Some((dependency, waits)), lasts, seen);
            lasts.pop();
        }
    }

    fn dot(&self, roots: &[Node]) -> String {
        let mut reached: BTreeSet<&Node> = BTreeSet::new();
        let mut open: Vec<&Node> = self.nodes.keys().filter(|node| roots.contains(node)).collect();
        while let Some(node) = open.pop() {
            if reached.insert(node) {
                let on = self.nodes[node].on.iter().map(Node::of);
                open.extend(on.filter_map(|next| Some(self.nodes.get_key_value(&next)?.0)));
            }
        }
        let mut text = "digraph ostler {\n  rankdir=LR;\n  node [shape=box, style=filled];\n".to_owned();
        let mut groups: BTreeMap<&str, Vec<&Node>> = BTreeMap::new();
        for node in &reached {
            let known = &self.nodes[*node];
            let color = if known.good { "palegreen" } else { "lightsalmon" };
            let _ = writeln!(text, "  \"{node}\" [label=\"{node}\\n{}\", fillcolor={color}];", known.state);
            if let Some(group) = &known.group {
                groups.entry(group).or_default().push(node);
            }
        }
        for (group, members) in groups {
            let members: Vec<String> = members.iter().map(|node| format!("\"{node}\";")).collect();
            let _ = writeln!(text, "  subgraph \"cluster_{group}\" {{ label=\"{group}\"; {} }}", members.join(" "));
        }
        for node in &reached {
            let known = &self.nodes[*node];
            for dependency in &known.on {
                let next = Node::of(dependency);
                let style = if known.waits.contains(&next) { ", style=bold, color=red" } else { "" };
                let _ =
                    writeln!(text, "  \"{node}\" -> \"{next}\" [label=\"{}\"{style}];", dependency.condition().name());
            }
        }
        text.push_str("}\n");
        text
    }
}

/// What some of the instances wait for.
fn waits<'a>(on: &[Dependency], instances: impl Iterator<Item = &'a Instance>) -> BTreeSet<Node> {
    let waits =
        |instance: &'a Instance| on.iter().map(Node::of).filter(move |node| waits_for(instance, node.kind, &node.name));
    instances.flat_map(waits).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn process(name: &str, on: &serde_json::Value, available: u32) -> Process {
        let object = json!({"apiVersion": "ostler.dev/v1", "kind": "Process",
            "metadata": {"name": name, "labels": if name == "db" { json!({GROUP: "data"}) } else { json!({}) }},
            "spec": {"command": ["true"], "dependsOn": on}, "status": {"availableReplicas": available}});
        serde_json::from_value(object).unwrap()
    }

    fn shop() -> Graph {
        let web = process("web", &json!([{"process": "api"}, {"process": "db", "condition": "Started"}]), 0);
        let api = process("api", &json!([{"process": "db"}, {"job": "migrate"}]), 0);
        let waiting = json!({"apiVersion": "ostler.dev/v1", "kind": "Instance", "metadata": {"name": "api-0"},
            "spec": {"process": "api", "ordinal": 0, "revision": "x", "template": {"command": ["true"]}},
            "status": {"reason": "DependencyNotReady", "message": "waits for job/migrate (Completed): there is none of that name"}});
        Graph::new(&[web, api, process("db", &json!([]), 1)], &[], &[serde_json::from_value(waiting).unwrap()])
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
        let dot = graph.dot(&[Node::new(Kind::Process, "api")]);
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

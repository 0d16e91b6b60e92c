//! Who depends on whom, as a graph.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::kinds::{Dependency, Kind};

/// A Process or Job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// Process or Job.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Node {
    /// A node.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }

    /// What a dependency of an object in the namespace `own` is on.
    pub fn of(dependency: &Dependency, own: &str) -> Self {
        let (kind, name) = dependency.target();
        Self::new(kind, dependency.namespace(own), name)
    }

    /// `process/db`, with the namespace in front where it is not `own`.
    pub fn seen_from(&self, own: &str) -> String {
        if self.namespace == own { format!("{}/{}", self.kind.singular(), self.name) } else { self.to_string() }
    }
}

impl fmt::Display for Node {
    /// `data/process/db`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.kind.singular(), self.name)
    }
}

/// From each node to those that it depends on.
pub type Edges = BTreeMap<Node, Vec<Node>>;

/// A cycle that can be reached from `start`, as the path around it: the first node is the last one again.
pub fn cycle(edges: &Edges, start: &Node) -> Option<Vec<Node>> {
    let targets = |node: &Node| edges.get(node).map_or(&[][..], Vec::as_slice);
    let mut over: BTreeSet<&Node> = BTreeSet::new();
    let (start, _) = edges.get_key_value(start)?;
    // The way from the start to where we are, each with how many of its dependencies have been followed.
    let mut path: Vec<(&Node, usize)> = vec![(start, 0)];
    while let Some((node, followed)) = path.last_mut() {
        let Some(next) = targets(node).get(*followed) else {
            over.insert(node);
            path.pop();
            continue;
        };
        *followed += 1;
        if let Some(from) = path.iter().position(|(node, _)| *node == next) {
            let around = path[from..].iter().map(|(node, _)| (*node).clone());
            return Some(around.chain([next.clone()]).collect());
        }
        if !over.contains(next) {
            path.push((next, 0));
        }
    }
    None
}

/// "process/a → process/b → process/a"; with namespaces where it leads through more than one.
pub fn path(nodes: &[Node]) -> String {
    let first = nodes.first().map_or("", |node| node.namespace.as_str());
    let alone = nodes.iter().all(|node| node.namespace == first);
    let shown = |node: &Node| if alone { node.seen_from(first) } else { node.to_string() };
    nodes.iter().map(shown).collect::<Vec<_>>().join(" → ")
}

/// How many others, one after the other, have to be there before each one.
pub fn heights(edges: &Edges) -> BTreeMap<&Node, usize> {
    let mut heights: BTreeMap<&Node, usize> = edges.keys().map(|node| (node, 0)).collect();
    // As many rounds as the longest chain has links; no more than there are nodes, should they be in a circle.
    for _ in 0..edges.len() {
        let mut grown = false;
        for (node, on) in edges {
            let height = on.iter().filter_map(|other| heights.get(other)).max().map_or(0, |height| height + 1);
            if heights.get(node).is_some_and(|known| *known < height && height <= edges.len()) {
                heights.insert(node, height);
                grown = true;
            }
        }
        if !grown {
            break;
        }
    }
    heights
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(text: &str) -> Node {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        Node::new(Kind::Process, namespace, name)
    }

    fn edges(pairs: &[(&str, &str)]) -> Edges {
        let mut edges = Edges::new();
        for (from, to) in pairs {
            edges.entry(process(from)).or_default().push(process(to));
        }
        edges
    }

    fn found(pairs: &[(&str, &str)], start: &str) -> Option<String> {
        cycle(&edges(pairs), &process(start)).map(|nodes| path(&nodes))
    }

    #[test]
    fn a_cycle_is_found_with_its_path_and_without_the_way_to_it() {
        assert_eq!(found(&[("a", "a")], "a").unwrap(), "process/a → process/a");
        let pairs = [("in", "b"), ("a", "b"), ("b", "x"), ("b", "c"), ("c", "a"), ("x", "y")];
        assert_eq!(found(&pairs, "in").unwrap(), "process/b → process/c → process/a → process/b");
    }

    #[test]
    fn a_cycle_through_namespaces_names_them() {
        let pairs = [("shop/web", "data/db"), ("data/db", "shop/web"), ("web", "db")];
        assert_eq!(found(&pairs, "shop/web").unwrap(), "shop/process/web → data/process/db → shop/process/web");
        assert_eq!(found(&pairs, "web"), None, "of the same name in another namespace");
    }

    #[test]
    fn what_needs_others_is_higher_than_they_are() {
        let edges = edges(&[("web", "db"), ("web", "setup"), ("setup", "db"), ("db", "none"), ("x", "y"), ("y", "x")]);
        let heights = heights(&edges);
        let of = |name: &str| heights[&process(name)];
        assert_eq!([of("db"), of("setup"), of("web")], [0, 1, 2]);
    }

    #[test]
    fn what_comes_together_again_is_no_cycle() {
        assert_eq!(found(&[("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")], "a"), None);
        assert_eq!(found(&[("a", "b")], "elsewhere"), None);
        // Exponentially many ways, each node once.
        let names: Vec<String> = (0..200).map(|i| format!("n{i}")).collect();
        let mut pairs = Vec::new();
        for i in 0..names.len() {
            for j in i + 1..names.len() {
                pairs.push((names[i].as_str(), names[j].as_str()));
            }
        }
        assert_eq!(found(&pairs, "n0"), None);
    }
}

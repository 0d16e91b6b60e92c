//! Who depends on whom, as a graph.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::kinds::{Dependency, Kind};

/// A Process or Job, by kind and name. All of a graph are in one namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// Process or Job.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

impl Node {
    /// A node.
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }

    /// What a dependency is on.
    pub fn of(dependency: &Dependency) -> Self {
        let (kind, name) = dependency.target();
        Self::new(kind, name)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.singular(), self.name)
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

/// "process/a → process/b → process/a"
pub fn path(nodes: &[Node]) -> String {
    nodes.iter().map(Node::to_string).collect::<Vec<_>>().join(" → ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(pairs: &[(&str, &str)]) -> Edges {
        let mut edges = Edges::new();
        for (from, to) in pairs {
            edges.entry(Node::new(Kind::Process, *from)).or_default().push(Node::new(Kind::Process, *to));
        }
        edges
    }

    fn found(pairs: &[(&str, &str)], start: &str) -> Option<String> {
        cycle(&edges(pairs), &Node::new(Kind::Process, start)).map(|nodes| path(&nodes))
    }

    #[test]
    fn a_cycle_is_found_with_its_path_and_without_the_way_to_it() {
        assert_eq!(found(&[("a", "a")], "a").unwrap(), "process/a → process/a");
        let pairs = [("in", "b"), ("a", "b"), ("b", "x"), ("b", "c"), ("c", "a"), ("x", "y")];
        assert_eq!(found(&pairs, "in").unwrap(), "process/b → process/c → process/a → process/b");
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

//! Decides what a revision, or an apply of a set, deletes, and whether it may be applied at all.
//!
//! Pure: callers pass what is wanted, what was brought before, and who owns what.

use std::collections::{HashMap, HashSet};

use ostler_core::Kind;
use ostler_core::kinds::DeletionLimit;

use crate::inventory::Item;

/// What deletions are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prune {
    /// To be deleted, in this order.
    pub delete: Vec<Item>,
    /// No longer wanted, but kept.
    pub keep: Vec<Item>,
}

/// How it is pruned.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Whether anything is deleted at all.
    pub prune: bool,
    /// How much of what was brought.
    pub limit: DeletionLimit,
    /// Lifts the limit.
    pub allowed: bool,
}

/// More would be deleted than may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} of {brought} objects would be deleted ({}), at most {most} may be", .delete.len(), few(.delete))]
pub struct TooMany {
    /// All that would be.
    pub delete: Vec<Item>,
    /// How many were brought.
    pub brought: usize,
    /// How many may be deleted.
    pub most: usize,
}

/// The first five names.
fn few(items: &[Item]) -> String {
    let names: Vec<String> = items.iter().take(5).map(ToString::to_string).collect();
    let more = items.len() - names.len();
    names.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// What leaves: what was brought, is no longer wanted (`is_wanted`), and is still there and ours (`is_ours`). A namespace goes only
/// when everything that `lives_in` it goes too.
///
/// # Errors
/// It is too much; then nothing is to be deleted, nor applied.
pub fn prune(
    brought: &[Item],
    is_wanted: impl Fn(&Item) -> bool,
    policy: Policy,
    is_ours: impl Fn(&Item) -> bool,
    lives_in: impl Fn(&str) -> Vec<Item>,
) -> Result<Prune, TooMany> {
    let mut plan = Prune::default();
    // In the reverse of the order in which they came.
    for item in brought.iter().rev() {
        if is_wanted(item) || !is_ours(item) {
            continue;
        }
        if policy.prune {
            plan.delete.push(item.clone());
        } else {
            plan.keep.push(item.clone());
        }
    }
    let going: HashSet<Item> = plan.delete.iter().cloned().collect();
    let stays = |item: &Item| {
        item.kind == Kind::Namespace
            && (item.name == "default" || lives_in(&item.name).iter().any(|inside| !going.contains(inside)))
    };
    let (kept, delete) = std::mem::take(&mut plan.delete).into_iter().partition(stays);
    plan.delete = delete;
    plan.keep.extend::<Vec<Item>>(kept);
    let most = policy.limit.of(brought.len());
    if plan.delete.len() > most && !policy.allowed {
        return Err(TooMany { delete: plan.delete, brought: brought.len(), most });
    }
    Ok(plan)
}

/// Objects that another Source brought first, with its name.
pub(crate) fn conflicts<'a>(
    wanted: impl Iterator<Item = &'a Item>,
    owners: &'a HashMap<Item, String>,
) -> Vec<(&'a Item, &'a String)> {
    wanted.filter_map(|item| owners.get(item).map(|owner| (item, owner))).collect()
}

/// Other Sources that this one waits for, directly or not, when it waits for itself in the end: the way round.
pub(crate) fn cycle(name: &str, depends_on: impl Fn(&str) -> Vec<String>) -> Option<Vec<String>> {
    let mut path = vec![name.to_owned()];
    visit(&mut path, &mut HashSet::new(), &depends_on).then_some(path)
}

/// Goes on from the end of a path until it comes back to its beginning.
fn visit(path: &mut Vec<String>, seen: &mut HashSet<String>, depends_on: &dyn Fn(&str) -> Vec<String>) -> bool {
    for next in depends_on(&path[path.len() - 1]) {
        if next == path[0] {
            path.push(next);
            return true;
        }
        if seen.insert(next.clone()) {
            path.push(next);
            if visit(path, seen, depends_on) {
                return true;
            }
            path.pop();
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use ostler_core::kinds::Share;

    use super::*;

    fn process(name: &str) -> Item {
        Item { kind: Kind::Process, namespace: "default".to_owned(), name: name.to_owned() }
    }

    fn processes(names: &[&str]) -> Vec<Item> {
        names.iter().map(|name| process(name)).collect()
    }

    const POLICY: Policy = Policy { prune: true, limit: DeletionLimit::Share(Share(50)), allowed: false };

    fn run(brought: &[Item], wanted: &[Item], policy: Policy) -> Result<Prune, TooMany> {
        prune(brought, |item| wanted.contains(item), policy, |_| true, |_| Vec::new())
    }

    #[test]
    fn what_left_goes_in_reverse_order() {
        let plan = run(&processes(&["a", "b", "c", "d"]), &processes(&["b", "d"]), POLICY).unwrap();
        assert_eq!(plan.delete, processes(&["c", "a"]));
    }

    #[test]
    fn more_than_half_needs_permission() {
        let brought = processes(&["a", "b", "c"]);
        let error = run(&brought, &processes(&["a"]), POLICY).unwrap_err();
        assert_eq!(error.to_string(), "2 of 3 objects would be deleted (process/c, process/b), at most 1 may be");
        let allowed = Policy { allowed: true, ..POLICY };
        assert_eq!(run(&brought, &processes(&["a"]), allowed).unwrap().delete.len(), 2);
        assert_eq!(run(&brought, &processes(&["a", "b"]), POLICY).unwrap().delete, processes(&["c"]));
        let none = Policy { limit: DeletionLimit::Count(0), ..POLICY };
        assert!(run(&brought, &processes(&["a", "b"]), none).is_err());
    }

    #[test]
    fn without_prune_everything_stays() {
        let plan = run(&processes(&["a", "b"]), &[], Policy { prune: false, ..POLICY }).unwrap();
        assert_eq!(plan, Prune { delete: Vec::new(), keep: processes(&["b", "a"]) });
    }

    #[test]
    fn what_is_not_ours_any_more_is_left_alone() {
        let brought = processes(&["a", "b"]);
        let plan = prune(&brought, |_| false, POLICY, |item| item.name == "a", |_| Vec::new()).unwrap();
        assert_eq!(plan.delete, processes(&["a"]));
    }

    #[test]
    fn a_namespace_goes_only_with_everything_in_it() {
        let staging = Item { kind: Kind::Namespace, namespace: String::new(), name: "staging".to_owned() };
        let inside = Item { namespace: "staging".to_owned(), ..process("web") };
        let brought = [staging.clone(), inside.clone()];
        let allowed = Policy { allowed: true, ..POLICY };
        let with = |living: Vec<Item>| prune(&brought, |_| false, allowed, |_| true, |_| living.clone()).unwrap();
        assert_eq!(with(vec![inside.clone()]).delete, [inside.clone(), staging.clone()]);
        let foreign = Item { namespace: "staging".to_owned(), ..process("other") };
        let plan = with(vec![inside.clone(), foreign]);
        assert_eq!((plan.delete, plan.keep), (vec![inside], vec![staging]));
    }

    #[test]
    fn a_cycle_is_told_with_its_path() {
        let edges = |name: &str| -> Vec<String> {
            match name {
                "a" => vec!["x".to_owned(), "b".to_owned()],
                "b" => vec!["c".to_owned()],
                "c" => vec!["a".to_owned()],
                _ => Vec::new(),
            }
        };
        assert_eq!(cycle("a", edges).unwrap().join(" → "), "a → b → c → a");
        assert_eq!(cycle("x", edges), None);
    }

    mod properties {
        use super::*;

        /// Every subset of a few objects: nothing wanted is deleted, nothing foreign, and never more than allowed.
        #[test]
        fn no_plan_deletes_what_it_must_not() {
            let all = processes(&["a", "b", "c", "d", "e"]);
            for brought in 0..32_u32 {
                for wanted in 0..32_u32 {
                    let pick = |bits: u32| -> Vec<Item> {
                        all.iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1).map(|(_, it)| it.clone()).collect()
                    };
                    let (brought, wanted) = (pick(brought), pick(wanted));
                    if let Ok(plan) = run(&brought, &wanted, POLICY) {
                        assert!(plan.delete.iter().all(|item| brought.contains(item) && !wanted.contains(item)));
                        assert!(plan.delete.len() <= (brought.len() / 2).max(1));
                    }
                }
            }
        }
    }
}

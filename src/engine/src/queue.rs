//! The work queue: which objects need a look, at once or later.
//!
//! Holds each request at most once among those that are ready, and at most one time for each among those that are due
//! later, the earliest. It carries no events: a reconciler looks at the world.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;

use ostler_core::Timestamp;

/// Requests waiting for a worker.
#[derive(Debug)]
pub(crate) struct Queue<K> {
    ready: VecDeque<K>,
    is_ready: HashSet<K>,
    due: HashMap<K, Timestamp>,
    /// May hold times that `due` has replaced by earlier ones; they are skipped when they come up.
    heap: BinaryHeap<Reverse<(Timestamp, K)>>,
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    pub(crate) fn new() -> Self {
        Self { ready: VecDeque::new(), is_ready: HashSet::new(), due: HashMap::new(), heap: BinaryHeap::new() }
    }

    /// Asks for a look now.
    pub(crate) fn add(&mut self, key: K) {
        if self.is_ready.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// Asks for a look at `at`, or earlier when that was asked for already.
    pub(crate) fn add_at(&mut self, key: K, at: Timestamp) {
        if self.due.get(&key).is_some_and(|earlier| *earlier <= at) {
            return;
        }
        self.due.insert(key.clone(), at);
        self.heap.push(Reverse((at, key)));
    }

    /// Takes the next request that is ready at `now`.
    pub(crate) fn pop(&mut self, now: Timestamp) -> Option<K> {
        while let Some(Reverse((at, key))) = self.heap.peek() {
            if *at > now {
                break;
            }
            let current = self.due.get(key) == Some(at);
            let Some(Reverse((_, key))) = self.heap.pop() else { break };
            if current {
                self.due.remove(&key);
                self.add(key);
            }
        }
        let key = self.ready.pop_front()?;
        self.is_ready.remove(&key);
        Some(key)
    }

    /// When the next request becomes ready, if none is now.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Whether something is ready, not counting what has become due since the last `pop`.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// How many requests are ready.
    pub(crate) fn len(&self) -> usize {
        self.ready.len()
    }

    /// Forgets every time; requests that are ready stay. For when the clock was set.
    pub(crate) fn clear_due(&mut self) {
        self.due.clear();
        self.heap.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[test]
    fn a_request_is_ready_once_however_often_it_is_asked_for() {
        let mut queue = Queue::new();
        queue.add("a");
        queue.add("b");
        queue.add("a");
        assert_eq!((queue.pop(at(0)), queue.pop(at(0)), queue.pop(at(0))), (Some("a"), Some("b"), None));
        queue.add("a");
        assert_eq!(queue.pop(at(0)), Some("a"));
    }

    #[test]
    fn the_earliest_time_counts_and_fires_once() {
        let mut queue = Queue::new();
        queue.add_at("a", at(50));
        queue.add_at("a", at(20));
        queue.add_at("a", at(90));
        assert_eq!(queue.next_due(), Some(at(20)));
        assert_eq!(queue.pop(at(19)), None);
        assert_eq!(queue.pop(at(20)), Some("a"));
        assert_eq!(queue.pop(at(100)), None);
        assert_eq!(queue.next_due(), None);
    }
}

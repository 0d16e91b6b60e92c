//! The memory store keeps the contract, and is deterministic.

use std::sync::Arc;

use ostler_store::{Durability, Expect, Key, MemoryStore, Op, Store};

ostler_store::conformance!(|history| Arc::new(MemoryStore::with_history(history)) as Arc<dyn Store>);

#[test]
fn a_commit_is_ready_without_a_runtime_or_a_second_thread() {
    let store = MemoryStore::new();
    let op = Op::put(Key::new("processes", "default", "web"), "1", Expect::Absent);
    let mut commit = std::pin::pin!(store.commit(vec![op], Durability::Lazy));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let polled = std::future::Future::poll(commit.as_mut(), &mut context);
    assert!(matches!(polled, std::task::Poll::Ready(Ok(1))), "{polled:?}");
}

//! Keeps the controller small: one heap for all threads, and what a burst needed goes back to the system.
#![allow(unsafe_code, reason = "the allocator's settings are C functions")]

use std::sync::Arc;
use std::time::Duration;

use ostler_store::Store;

/// Settings for a process with a dozen threads that mostly wait. Called before there is a second thread.
///
/// Without this, glibc gives every thread a heap of its own, and none of them ever shrinks.
pub(crate) fn settle() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only changes parameters of the allocator, and there is only this thread yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 10);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

/// Bytes of overwritten values that the history keeps when nothing happens; whoever watches has seen the rest.
const QUIET_HISTORY: usize = 64 << 10;

/// Gives free memory and unused code back once the store has been quiet after changes.
pub(crate) async fn tidy(store: Arc<dyn Store>) {
    let mut seen = store.revision();
    let mut tidied = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let revision = store.revision();
        if revision == seen && revision != tidied {
            tidied = revision;
            store.trim_history(QUIET_HISTORY);
            ostler_keeper::release_memory();
        }
        seen = revision;
    }
}

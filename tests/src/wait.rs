//! Waiting for conditions.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Far more than anything takes, even on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Waits until `look` returns something, and returns it.
///
/// # Panics
/// After [`LIMIT`], naming `what`.
pub fn wait_until<T>(what: impl Debug, look: impl FnMut() -> Option<T>) -> T {
    wait_within(LIMIT, what, look)
}

/// Waits until `look` returns something, and returns it.
///
/// # Panics
/// After `limit`, naming `what`.
#[track_caller]
pub fn wait_within<T>(limit: Duration, what: impl Debug, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < limit, "waited {limit:?} in vain for {what:?}");
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_millis(50));
    }
}

//! Effects: what the controller has done to processes, and what it learns of them.
//!
//! A driver is dull. It carries out commands in the order they are given, decides nothing, and reports the full state of
//! an attempt whenever it changed. The vocabulary is the keeper's wire.

mod keeper;

use std::future::Future;

pub use keeper::{KeeperDriver, KeeperProgram};
use ostler_keeper::wire;

/// What a driver tells.
#[derive(Debug)]
pub enum DriverEvent {
    /// The keeper answered; the states of everything it holds follow, then [`DriverEvent::Synced`].
    Hello(wire::Hello),
    /// Everything that is known of one attempt.
    State(wire::State),
    /// Everything held has been reported since the last Hello.
    Synced,
    /// A command was not carried out.
    Refused(wire::Refused),
    /// The daemon was asked to end by a signal.
    Terminate(wire::Terminate),
    /// The program could not be replaced.
    UpgradeFailed(String),
    /// The keeper is gone; until the next Hello nothing is known.
    Lost,
}

/// Carries out commands on processes.
pub trait Driver: Send + 'static {
    /// Takes a command; it is sent at the latest by the next call of [`Driver::next`].
    fn submit(&mut self, command: wire::Command);

    /// Sends what was submitted, as far as possible without waiting.
    fn flush(&mut self);

    /// Waits for the next events, at least one. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Vec<DriverEvent>> + Send;
}

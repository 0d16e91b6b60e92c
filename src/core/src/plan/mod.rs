//! The planners: what to do next, from what is wanted, what is observed, and the time.
//!
//! A planner returns the status to publish, the actions to take and when to look again. It is called on every event and
//! tick, keeps nothing between calls, and yields nothing for a world that is as it should be.

pub mod cronjob;
pub mod depend;
pub mod external;
mod health;
pub mod instance;
pub mod job;
pub mod output;
pub mod process;
pub mod resources;
mod rollout;
pub mod watch;

use crate::kinds::EventType;

/// Something to tell people about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Normal, or Warning when somebody may have to do something.
    pub event_type: EventType,
    /// One word in CamelCase.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

impl Note {
    fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { event_type: EventType::Normal, reason, message: message.into() }
    }

    fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { event_type: EventType::Warning, reason, message: message.into() }
    }
}

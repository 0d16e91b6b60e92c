//! What becomes of the output of an instance when its log cannot be written.
//!
//! Pure. There is a condition only for instances that had such trouble: most never have.

use crate::kinds::{Condition, InstanceStatus, Truth, set_condition};
use crate::plan::Note;
use crate::time::Timestamp;

/// The condition of an instance: whether its output reaches the log.
pub const LOGS_WRITABLE: &str = "LogsWritable";

/// What custody says of the log of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Why it cannot be written now, in the system's words.
    pub blocked: Option<Box<str>>,
    /// Bytes that were dropped since the instance exists, because the manifest says so (`whenBlocked: Drop`).
    pub dropped: u64,
}

/// Publishes a change, and returns what to tell.
pub(super) fn publish(status: &mut InstanceStatus, output: &Output, drops: bool, now: Timestamp) -> Option<Note> {
    let known = status.conditions.iter().find(|condition| condition.kind == LOGS_WRITABLE);
    if known.is_none() && *output == Output::default() {
        return None;
    }
    let (truth, reason, message) = match (&output.blocked, output.dropped) {
        (Some(why), 0) if !drops => {
            (Truth::False, "Blocked", format!("{why}; output waits in the pipe, nothing is lost"))
        }
        (Some(why), dropped) => (Truth::False, "Dropping", format!("{why}; {dropped} bytes or more were dropped")),
        (None, 0) => (Truth::True, "Recovered", "nothing was lost".to_owned()),
        (None, dropped) => (Truth::True, "Recovered", format!("{dropped} bytes were dropped")),
    };
    if known.is_some_and(|known| known.reason == reason && known.message == message) {
        return None;
    }
    let is_new = known.is_none_or(|known| known.reason != reason);
    let note = match truth {
        Truth::True => Note::normal("LogsRecovered", message.clone()),
        Truth::False | Truth::Unknown => Note::warning("LogsBlocked", message.clone()),
    };
    let condition = Condition {
        kind: LOGS_WRITABLE.to_owned(),
        status: truth,
        reason: reason.to_owned(),
        message,
        ..Condition::default()
    };
    set_condition(&mut status.conditions, condition, now);
    is_new.then_some(note)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    fn full(dropped: u64) -> Output {
        Output { blocked: Some("no space".into()), dropped }
    }

    #[test]
    fn an_instance_without_trouble_has_no_condition() {
        let mut status = InstanceStatus::default();
        assert_eq!(publish(&mut status, &Output::default(), false, at(1)), None);
        assert!(status.conditions.is_empty());
    }

    #[test]
    fn a_full_disk_is_told_once_and_so_is_its_end() {
        let mut status = InstanceStatus::default();
        assert_eq!(publish(&mut status, &full(0), false, at(1)).unwrap().reason, "LogsBlocked");
        assert_eq!((status.conditions[0].status, status.conditions[0].reason.as_str()), (Truth::False, "Blocked"));
        assert_eq!(publish(&mut status, &full(0), false, at(2)), None);
        assert_eq!(publish(&mut status, &Output::default(), false, at(3)).unwrap().reason, "LogsRecovered");
        assert_eq!(status.conditions[0].status, Truth::True);
        assert_eq!(publish(&mut status, &Output::default(), false, at(4)), None);
    }

    #[test]
    fn what_is_dropped_is_counted_in_the_message() {
        let mut status = InstanceStatus::default();
        assert!(publish(&mut status, &full(4096), true, at(1)).is_some());
        assert!(publish(&mut status, &full(8192), true, at(2)).is_none(), "a larger count is no news");
        assert!(status.conditions[0].message.contains("8192"));
        let over = Output { blocked: None, dropped: 9000 };
        publish(&mut status, &over, true, at(3));
        assert_eq!(status.conditions[0].message, "9000 bytes were dropped");
    }
}

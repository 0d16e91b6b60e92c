//! What has become of the hard limits of an attempt.

use crate::kinds::{Condition, LimitKind, Limits, Truth, UNTHROTTLED};

/// The condition that says it.
pub const CONDITION: &str = "LimitsEnforced";

/// What has become of one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnforcedLimit {
    /// Which.
    pub kind: LimitKind,
    /// The value that was asked for.
    pub value: i64,
    /// By what it is enforced, "cgroup v1"; or why it is not.
    pub by: Result<Box<str>, Box<str>>,
}

/// Whether the limits that are wanted are enforced, each by what, or why not.
pub fn condition(wanted: &Limits, known: &[EnforcedLimit]) -> Condition {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (kind, value) in wanted.iter() {
        // Only there so that it can be lowered.
        let is_open = kind == LimitKind::Cpu && value == i64::from(UNTHROTTLED.0);
        let shown =
            if is_open { "cpu when throttled".to_owned() } else { format!("{} {}", kind.name(), kind.show(value)) };
        match known.iter().find(|known| known.kind == kind) {
            Some(EnforcedLimit { value: enforced, by: Ok(by), .. }) if *enforced == value => {
                good.push(format!("{shown} by {by}"));
            }
            Some(EnforcedLimit { value: enforced, by: Ok(by), .. }) => {
                bad.push(format!("{shown} not yet: {} by {by}", kind.show(*enforced)));
            }
            Some(EnforcedLimit { by: Err(why), .. }) => bad.push(format!("{shown} not enforced: {why}")),
            None => bad.push(format!("{shown} not enforced: the keeper says nothing of it")),
        }
    }
    let (status, reason) = match (good.is_empty(), bad.is_empty()) {
        (_, true) => (Truth::True, "Enforced"),
        (true, false) => (Truth::False, "NotEnforced"),
        (false, false) => (Truth::False, "PartlyEnforced"),
    };
    bad.extend(good);
    Condition {
        kind: CONDITION.to_owned(),
        status,
        reason: reason.to_owned(),
        message: bad.join(", "),
        ..Condition::default()
    }
}

/// Whether a limit that the kernel can change for what runs has another value than the one that is wanted.
pub fn differ(wanted: &Limits, known: &[EnforcedLimit]) -> bool {
    wanted
        .iter()
        .filter(|(kind, _)| kind.changes_in_place())
        .any(|(kind, value)| known.iter().any(|known| known.kind == kind && (known.value != value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantity::{Bytes, Cpu};

    fn enforced(kind: LimitKind, value: i64, by: Result<&str, &str>) -> EnforcedLimit {
        EnforcedLimit { kind, value, by: by.map(Into::into).map_err(Into::into) }
    }

    #[test]
    fn the_condition_says_by_what_and_why_not() {
        let wanted = Limits { memory: Some(Bytes(64 << 20)), cpu: Some(Cpu(500)), nice: Some(5), ..Limits::default() };
        let all = [
            enforced(LimitKind::Memory, 64 << 20, Ok("cgroup v1")),
            enforced(LimitKind::Cpu, 500, Ok("cgroup v2")),
            enforced(LimitKind::Nice, 5, Ok("setpriority")),
        ];
        let said = condition(&wanted, &all);
        assert_eq!((said.status, &*said.reason), (Truth::True, "Enforced"));
        assert_eq!(said.message, "memory 64Mi by cgroup v1, cpu 500m by cgroup v2, nice 5 by setpriority");
        assert!(!differ(&wanted, &all));

        let partly = [all[0].clone(), enforced(LimitKind::Cpu, 250, Ok("cgroup v2"))];
        let said = condition(&wanted, &partly);
        assert_eq!((said.status, &*said.reason), (Truth::False, "PartlyEnforced"));
        assert_eq!(
            said.message,
            "cpu 500m not yet: 250m by cgroup v2, nice 5 not enforced: the keeper says nothing of it, memory 64Mi by \
             cgroup v1"
        );
        assert!(differ(&wanted, &partly));

        let none = [enforced(LimitKind::Memory, 64 << 20, Err("no cgroups"))];
        let said = condition(&Limits { memory: wanted.memory, ..Limits::default() }, &none);
        assert_eq!((said.status, &*said.reason), (Truth::False, "NotEnforced"));
        assert_eq!(said.message, "memory 64Mi not enforced: no cgroups");
    }
}

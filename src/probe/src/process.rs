//! `process`: what the kernel says of the leader.

use std::fs;

use ostler_core::verdict::Outcome;

/// Whether the leader lives and is neither stopped nor a zombie.
pub(crate) fn check(pid: i32, start_time: u64) -> Outcome {
    let text = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => {
            return Outcome::Failed(format!("process {pid} is gone"));
        }
        Err(why) => return Outcome::CannotRun(format!("cannot read /proc/{pid}/stat: {why}")),
    };
    let Some((state, _, started)) = parse(&text) else {
        return Outcome::CannotRun(format!("/proc/{pid}/stat makes no sense"));
    };
    if started != start_time {
        return Outcome::Failed(format!("process {pid} is gone"));
    }
    match state {
        b'T' | b't' => Outcome::Failed(format!("process {pid} is stopped")),
        b'Z' | b'X' => Outcome::Failed(format!("process {pid} is a zombie")),
        _ => Outcome::Passed(format!("process {pid} lives")),
    }
}

/// State, parent and start time out of /proc/PID/stat. The name of the program may contain anything: the last `)` ends
/// it.
pub(crate) fn parse(text: &[u8]) -> Option<(u8, i32, u64)> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&text[end + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(22 - 5)?.parse().ok()?;
    Some((state, parent, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_another_start_time_is_another() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let text = fs::read(format!("/proc/{pid}/stat")).unwrap();
        let (_, parent, started) = parse(&text).unwrap();
        assert_eq!(parent, i32::try_from(std::os::unix::process::parent_id()).unwrap());
        assert!(matches!(check(pid, started), Outcome::Passed(_)));
        assert!(matches!(check(pid, started + 1), Outcome::Failed(_)));
    }
}

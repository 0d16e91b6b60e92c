//! Names of signals.

/// Linux' signals by number, from 1.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// The number of a signal given as `SIGTERM`, `TERM`, `term` or `15`; real-time signals as `RTMIN+3`.
pub fn parse(text: &str) -> Result<i32, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Ok(number) = name.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(format!("{number} is not a signal: 1 to 64")) };
    }
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { Some(0) } else { offset.strip_prefix('+').and_then(|n| n.parse().ok()) };
        if let Some(offset) = offset.filter(|n| (0..=30).contains(n)) {
            return Ok(34 + offset);
        }
    }
    if let Some(index) = NAMES.iter().position(|known| *known == name) {
        return Ok(index as i32 + 1);
    }
    let hint =
        crate::suggest::nearest(name, NAMES).map(|near| format!("; did you mean SIG{near}?")).unwrap_or_default();
    Err(format!("{text:?} is not a signal{hint}"))
}

/// The name of a signal, `SIGTERM`; numbers without one as `signal 40`.
pub fn name(number: i32) -> String {
    match usize::try_from(number).ok().and_then(|n| n.checked_sub(1)).and_then(|n| NAMES.get(n)) {
        Some(name) => format!("SIG{name}"),
        None => format!("signal {number}"),
    }
}

/// Whether the kernel sends the signal to a program that did something impossible, or the program to itself for that.
pub const fn is_fault(number: i32) -> bool {
    // ILL, ABRT, BUS, FPE, SEGV, SYS
    matches!(number, 4 | 6 | 7 | 8 | 11 | 31)
}

#[cfg(test)]
mod tests {
    #[test]
    fn faults_are_those_of_the_program() {
        for name in ["ILL", "ABRT", "BUS", "FPE", "SEGV", "SYS"] {
            assert!(super::is_fault(super::parse(name).unwrap()), "{name}");
        }
        for name in ["KILL", "TERM", "INT", "HUP", "QUIT", "PIPE", "ALRM", "XCPU"] {
            assert!(!super::is_fault(super::parse(name).unwrap()), "{name}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["SIGTERM", "TERM", "term", "15", "SIG15"] {
            assert_eq!(super::parse(text), Ok(15), "{text}");
        }
        assert_eq!(super::parse("RTMIN+2"), Ok(36));
        assert_eq!(super::name(9), "SIGKILL");
        assert_eq!(super::name(36), "signal 36");
        for bad in ["", "SIGTREM", "0", "65", "-9", "RTMIN+99"] {
            assert!(super::parse(bad).is_err(), "{bad}");
        }
        assert!(super::parse("TREM").unwrap_err().contains("SIGTERM"));
    }
}

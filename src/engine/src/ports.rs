//! Port numbers for `port: auto`: free when they are given out, and then kept by the instance.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};

/// Below the range that the kernel gives to outgoing connections, so that those cannot take them meanwhile.
const RANGE: std::ops::Range<u16> = 20_000..30_000;

/// Chooses a port that is neither in `taken` nor in use on this machine. Begins at a place that `seed` decides, so that
/// an instance made again gets its old number when that is still free.
pub(crate) fn choose(seed: u64, taken: &HashSet<u16>) -> Option<u16> {
    let size = RANGE.end - RANGE.start;
    let start = (seed % u64::from(size)) as u16;
    (0..size)
        .map(|offset| RANGE.start + (start + offset) % size)
        .find(|port| !taken.contains(port) && TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_stable_distinct_and_free() {
        let first = choose(77, &HashSet::new()).unwrap();
        assert_eq!(choose(77, &HashSet::new()), Some(first));
        let second = choose(77, &HashSet::from([first])).unwrap();
        assert_ne!(first, second);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, second)).unwrap();
        assert_ne!(choose(77, &HashSet::from([first])), Some(second));
        drop(listener);
    }
}

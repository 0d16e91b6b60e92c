//! How far apart the starts of an instance are that keeps ending.

use crate::kinds::Backoff;
use crate::time::{Span, Timestamp};

/// The least time between a start and the next one, after `streak` attempts in a row that ended by themselves.
///
/// Grows with `streak` up to `max`; jitter moves it by at most its share, decided by `seed`, so that the same attempt
/// always gets the same delay.
pub fn delay(backoff: &Backoff, streak: u32, seed: u64) -> Span {
    if streak == 0 {
        return Span::ZERO;
    }
    let exponent = i32::try_from(streak - 1).unwrap_or(i32::MAX);
    let base = backoff.initial.scale(backoff.factor.powi(exponent)).min(backoff.max);
    // Two rounds of splitmix64 spread neighbouring seeds over the whole range.
    let unit = (mix(mix(seed)) >> 11) as f64 / (1_u64 << 53) as f64;
    base.scale(1.0 + backoff.jitter * (2.0 * unit - 1.0))
}

/// When an attempt that began at `started` and ended at `ended` may be followed by the next.
pub fn next_start(backoff: &Backoff, streak: u32, seed: u64, started: Timestamp, ended: Timestamp) -> Timestamp {
    (started + delay(backoff, streak, seed)).max(ended)
}

fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exact() -> Backoff {
        Backoff { jitter: 0.0, ..Backoff::default() }
    }

    #[test]
    fn delays_double_up_to_the_cap() {
        let seconds: Vec<u64> = (0..12).map(|streak| delay(&exact(), streak, 7).as_secs()).collect();
        assert_eq!(seconds, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(delay(&exact(), u32::MAX, 7).as_secs(), 300);
    }

    #[test]
    fn time_already_run_counts() {
        let at = |secs: i64| Timestamp::from_micros(secs * 1_000_000);
        assert_eq!(next_start(&exact(), 4, 7, at(100), at(103)), at(108));
        assert_eq!(next_start(&exact(), 4, 7, at(100), at(150)), at(150));
    }

    proptest! {
        #[test]
        fn jitter_stays_in_its_share_and_delays_never_shrink_without_it(
            streak in 0_u32..200, seed: u64, jitter in 0.0_f64..1.0, factor in 1.0_f64..10.0,
        ) {
            let backoff = Backoff { factor, jitter, ..Backoff::default() };
            let plain = Backoff { jitter: 0.0, ..backoff.clone() };
            let base = delay(&plain, streak, 0).as_micros() as f64;
            let jittered = delay(&backoff, streak, seed).as_micros() as f64;
            prop_assert!((jittered - base).abs() <= base * jitter + 1.0);
            prop_assert!(delay(&plain, streak + 1, 0).as_micros() as f64 >= base);
        }
    }
}

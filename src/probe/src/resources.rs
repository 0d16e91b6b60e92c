//! `resources`: what the tree uses, compared with what it may.

use std::sync::Arc;
use std::time::Duration;

use ostler_core::kinds::{Measure, ResourcesProbe};
use ostler_core::threshold::used;
use ostler_core::usage::Usage;
use ostler_core::verdict::Outcome;

use crate::UsageSource;

/// Between the two looks that a rate needs, a little more than the least that the source makes one of.
const BETWEEN: Duration = Duration::from_millis(600);

/// Looks, twice if need be and there is time.
pub(crate) async fn check(
    probe: &ResourcesProbe,
    source: Option<&dyn UsageSource>,
    id: &Arc<str>,
    timeout: Duration,
) -> Outcome {
    let Some(source) = source else { return Outcome::CannotRun("the usage of instances is not sampled".to_owned()) };
    let mut found = source.usage(Arc::clone(id)).await;
    if probe.cpu.is_some() && found.as_ref().is_some_and(|usage| usage.cpu.is_none()) && timeout > BETWEEN * 3 / 2 {
        tokio::time::sleep(BETWEEN).await;
        found = source.usage(Arc::clone(id)).await;
    }
    match found {
        Some(usage) => compare(probe, &usage),
        None => Outcome::CannotRun("its usage is not known".to_owned()),
    }
}

fn compare(probe: &ResourcesProbe, usage: &Usage) -> Outcome {
    let (mut over, mut within, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for (measure, most) in probe.iter() {
        match used(usage, measure) {
            Some(used) if used > most => {
                over.push(format!("{}, more than {}", told(measure, used), measure.show(most)));
            }
            Some(used) => within.push(told(measure, used)),
            None => unknown.push(format!("{} is not known", measure.name())),
        }
    }
    if !over.is_empty() {
        Outcome::Failed(over.join("; "))
    } else if !unknown.is_empty() {
        Outcome::CannotRun(unknown.join("; "))
    } else {
        Outcome::Passed(within.join("; "))
    }
}

fn told(measure: Measure, used: u64) -> String {
    format!("{} is {}", measure.name(), measure.show(used))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn more_than_one_of_them_fails_and_what_is_not_known_says_nothing() {
        let probe: ResourcesProbe =
            serde_json::from_value(json!({"memory": "100Mi", "cpu": "500m", "openFiles": 10})).unwrap();
        let usage = Usage { rss: 100 << 20, cpu: Some(500), open_files: Some(10), ..Usage::default() };
        assert_eq!(
            compare(&probe, &usage),
            Outcome::Passed("memory is 100Mi; cpu is 500m; openFiles is 10".to_owned())
        );
        let more = Usage { rss: 300 << 20, cpu: None, open_files: Some(11), ..usage.clone() };
        let said = "memory is 300Mi, more than 100Mi; openFiles is 11, more than 10";
        assert_eq!(compare(&probe, &more), Outcome::Failed(said.to_owned()));
        let unknown = Usage { cpu: None, ..usage };
        assert_eq!(compare(&probe, &unknown), Outcome::CannotRun("cpu is not known".to_owned()));
    }
}

//! What a Source's task is told: what became of the objects that it brought, and who else wants something.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ostler_core::kinds::HealthState;
use ostler_store::Store;
use tokio::sync::Notify;

use crate::inventory::Item;
use crate::status::Seen;

/// News since they were last taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// Somebody other than the Source changed or deleted one of its objects.
    pub(crate) drift: bool,
    /// An object became ready, or no longer is.
    pub(crate) health: bool,
    /// The Source itself was changed, or a sync was asked for.
    pub(crate) source: bool,
    /// Another Source that this one waits for has changed.
    pub(crate) others: bool,
}

#[derive(Debug, Default)]
struct State {
    objects: HashMap<Item, Option<Seen>>,
    awaits: Vec<String>,
    news: News,
    /// While the Source itself applies: what changed, by its own hand or another.
    applying: Option<HashSet<Item>>,
    /// Changed by somebody else since the Source last applied it.
    drifted: BTreeSet<Item>,
}

/// Shared between a Source's task and whoever tells it something.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    /// Also woken by the directory.
    pub(crate) wake: Arc<Notify>,
    state: Mutex<State>,
}

/// How the objects are, all in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) degraded: Vec<Item>,
    pub(crate) progressing: Vec<Item>,
}

impl Summary {
    pub(crate) fn state(&self) -> HealthState {
        if !self.degraded.is_empty() {
            HealthState::Degraded
        } else if !self.progressing.is_empty() {
            HealthState::Progressing
        } else {
            HealthState::Healthy
        }
    }
}

impl Tracker {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object is now so; nothing: it is gone.
    pub(crate) fn see(&self, item: &Item, json: Option<&[u8]>) {
        let mut state = self.state();
        let Some(known) = state.objects.get_mut(item) else { return };
        let seen = json.map(|json| Seen::of(item.kind, json));
        if *known == seen {
            return;
        }
        let print = |seen: &Option<Seen>| seen.as_ref().map(|seen| seen.print);
        let health = |seen: &Option<Seen>| seen.as_ref().map(|seen| seen.health);
        let (mut drift, changed) = (print(known) != print(&seen), health(known) != health(&seen));
        *known = seen;
        if drift && let Some(changed) = &mut state.applying {
            changed.insert(item.clone());
            drift = false;
        }
        if drift {
            state.drifted.insert(item.clone());
        }
        state.news.drift |= drift;
        state.news.health |= changed;
        drop(state);
        if drift || changed {
            self.wake.notify_one();
        }
    }

    /// Looks at every object again.
    pub(crate) fn refresh(&self, store: &dyn Store) {
        let items: Vec<Item> = self.state().objects.keys().cloned().collect();
        for item in items {
            let entry = store.get(&item.key());
            self.see(&item, entry.as_ref().map(|entry| &*entry.value));
        }
    }

    pub(crate) fn source_changed(&self) {
        self.state().news.source = true;
        self.wake.notify_one();
    }

    pub(crate) fn others_changed(&self, name: &str) {
        let mut state = self.state();
        if state.awaits.iter().any(|awaited| awaited == name) {
            state.news.others = true;
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Names the Sources whose changes matter.
    pub(crate) fn wait_for(&self, names: Vec<String>) {
        self.state().awaits = names;
    }

    /// What happened since the last call.
    pub(crate) fn take(&self) -> News {
        std::mem::take(&mut self.state().news)
    }

    /// Whether anything but the health of objects is new.
    pub(crate) fn is_asked(&self) -> bool {
        self.state().news.source
    }

    /// Follows exactly these objects.
    pub(crate) fn follow(&self, items: &[Item], store: &dyn Store) {
        let wanted: HashSet<&Item> = items.iter().collect();
        let mut state = self.state();
        state.objects.retain(|item, _| wanted.contains(item));
        for item in items {
            if !state.objects.contains_key(item) {
                let seen = store.get(&item.key()).map(|entry| Seen::of(item.kind, &entry.value));
                state.objects.insert(item.clone(), seen);
            }
        }
    }

    /// The Source begins to change its objects.
    pub(crate) fn applying(&self) {
        self.state().applying = Some(HashSet::new());
    }

    /// Takes note of objects as this Source has just made them: that they changed is no drift.
    pub(crate) fn made(&self, objects: impl Iterator<Item = (Item, Seen)>) {
        let mut state = self.state();
        let mut changed = state.applying.take().unwrap_or_default();
        for (item, seen) in objects {
            state.drifted.remove(&item);
            match state.objects.get_mut(&item) {
                // What the watch has shown meanwhile is at least as new.
                Some(Some(known)) if known.print == seen.print => drop(changed.remove(&item)),
                // Somebody changed it right after.
                Some(_) if changed.contains(&item) => {}
                Some(known) => *known = Some(seen),
                None => drop(state.objects.insert(item, Some(seen))),
            }
        }
        state.news.drift |= !changed.is_empty();
        state.drifted.extend(changed);
    }

    /// What somebody else has changed, or deleted, since the Source last applied it: for people, at most so many.
    pub(crate) fn drifted(&self, most: usize) -> Vec<String> {
        let state = self.state();
        let of = |item: &Item| match state.objects.get(item)? {
            Some(_) => Some(format!("{item} was changed")),
            None => Some(format!("{item} is missing")),
        };
        state.drifted.iter().filter_map(of).take(most).collect()
    }

    /// How the objects are.
    pub(crate) fn summary(&self) -> Summary {
        let state = self.state();
        let mut summary = Summary::default();
        for (item, seen) in &state.objects {
            match seen.as_ref().map_or(HealthState::Degraded, |seen| seen.health) {
                HealthState::Healthy => {}
                HealthState::Progressing => summary.progressing.push(item.clone()),
                HealthState::Degraded => summary.degraded.push(item.clone()),
            }
        }
        summary.progressing.sort();
        summary.degraded.sort();
        summary
    }

    /// Those of some objects that are not ready.
    pub(crate) fn unready<'a>(&self, items: impl Iterator<Item = &'a Item>) -> Vec<Item> {
        let state = self.state();
        let ready = |item: &Item| {
            state.objects.get(item).and_then(Option::as_ref).is_some_and(|seen| seen.health == HealthState::Healthy)
        };
        items.filter(|item| !ready(item)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use ostler_core::Kind;
    use serde_json::json;

    use super::*;

    fn web() -> Item {
        Item { kind: Kind::Process, namespace: "default".to_owned(), name: "web".to_owned() }
    }

    fn object(generation: u64, ready: bool) -> Vec<u8> {
        let status = if ready { "True" } else { "False" };
        json!({"metadata": {"generation": generation}, "status": {"observedGeneration": generation,
            "updatedReplicas": 1, "conditions": [{"type": "Ready", "status": status}]}})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn what_a_source_made_itself_is_no_drift_and_what_others_change_is() {
        let store = ostler_store::MemoryStore::new();
        let tracker = Tracker::default();
        tracker.follow(&[web()], &store);
        assert_eq!(tracker.summary().state(), HealthState::Degraded, "it is missing");
        // Whichever comes first, what the API answered or what the watch shows.
        let made = object(1, false);
        tracker.applying();
        tracker.see(&web(), Some(&made));
        tracker.made([(web(), Seen::of(Kind::Process, &made))].into_iter());
        assert!(!tracker.take().drift);
        let made = object(3, false);
        tracker.applying();
        tracker.made([(web(), Seen::of(Kind::Process, &made))].into_iter());
        tracker.see(&web(), Some(&made));
        assert!(!tracker.take().drift);
        tracker.applying();
        tracker.see(&web(), Some(&object(4, false)));
        tracker.see(&web(), Some(&object(5, false)));
        tracker.made([(web(), Seen::of(Kind::Process, &object(4, false)))].into_iter());
        assert!(tracker.take().drift, "somebody was quicker");
        tracker.see(&web(), Some(&object(1, false)));
        tracker.take();
        tracker.see(&web(), Some(&object(1, true)));
        assert_eq!(tracker.take(), News { health: true, ..News::default() });
        assert_eq!(tracker.summary().state(), HealthState::Healthy);
        tracker.see(&web(), Some(&object(2, true)));
        assert!(tracker.take().drift);
        assert_eq!(tracker.drifted(20), ["process/web was changed"]);
        tracker.see(&web(), None);
        assert!(tracker.take().drift);
        assert_eq!(tracker.drifted(20), ["process/web is missing"]);
        tracker.applying();
        tracker.made([(web(), Seen::of(Kind::Process, &object(3, true)))].into_iter());
        assert!(tracker.drifted(20).is_empty(), "it is as it was declared again");
        tracker.see(&web(), None);
        tracker.take();
        assert_eq!(tracker.unready([web()].iter()), [web()]);
    }

    #[test]
    fn only_what_is_followed_and_awaited_matters() {
        let tracker = Tracker::default();
        tracker.see(&web(), Some(&object(1, true)));
        tracker.others_changed("base");
        assert_eq!(tracker.take(), News::default());
        tracker.wait_for(vec!["base".to_owned()]);
        tracker.others_changed("base");
        assert!(tracker.take().others);
    }
}

//! What runs, at a glance: a block at the bottom of a terminal that is redrawn, or one line for each transition.

use std::collections::BTreeMap;

use crate::ctx::{Ctx, Terminal};
use crate::error::Error;
use crate::output::table::{Style, paint};
use crate::views;

/// An instance as the board shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    order: (String, u64),
    phase: String,
    ready: bool,
    pid: i64,
    restarts: u64,
    why: String,
}

impl State {
    pub(super) fn of(instance: &views::Instance, order: (String, u64)) -> Self {
        let status = instance.status.as_ref();
        State {
            order,
            phase: instance.phase().to_owned(),
            ready: instance.ready(),
            pid: status.and_then(|status| status.pid).unwrap_or(0),
            restarts: status.and_then(|status| status.restarts).unwrap_or(0),
            why: instance.why(),
        }
    }

    /// "web-0  Running  pid 12, 3 restarts"
    fn line(&self, name: &str, width: usize, color: bool) -> String {
        let style = Style::of_status(&self.phase);
        let mut notes = Vec::new();
        if self.phase == "Running" {
            notes.push(format!("pid {}", self.pid));
            if !self.ready {
                notes.push("not ready".into());
            }
        } else if self.why != self.phase {
            notes.push(self.why.strip_prefix(&format!("{}: ", self.phase)).unwrap_or(&self.why).to_owned());
        }
        match self.restarts {
            0 => {}
            1 => notes.push("1 restart".into()),
            count => notes.push(format!("{count} restarts")),
        }
        let phase = paint(&format!("{:<9}", self.phase), style, color);
        format!("{name:<width$}  {phase}  {}", notes.join(", ")).trim_end().to_owned()
    }
}

/// Instances by namespace and name.
pub(super) struct Board {
    terminal: Terminal,
    states: BTreeMap<(String, String), State>,
    drawn: usize,
}

/// More instances are summed up.
const MOST: usize = 8;

impl Board {
    pub(super) fn new(terminal: Terminal) -> Self {
        Board { terminal, states: BTreeMap::new(), drawn: 0 }
    }

    /// Whether nothing lives any more.
    pub(super) fn all_over(&self) -> bool {
        self.states.values().all(|state| matches!(state.phase.as_str(), "Stopped" | "Failed" | "Lost" | "Pending"))
    }

    pub(super) fn update(&mut self, ctx: &mut Ctx, key: (String, String), state: &State) -> Result<(), Error> {
        let name = key.1.clone();
        let old = self.states.insert(key, state.clone());
        if self.terminal.stdout {
            self.erase(ctx)?;
            return self.draw(ctx);
        }
        if old.is_none_or(|old| (&old.phase, old.pid) != (&state.phase, state.pid)) {
            ctx.note(state.line(&name, 0, false))?;
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, ctx: &mut Ctx, key: &(String, String)) -> Result<(), Error> {
        if self.states.remove(key).is_none() {
            return Ok(());
        }
        if self.terminal.stdout {
            self.erase(ctx)?;
            return self.draw(ctx);
        }
        ctx.note(format_args!("{}  gone", key.1))
    }

    /// A message that stays.
    pub(super) fn note(&mut self, ctx: &mut Ctx, text: &str) -> Result<(), Error> {
        self.erase(ctx)?;
        ctx.note(text)?;
        self.draw(ctx)
    }

    /// Removes the block, so that something can be written in its place.
    pub(super) fn erase(&mut self, ctx: &mut Ctx) -> Result<(), Error> {
        let drawn = std::mem::take(&mut self.drawn);
        if drawn > 0 {
            write!(ctx.out, "\x1b[{drawn}A\r\x1b[J")?;
            ctx.out.flush()?;
        }
        Ok(())
    }

    pub(super) fn draw(&mut self, ctx: &mut Ctx) -> Result<(), Error> {
        if self.terminal.stdout {
            let (columns, rows) = self.terminal.size();
            // A line that wraps would be two when it is erased.
            write!(ctx.out, "\x1b[?7l")?;
            let lines = self.lines(columns.min(60), rows / 3);
            for line in &lines {
                writeln!(ctx.out, "{line}")?;
            }
            write!(ctx.out, "\x1b[?7h")?;
            self.drawn = lines.len();
        }
        ctx.out.flush()?;
        Ok(())
    }

    fn lines(&self, rule: usize, most: usize) -> Vec<String> {
        if self.states.is_empty() {
            return Vec::new();
        }
        let most = most.clamp(1, MOST);
        let mut states: Vec<_> = self.states.iter().map(|((_, name), state)| (name, state)).collect();
        // When not all fit, those that need a look come first.
        let fits = states.len() <= most;
        states.sort_by_key(|(_, state)| (!fits && state.phase == "Running" && state.ready, &state.order));
        let width = states.iter().take(most).map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let mut lines = vec!["─".repeat(rule)];
        lines.extend(states.iter().take(most).map(|(name, state)| state.line(name, width, self.terminal.color)));
        if !fits {
            let running = states.iter().filter(|(_, state)| state.phase == "Running").count();
            lines.push(format!("… {} instances, {running} running", states.len()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(phase: &str, ordinal: u64) -> State {
        State {
            order: ("web".into(), ordinal),
            phase: phase.into(),
            ready: true,
            pid: 7,
            restarts: 0,
            why: phase.into(),
        }
    }

    #[test]
    fn troubled_instances_are_shown_first_when_not_all_fit() {
        let mut board = Board::new(Terminal::default());
        for ordinal in 0..20 {
            let phase = if ordinal == 15 { "Backoff" } else { "Running" };
            board.states.insert(("default".into(), format!("web-{ordinal}")), state(phase, ordinal));
        }
        let lines = board.lines(4, 100);
        assert_eq!(lines.len(), MOST + 2);
        assert_eq!(lines[0], "────");
        assert_eq!(lines[1], "web-15  Backoff");
        assert_eq!(lines[2], "web-0   Running    pid 7");
        assert_eq!(lines[9], "… 20 instances, 19 running");
    }

    #[test]
    fn everything_is_over_when_nothing_lives() {
        let mut board = Board::new(Terminal::default());
        assert!(board.all_over());
        board.states.insert(("d".into(), "a".into()), state("Stopped", 0));
        assert!(board.all_over());
        board.states.insert(("d".into(), "b".into()), state("Stopping", 1));
        assert!(!board.all_over());
    }
}

//! Output of the workloads: from their pipes into their logs, in order, fairly, and never waiting for the disk.

use std::os::fd::AsFd as _;
use std::time::Instant;

use rustix::event::epoll::EventFlags;

use super::attempt::STREAMS;
use super::{Keeper, Source};
use crate::logs::{Drained, Log};
use crate::wire::LogSettings;

/// The most bytes taken from one pipe before others get their turn.
const PORTION: usize = 256 << 10;

/// The most logs whose files are kept open.
const OPEN_LOGS: usize = 256;

impl Keeper {
    /// The log with this directory, made when there is none.
    pub(super) fn log_for(&mut self, directory: &str, settings: LogSettings) -> u32 {
        if let Some(number) = self.logs_by_directory.get(directory) {
            if let Some(log) = self.logs.get_mut(*number) {
                log.settings = settings;
            }
            return *number;
        }
        let number = self.logs.insert(Log::new(directory, settings));
        self.logs_by_directory.insert(directory.into(), number);
        number
    }

    /// Adds an attempt's pipes to the sources of its log.
    pub(super) fn watch_output(&mut self, number: u32) {
        let Some(attempt) = self.attempts.get_mut(number) else {
            return;
        };
        if !attempt.has_pipes() {
            return;
        }
        let log_number = attempt.log;
        let Some(log) = self.logs.get_mut(log_number) else {
            return;
        };
        if !log.sources.contains(&number) {
            log.sources.push(number);
        }
        if log.in_blocked_list {
            return;
        }
        attempt.is_watched = true;
        let Some(attempt) = self.attempts.get(number) else {
            return;
        };
        for (stream, pipe) in attempt.pipes.iter().enumerate() {
            let Some(pipe) = pipe else { continue };
            let source = if stream == 0 { Source::Stdout(number) } else { Source::Stderr(number) };
            // Only a lack of memory can refuse it; the exit reads the pipe in any case.
            let _ = self.watch(pipe.as_fd(), source, EventFlags::IN);
        }
    }

    fn unwatch_output(&mut self, number: u32) {
        let Some(attempt) = self.attempts.get_mut(number) else {
            return;
        };
        if !std::mem::take(&mut attempt.is_watched) {
            return;
        }
        if let Some(attempt) = self.attempts.get(number) {
            for pipe in attempt.pipes.iter().flatten() {
                self.unwatch(pipe.as_fd());
            }
        }
    }

    /// A pipe has bytes, or has come to its end.
    pub(super) fn on_output(&mut self, number: u32, stream: usize) {
        let Some(log) = self.attempts.get(number).map(|attempt| attempt.log) else {
            return;
        };
        let is_first = self.logs.get(log).is_some_and(|log| log.sources.first() == Some(&number));
        if is_first || self.drain_older(log, number) {
            self.drain(number, stream, PORTION);
        }
    }

    /// Reads what attempts before this one have left in their pipes; false when the log is blocked by that.
    fn drain_older(&mut self, log: u32, number: u32) -> bool {
        let Some(log) = self.logs.get(log) else {
            return false;
        };
        let older: Vec<u32> = log.sources.iter().copied().take_while(|source| *source != number).collect();
        older.into_iter().all(|source| self.drain_both(source))
    }

    /// Reads both pipes of an attempt; false when the log is blocked.
    fn drain_both(&mut self, number: u32) -> bool {
        let free = [0, 1].into_iter().all(|stream| self.drain(number, stream, PORTION) != Drained::Blocked);
        let is_over = self.attempts.get(number).is_some_and(super::attempt::Attempt::is_over);
        if free && is_over {
            self.release_output(number);
        }
        free
    }

    /// Moves bytes from one pipe of an attempt to its log.
    fn drain(&mut self, number: u32, stream: usize, limit: usize) -> Drained {
        let Some(attempt) = self.attempts.get_mut(number) else {
            return Drained::End;
        };
        let (Some(pipe), Some(log)) = (&attempt.pipes[stream], self.logs.get_mut(attempt.log)) else {
            return Drained::End;
        };
        let log_number = attempt.log;
        let was_open = log.is_open();
        let before = log.state();
        let outcome =
            log.drain(&self.state_dir, pipe.as_fd(), (STREAMS[stream], attempt.attempt), limit, self.null.as_fd());
        let after = log.state();
        let is_opened = !was_open && log.is_open();
        match outcome {
            Drained::More | Drained::Empty => {}
            Drained::End => {
                // Closing takes it out of the epoll set: nobody else here has this description.
                let pipe = attempt.pipes[stream].take();
                if let Some(pipe) = pipe {
                    self.unwatch(pipe.as_fd());
                }
                self.drop_source_if_done(number);
            }
            Drained::Blocked => self.block(log_number),
        }
        if is_opened {
            self.note_opened(log_number);
        }
        if before.blocked_errno != after.blocked_errno || (before.dropped == 0) != (after.dropped == 0) {
            self.mark_log_dirty(log_number);
        }
        outcome
    }

    fn drop_source_if_done(&mut self, number: u32) {
        let Some(attempt) = self.attempts.get(number) else {
            return;
        };
        if !attempt.has_pipes()
            && let Some(log) = self.logs.get_mut(attempt.log)
        {
            log.sources.retain(|source| *source != number);
            if attempt.is_forgotten {
                self.attempts.remove(number);
            }
        }
    }

    /// Lets go of the pipes of an attempt, bytes and all.
    pub(super) fn drop_output(&mut self, number: u32) {
        self.unwatch_output(number);
        if let Some(attempt) = self.attempts.get_mut(number) {
            attempt.pipes = [None, None];
        }
        self.drop_source_if_done(number);
    }

    /// Keeps the number of open files bounded: the log that has been open for longest is closed.
    fn note_opened(&mut self, log: u32) {
        self.open_logs.push_back(log);
        while self.open_logs.len() > OPEN_LOGS {
            let Some(oldest) = self.open_logs.pop_front() else {
                break;
            };
            if oldest != log
                && let Some(log) = self.logs.get_mut(oldest)
            {
                log.close();
            }
        }
    }

    /// Stops listening to the pipes of a log that cannot be written.
    fn block(&mut self, log_number: u32) {
        let Some(log) = self.logs.get_mut(log_number) else {
            return;
        };
        if !std::mem::replace(&mut log.in_blocked_list, true) {
            self.blocked_logs.push(log_number);
        }
        for source in log.sources.clone() {
            self.unwatch_output(source);
        }
    }

    /// Tries blocked logs again.
    pub(super) fn retry_logs(&mut self, now: Instant) {
        if self.blocked_logs.is_empty() {
            return;
        }
        for number in std::mem::take(&mut self.blocked_logs) {
            let Some(log) = self.logs.get_mut(number) else {
                continue;
            };
            if log.retry_at().is_some_and(|at| now < at) {
                self.blocked_logs.push(number);
                continue;
            }
            log.in_blocked_list = false;
            let sources = log.sources.clone();
            let free = sources.iter().all(|source| self.drain_both(*source));
            if free {
                for source in sources {
                    if self.attempts.get(source).is_some_and(|attempt| !attempt.is_watched) {
                        self.watch_output(source);
                    }
                }
            } else {
                self.block(number);
            }
        }
    }

    /// Reads what is in the pipes at this moment.
    pub(super) fn settle_output(&mut self, number: u32) {
        let Some(attempt) = self.attempts.get(number) else {
            return;
        };
        if !attempt.has_pipes() {
            return;
        }
        let log = attempt.log;
        let is_blocked = self.logs.get(log).is_none_or(|log| log.in_blocked_list);
        if is_blocked || !self.drain_older(log, number) {
            return;
        }
        for stream in [0, 1] {
            let Some(pipe) = self.attempts.get(number).and_then(|attempt| attempt.pipes[stream].as_ref()) else {
                continue;
            };
            // A survivor may write for ever; what was there by now is what counts.
            let mut left = rustix::io::ioctl_fionread(pipe).unwrap_or(0) as usize;
            while left > 0 {
                let portion = left.min(PORTION);
                if self.drain(number, stream, portion) != Drained::More {
                    break;
                }
                left -= portion;
            }
        }
    }

    /// Lets go of the pipes of an attempt that is over, unless bytes in them wait for the disk.
    pub(super) fn release_output(&mut self, number: u32) {
        let Some(attempt) = self.attempts.get_mut(number) else {
            return;
        };
        if self.logs.get(attempt.log).is_some_and(|log| log.in_blocked_list) {
            let has_bytes = |pipe: &std::os::fd::OwnedFd| rustix::io::ioctl_fionread(pipe).unwrap_or(0) > 0;
            if attempt.pipes.iter().flatten().any(has_bytes) {
                return;
            }
        }
        let pipes = std::mem::take(&mut attempt.pipes);
        attempt.is_watched = false;
        for pipe in pipes.iter().flatten() {
            self.unwatch(pipe.as_fd());
        }
        self.drop_source_if_done(number);
    }

    /// Reports the log's state with the attempts that write to it.
    fn mark_log_dirty(&mut self, log: u32) {
        let sources = self.logs.get(log).map_or(Vec::new(), |log| log.sources.clone());
        for source in sources {
            self.mark_dirty(source);
        }
    }
}

//! The flags that the daemon's processes hand to each other.
//!
//! Not for people: always `--name value`, always complete, written and read by the same program, or after an upgrade by
//! the next version. Unknown ones are ignored, so that a newer keeper can start an older controller.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use ostler_cli::{Cgroups, OnShutdown, ServeArgs};
use ostler_core::allow::Allow;
use ostler_keeper::CgroupPreference;

/// What keeper and controller both need to know.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) state_dir: PathBuf,
    pub(crate) program: PathBuf,
    pub(crate) tick: Duration,
    pub(crate) log: String,
    pub(crate) cgroups: CgroupPreference,
    pub(crate) on_shutdown: OnShutdown,
    /// Directories to keep applied; absolute.
    pub(crate) watch: Vec<PathBuf>,
    pub(crate) probe_allow: Vec<Allow>,
    pub(crate) metrics_listen: Option<SocketAddr>,
    pub(crate) metrics_max_series: u32,
    pub(crate) otlp_endpoint: Option<String>,
    pub(crate) otlp_logs: bool,
}

impl Shared {
    /// As the user asked.
    pub(crate) fn new(args: &ServeArgs, program: PathBuf) -> Self {
        Self {
            state_dir: args.state_dir.clone(),
            program,
            tick: args.tick,
            log: args.log.clone(),
            cgroups: match args.cgroups {
                Cgroups::Auto => CgroupPreference::Auto,
                Cgroups::V2 => CgroupPreference::V2,
                Cgroups::V1 => CgroupPreference::V1,
                Cgroups::None => CgroupPreference::None,
            },
            on_shutdown: args.on_shutdown,
            watch: args.watch.iter().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())).collect(),
            probe_allow: args.probe_allow.clone(),
            metrics_listen: args.metrics_listen,
            metrics_max_series: args.metrics_max_series,
            otlp_endpoint: args.otlp_endpoint.clone(),
            otlp_logs: args.otlp_logs,
        }
    }

    /// As `--name value` pairs behind the word that chooses the process.
    pub(crate) fn to_args(&self, word: &str) -> Vec<OsString> {
        let cgroups = match self.cgroups {
            CgroupPreference::Auto => "auto",
            CgroupPreference::V2 => "v2",
            CgroupPreference::V1 => "v1",
            CgroupPreference::None => "none",
        };
        let on_shutdown = match self.on_shutdown {
            OnShutdown::Leave => "leave",
            OnShutdown::Stop => "stop",
        };
        let mut args: Vec<OsString> = vec![
            word.into(),
            "--state-dir".into(),
            self.state_dir.clone().into(),
            "--program".into(),
            self.program.clone().into(),
            "--tick-us".into(),
            self.tick.as_micros().to_string().into(),
            "--log".into(),
            self.log.clone().into(),
            "--cgroups".into(),
            cgroups.into(),
            "--on-shutdown".into(),
            on_shutdown.into(),
            "--probe-allow".into(),
            self.probe_allow.iter().map(ToString::to_string).collect::<Vec<_>>().join(",").into(),
            "--metrics-max-series".into(),
            self.metrics_max_series.to_string().into(),
            "--otlp-logs".into(),
            self.otlp_logs.to_string().into(),
        ];
        for (number, path) in self.watch.iter().enumerate() {
            args.extend([format!("--watch-{number}").into(), path.clone().into()]);
        }
        if let Some(address) = self.metrics_listen {
            args.extend(["--metrics-listen".into(), address.to_string().into()]);
        }
        if let Some(endpoint) = &self.otlp_endpoint {
            args.extend(["--otlp-endpoint".into(), endpoint.into()]);
        }
        args
    }
}

/// Flags as they were received.
pub(crate) struct Received(HashMap<String, OsString>);

impl Received {
    pub(crate) fn read(mut args: impl Iterator<Item = OsString>) -> Self {
        let mut map = HashMap::new();
        while let (Some(name), Some(value)) = (args.next(), args.next()) {
            map.insert(name.to_string_lossy().trim_start_matches("--").to_owned(), value);
        }
        Self(map)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(OsString::as_os_str).and_then(OsStr::to_str)
    }

    pub(crate) fn shared(&self) -> Result<Shared, Missing> {
        let path = |name: &'static str| self.0.get(name).map(PathBuf::from).ok_or(Missing(name));
        Ok(Shared {
            state_dir: path("state-dir")?,
            program: path("program")?,
            tick: Duration::from_micros(self.text("tick-us").and_then(|text| text.parse().ok()).unwrap_or(1_000_000)),
            log: self.text("log").unwrap_or("info").to_owned(),
            cgroups: match self.text("cgroups") {
                Some("v2") => CgroupPreference::V2,
                Some("v1") => CgroupPreference::V1,
                Some("none") => CgroupPreference::None,
                _ => CgroupPreference::Auto,
            },
            on_shutdown: match self.text("on-shutdown") {
                Some("stop") => OnShutdown::Stop,
                _ => OnShutdown::Leave,
            },
            watch: (0..).map_while(|number| self.0.get(&format!("watch-{number}")).map(PathBuf::from)).collect(),
            probe_allow: self
                .text("probe-allow")
                .unwrap_or_default()
                .split(',')
                .filter_map(|it| it.parse().ok())
                .collect(),
            metrics_listen: self.text("metrics-listen").and_then(|text| text.parse().ok()),
            metrics_max_series: self.text("metrics-max-series").and_then(|text| text.parse().ok()).unwrap_or(2000),
            otlp_endpoint: self.text("otlp-endpoint").map(ToOwned::to_owned),
            otlp_logs: self.text("otlp-logs") == Some("true"),
        })
    }

    /// Takes over an inherited descriptor; nothing that this process starts inherits it further.
    #[allow(unsafe_code, reason = "descriptors arrive as numbers")]
    pub(crate) fn fd(&self, name: &'static str) -> Result<OwnedFd, Missing> {
        let number: RawFd = self.text(name).and_then(|text| text.parse().ok()).ok_or(Missing(name))?;
        // SAFETY: fcntl on a number is harmless whatever it names; it tells whether the number is an open descriptor.
        let open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
        if !open || number < 3 {
            return Err(Missing(name));
        }
        // SAFETY: the number was inherited for this use and named on the command line once, at the start of the
        // process, before anything else was opened; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// A flag is missing or makes no sense: somebody called an internal command by hand.
#[derive(Debug, thiserror::Error)]
#[error("--{0} is missing or wrong; this command is only for the daemon itself, use `ostler serve`")]
pub(crate) struct Missing(&'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_as_written() {
        let shared = Shared {
            state_dir: "/a b".into(),
            program: "/bin/ostler".into(),
            tick: Duration::from_millis(250),
            log: "debug".to_owned(),
            cgroups: CgroupPreference::V1,
            on_shutdown: OnShutdown::Stop,
            watch: vec!["/srv/a b".into(), "/srv/c".into()],
            probe_allow: vec!["10.0.0.0/8".parse().unwrap(), "db.internal".parse().unwrap()],
            metrics_listen: Some(([127, 0, 0, 1], 9464).into()),
            metrics_max_series: 100,
            otlp_endpoint: Some("http://127.0.0.1:4317".to_owned()),
            otlp_logs: true,
        };
        let mut args = shared.to_args("keeper");
        args.extend(["--from-the-future".into(), "x".into()]);
        let read = Received::read(args.into_iter().skip(1)).shared().unwrap();
        assert_eq!(format!("{read:?}"), format!("{shared:?}"));
    }
}

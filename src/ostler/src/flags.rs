//! The flags that the daemon's processes hand to each other.
//!
//! Not for people: always `--name value`, always complete, written and read by the same program, or after an upgrade by
//! the next version. Unknown ones are ignored, so that a newer keeper can start an older controller.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;

use ostler_cli::ServeArgs;
use ostler_config::{Cgroups, Given};
use ostler_keeper::CgroupPreference;

/// What keeper and controller both need to know.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) state_dir: PathBuf,
    pub(crate) program: PathBuf,
    /// Settled when the daemon began.
    pub(crate) cgroups: CgroupPreference,
    /// What is configured, apart from the file's content.
    pub(crate) given: Given,
}

impl Shared {
    /// As the user asked.
    pub(crate) fn new(args: &ServeArgs, program: PathBuf) -> Self {
        let (state_dir, given) = (args.state_dir.clone(), args.given.clone());
        Self { state_dir, program, cgroups: CgroupPreference::Auto, given }
    }

    /// Takes what the keeper needs out of the configuration.
    pub(crate) fn configure(&mut self, config: &ostler_config::Config) {
        self.cgroups = match config.cgroups {
            Cgroups::Auto => CgroupPreference::Auto,
            Cgroups::V2 => CgroupPreference::V2,
            Cgroups::V1 => CgroupPreference::V1,
            Cgroups::None => CgroupPreference::None,
        };
    }

    /// As `--name value` pairs behind the word that chooses the process.
    pub(crate) fn to_args(&self, word: &str) -> Vec<OsString> {
        let cgroups = match self.cgroups {
            CgroupPreference::Auto => "auto",
            CgroupPreference::V2 => "v2",
            CgroupPreference::V1 => "v1",
            CgroupPreference::None => "none",
        };
        vec![
            word.into(),
            "--state-dir".into(),
            self.state_dir.clone().into(),
            "--program".into(),
            self.program.clone().into(),
            "--cgroups".into(),
            cgroups.into(),
            "--given".into(),
            // Only a path that is not UTF-8 could fail, and there is none in it.
            serde_json::to_string(&self.given).unwrap_or_default().into(),
        ]
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
            cgroups: match self.text("cgroups") {
                Some("v2") => CgroupPreference::V2,
                Some("v1") => CgroupPreference::V1,
                Some("none") => CgroupPreference::None,
                _ => CgroupPreference::Auto,
            },
            given: self.text("given").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
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
            cgroups: CgroupPreference::V1,
            given: Given {
                file: "/etc/o.yaml".into(),
                named: true,
                flags: [("watch".to_owned(), vec!["/srv/a b", "/srv/c"].into())].into_iter().collect(),
                ..Given::default()
            },
        };
        let mut args = shared.to_args("keeper");
        args.extend(["--from-the-future".into(), "x".into()]);
        let read = Received::read(args.into_iter().skip(1)).shared().unwrap();
        assert_eq!(format!("{read:?}"), format!("{shared:?}"));
    }
}

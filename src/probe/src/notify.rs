//! `notify`: what processes say of themselves by sd_notify(3).
//!
//! One socket for all instances, at a fixed place in the state directory, so that what a process was told at its start
//! still holds for the next controller; and the same under an abstract name, for processes of users who cannot enter
//! the directory. The kernel tells who sends; the sender is looked up among the trees of the instances, and whoever is
//! in none of them is not listened to.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt::PassCred};
use ostler_core::kinds::{NotifyProbe, NotifyStatus, ProbeKind};
use ostler_core::verdict::{Outcome, shorten};
use tokio::io::unix::AsyncFd;

use crate::net::readable;
use crate::process::parse;

/// The longest message that is read, bytes.
const MESSAGE: usize = 4096;
/// A message may come before it is known to which instance its sender belongs.
const EARLY: Duration = Duration::from_secs(5);
const MOST_EARLY: usize = 1024;

/// Where processes send to: in the file system, and for those who cannot get there.
pub(crate) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("notify.sock")
}

/// The abstract name, without the `@`.
pub(crate) fn abstract_name(state_dir: &Path) -> String {
    // FNV-1a of the directory: the same for every controller, another for every daemon.
    let hash = path(state_dir)
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("ostler/notify/{hash:016x}")
}

/// The value of NOTIFY_SOCKET for a process that can enter the state directory, or cannot.
pub(crate) fn address(state_dir: &Path, can_enter: bool) -> String {
    let path = path(state_dir);
    // A path has room for 107 bytes.
    if can_enter && path.as_os_str().len() < 108 {
        path.display().to_string()
    } else {
        format!("@{}", abstract_name(state_dir))
    }
}

/// The sockets.
pub(crate) struct Sockets(Vec<AsyncFd<UnixDatagram>>);

/// A message and who sent it.
#[derive(Debug)]
pub(crate) struct Message {
    /// The names of the sender's cgroups, and the process ids from it up to the first process.
    groups: Vec<String>,
    ancestors: Vec<i32>,
    text: String,
    at: Instant,
}

impl Sockets {
    /// Makes them; one is enough.
    pub(crate) fn bind(state_dir: &Path) -> io::Result<Self> {
        let path = path(state_dir);
        let abstracted = SocketAddr::from_abstract_name(abstract_name(state_dir));
        let in_directory = (|| {
            match fs::remove_file(&path) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
                Ok(()) | Err(_) => {}
            }
            listen(&SocketAddr::from_pathname(&path)?)
        })();
        let abstracted = abstracted.and_then(|address| listen(&address));
        match (in_directory, abstracted) {
            (Err(why), Err(_)) => Err(why),
            (first, second) => Ok(Self(first.into_iter().chain(second).collect())),
        }
    }

    /// Waits for messages. Cancel-safe.
    pub(crate) async fn next(&self) -> Vec<Message> {
        match self.0.as_slice() {
            [] => std::future::pending().await,
            [only] => messages(only).await,
            [first, second, ..] => tokio::select! {
                messages = messages(first) => messages,
                messages = messages(second) => messages,
            },
        }
    }
}

/// Nothing is awaited once a message has been read.
async fn messages(socket: &AsyncFd<UnixDatagram>) -> Vec<Message> {
    loop {
        let Ok(mut ready) = socket.readable().await else { return std::future::pending().await };
        let mut messages = Vec::new();
        // Bounded: who sends without end gets a turn like everybody.
        while messages.len() < 64 {
            match receive(socket.get_ref()) {
                Ok(message) => messages.extend(message),
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    ready.clear_ready();
                    break;
                }
            }
        }
        if !messages.is_empty() {
            return messages;
        }
    }
}

fn listen(address: &SocketAddr) -> io::Result<AsyncFd<UnixDatagram>> {
    let socket = UnixDatagram::bind_addr(address)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, PassCred, &true)?;
    if let Some(path) = address.as_pathname() {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    }
    readable(socket)
}

/// One message; nothing when its sender is gone without a trace.
#[allow(unsafe_code, reason = "descriptors arrive as numbers")]
fn receive(socket: &UnixDatagram) -> io::Result<Option<Message>> {
    let mut buffer = [0; MESSAGE];
    let mut space = nix::cmsg_space!(UnixCredentials, [std::os::fd::RawFd; 8]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT,
    )?;
    let mut sender = None;
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::ScmCredentials(credentials) => sender = Some(credentials.pid()),
            ControlMessageOwned::ScmRights(numbers) => {
                for number in numbers {
                    // SAFETY: the kernel has just made the descriptor for this process, and nobody else knows of it.
                    // Closing it answers BARRIER=1; nothing else is kept.
                    drop(unsafe { OwnedFd::from_raw_fd(number) });
                }
            }
            _ => {}
        }
    }
    let length = message.bytes;
    let Some(pid) = sender.filter(|pid| *pid > 0) else { return Ok(None) };
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    Ok(Some(Message { groups: groups(pid), ancestors: ancestors(pid), text, at: Instant::now() }))
}

/// Every part of the paths of the cgroups of a process.
fn groups(pid: i32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let mut parts: Vec<String> =
        paths.flat_map(|path| path.split('/')).filter(|part| !part.is_empty()).map(str::to_owned).collect();
    parts.sort_unstable();
    parts.dedup();
    parts
}

fn ancestors(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    while found.len() < 32
        && let Some(last) = found.last()
        && let Ok(stat) = fs::read(format!("/proc/{last}/stat"))
        && let Some((_, parent, _)) = parse(&stat)
        && parent > 1
    {
        found.push(parent);
    }
    found
}

/// Whom a message may come from.
#[derive(Debug, Default)]
pub(crate) struct Senders {
    /// The last part of the cgroup's path, which no other attempt has.
    groups: HashMap<String, usize>,
    leaders: HashMap<i32, usize>,
    early: VecDeque<Message>,
}

impl Senders {
    pub(crate) fn add(&mut self, slot: usize, cgroup: &str, pid: i32) {
        if let Some(name) = Path::new(cgroup).file_name().and_then(|name| name.to_str()) {
            self.groups.insert(name.to_owned(), slot);
        }
        self.leaders.insert(pid, slot);
    }

    pub(crate) fn remove(&mut self, slot: usize, cgroup: &str, pid: i32) {
        if let Some(name) = Path::new(cgroup).file_name().and_then(|name| name.to_str()) {
            self.groups.remove(name);
        }
        if self.leaders.get(&pid) == Some(&slot) {
            self.leaders.remove(&pid);
        }
    }

    /// The instance that a message comes from.
    pub(crate) fn find(&self, message: &Message) -> Option<usize> {
        let by_group = message.groups.iter().find_map(|group| self.groups.get(group));
        by_group.or_else(|| message.ancestors.iter().find_map(|pid| self.leaders.get(pid))).copied()
    }

    /// Keeps a message whose sender may become known.
    pub(crate) fn keep(&mut self, message: Message) {
        self.early.retain(|early| early.at.elapsed() < EARLY);
        if self.early.len() < MOST_EARLY {
            self.early.push_back(message);
        } else {
            tracing::debug!("too many messages from unknown senders");
        }
    }

    /// The messages that came before their sender was known, in their order.
    pub(crate) fn early(&mut self, slot: usize) -> Vec<Message> {
        let all = std::mem::take(&mut self.early);
        let (found, left) = all.into_iter().partition::<VecDeque<_>, _>(|message| self.find(message) == Some(slot));
        self.early = left;
        found.into()
    }
}

/// What a process has said of itself.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) status: NotifyStatus,
    reloading: bool,
    stopping: bool,
    /// The last sign of life, or the start of the process.
    alive_at: Instant,
    watchdog: Option<Duration>,
    triggered: bool,
}

impl State {
    /// A process that has said nothing yet, or of which this is known from before.
    pub(crate) fn new(known: Option<&NotifyStatus>, probe: &NotifyProbe) -> Self {
        Self {
            status: known.cloned().unwrap_or_default(),
            reloading: false,
            stopping: false,
            alive_at: Instant::now(),
            watchdog: probe.watchdog.map(ostler_core::Span::to_std),
            triggered: false,
        }
    }

    /// Takes in a message; whether it is one that decides something.
    pub(crate) fn take(&mut self, message: &Message) -> bool {
        let mut decides = false;
        for line in message.text.lines() {
            let Some((name, value)) = line.split_once('=') else { continue };
            match (name, value) {
                ("READY", "1") => {
                    (self.status.ready, self.reloading, self.stopping) = (true, false, false);
                    self.alive_at = message.at;
                    decides = true;
                }
                ("RELOADING", "1") => (self.status.ready, self.reloading, decides) = (false, true, true),
                ("STOPPING", "1") => (self.status.ready, self.stopping, decides) = (false, true, true),
                ("STATUS", text) => shorten(text).clone_into(&mut self.status.text),
                ("MAINPID", pid) => {
                    // Another process of the same tree; anything else is nonsense or worse.
                    let of_tree = |pid: i32| {
                        groups(pid).iter().any(|group| message.groups.contains(group))
                            && ancestors(pid).iter().any(|pid| message.ancestors.contains(pid))
                    };
                    if let Some(pid) = pid.parse().ok().filter(|pid| message.ancestors.contains(pid) || of_tree(*pid)) {
                        self.status.main_pid = Some(pid);
                    }
                }
                ("WATCHDOG", "1") => (self.alive_at, self.triggered) = (message.at, false),
                ("WATCHDOG", "trigger") => (self.triggered, decides) = (true, true),
                ("WATCHDOG_USEC", micros) => {
                    if let Ok(micros) = micros.parse() {
                        self.watchdog = Some(Duration::from_micros(micros)).filter(|watchdog| !watchdog.is_zero());
                    }
                }
                _ => {}
            }
        }
        decides
    }

    /// What follows for a probe.
    pub(crate) fn check(&self, kind: ProbeKind) -> Outcome {
        let text = &self.status.text;
        let said = if text.is_empty() { String::new() } else { format!(": {text}") };
        if self.triggered {
            return Outcome::Failed(format!("WATCHDOG=trigger{said}"));
        }
        let silent = self.alive_at.elapsed();
        if let Some(watchdog) = self.watchdog.filter(|watchdog| silent > *watchdog) {
            let silent = silent.as_secs_f64();
            let watchdog = watchdog.as_secs_f64();
            return Outcome::Failed(format!(
                "no WATCHDOG=1 for {silent:.1} s, at most {watchdog:.1} s are allowed{said}"
            ));
        }
        match kind {
            ProbeKind::Liveness => Outcome::Passed(format!("the watchdog is content{said}")),
            ProbeKind::Startup | ProbeKind::Readiness => {
                if self.status.ready {
                    Outcome::Passed(format!("READY=1{said}"))
                } else if self.reloading {
                    Outcome::Failed(format!("RELOADING=1, and no READY=1 since{said}"))
                } else if self.stopping {
                    Outcome::Failed(format!("STOPPING=1{said}"))
                } else {
                    Outcome::Failed(format!("no READY=1 yet{said}"))
                }
            }
        }
    }
}

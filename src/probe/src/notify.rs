//! `notify`: what processes say of themselves by sd_notify(3).
//!
//! One socket for all instances, at a fixed place in the state directory, so that what a process was told at its start
//! still holds for the next controller; and the same under an abstract name, for processes of users who cannot enter
//! the directory. The kernel tells who sends; the sender is looked up among the trees of the instances, and whoever is
//! in none of them is not listened to.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
/// After an error of the socket.
const PATIENCE: Duration = Duration::from_millis(20);
/// So many of those may be of one tree.
const MOST_OF_TREE: usize = 32;
/// The most descriptors that come with one message, SCM_MAX_FD in the kernel.
const DESCRIPTORS: usize = 253;
/// Room for them and for who sends, bytes.
const CONTROL: usize = 2048;

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
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    break;
                }
                // There may be more behind it, of which nobody would be told again. A socket that is broken for good
                // must not keep the processor busy.
                Err(why) => {
                    tracing::debug!(%why, "a message of sd_notify was lost");
                    if messages.is_empty() {
                        tokio::time::sleep(PATIENCE).await;
                    }
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
    rustix::net::sockopt::set_socket_passcred(&socket, true)?;
    if let Some(path) = address.as_pathname() {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    }
    readable(socket)
}

/// One message; nothing when its sender is gone without a trace.
fn receive(socket: &UnixDatagram) -> io::Result<Option<Message>> {
    let mut buffer = [0; MESSAGE];
    // What comes with it is closed at once, which answers BARRIER=1.
    let (length, sender) = receive_raw(socket, &mut buffer)?;
    let Some(pid) = sender.filter(|pid| *pid > 0) else { return Ok(None) };
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    Ok(Some(Message { groups: groups(pid), ancestors: ancestors(pid), text, at: Instant::now() }))
}

/// The length of a message and the pid of its sender. Descriptors are closed, also when some of them did not fit or
/// could not be made.
#[allow(unsafe_code, reason = "descriptors arrive as numbers")]
fn receive_raw(socket: &UnixDatagram, buffer: &mut [u8]) -> io::Result<(usize, Option<libc::pid_t>)> {
    #[repr(C, align(8))]
    struct Control([u8; CONTROL]);
    const _: () = assert!(DESCRIPTORS * size_of::<RawFd>() + 256 < CONTROL);
    let mut control = Control([0; CONTROL]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a header of zeroes is a valid one, of nothing.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL as _;
    // SAFETY: the header points to one part and to the room for control messages, which live longer than the call and
    // are as long as it says.
    let length =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let mut sender = None;
    // SAFETY: the kernel has filled in the header; the macros stay within it.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !next.is_null() {
        // SAFETY: it is within `control`, which is aligned for it.
        let (head, data) = unsafe { (*next, libc::CMSG_DATA(next)) };
        let begin = data as usize - control.0.as_ptr() as usize;
        let length = head.cmsg_len.saturating_sub(data as usize - next as usize);
        let bytes = &control.0[begin.min(CONTROL)..(begin + length).min(header.msg_controllen).min(CONTROL)];
        let mut numbers =
            bytes.chunks_exact(4).map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        match (head.cmsg_level, head.cmsg_type) {
            // The pid is the first part of a `ucred`.
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => sender = numbers.next(),
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for number in numbers {
                    // SAFETY: the kernel has just made the descriptor for this process, and nobody else knows of it.
                    drop(unsafe { OwnedFd::from_raw_fd(number) });
                }
            }
            _ => {}
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, next) };
    }
    Ok((length, sender))
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

/// What the processes of instances can be known by before they are watched.
#[derive(Clone, Debug)]
pub(crate) struct Custody {
    keeper: i32,
    /// The last part of the path of the cgroup above those of the attempts.
    group: Option<String>,
}

impl Custody {
    pub(crate) fn new(keeper: i32, cgroup: &str) -> Self {
        let group = Path::new(cgroup).file_name().and_then(|name| name.to_str()).map(str::to_owned);
        Self { keeper, group }
    }

    /// The topmost process of the tree that a message comes from; nothing when that belongs to no instance.
    fn tree(&self, message: &Message) -> Option<i32> {
        match message.ancestors.iter().position(|pid| *pid == self.keeper) {
            Some(index) => message.ancestors.get(index.checked_sub(1)?).copied(),
            // Of another keeper than this one, that has died.
            None => message
                .ancestors
                .last()
                .copied()
                .filter(|_| self.group.as_ref().is_some_and(|group| message.groups.contains(group))),
        }
    }
}

/// Whom a message may come from.
#[derive(Debug, Default)]
pub(crate) struct Senders {
    /// Nothing is known of before the keeper has been heard of: then everybody may be right.
    custody: Option<Custody>,
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

    /// Only what comes from processes of instances is kept from now on.
    pub(crate) fn listen_to(&mut self, custody: Custody) {
        self.early.retain(|message| custody.tree(message).is_some());
        self.custody = Some(custody);
    }

    /// Keeps a message whose sender may become known.
    pub(crate) fn keep(&mut self, message: Message) {
        while self.early.front().is_some_and(|early| early.at.elapsed() >= EARLY) {
            self.early.pop_front();
        }
        let tree = |message: &Message| match &self.custody {
            Some(custody) => custody.tree(message),
            None => message.ancestors.last().copied(),
        };
        let Some(own) = tree(&message) else { return };
        let of_tree = self.early.iter().filter(|early| tree(early) == Some(own)).count();
        if of_tree < MOST_OF_TREE && self.early.len() < MOST_EARLY {
            self.early.push_back(message);
        } else {
            tracing::debug!(pid = own, "too many messages from a process that is not known yet");
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

    /// Takes in a message; whether it changes what is decided.
    pub(crate) fn take(&mut self, message: &Message) -> bool {
        let before = (self.status.ready, self.reloading, self.stopping, self.triggered);
        for line in message.text.lines() {
            let Some((name, value)) = line.split_once('=') else { continue };
            match (name, value) {
                ("READY", "1") => {
                    (self.status.ready, self.reloading, self.stopping) = (true, false, false);
                    self.alive_at = message.at;
                }
                ("RELOADING", "1") => (self.status.ready, self.reloading) = (false, true),
                ("STOPPING", "1") => (self.status.ready, self.stopping) = (false, true),
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
                ("WATCHDOG", "trigger") => self.triggered = true,
                ("WATCHDOG_USEC", micros) => {
                    if let Ok(micros) = micros.parse() {
                        self.watchdog = Some(Duration::from_micros(micros)).filter(|watchdog| !watchdog.is_zero());
                    }
                }
                _ => {}
            }
        }
        before != (self.status.ready, self.reloading, self.stopping, self.triggered)
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

#[cfg(test)]
impl Message {
    /// From nobody.
    pub(crate) fn of(text: &str) -> Self {
        Self { groups: Vec::new(), ancestors: Vec::new(), text: text.to_owned(), at: Instant::now() }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    fn message(ancestors: &[i32], groups: &[&str], text: &str) -> Message {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Message { groups, ancestors: ancestors.to_vec(), text: text.to_owned(), at: Instant::now() }
    }

    /// How often this process, in which other tests run, has a file open.
    fn descriptors(file: &Path) -> usize {
        let open = fs::read_dir("/proc/self/fd").unwrap();
        open.filter(|entry| fs::read_link(entry.as_ref().unwrap().path()).is_ok_and(|at| at == file)).count()
    }

    #[tokio::test]
    async fn descriptors_that_come_along_are_closed_however_many() {
        let directory = tempfile::tempdir().unwrap();
        let sockets = Sockets::bind(directory.path()).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        let path = directory.path().join("sent");
        let sent = fs::File::create(&path).unwrap();
        assert_eq!(descriptors(&path), 1);
        let name = abstract_name(directory.path());
        let address = rustix::net::SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        for many in [0, 1, 9, 64, DESCRIPTORS] {
            let fds = vec![sent.as_fd(); many];
            let mut space = vec![std::mem::MaybeUninit::uninit(); CONTROL];
            let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
            assert!(many == 0 || control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
            let text = format!("STATUS={many}");
            rustix::net::sendmsg_addr(
                &sender,
                &address,
                &[io::IoSlice::new(text.as_bytes())],
                &mut control,
                rustix::net::SendFlags::empty(),
            )
            .unwrap();
            let heard = tokio::time::timeout(Duration::from_secs(30), sockets.next()).await.unwrap();
            assert_eq!(heard.iter().map(|message| message.text.as_str()).collect::<Vec<_>>(), [text]);
            assert_eq!(heard[0].ancestors[0], i32::try_from(std::process::id()).unwrap());
        }
        assert_eq!(descriptors(&path), 1);
    }

    #[test]
    fn only_what_changes_something_decides() {
        let mut state = State::new(None, &NotifyProbe::default());
        for (text, decides) in [
            ("STATUS=x", false),
            ("READY=1", true),
            ("READY=1", false),
            ("RELOADING=1", true),
            ("RELOADING=1\nSTATUS=y", false),
            ("READY=1", true),
            ("WATCHDOG=1", false),
            ("WATCHDOG=trigger", true),
            ("WATCHDOG=trigger", false),
            ("STOPPING=1", true),
        ] {
            assert_eq!(state.take(&message(&[7], &[], text)), decides, "{text}");
        }
    }

    #[test]
    fn strangers_do_not_crowd_out_those_who_are_about_to_be_known() {
        let mut senders = Senders::default();
        senders.listen_to(Custody::new(10, "/sys/fs/cgroup/ostler-1"));
        for pid in 1000..4000 {
            senders.keep(message(&[pid, 1], &["user.slice"], "READY=1"));
        }
        // A tree that says too much takes no more room than its own.
        for pid in 5000..6000 {
            senders.keep(message(&[pid, 50, 10, 9], &["ostler-1", "a.1"], "READY=1"));
        }
        assert_eq!(senders.early.len(), MOST_OF_TREE);
        senders.keep(message(&[61, 60, 10, 9], &["ostler-1", "b.1"], "READY=1"));
        senders.keep(message(&[70, 2], &["ostler-1", "c.1"], "READY=1"));
        senders.add(0, "/sys/fs/cgroup/ostler-1/b.1", 60);
        assert_eq!(senders.early(0).len(), 1);
        senders.add(1, "/sys/fs/cgroup/ostler-1/c.1", 70);
        assert_eq!(senders.early(1).len(), 1, "of a keeper that is gone");
    }
}

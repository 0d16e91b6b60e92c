//! Directories and ports that no other test has.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

/// A new directory with a short path, which is gone with the value: the path of a unix socket has 108 bytes, and a
/// daemon's state directory is to be in it.
pub fn directory() -> tempfile::TempDir {
    const LONGEST: usize = 60;
    let usual = std::env::temp_dir();
    let below = if usual.as_os_str().len() <= LONGEST { usual } else { PathBuf::from("/tmp") };
    let made = tempfile::Builder::new().prefix("ot-").tempdir_in::<&Path>(&below);
    made.unwrap_or_else(|why| panic!("no directory can be made in {}: {why}", below.display()))
}

/// A port of this machine that is free, and that nobody gets who does not ask for it by its number: it is neither one
/// that the kernel gives to outgoing connections nor one that `port: auto` can be.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_500;
    const COUNT: u16 = 4_500;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = (std::process::id() % u32::from(COUNT)) as u16;
    (0..COUNT)
        .map(|_| FIRST + (begin + NEXT.fetch_add(7, Ordering::Relaxed) % COUNT) % COUNT)
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("one of thousands of ports is free")
}

//! From a host and a port of a spec to addresses that may be checked, and connections to them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use ostler_core::allow::{Allow, is_allowed};
use ostler_core::kinds::PortRef;
use ostler_core::verdict::Outcome;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

/// The number of a port.
pub(crate) fn port(port: &PortRef, ports: &BTreeMap<String, u16>) -> Result<u16, Outcome> {
    match port {
        PortRef::Number(number) => Ok(number.get()),
        PortRef::Name(name) => {
            ports.get(name).copied().ok_or_else(|| Outcome::CannotRun(format!("the instance has no port {name:?}")))
        }
    }
}

/// The addresses behind a host name that may be checked, at least one.
pub(crate) async fn addresses(host: Option<&str>, port: u16, allow: &[Allow]) -> Result<Vec<SocketAddr>, Outcome> {
    let Some(host) = host else { return Ok(vec![(Ipv4Addr::LOCALHOST, port).into()]) };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found: Vec<SocketAddr> = match bare.parse::<IpAddr>() {
        Ok(ip) => vec![(ip, port).into()],
        Err(_) => match tokio::net::lookup_host((bare, port)).await {
            Ok(found) => found.collect(),
            Err(why) => return Err(Outcome::CannotRun(format!("cannot resolve {host}: {why}"))),
        },
    };
    let Some(first) = found.first().copied() else {
        return Err(Outcome::CannotRun(format!("{host} has no address")));
    };
    let allowed: Vec<SocketAddr> = found.into_iter().filter(|address| is_allowed(allow, bare, address.ip())).collect();
    if allowed.is_empty() {
        return Err(Outcome::CannotRun(format!(
            "{} is not a loopback address; `ostler serve --probe-allow {bare}` allows it",
            first.ip()
        )));
    }
    Ok(allowed)
}

/// Connects to the first address that accepts.
pub(crate) async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, Outcome> {
    let mut outcome = Outcome::CannotRun("no address".to_owned());
    for address in addresses {
        match TcpStream::connect(address).await.and_then(with_somebody) {
            Ok(stream) => return Ok(stream),
            Err(why) => outcome = of_error(&why, &format!("cannot connect to {address}")),
        }
    }
    Err(outcome)
}

/// A connection to somebody else. One to a port from which the kernel takes the numbers of those who connect, and on
/// which nobody listens, can come to be with itself.
fn with_somebody(stream: TcpStream) -> io::Result<TcpStream> {
    if stream.local_addr()? != stream.peer_addr()? {
        return Ok(stream);
    }
    // Without a trace: the port is somebody else's.
    stream.set_zero_linger()?;
    Err(io::Error::from_raw_os_error(libc::ECONNREFUSED))
}

/// What an error of a system call says about the process: nothing, when it is this side that is short of something.
pub(crate) fn of_error(why: &io::Error, what: &str) -> Outcome {
    let text = format!("{what}: {why}");
    match why.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL | libc::EAGAIN) => {
            Outcome::CannotRun(text)
        }
        Some(_) | None => Outcome::Failed(text),
    }
}

/// Registers the owner of a descriptor with the runtime, for reading.
#[allow(unsafe_code, reason = "registering a descriptor with the runtime")]
pub(crate) fn readable<T: AsRawFd + Into<OwnedFd>>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: what can be turned into an `OwnedFd` owns its descriptor and keeps it; `AsyncFd` owns that until it is
    // dropped, and nobody here takes the descriptor out of it.
    unsafe { AsyncFd::register_with_interest(owner, Interest::READABLE) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_with_itself_is_refused() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let own = socket.local_addr().unwrap();
        let with_itself = socket.connect(own).await.unwrap();
        assert_eq!(with_somebody(with_itself).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        // The port is free again at once.
        let listener = tokio::net::TcpListener::bind(own).await.unwrap();
        assert!(connect(&[own]).await.is_ok());
        drop(listener);
        assert!(matches!(connect(&[own]).await, Err(Outcome::Failed(_))));
    }

    #[test]
    fn what_this_side_lacks_says_nothing_about_the_process() {
        for (errno, cannot_run) in [(libc::EMFILE, true), (libc::ENOBUFS, true), (libc::ECONNREFUSED, false)] {
            let outcome = of_error(&io::Error::from_raw_os_error(errno), "x");
            assert_eq!(matches!(outcome, Outcome::CannotRun(_)), cannot_run, "{outcome:?}");
        }
    }
}

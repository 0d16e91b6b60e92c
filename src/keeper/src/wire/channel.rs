//! One end of the SOCK_SEQPACKET pair: a message a packet, descriptors beside it.
#![allow(unsafe_code, reason = "sendmsg and recvmsg into memory that is not initialised first")]

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use prost::Message;
use rustix::fs::{MemfdFlags, memfd_create};

/// The largest message that travels as a packet, bytes. A larger one travels in a memfd.
pub const MAX_PACKET: usize = 64 << 10;

/// The most descriptors beside one packet.
pub const MAX_DESCRIPTORS: usize = 240;

/// The largest message accepted in a memfd, bytes.
const MAX_MESSAGE: u64 = 256 << 20;

/// Room for the control message of `SCM_RIGHTS` with the kernel's maximum of 253 descriptors, aligned as cmsghdr is.
const CONTROL_WORDS: usize = 132;

/// One end of the connection between keeper and controller.
///
/// Never blocks, whatever the flags of the descriptor are: [`send`](Self::send) and [`recv`](Self::recv) fail with
/// [`io::ErrorKind::WouldBlock`]. Both take `&self`, so the channel can live in tokio's `AsyncFd`.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
}

impl Channel {
    /// Takes over one end of a socket pair.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Both ends of a new connection; close-on-exec and non-blocking.
    pub fn pair() -> io::Result<(Self, Self)> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        Ok((Self::new(a), Self::new(b)))
    }

    /// Gives the descriptor back.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Sends one message with descriptors (at most [`MAX_DESCRIPTORS`]) beside it: all of it or nothing.
    ///
    /// # Errors
    /// `WouldBlock` when the peer has to read first; anything else means that the connection is of no more use. A
    /// message beyond [`MAX_PACKET`] cannot carry descriptors of its own (`InvalidInput`).
    pub fn send<M: Message>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let length = message.encoded_len();
        if fds.len() > MAX_DESCRIPTORS || (length > MAX_PACKET && !fds.is_empty()) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        if length == 0 {
            // An empty packet would read as the end of the connection, and an empty message says nothing.
            return Ok(());
        }
        let bytes = message.encode_to_vec();
        if length <= MAX_PACKET {
            return self.send_packet(&bytes, fds);
        }
        let memory = memfd_create("ostler-message", MemfdFlags::CLOEXEC)?;
        write_all(&memory, &bytes)?;
        self.send_packet(&[], &[memory.as_fd()])
    }

    fn send_packet(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut control = [0_u64; CONTROL_WORDS];
        let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: msghdr is plain data for which all zeroes is a valid value.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        if !fds.is_empty() {
            let size = mem::size_of_val(fds);
            header.msg_control = control.as_mut_ptr().cast();
            // SAFETY: the buffer is aligned for cmsghdr and has room for MAX_DESCRIPTORS, which the caller checked;
            // BorrowedFd has the layout of a raw descriptor.
            unsafe {
                header.msg_controllen = libc::CMSG_SPACE(size as u32) as _;
                let first = libc::CMSG_FIRSTHDR(&raw const header);
                (*first).cmsg_level = libc::SOL_SOCKET;
                (*first).cmsg_type = libc::SCM_RIGHTS;
                (*first).cmsg_len = libc::CMSG_LEN(size as u32) as _;
                std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(first), size);
            }
        }
        loop {
            // SAFETY: the header points to live buffers of the lengths it states.
            let sent = unsafe {
                libc::sendmsg(self.fd.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Takes the next message and the descriptors beside it (close-on-exec). `None`: the peer has closed its end.
    ///
    /// Fewer descriptors than the message names means that this process has no room for more of them: the last ones
    /// are missing.
    ///
    /// # Errors
    /// `WouldBlock` when there is none yet; `InvalidData` for something that is not a message; anything else means
    /// that the connection is of no more use.
    pub fn recv<M: Message + Default>(&self) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
        let mut buffer = Vec::<u8>::with_capacity(MAX_PACKET);
        let mut control = [0_u64; CONTROL_WORDS];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: MAX_PACKET };
        // SAFETY: msghdr is plain data for which all zeroes is a valid value.
        let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = mem::size_of_val(&control) as _;
        let received = loop {
            // SAFETY: the header points to live buffers of the lengths it states.
            let received = unsafe {
                libc::recvmsg(self.fd.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC)
            };
            if received >= 0 {
                break received as usize;
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::ConnectionReset => return Ok(None),
                _ => return Err(error),
            }
        };
        // SAFETY: the kernel has written that many bytes, and no more than the capacity.
        unsafe { buffer.set_len(received) };
        // SAFETY: the kernel has filled the control buffer.
        let mut fds = unsafe { take_descriptors(&header) };
        if header.msg_flags & libc::MSG_TRUNC != 0 {
            return Err(invalid("packet longer than the protocol allows"));
        }
        if received > 0 {
            let message = M::decode(buffer.as_slice()).map_err(invalid)?;
            return Ok(Some((message, fds)));
        }
        let Some(memory) = fds.pop() else {
            return if header.msg_flags & libc::MSG_CTRUNC == 0 {
                Ok(None)
            } else {
                Err(invalid("no descriptor left to take a large message"))
            };
        };
        let mut file = File::from(memory);
        if file.metadata()?.len() > MAX_MESSAGE {
            return Err(invalid("message longer than the protocol allows"));
        }
        buffer.clear();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut buffer)?;
        let message = M::decode(buffer.as_slice()).map_err(invalid)?;
        Ok(Some((message, Vec::new())))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// # Safety
/// `header` must have been filled by a successful recvmsg, and its control buffer must still be live.
unsafe fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the macros walk the control messages that the kernel wrote; each descriptor is new and ours alone.
    unsafe {
        let mut current = libc::CMSG_FIRSTHDR(header);
        while !current.is_null() {
            if (*current).cmsg_level == libc::SOL_SOCKET && (*current).cmsg_type == libc::SCM_RIGHTS {
                let size = (*current).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(current);
                for index in 0..size / mem::size_of::<RawFd>() {
                    let place = data.add(index * mem::size_of::<RawFd>());
                    let mut number = [0; mem::size_of::<RawFd>()];
                    std::ptr::copy_nonoverlapping(place, number.as_mut_ptr(), number.len());
                    fds.push(OwnedFd::from_raw_fd(RawFd::from_ne_bytes(number)));
                }
            }
            current = libc::CMSG_NXTHDR(header, current);
        }
    }
    fds
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(fd, bytes))?;
        bytes = &bytes[written..];
    }
    Ok(())
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Command, Request, Spawn, command};

    fn request(argument_bytes: usize) -> Request {
        Request {
            commands: vec![Command {
                kind: Some(command::Kind::Spawn(Spawn { argv: vec![vec![b'x'; argument_bytes]], ..Spawn::default() })),
            }],
        }
    }

    #[test]
    fn messages_arrive_whole_whatever_their_size() {
        let (a, b) = Channel::pair().unwrap();
        for size in [1, 1000, MAX_PACKET - 20, MAX_PACKET, 5 << 20] {
            a.send(&request(size), &[]).unwrap();
            let (got, fds) = b.recv::<Request>().unwrap().unwrap();
            assert_eq!(got, request(size));
            assert!(fds.is_empty());
        }
        assert_eq!(b.recv::<Request>().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert!(b.recv::<Request>().unwrap().is_none());
    }

    #[test]
    fn descriptors_travel_in_order() {
        let (a, b) = Channel::pair().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        a.send(&request(3), &[reader.as_fd(), writer.as_fd()]).unwrap();
        let (_, mut fds) = b.recv::<Request>().unwrap().unwrap();
        assert_eq!(fds.len(), 2);
        let writer = fds.pop().unwrap();
        rustix::io::write(&writer, b"hi").unwrap();
        let mut buffer = [0; 8];
        let read = rustix::io::read(&fds[0], &mut buffer).unwrap();
        assert_eq!(&buffer[..read], b"hi");
    }

    #[test]
    fn a_full_connection_refuses_and_loses_nothing() {
        let (a, b) = Channel::pair().unwrap();
        let mut sent = 0;
        while a.send(&request(60_000), &[]).is_ok() {
            sent += 1;
        }
        assert!(sent > 0);
        let mut received = 0;
        while let Ok(Some((message, _))) = b.recv::<Request>() {
            assert_eq!(message, request(60_000));
            received += 1;
        }
        assert_eq!(sent, received);
    }

    #[test]
    fn rubbish_is_an_error_and_not_a_message() {
        let (a, b) = Channel::pair().unwrap();
        a.send_packet(&[0xff; 12], &[]).unwrap();
        assert_eq!(b.recv::<Request>().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

//! One netlink socket and its conversations: requests out, complete answers or an error back.
//!
//! Invariant: a listing is whole or it is an error. The kernel marks a dump that a change overtook with
//! `NLM_F_DUMP_INTR`, on any part or on the closing message; such a dump is thrown away and asked for again, spaced and
//! bounded. If this were missed, objects would seem to have vanished, and a plan made from that would be wrong.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt;

use crate::wire::{
    self, F_ACK, F_DUMP, F_DUMP_INTR, F_REQUEST, Message, NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN,
};
use crate::{Error, NetNs, Refusal, Result};

/// The kernel answers at once; this bounds a wait that should not happen.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Larger than any datagram the kernel builds for a dump (it stops at 32 KiB).
const DATAGRAM: usize = 64 * 1024;
/// How often an interrupted dump is asked for again.
const DUMP_ATTEMPTS: u32 = 12;

/// One message of an answer: its type and payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) kind: u16,
    pub(crate) payload: Vec<u8>,
}

/// The answer to one request while it arrives.
#[derive(Debug)]
pub(crate) struct Answer {
    sequence: u32,
    pub(crate) replies: Vec<Reply>,
    pub(crate) outcome: Option<std::result::Result<(), Refusal>>,
    pub(crate) interrupted: bool,
}

/// Sorts incoming datagrams into the answers they belong to.
#[derive(Debug)]
pub(crate) struct Assembly {
    pub(crate) answers: Vec<Answer>,
    overrun: bool,
}

impl Assembly {
    pub(crate) fn new(sequences: impl Iterator<Item = u32>) -> Self {
        let answers = sequences
            .map(|sequence| Answer { sequence, replies: Vec::new(), outcome: None, interrupted: false })
            .collect();
        Self { answers, overrun: false }
    }

    /// Takes one datagram. Messages of other conversations (late answers) are passed over.
    pub(crate) fn feed(&mut self, datagram: &[u8]) -> std::result::Result<(), String> {
        for received in wire::messages(datagram) {
            let received = received?;
            if received.kind == NLMSG_OVERRUN {
                self.overrun = true;
                continue;
            }
            let Some(answer) = self.answers.iter_mut().find(|a| a.sequence == received.sequence) else {
                continue;
            };
            answer.interrupted |= received.flags & F_DUMP_INTR != 0;
            match received.kind {
                NLMSG_ERROR | NLMSG_DONE => {
                    answer.outcome.get_or_insert_with(|| wire::outcome(&received));
                }
                kind if kind >= 16 => {
                    answer.replies.push(Reply { kind, payload: received.payload.to_vec() });
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.overrun || self.answers.iter().all(|a| a.outcome.is_some())
    }
}

/// How one attempt at a dump ended.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// Everything arrived and nothing changed meanwhile.
    Whole(Vec<Reply>),
    /// Something changed meanwhile, or part of the answer was lost.
    Overtaken,
}

/// Asks for a dump until one attempt is whole; `pause` separates the attempts.
pub(crate) fn until_whole(
    operation: &str,
    mut attempt: impl FnMut() -> Result<Attempt>,
    mut pause: impl FnMut(Duration),
) -> Result<Vec<Reply>> {
    for turn in 0..DUMP_ATTEMPTS {
        if turn > 0 {
            pause(Duration::from_millis(1 << turn.min(6)));
        }
        match attempt()? {
            Attempt::Whole(replies) => return Ok(replies),
            Attempt::Overtaken => {}
        }
    }
    Err(Error::Interrupted { operation: operation.to_owned(), attempts: DUMP_ATTEMPTS })
}

/// What a finished answer to a dump request amounts to.
pub(crate) fn judge(operation: &str, assembly: Assembly) -> Result<Attempt> {
    let overrun = assembly.overrun;
    let Some(answer) = assembly.answers.into_iter().next() else {
        return Err(Error::malformed(operation, "there is no answer at all"));
    };
    match answer.outcome {
        Some(Err(refusal)) if matches!(refusal.errno, libc::EINTR | libc::EAGAIN) => Ok(Attempt::Overtaken),
        Some(Err(refusal)) => Err(Error::Refused { operation: operation.to_owned(), refusal }),
        _ if overrun || answer.interrupted => Ok(Attempt::Overtaken),
        Some(Ok(())) => Ok(Attempt::Whole(answer.replies)),
        None => Err(Error::NoAnswer { operation: operation.to_owned() }),
    }
}

/// A socket of one netlink protocol, bound to the network namespace it was opened in.
pub(crate) struct NetlinkSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for NetlinkSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetlinkSocket").field("fd", &self.socket.as_raw_fd()).finish_non_exhaustive()
    }
}

impl NetlinkSocket {
    /// Opens a socket in the calling thread's namespace, or in `netns`.
    pub(crate) fn open(protocol: i32, what: &str, netns: Option<&NetNs>) -> Result<Self> {
        let open = || Self::open_here(protocol, what);
        match netns {
            None => open(),
            Some(netns) => netns.run(open)?,
        }
    }

    fn open_here(protocol: i32, what: &str) -> Result<Self> {
        let failed = |source: io::Error| {
            let hint = match source.raw_os_error() {
                Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
                    " (the kernel lacks this netlink protocol)"
                }
                _ => "",
            };
            Error::io(format!("open a {what} netlink socket{hint}"), source)
        };
        let mut socket = Socket::new(protocol as isize).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        // Since Linux 4.12 resp. 4.20; without them errors are terser and dumps are filtered here only.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))
            .map_err(|e| failed(e.into()))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Sends requests in one go and collects an acknowledgement, with whatever replies precede it, for each.
    ///
    /// The kernel works through them in order and does not stop at the first that fails.
    pub(crate) fn exchange(&mut self, operation: &str, requests: &[Message]) -> Result<Vec<Answer>> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let mut bytes = Vec::new();
        let mut sequences = Vec::with_capacity(requests.len());
        for request in requests {
            let mut request = request.clone();
            request.flags |= F_REQUEST | F_ACK;
            let sequence = self.next_sequence();
            sequences.push(sequence);
            bytes.extend(request.finish(sequence));
        }
        self.send(operation, &bytes)?;
        let mut assembly = Assembly::new(sequences.into_iter());
        self.collect(operation, &mut assembly)?;
        if assembly.overrun {
            return Err(Error::NoAnswer { operation: operation.to_owned() });
        }
        Ok(assembly.answers)
    }

    /// One request, one outcome.
    pub(crate) fn one(&mut self, operation: &str, request: &Message) -> Result<Vec<Reply>> {
        let answers = self.exchange(operation, std::slice::from_ref(request))?;
        match answers.into_iter().next() {
            Some(Answer { outcome: Some(Err(refusal)), .. }) => {
                Err(Error::Refused { operation: operation.to_owned(), refusal })
            }
            Some(Answer { replies, .. }) => Ok(replies),
            None => Err(Error::NoAnswer { operation: operation.to_owned() }),
        }
    }

    /// A complete listing, or an error.
    pub(crate) fn dump(&mut self, operation: &str, request: &Message) -> Result<Vec<Reply>> {
        let mut request = request.clone();
        request.flags |= F_REQUEST | F_DUMP;
        until_whole(
            operation,
            || {
                let sequence = self.next_sequence();
                self.send(operation, &request.finish(sequence))?;
                let mut assembly = Assembly::new(std::iter::once(sequence));
                self.collect(operation, &mut assembly)?;
                judge(operation, assembly)
            },
            std::thread::sleep,
        )
    }

    fn collect(&mut self, operation: &str, assembly: &mut Assembly) -> Result<()> {
        while !assembly.is_complete() {
            match self.receive(operation, 0) {
                Ok(Some(())) => {
                    assembly.feed(&self.buffer).map_err(|detail| Error::malformed(operation, detail))?;
                }
                Ok(None) => return Err(Error::NoAnswer { operation: operation.to_owned() }),
                Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::ENOBUFS) => {
                    assembly.overrun = true;
                    self.drain(operation)?;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    pub(crate) fn next_sequence(&mut self) -> u32 {
        // 0 is the sequence of unsolicited notices.
        self.sequence = self.sequence.checked_add(1).unwrap_or(1);
        self.sequence
    }

    pub(crate) fn send(&self, operation: &str, bytes: &[u8]) -> Result<()> {
        let kernel = SocketAddr::new(0, 0);
        loop {
            match self.socket.send_to(bytes, &kernel, 0) {
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(sent) => {
                    return Err(Error::malformed(
                        operation,
                        format!("{sent} of {} bytes taken", bytes.len()),
                    ));
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(operation, e)),
            }
        }
    }

    /// Receives one datagram of the kernel's into the buffer; `None` when nothing came in time.
    pub(crate) fn receive(&mut self, operation: &str, flags: libc::c_int) -> Result<Option<()>> {
        loop {
            self.buffer.clear();
            self.buffer.reserve(DATAGRAM);
            match self.socket.recv_from(&mut self.buffer, flags | libc::MSG_TRUNC) {
                Ok((_, from)) if from.port_number() != 0 => {}
                Ok((len, _)) if len > self.buffer.len() => {
                    return Err(Error::malformed(
                        operation,
                        format!("a datagram of {len} bytes was cut off"),
                    ));
                }
                Ok(_) => return Ok(Some(())),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(Error::io(operation, e)),
            }
        }
    }

    /// Throws away what waits, so that a new conversation starts clean.
    pub(crate) fn drain(&mut self, operation: &str) -> Result<()> {
        loop {
            match self.receive(operation, libc::MSG_DONTWAIT) {
                Ok(None) => return Ok(()),
                Ok(Some(())) => {}
                Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(e) => return Err(e),
            }
        }
    }

    pub(crate) fn datagram(&self) -> &[u8] {
        &self.buffer
    }

    pub(crate) fn join(&self, what: &str, group: u32) -> Result<()> {
        self.socket.add_membership(group).map_err(|e| Error::io(format!("listen for {what} changes"), e))
    }

    /// Room for `bytes` in the direction of the kernel; needs no privilege beyond what netlink writes need.
    pub(crate) fn widen_send(&self, operation: &str, bytes: usize) -> Result<()> {
        sockopt::set_socket_send_buffer_size_force(self.as_fd(), bytes).map_err(|e| Error::io(operation, e))
    }

    pub(crate) fn widen_receive(&self, operation: &str, bytes: usize) -> Result<()> {
        sockopt::set_socket_recv_buffer_size_force(self.as_fd(), bytes).map_err(|e| Error::io(operation, e))
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The replies of one type, read; those that `read` does not know are passed over.
pub(crate) fn parsed<T>(replies: &[Reply], kind: u16, read: impl Fn(&[u8]) -> Option<T>) -> Vec<T> {
    replies.iter().filter(|r| r.kind == kind).filter_map(|r| read(&r.payload)).collect()
}

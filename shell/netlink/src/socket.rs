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
/// A default receive buffer holds a few hundred acknowledgements.
const REQUESTS_AT_ONCE: usize = 64;
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
        let operation = format!("open a {what} netlink socket");
        let failed = |source: io::Error| Error::io(operation.clone(), source);
        let mut socket = match Socket::new(protocol as isize) {
            Err(source) => match source.raw_os_error() {
                Some(errno @ (libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT)) => {
                    return Err(lacking(protocol, operation, errno));
                }
                _ => return Err(failed(source)),
            },
            Ok(socket) => socket,
        };
        socket.bind_auto().map_err(failed)?;
        // Since Linux 4.12 resp. 4.20; without them errors are terser and dumps are filtered here only.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))
            .map_err(|e| failed(e.into()))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Sends requests and collects an acknowledgement, with whatever replies precede it, for each. A few go in one
    /// round trip; many go in several, because the kernel drops acknowledgements that find no room to wait in.
    ///
    /// The kernel works through them in order and does not stop at the first that fails.
    pub(crate) fn exchange(&mut self, operation: &str, requests: &[Message]) -> Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(requests.len());
        for some in requests.chunks(REQUESTS_AT_ONCE) {
            let mut bytes = Vec::new();
            let mut sequences = Vec::with_capacity(some.len());
            for request in some {
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
            answers.append(&mut assembly.answers);
        }
        Ok(answers)
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

    /// Room for `bytes` of answers and notices, or as much as an unprivileged process may have: a smaller buffer
    /// overruns sooner, which is noticed.
    pub(crate) fn widen_receive(&self, operation: &str, bytes: usize) -> Result<()> {
        sockopt::set_socket_recv_buffer_size_force(self.as_fd(), bytes)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(self.as_fd(), bytes))
            .map_err(|e| Error::io(operation, e))
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

/// A kernel without a netlink protocol says so when the socket is made.
fn lacking(protocol: i32, operation: String, errno: i32) -> Error {
    let (feature, advice) = match protocol {
        libc::NETLINK_NETFILTER => (
            "nfnetlink, through which nf_tables is reached",
            "load the modules nfnetlink and nf_tables (modprobe nf_tables), or use a kernel with CONFIG_NF_TABLES",
        ),
        _ => ("netlink of this protocol", "use a kernel that has it"),
    };
    Error::MissingFeature {
        operation,
        feature: feature.to_owned(),
        advice: advice.to_owned(),
        refusal: Refusal { errno, message: None, offset: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{F_ACK_TLVS, F_CAPPED};

    const PART: u16 = 0x2;

    /// A message as the kernel frames it.
    fn framed(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut message = Message::new(kind, flags, payload);
        message.flags = flags;
        message.finish(sequence)
    }

    fn done(flags: u16, code: i32) -> Vec<u8> {
        framed(NLMSG_DONE, PART | flags, 1, &code.to_ne_bytes())
    }

    fn link_part(flags: u16) -> Vec<u8> {
        framed(16, PART | flags, 1, &[0; 16])
    }

    fn attempt(datagrams: &[Vec<u8>]) -> Result<Attempt> {
        let mut assembly = Assembly::new(std::iter::once(1));
        for datagram in datagrams {
            assembly.feed(datagram).unwrap();
        }
        assert!(assembly.is_complete());
        judge("list links", assembly)
    }

    #[test]
    fn a_dump_is_whole_only_if_no_part_of_it_was_overtaken() {
        let whole = attempt(&[[link_part(0), link_part(0)].concat(), done(0, 0)]).unwrap();
        assert!(matches!(whole, Attempt::Whole(replies) if replies.len() == 2));
        for overtaken in [
            vec![link_part(F_DUMP_INTR), link_part(0), done(0, 0)],
            vec![link_part(0), done(F_DUMP_INTR, 0)],
            vec![done(F_DUMP_INTR, 0)],
            vec![link_part(0), done(0, -libc::EINTR)],
            vec![link_part(0), done(0, -libc::EAGAIN)],
            vec![link_part(0), framed(NLMSG_OVERRUN, 0, 0, &[]), done(0, 0)],
        ] {
            assert!(matches!(attempt(&overtaken).unwrap(), Attempt::Overtaken), "{overtaken:?}");
        }
    }

    #[test]
    fn an_error_at_the_end_of_a_dump_is_an_error() {
        let error = attempt(&[link_part(0), done(0, -libc::ENOMEM)]).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOMEM));
        let refused = framed(NLMSG_ERROR, 0, 1, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(attempt(&[refused]).unwrap_err().errno(), Some(libc::EPERM));
    }

    #[test]
    fn an_overtaken_dump_is_asked_for_again_as_a_whole() {
        let mut turns = 0;
        let mut pauses = Vec::new();
        let replies = until_whole(
            "list links",
            || {
                turns += 1;
                let flags = if turns < 4 { F_DUMP_INTR } else { 0 };
                attempt(&[link_part(flags), link_part(0), done(0, 0)])
            },
            |pause| pauses.push(pause),
        )
        .unwrap();
        assert_eq!((turns, replies.len()), (4, 2), "only the last, whole attempt counts");
        assert_eq!(pauses.len(), 3);
        assert!(pauses.is_sorted() && pauses[0] < pauses[2], "each pause is longer: {pauses:?}");
    }

    #[test]
    fn asking_again_ends_with_a_clear_error() {
        let mut turns = 0;
        let mut paused = Duration::ZERO;
        let again = || {
            turns += 1;
            attempt(&[done(F_DUMP_INTR, 0)])
        };
        let error = until_whole("list routes", again, |pause| paused += pause).unwrap_err();
        assert_eq!(turns, DUMP_ATTEMPTS);
        assert!(paused < Duration::from_secs(2));
        let text = error.to_string();
        assert!(text.contains("cannot list routes") && text.contains("12 attempts"), "{text}");
    }

    #[test]
    fn late_answers_of_another_conversation_are_passed_over() {
        let mut assembly = Assembly::new([7, 8].into_iter());
        assembly.feed(&framed(NLMSG_ERROR, 0, 6, &(-libc::EPERM).to_ne_bytes())).unwrap();
        assembly.feed(&framed(NLMSG_ERROR, 0, 8, &0_i32.to_ne_bytes())).unwrap();
        assert!(!assembly.is_complete());
        assembly.feed(&framed(NLMSG_ERROR, 0, 7, &(-libc::EEXIST).to_ne_bytes())).unwrap();
        assert!(assembly.is_complete());
        assert_eq!(assembly.answers[0].outcome.as_ref().unwrap().as_ref().unwrap_err().errno, libc::EEXIST);
        assert_eq!(assembly.answers[1].outcome, Some(Ok(())));
    }

    /// An error answer: code, the request's header (and body, unless capped), then the explanation.
    fn explained(flags: u16, body: &[u8]) -> Vec<u8> {
        let request = framed(24, 0, 1, body);
        let mut payload = (-libc::ENETUNREACH).to_ne_bytes().to_vec();
        payload.extend_from_slice(if flags & F_CAPPED != 0 { &request[..16] } else { &request });
        let mut tlvs = Message::new(0, 0, &[]);
        tlvs.text(1, "Nexthop has invalid gateway");
        tlvs.u32(2, 28);
        payload.extend_from_slice(&tlvs.finish(0)[16..]);
        framed(NLMSG_ERROR, flags | F_ACK_TLVS, 1, &payload)
    }

    #[test]
    fn the_kernels_explanation_is_found_behind_a_capped_and_a_full_request() {
        for (flags, body) in [(F_CAPPED, &[0; 12][..]), (0, &[0; 12]), (0, &[0; 37])] {
            let error = attempt(&[explained(flags, body)]).unwrap_err();
            let Error::Refused { refusal, .. } = &error else { panic!("{error}") };
            assert_eq!(refusal.offset, Some(28));
            let text = error.to_string();
            assert!(text.ends_with("the kernel says: Nexthop has invalid gateway"), "{text}");
        }
    }

    #[test]
    fn broken_framing_is_an_error_and_never_a_panic() {
        let good = explained(0, &[0; 12]);
        for len in 1..good.len() {
            let mut assembly = Assembly::new(std::iter::once(1));
            assert!(assembly.feed(&good[..len]).is_err(), "{len} bytes of {}", good.len());
        }
    }
}

//! As much of D-Bus as it takes to call a method with texts: the D-Bus specification's authentication `EXTERNAL` and message format.
//!
//! Written out because it is so little: a library would bring an asynchronous runtime or a C library into a program whose start-up time is
//! its product. What the bus sends is read with bounds; everything that does not fit is an error.

use std::env;
use std::io::{self, Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use thiserror::Error;

/// Where the system's bus listens, unless the environment says otherwise.
const SYSTEM_BUS: &str = "unix:path=/var/run/dbus/system_bus_socket";
/// How long an answer may take. firewalld answers when the kernel has the rules.
const PATIENCE: Duration = Duration::from_secs(25);
/// No answer that is understood here is longer, in bytes.
const LONGEST: usize = 1 << 20;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR_NAME: u8 = 4;
const FIELD_REPLY_SERIAL: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;

/// Why a call has no result.
#[derive(Debug, Error)]
pub(super) enum BusError {
    /// There is no bus, or it went away.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bus or the service speak differently.
    #[error("the bus's answer makes no sense: {0}")]
    Protocol(&'static str),
    /// The service answered with an error.
    #[error("{name}: {message}")]
    Answer {
        /// The error's name.
        name: String,
        /// What it says.
        message: String,
    },
}

/// A connection to a bus.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
}

/// The body of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    signature: String,
    body: Vec<u8>,
}

impl Answer {
    /// The answer, where it is one truth value.
    pub(super) fn bool(&self) -> Option<bool> {
        let value = u32::from_le_bytes(self.body.get(..4)?.try_into().ok()?);
        (self.signature == "b").then_some(value != 0)
    }

    /// The answer's first text.
    fn text(&self) -> Option<String> {
        self.signature.starts_with('s').then(|| Reader::new(&self.body).text()).flatten()
    }
}

impl Bus {
    /// Connects to the system's bus.
    pub(super) fn system() -> Result<Self, BusError> {
        let address = env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
        Self::connect(if address.is_empty() { SYSTEM_BUS } else { &address })
    }

    fn connect(address: &str) -> Result<Self, BusError> {
        let mut last =
            io::Error::new(io::ErrorKind::InvalidInput, format!("no address of a bus: {address:?}"));
        for one in address.split(';').filter_map(socket) {
            match one.and_then(|address| UnixStream::connect_addr(&address)) {
                Ok(stream) => return Self::greet(stream),
                Err(error) => last = error,
            }
        }
        Err(last.into())
    }

    fn greet(stream: UnixStream) -> Result<Self, BusError> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut bus = Self { stream, serial: 0 };
        // The name of the user, as the decimal number that the socket proves, in hexadecimal.
        let user: String =
            rustix::process::geteuid().as_raw().to_string().bytes().map(|b| format!("{b:02x}")).collect();
        bus.stream.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
        if !bus.line()?.starts_with("OK ") {
            return Err(BusError::Protocol("it does not accept this user"));
        }
        bus.stream.write_all(b"BEGIN\r\n")?;
        bus.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", &[])?;
        Ok(bus)
    }

    /// Whether a service of this name runs. Does not start it.
    pub(super) fn has_owner(&mut self, name: &str) -> Result<bool, BusError> {
        let bus = "org.freedesktop.DBus";
        let answer = self.call(bus, "/org/freedesktop/DBus", bus, "NameHasOwner", &[name])?;
        answer.bool().ok_or(BusError::Protocol("NameHasOwner is not answered by yes or no"))
    }

    /// Calls a method whose arguments are texts, and waits for its answer.
    pub(super) fn call(
        &mut self,
        destination: &str,
        path: &str,
        interface: &str,
        member: &str,
        arguments: &[&str],
    ) -> Result<Answer, BusError> {
        self.serial += 1;
        self.stream.write_all(&request(self.serial, destination, path, interface, member, arguments))?;
        loop {
            let message = self.message()?;
            // The bus sends signals of its own accord.
            if message.reply_to != Some(self.serial) {
                continue;
            }
            match message.kind {
                METHOD_RETURN => return Ok(message.answer),
                ERROR => {
                    let text = message.answer.text();
                    return Err(BusError::Answer {
                        name: message.error_name.unwrap_or_default(),
                        message: text.unwrap_or_default(),
                    });
                }
                _ => {}
            }
        }
    }

    fn line(&mut self) -> Result<String, BusError> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.extend(byte);
            if line.len() > 4096 {
                return Err(BusError::Protocol("its greeting does not end"));
            }
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    fn message(&mut self) -> Result<Received, BusError> {
        let mut start = [0; 16];
        self.stream.read_exact(&mut start)?;
        let rest = rest_of(&start)?;
        let mut message = start.to_vec();
        message.resize(start.len() + rest, 0);
        self.stream.read_exact(message.get_mut(start.len()..).unwrap_or_default())?;
        parse(&message).ok_or(BusError::Protocol("a message does not follow the format"))
    }
}

/// `unix:path=…` or `unix:abstract=…`; `None` for other transports.
fn socket(address: &str) -> Option<io::Result<SocketAddr>> {
    let keys = address.strip_prefix("unix:")?;
    keys.split(',').find_map(|pair| match pair.split_once('=')? {
        ("path", path) => Some(SocketAddr::from_pathname(path)),
        ("abstract", name) => Some(SocketAddr::from_abstract_name(name)),
        _ => None,
    })
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn push_u32(bytes: &mut Vec<u8>, value: usize) {
    pad(bytes, 4);
    // Nothing that is sent here comes near four gigabytes.
    bytes.extend(u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    push_u32(bytes, text.len());
    bytes.extend(text.bytes());
    bytes.push(0);
}

fn push_signature(bytes: &mut Vec<u8>, signature: &str) {
    bytes.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
    bytes.extend(signature.bytes());
    bytes.push(0);
}

fn request(
    serial: u32,
    destination: &str,
    path: &str,
    interface: &str,
    member: &str,
    arguments: &[&str],
) -> Vec<u8> {
    let mut body = Vec::new();
    for argument in arguments {
        push_text(&mut body, argument);
    }
    let mut fields = Vec::new();
    for (field, kind, value) in [
        (FIELD_PATH, "o", path),
        (FIELD_INTERFACE, "s", interface),
        (FIELD_MEMBER, "s", member),
        (FIELD_DESTINATION, "s", destination),
    ] {
        pad(&mut fields, 8);
        fields.push(field);
        push_signature(&mut fields, kind);
        push_text(&mut fields, value);
    }
    if !arguments.is_empty() {
        pad(&mut fields, 8);
        fields.push(FIELD_SIGNATURE);
        push_signature(&mut fields, "g");
        push_signature(&mut fields, &"s".repeat(arguments.len()));
    }
    // Little endian, no flags, version 1.
    let mut message = vec![b'l', METHOD_CALL, 0, 1];
    push_u32(&mut message, body.len());
    message.extend(serial.to_le_bytes());
    push_u32(&mut message, fields.len());
    message.extend(fields);
    pad(&mut message, 8);
    message.extend(body);
    message
}

/// How many bytes of a message follow its first sixteen.
fn rest_of(start: &[u8; 16]) -> Result<usize, BusError> {
    let [order, _, _, version, b0, b1, b2, b3, _, _, _, _, f0, f1, f2, f3] = *start;
    if order != b'l' || version != 1 {
        return Err(BusError::Protocol("it is not little endian of version 1"));
    }
    let length = |bytes| usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX);
    let (body, fields) = (length([b0, b1, b2, b3]), length([f0, f1, f2, f3]));
    if body > LONGEST || fields > LONGEST {
        return Err(BusError::Protocol("a message is longer than a megabyte"));
    }
    Ok(fields.next_multiple_of(8) + body)
}

#[derive(Debug)]
struct Received {
    kind: u8,
    reply_to: Option<u32>,
    error_name: Option<String>,
    answer: Answer,
}

/// A whole message. The fields that matter here hold a text, an object's path, a signature or a number; a field of another type is none
/// of the specification's.
fn parse(message: &[u8]) -> Option<Received> {
    let kind = *message.get(1)?;
    let mut reader = Reader { bytes: message, at: 12 };
    let fields_end = usize::try_from(reader.u32()?).ok()?.checked_add(reader.at)?;
    let mut received = Received {
        kind,
        reply_to: None,
        error_name: None,
        answer: Answer { signature: String::new(), body: Vec::new() },
    };
    while reader.at < fields_end {
        reader.align(8);
        let field = reader.byte()?;
        match reader.signature()?.as_str() {
            "s" | "o" => {
                let text = reader.text()?;
                if field == FIELD_ERROR_NAME {
                    received.error_name = Some(text);
                }
            }
            "g" => {
                let signature = reader.signature()?;
                if field == FIELD_SIGNATURE {
                    received.answer.signature = signature;
                }
            }
            "u" => {
                let number = reader.u32()?;
                if field == FIELD_REPLY_SERIAL {
                    received.reply_to = Some(number);
                }
            }
            _ => return None,
        }
    }
    received.answer.body = message.get(fields_end.next_multiple_of(8)..)?.to_vec();
    Some(received)
}

/// Reads values at their alignment.
#[derive(Debug)]
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.terminated(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        self.terminated(length)
    }

    fn terminated(&mut self, length: usize) -> Option<String> {
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        (self.byte()? == 0).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sixteen(message: &[u8]) -> &[u8; 16] {
        message[..16].try_into().unwrap()
    }

    #[test]
    fn a_request_follows_the_format() {
        let message = request(7, "a.b", "/a", "a.b.c", "m", &["trusted", "10.1.0.5/32"]);
        assert_eq!(message.len(), 16 + rest_of(sixteen(&message)).unwrap());
        assert_eq!(&message[..4], b"l\x01\0\x01");
        assert_eq!(message[8], 7);
        let received = parse(&message).unwrap();
        assert_eq!((received.kind, received.answer.signature.as_str()), (METHOD_CALL, "ss"));
        assert_eq!(received.answer.text().as_deref(), Some("trusted"));
        assert_eq!(received.answer.bool(), None);
    }

    #[test]
    fn broken_messages_are_refused_and_never_panic() {
        let message = request(7, "a.b", "/a", "a.b.c", "m", &["x"]);
        for length in 0..message.len() {
            let _ = parse(&message[..length]);
        }
        for at in 0..message.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut broken = message.clone();
                broken[at] = value;
                let _ = (rest_of(sixteen(&broken)), parse(&broken));
            }
        }
        let mut big = *sixteen(&message);
        big[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(rest_of(&big).is_err());
        big[0] = b'B';
        assert!(rest_of(&big).is_err());
    }

    #[test]
    fn addresses_of_buses() {
        let shown = |address: &str| socket(address).map(|one| one.is_ok());
        assert_eq!(shown("unix:path=/run/bus,guid=1"), Some(true));
        assert_eq!(shown("unix:abstract=/tmp/bus"), Some(true));
        assert_eq!(shown("tcp:host=localhost"), None);
        assert!(Bus::connect("unix:path=/nonexistent/bus").is_err());
        assert!(Bus::connect("launchd:").is_err());
    }
}

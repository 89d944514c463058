//! The service manager's notification socket (`sd_notify`).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells the service manager at `socket` (the value of `NOTIFY_SOCKET`) that the service is ready. A name that begins
/// with `@` is abstract.
///
/// # Errors
/// When nobody listens there. The service is no worse for it.
pub fn notify_ready(socket: &OsStr) -> io::Result<()> {
    let bytes = socket.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::notify_ready;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    #[test]
    fn a_listener_is_told_and_its_absence_is_an_error() {
        let name = format!("loden-notify-{}", std::process::id());
        let listener = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        notify_ready(format!("@{name}").as_ref()).unwrap();
        let mut buffer = [0; 16];
        let length = listener.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
        drop(listener);
        assert!(notify_ready(format!("@{name}").as_ref()).is_err());
    }
}

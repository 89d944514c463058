//! Asking containers, from anywhere.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use loden_netlink::NetNs;

use crate::machine::{PATIENCE, wait_until};

/// What a container's web server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The name of the container that answered.
    pub(crate) from: String,
    /// The address that it saw the question come from.
    pub(crate) to: IpAddr,
}

/// Asks the web server at an address from the calling thread's namespace, until there is an answer.
#[track_caller]
pub(crate) fn ask(host: &str, port: u16) -> Answer {
    let address = SocketAddr::new(host.parse().unwrap(), port);
    let mut last = None;
    wait_until(PATIENCE, || {
        last = Some(once(address));
        matches!(last, Some(Ok(_)))
    });
    match last.expect("asked at least once") {
        Ok(answer) => answer,
        Err(error) => panic!("no answer from {address}: {error}"),
    }
}

/// Asks from another namespace.
#[track_caller]
pub(crate) fn ask_from(namespace: &NetNs, host: &str, port: u16) -> Answer {
    namespace.run(|| ask(host, port)).unwrap()
}

/// Nobody answers at the address any more.
#[track_caller]
pub(crate) fn assert_silent(namespace: &NetNs, host: &str, port: u16) {
    let address = SocketAddr::new(host.parse().unwrap(), port);
    let silent = || namespace.run(|| once(address).is_err()).unwrap();
    assert!(wait_until(PATIENCE, silent), "{address} still answers");
}

fn once(address: SocketAddr) -> std::io::Result<Answer> {
    let bad = |text: &str| std::io::Error::other(format!("an answer of another form: {text:?}"));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let body = text.split_once("\r\n\r\n").ok_or_else(|| bad(&text))?.1;
    let (to, from) = body.trim().split_once(' ').ok_or_else(|| bad(&text))?;
    let to: IpAddr = to.trim_matches(['[', ']']).parse().map_err(|_| bad(&text))?;
    Ok(Answer { from: from.to_owned(), to: to.to_canonical() })
}

/// Answers every datagram to `port` of a namespace with the address that it came from, until the value goes.
#[derive(Debug)]
pub(crate) struct Echo {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub(crate) fn on(namespace: &NetNs, port: u16) -> Self {
        let socket = namespace.run(|| UdpSocket::bind(("::", port)).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
                    let _ = socket.send_to(from.ip().to_canonical().to_string().as_bytes(), from);
                }
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Asks with a datagram from a namespace, until there is an answer: the address that it was seen to come from.
#[track_caller]
pub(crate) fn ask_udp(namespace: &NetNs, host: &str, port: u16) -> IpAddr {
    let address = SocketAddr::new(host.parse().unwrap(), port);
    let socket = namespace
        .run(|| UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap())
        .unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut answer = None;
    wait_until(PATIENCE, || {
        let mut buffer = [0; 64];
        answer = socket
            .send_to(b"who", address)
            .and_then(|_| socket.recv(&mut buffer))
            .ok()
            .map(|length| String::from_utf8_lossy(&buffer[..length]).parse().unwrap());
        answer.is_some()
    });
    answer.unwrap_or_else(|| panic!("no answer from {address}/udp"))
}

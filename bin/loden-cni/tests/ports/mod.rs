//! A container on a node with a neighbour, servers in it, and questions to them that are answered with the asker's address.

#![expect(dead_code, reason = "every test target uses its part of this module")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Answer, Attachment, GO, Namespace, Node, merge, wait_until};

/// A node at 192.0.2.1, 192.0.2.9 and 2001:db8::1, a neighbour at 192.0.2.2 and 2001:db8::2, and one container on the bridge.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) node: Node,
    pub(crate) pod: Namespace,
    pub(crate) client: Namespace,
    /// The container's address.
    pub(crate) address: String,
    /// What the bridge plugin said.
    pub(crate) result: Value,
}

impl Mapped {
    pub(crate) fn new() -> Self {
        let node = Node::new();
        let pod = Namespace::new("pod");
        let client = Namespace::new("client");
        let home = &node.home;
        let ip = |namespace: &Namespace, args: &str| {
            namespace.sh("ip", &args.split(' ').collect::<Vec<_>>());
        };
        ip(home, "link set lo up");
        ip(&pod, "link set lo up");
        ip(home, &format!("link add uplink type veth peer name uplink netns {}", client.name));
        for (namespace, last) in [(home, 1), (&client, 2)] {
            ip(namespace, &format!("addr add 192.0.2.{last}/24 dev uplink"));
            ip(namespace, &format!("addr add 2001:db8::{last}/64 dev uplink nodad"));
            ip(namespace, "link set uplink up");
        }
        ip(home, "addr add 192.0.2.9/24 dev uplink");
        ip(&client, "route add default via 192.0.2.1");
        ip(&client, "route add default via 2001:db8::1");
        let config = node.bridge_config(json!({"ipam": {
            "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:244:1::/64"}]], "routes": [],
        }}));
        let result = node.call(&node.ours(), "bridge", "ADD", &Attachment::new("c1", &pod), &config).result();
        let settled = || !home.sh("ip", &["-6", "addr", "show", "tentative"]).contains("inet6");
        assert!(wait_until(settled), "an address of the node stays tentative");
        let address = result["ips"][0]["address"].as_str().unwrap();
        let address = address.split('/').next().unwrap().to_owned();
        Self { address, pod, client, node, result }
    }

    pub(crate) fn attachment(&self) -> Attachment<'_> {
        Attachment::new("c1", &self.pod)
    }

    pub(crate) fn portmap(&self, command: &str, config: &Value) -> Answer {
        self.node.call(&self.node.ours(), "portmap", command, &self.attachment(), config)
    }

    pub(crate) fn go_portmap(&self, command: &str, config: &Value) -> Answer {
        self.node.call(GO, "portmap", command, &self.attachment(), config)
    }

    /// Every rule of the node's firewall that is some container's.
    pub(crate) fn rules(&self) -> Vec<String> {
        let mut rules: Vec<String> = Vec::new();
        for program in ["iptables", "ip6tables"] {
            let listed = self.node.home.sh(program, &["-t", "nat", "-S"]);
            let own =
                listed.lines().filter(|line| ["CNI-DN-", "CNI-SN-"].iter().any(|chain| line.contains(chain)));
            rules.extend(own.map(str::to_owned));
        }
        let listed = self.node.home.sh("nft", &["list", "ruleset"]);
        let is_own = |line: &&str| line.contains(" comment \"") && !line.contains("xt match");
        rules.extend(listed.lines().filter(is_own).map(|line| line.trim().to_owned()));
        rules.retain(|rule| !rule.contains("CNI portfwd"));
        rules
    }

    #[track_caller]
    pub(crate) fn assert_no_rules(&self) {
        assert_eq!(self.rules(), Vec::<String>::new());
    }
}

/// `portmap` behind the bridge plugin of the same network.
pub(crate) fn port_config(net: &Mapped, changes: Value) -> Value {
    let mut config =
        json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "portmap", "prevResult": net.result});
    merge(&mut config, changes);
    config
}

pub(crate) fn mapping(host: u16, container: u16, protocol: &str) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol})
}

/// The chain that a container has in iptables, by the formula of the reference and another program's arithmetic.
pub(crate) fn chain_of(network: &str, container: &str) -> String {
    let command = format!("printf %s {network}{container} | sha512sum");
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    format!("CNI-DN-{}", &String::from_utf8(output.stdout).unwrap()[..21])
}

/// Answers every connection with the address it came from.
pub(crate) fn serve_tcp(namespace: &Namespace, port: u16) {
    let listener = namespace.ns.run(|| TcpListener::bind(("::", port))).unwrap().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = write!(stream, "{}", peer.ip().to_canonical());
        }
    });
}

/// Answers every datagram with the address it came from.
pub(crate) fn serve_udp(namespace: &Namespace, port: u16) {
    let socket = namespace.ns.run(|| UdpSocket::bind(("::", port))).unwrap().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(peer.ip().to_canonical().to_string().as_bytes(), peer);
        }
    });
}

/// The address that the server sees; `None` when nobody answers.
pub(crate) fn ask_tcp(from: &Namespace, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    let stream = from.ns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(3))).unwrap();
    let mut stream = stream.ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The address that the server sees; `None` when nobody answers.
pub(crate) fn ask_udp(from: &Namespace, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = from.ns.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
    ask_udp_by(&socket, to)
}

pub(crate) fn ask_udp_by(socket: &UdpSocket, to: SocketAddr) -> Option<String> {
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut buffer = [0; 64];
    // An answer to an earlier question may have come too late for it.
    socket.set_nonblocking(true).unwrap();
    while socket.recv_from(&mut buffer).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    for _ in 0..3 {
        socket.send_to(b"?", to).ok()?;
        if let Ok((len, _)) = socket.recv_from(&mut buffer) {
            return Some(String::from_utf8_lossy(&buffer[..len]).into_owned());
        }
    }
    None
}

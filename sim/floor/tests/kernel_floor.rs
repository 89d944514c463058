//! The floor and Loden's crates make the same objects. Needs root.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::process::Command;

use loden_floor::{nft, peers};
use loden_netlink::nft::{NftSocket, TableName};
use loden_netlink::{FdbEntry, IpFamily, LinkKind, NetNs, OperState, Route, RouteFilter, RouteSocket};

const FLOOR: &str = env!("CARGO_BIN_EXE_loden-floor");
const MEASURED: &str = env!("CARGO_BIN_EXE_loden-measured");

/// A namespace with `lo` up that goes with the value.
struct Named {
    name: String,
    ns: NetNs,
}

impl Named {
    fn new(what: &str) -> Self {
        let name = format!("lfloor-{}-{what}", std::process::id());
        let ns = NetNs::create_named(&name).expect("kernel tests make network namespaces: run them as root");
        Self { name, ns }
    }

    /// Runs a program inside; it must succeed and say how many objects it made.
    fn run(&self, program: &str, words: &[&str], objects: usize) {
        let output = self.ns.run(|| Command::new(program).args(words).output().unwrap()).unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(told.starts_with(&format!("objects={objects} us=")), "{words:?}: {told}");
    }

    fn refuses(&self, program: &str, words: &[&str], why: &str) {
        let output = self.ns.run(|| Command::new(program).args(words).output().unwrap()).unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(why), "{words:?}: {told}");
    }

    fn socket(&self) -> RouteSocket {
        RouteSocket::open_in(&self.ns).unwrap()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _nothing_more_to_do = NetNs::delete_named(&self.name);
    }
}

#[test]
fn a_pod_is_attached_and_detached() {
    let (node, pod) = (Named::new("node"), Named::new("pod"));
    for words in [&["link", "add", "br0", "type", "bridge"][..], &["link", "set", "br0", "up"]] {
        node.ns.run(|| assert!(Command::new("ip").args(words).status().unwrap().success())).unwrap();
    }
    let netns = format!("/run/netns/{}", pod.name);
    node.run(FLOOR, &["attach", &netns, "br0", "vethx", "eth0", "10.1.0.5/24", "10.1.0.1"], 4);

    let bridge = node.socket().link_by_name("br0").unwrap().unwrap();
    let port = node.socket().link_by_name("vethx").unwrap().unwrap();
    assert_eq!((port.master, port.up, port.kind), (Some(bridge.index), true, LinkKind::Veth));
    let link = pod.socket().link_by_name("eth0").unwrap().unwrap();
    assert!(link.up && link.oper_state == OperState::Up, "{link:?}");
    let addresses: Vec<_> = pod.socket().addresses(None).unwrap();
    assert!(addresses.iter().any(|a| a.index == link.index && a.net.to_string() == "10.1.0.5/24"));
    let routes = routes(&pod);
    assert!(
        routes
            .iter()
            .any(|r| r.destination.to_string() == "0.0.0.0/0"
                && r.next_hop == Some("10.1.0.1".parse().unwrap())),
        "{routes:?}"
    );

    node.run(FLOOR, &["detach", &netns, "eth0"], 1);
    assert!(node.socket().link_by_name("vethx").unwrap().is_none());
    assert!(pod.socket().link_by_name("eth0").unwrap().is_none());
    node.refuses(FLOOR, &["detach", &netns, "eth0"], "cannot delete the link");
    node.refuses(FLOOR, &["attach", &netns, "br9", "v", "eth0", "10.1.0.5/24", "10.1.0.1"], "find link br9");
    node.refuses(FLOOR, &["attach", &netns], "Usage:");
}

fn routes(of: &Named) -> Vec<Route> {
    of.socket().routes(IpFamily::V4, RouteFilter::default()).unwrap()
}

/// What peers are, without what differs between two devices.
fn programmed(of: &Named) -> (Vec<String>, Vec<String>, Vec<String>) {
    let mut socket = of.socket();
    let device = socket.link_by_name(peers::DEVICE).unwrap().unwrap();
    let mut neighbours: Vec<_> = socket
        .neighbours(IpFamily::V4, Some(device.index))
        .unwrap()
        .iter()
        .map(|n| format!("{} {} {}", n.addr, n.mac.unwrap(), n.state))
        .collect();
    let tunnel = |e: &FdbEntry| format!("{} {} {} {}", e.mac, e.destination.unwrap(), e.state, e.flags);
    let mut fdb: Vec<_> = socket.fdb(Some(device.index)).unwrap().iter().map(tunnel).collect();
    let mut routes: Vec<_> = routes(of)
        .iter()
        .filter(|r| r.protocol == loden_node::ROUTE_PROTOCOL)
        .map(|r| format!("{} {} {} {:?}", r.destination, r.next_hop.unwrap(), r.onlink, r.metric))
        .collect();
    neighbours.sort();
    fdb.sort();
    routes.sort();
    (neighbours, fdb, routes)
}

#[test]
fn peers_are_the_same_by_both_ways() {
    let (bare, ours) = (Named::new("bare"), Named::new("ours"));
    bare.run(FLOOR, &["peers", "700"], 2100);
    ours.run(MEASURED, &["peers", "700"], 2100);
    let (neighbours, fdb, routes) = programmed(&bare);
    assert_eq!((neighbours.len(), fdb.len(), routes.len()), (700, 700, 700));
    assert_eq!((neighbours, fdb, routes), programmed(&ours));
    ours.run(MEASURED, &["peers", "700", "again"], 2100);
    ours.refuses(MEASURED, &["peers", "700"], "0 steps instead of 2102");
    bare.refuses(FLOOR, &["peers", "1"], "make the device");
}

#[test]
fn tables_are_the_same_by_both_ways() {
    let node = Named::new("nft");
    let name = TableName { family: loden_firewall::Family::Ip, name: nft::TABLE.to_owned() };
    let read = || NftSocket::open_in(&node.ns).unwrap().table(&name).unwrap().map(|listed| listed.table);
    node.run(FLOOR, &["nft-add"], 3);
    let bare = read().unwrap();
    assert!(bare.to_string().contains("ip saddr 10.0.0.0/8 masquerade"), "{bare}");
    node.run(FLOOR, &["nft-delete"], 3);
    assert!(read().is_none());
    node.run(MEASURED, &["nft-add"], 3);
    assert_eq!(read().unwrap(), bare);
    node.run(MEASURED, &["nft-delete"], 3);
    assert!(read().is_none());
    node.refuses(FLOOR, &["nft-delete"], "delete the table");
}

#[test]
fn rules_come_and_go_at_the_end_of_the_chain() {
    let node = Named::new("rules");
    let name = TableName { family: loden_firewall::Family::Ip, name: nft::TABLE.to_owned() };
    let rules = || {
        let listed = NftSocket::open_in(&node.ns).unwrap().table(&name).unwrap().unwrap();
        listed.table.chains.get(nft::CHAIN).unwrap().rules.len()
    };
    node.refuses(FLOOR, &["nft-rules-add"], "append rules");
    node.run(FLOOR, &["nft-add"], 3);
    for _ in 0..2 {
        node.run(FLOOR, &["nft-rules-add"], nft::RULES);
    }
    assert_eq!(rules(), 1 + 2 * nft::RULES);
    node.run(FLOOR, &["nft-rules-delete"], nft::RULES);
    assert_eq!(rules(), 0);
}

#[test]
fn an_address_is_reserved_once() {
    let node = Named::new("reserve");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    node.run(FLOOR, &["reserve", path, "10.1.0.5"], 1);
    assert_eq!(std::fs::read(directory.path().join("10.1.0.5")).unwrap(), b"container\r\neth0");
    node.refuses(FLOOR, &["reserve", path, "10.1.0.5"], "reserve 10.1.0.5");
    node.run(FLOOR, &["release", path, "10.1.0.5"], 1);
    node.refuses(FLOOR, &["release", path, "10.1.0.5"], "release 10.1.0.5");
}

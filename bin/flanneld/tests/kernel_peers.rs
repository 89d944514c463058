//! Several real daemons on one segment: packets between their pods, through the tunnel and without it.

#![expect(clippy::unwrap_used, reason = "a test that cannot look must fail where it looked")]

mod common;

use common::{Flanneld, Segment, World, wait_until};
use loden_netlink::{NetNs, NewLink, NewLinkKind, RouteSocket, VethPeer};

/// A machine with its daemon and one pod behind a bridge, as the CNI plugins set it up.
struct Member {
    world: World,
    flanneld: Flanneld,
    pod: NetNs,
}

fn net_conf(backend: &str) -> String {
    format!(r#"{{"Network": "172.20.0.0/16", "EnableNFTables": true, "Backend": {backend}}}"#)
}

fn member(segment: &Segment, number: u8, backend: &str) -> Member {
    let world = World::on(segment, number);
    world.write("net-conf.json", &net_conf(backend));
    let pod = NetNs::anonymous().unwrap();
    let peer = VethPeer { name: "eth0".to_owned(), netns: Some(pod.clone()), ..VethPeer::default() };
    let mut pair = NewLink::new("pod0", NewLinkKind::Veth(peer));
    pair.up = true;
    RouteSocket::open_in(&world.netns).unwrap().create_link(&pair).unwrap();
    world.ip("link add cni0 up type bridge");
    world.ip("link set pod0 master cni0");
    world.ip(&format!("address add 172.20.{number}.1/24 dev cni0"));
    for line in [
        "link set lo up".to_owned(),
        "link set eth0 up".to_owned(),
        format!("address add 172.20.{number}.2/24 dev eth0"),
        format!("route add default via 172.20.{number}.1"),
    ] {
        assert!(pod.run(|| succeeds(&format!("ip {line}"))).unwrap(), "{line}");
    }
    // What comes and goes encapsulated, as somebody else's rules count it.
    world.nft("add table inet watch");
    world.nft("add chain inet watch in { type filter hook input priority -200; }");
    world.nft("add rule inet watch in udp dport 8472 counter");
    let node = format!("n{number}");
    let flanneld = world.start_with(&world.args(), &[("NODE_NAME", &node)]);
    Member { world, flanneld, pod }
}

fn succeeds(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let mut command = std::process::Command::new(words.next().unwrap());
    command.args(words).output().unwrap().status.success()
}

impl Member {
    /// One echo there and back, with a packet of this size that may not be split.
    fn reaches(&self, other: u8, size: u32) -> bool {
        let payload = size - 28;
        let line = format!("ping -n -c 1 -W 0.5 -M do -s {payload} 172.20.{other}.2");
        self.pod.run(|| succeeds(&line)).unwrap()
    }

    fn wait_reaches(&self, other: u8) {
        self.wait_reaches_with(other, 100);
    }

    fn wait_reaches_with(&self, other: u8, size: u32) {
        let explain = || {
            format!(
                "{}\n{}\n{}",
                self.flanneld.log(),
                self.world.look("ip route"),
                self.world.look("ip neighbour")
            )
        };
        let what = format!("a pod reaches one on n{other} with {size} bytes");
        wait_until(&what, &explain, || self.reaches(other, size));
    }

    /// Encapsulated packets that came in.
    fn received(&self) -> u64 {
        let text = self.world.nft("list chain inet watch in");
        let after = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        after.unwrap().parse().unwrap()
    }

    fn has_device(&self) -> bool {
        !self.world.look("ip link show dev flannel.1").is_empty()
    }
}

fn all_reach_all(members: &[Member]) {
    for (i, from) in (1_u8..).zip(members) {
        for (j, _) in (1_u8..).zip(members) {
            if i != j {
                from.wait_reaches(j);
            }
        }
    }
}

#[test]
fn pods_of_three_nodes_talk_through_the_tunnel() {
    let segment = Segment::new();
    let mut members: Vec<Member> =
        (1..=3).map(|number| member(&segment, number, r#"{"Type": "vxlan"}"#)).collect();
    all_reach_all(&members);
    let [first, second, _] = members.as_slice() else { unreachable!("there are three") };
    assert!(members.iter().all(|member| member.received() > 0), "on UDP 8472");
    // The largest packet that fits, and no larger one.
    first.wait_reaches_with(2, 1450);
    assert!(!first.reaches(2, 1451));
    // The tunnel of one is deleted and comes back; nobody else has to do anything.
    second.world.ip("link delete flannel.1");
    all_reach_all(&members);
    // A node goes: the others forget it.
    let gone = members.pop().unwrap();
    drop(gone);
    segment.kube.delete(loden_sim_kube::Resource::Nodes, "", "n3").unwrap();
    for member in &members {
        wait_until("the third node is forgotten", &|| member.flanneld.log(), || {
            !member.world.look("ip route").contains("172.20.3.0/24")
                && !member.world.look("bridge fdb show dev flannel.1").contains("192.168.0.3")
        });
    }
    all_reach_all(&members);
}

#[test]
fn pods_of_nodes_on_one_layer_2_talk_without_encapsulation() {
    for backend in [r#"{"Type": "host-gw"}"#, r#"{"Type": "vxlan", "DirectRouting": true}"#] {
        let segment = Segment::new();
        let members: Vec<Member> = (1..=2).map(|number| member(&segment, number, backend)).collect();
        all_reach_all(&members);
        let [first, _] = members.as_slice() else { unreachable!("there are two") };
        assert!(members.iter().all(|member| member.received() == 0), "nothing on UDP 8472");
        assert_eq!(first.has_device(), backend.contains("vxlan"));
        let mtu = if backend.contains("vxlan") { "FLANNEL_MTU=1450\n" } else { "FLANNEL_MTU=1500\n" };
        // Packets may pass before the daemon has looked that all is right and written its file.
        first.world.wait_ready(&first.flanneld);
        let file = std::fs::read_to_string(first.world.subnet_file()).unwrap();
        assert!(file.contains(mtu), "{file}");
        first.wait_reaches_with(2, 1500);
        let routes = first.world.look("ip route show proto 77");
        assert_eq!(routes.trim_end(), "172.20.2.0/24 via 192.168.0.2 dev eth0");
        // Deleted, replaced, lost with the link: it returns.
        first.world.ip("route delete 172.20.2.0/24");
        first.wait_reaches(2);
        first.world.ip("route replace 172.20.2.0/24 via 192.168.0.254 dev eth0 proto 77");
        first.wait_reaches(2);
        first.world.ip("link set eth0 down");
        first.world.ip("link set eth0 up");
        first.world.ip("route add default via 192.168.0.254 dev eth0");
        first.wait_reaches(2);
    }
}

#[test]
fn a_node_moves_from_one_backend_to_another() {
    let segment = Segment::new();
    let start = |number| member(&segment, number, r#"{"Type": "vxlan"}"#);
    let members: Vec<Member> = (1..=2).map(start).collect();
    all_reach_all(&members);
    let renew = |(number, Member { world, flanneld, pod }): (u8, Member)| {
        flanneld.stop();
        world.write("net-conf.json", &net_conf(r#"{"Type": "host-gw"}"#));
        let flanneld = world.start_with(&world.args(), &[("NODE_NAME", &format!("n{number}"))]);
        Member { world, flanneld, pod }
    };
    let members: Vec<Member> = (1_u8..).zip(members).map(renew).collect();
    for member in &members {
        wait_until("the tunnel is gone", &|| member.flanneld.log(), || !member.has_device());
    }
    all_reach_all(&members);
}

#[test]
fn host_gw_names_the_peer_it_cannot_reach() {
    let segment = Segment::new();
    let member = member(&segment, 1, r#"{"Type": "host-gw"}"#);
    let far = serde_json::json!({
        "metadata": {"name": "n9", "annotations": {
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "host-gw",
            "flannel.alpha.coreos.com/backend-data": "null",
            "flannel.alpha.coreos.com/public-ip": "10.7.0.9",
        }},
        "spec": {"podCIDR": "172.20.9.0/24", "podCIDRs": ["172.20.9.0/24"]},
    });
    segment.kube.create(loden_sim_kube::Resource::Nodes, "", far).unwrap();
    wait_until("it is named", &|| member.flanneld.log(), || {
        let log = member.flanneld.log();
        log.contains("n9") && log.contains("10.7.0.9 is on no layer 2 of this node")
    });
    member.world.wait_ready(&member.flanneld);
    let Member { world, flanneld, .. } = member;
    flanneld.stop();
    let mut args = world.args();
    args.push("-public-ip=203.0.113.7".to_owned());
    args.push("-iface=eth0".to_owned());
    let (code, text) = world.start_with(&args, &[("NODE_NAME", "n1")]).ended();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("203.0.113.7 is no address of external interface eth0"), "{text}");
}

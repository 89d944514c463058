//! Backend vxlan with the real daemon: every object it makes comes back, leftovers go, strangers stay, peers come and go.

#![expect(clippy::unwrap_used, reason = "a test that cannot look must fail where it looked")]

mod common;

use common::{Flanneld, World, wait_until};
use loden_sim_kube::{PatchType, Resource};
use serde_json::{Value, json};

const NET_CONF: &str = r#"{"Network": "172.20.0.0/16", "EnableNFTables": true, "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;
const PREFIX: &str = "flannel.alpha.coreos.com";

/// Two nodes beside ours: `n2` is behind the tunnel, `n3` is a neighbour.
fn world() -> World {
    let world = World::with_pod_cidr();
    world.write("net-conf.json", NET_CONF);
    // As a kubelet leaves it, so that the kernel takes routes through the uplink.
    world.ip("address add 192.168.0.1/24 dev uplink");
    peer(&world, 2, "10.7.0.2", "02:00:00:00:00:02");
    peer(&world, 3, "192.168.0.3", "02:00:00:00:00:03");
    world
}

fn annotations(ip: &str, mac: &str) -> Value {
    json!({
        format!("{PREFIX}/kube-subnet-manager"): "true",
        format!("{PREFIX}/backend-type"): "vxlan",
        format!("{PREFIX}/backend-data"): format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#),
        format!("{PREFIX}/public-ip"): ip,
    })
}

fn peer(world: &World, number: u8, ip: &str, mac: &str) {
    let cidr = format!("172.20.{number}.0/24");
    let node = json!({
        "metadata": {"name": format!("n{number}"), "annotations": annotations(ip, mac)},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
    });
    world.kube.create(Resource::Nodes, "", node).unwrap();
}

/// The part of `ip -d link` that we decide about.
fn device(world: &World) -> String {
    let text = world.look("ip -d link show dev flannel.1");
    let words: Vec<&str> = text.split_whitespace().collect();
    let after = |word: &str| {
        let at = words.iter().position(|w| *w == word);
        at.and_then(|at| words.get(at + 1)).copied().unwrap_or_default().to_owned()
    };
    let up = text.contains("UP");
    let learning = if words.contains(&"nolearning") { "nolearning" } else { "learning" };
    let gbp = if words.contains(&"gbp") { " gbp" } else { "" };
    format!(
        "mtu {} mac {} up {up} vni {} local {} dev {} port {} {learning}{gbp} qlen {}",
        after("mtu"),
        after("link/ether"),
        after("id"),
        after("local"),
        after("dev"),
        after("dstport"),
        if words.contains(&"qlen") { after("qlen") } else { "0".to_owned() },
    )
}

/// The device's number, another one each time it is made.
fn index(world: &World) -> String {
    index_of(world, "flannel.1")
}

/// Empty where it is not there.
fn index_of(world: &World, device: &str) -> String {
    let text = world.look(&format!("ip -o link show dev {device}"));
    text.split(':').next().unwrap_or_default().to_owned()
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// Everything that leads to the peers, as the kernel shows it.
fn fabric(world: &World) -> String {
    let addresses: Vec<String> = world
        .look("ip -4 -o address show dev flannel.1")
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned))
        .collect();
    [
        device(world),
        addresses.join(" "),
        sorted(&world.look("ip neighbour show dev flannel.1 nud permanent")),
        sorted(&world.look("bridge fdb show dev flannel.1")),
        sorted(&world.look("ip -4 route show proto 77")),
        world.look("cat /proc/sys/net/ipv6/conf/flannel.1/accept_ra").trim().to_owned(),
    ]
    .join("\n")
}

fn right(mac: &str) -> String {
    format!(
        "mtu 1450 mac {mac} up true vni 1 local 192.168.0.5 dev eth0 port 8472 nolearning qlen 0\n\
         172.20.1.0/32\n\
         172.20.2.0 lladdr 02:00:00:00:00:02 PERMANENT\n\
         02:00:00:00:00:02 dst 10.7.0.2 self permanent\n\
         172.20.2.0/24 via 172.20.2.0 dev flannel.1 onlink\n172.20.3.0/24 via 192.168.0.3 dev eth0\n\
         0"
    )
}

fn own_annotation(world: &World, key: &str) -> Value {
    let node = world.node();
    let annotations = node.get("metadata").and_then(|metadata| metadata.get("annotations"));
    annotations.and_then(|all| all.get(format!("{PREFIX}/{key}"))).cloned().unwrap_or_default()
}

/// The MAC address our node publishes.
fn published_mac(world: &World, flanneld: &Flanneld) -> String {
    let mut data = Value::Null;
    wait_until("the lease is published", &|| flanneld.log(), || {
        data = own_annotation(world, "backend-data");
        data.is_string()
    });
    let text = data.as_str().unwrap();
    let mac = text.strip_prefix(r#"{"VNI":1,"VtepMAC":""#).unwrap().strip_suffix(r#""}"#).unwrap();
    assert_eq!(mac.len(), 17, "{text}");
    mac.to_owned()
}

fn wait_for(world: &World, flanneld: &Flanneld, what: &str, wanted: &str) {
    wait_until(what, &|| format!("{}\nis\n{}\nwanted\n{wanted}", flanneld.log(), fabric(world)), || {
        fabric(world) == wanted
    });
}

#[test]
fn comes_up_as_flannel_does_and_stays_through_a_restart() {
    let world = world();
    let mut args = world.args();
    args.retain(|arg| !arg.starts_with("-set-node-network-unavailable"));
    let flanneld = world.start_with(&args, &[("NODE_NAME", "n1")]);
    world.wait_ready(&flanneld);
    let mac = published_mac(&world, &flanneld);
    assert_eq!(fabric(&world), right(&mac), "{}", flanneld.log());
    assert_eq!(own_annotation(&world, "backend-type"), "vxlan");
    assert_eq!(own_annotation(&world, "public-ip"), "192.168.0.5");
    assert_eq!(own_annotation(&world, "kube-subnet-manager"), "true");
    let text = std::fs::read_to_string(world.subnet_file()).unwrap();
    assert!(text.contains("FLANNEL_MTU=1450\n"), "{text}");
    wait_until("the node is marked available", &|| flanneld.log(), || {
        let conditions = world.node()["status"]["conditions"].clone();
        conditions.as_array().is_some_and(|all| {
            all.iter().any(|c| {
                c["type"] == "NetworkUnavailable" && c["status"] == "False" && c["reason"] == "FlannelIsUp"
            })
        })
    });
    let before = index(&world);
    flanneld.stop();
    assert_eq!(fabric(&world), right(&mac), "nothing is torn down");
    let again = world.start_with(&args, &[("NODE_NAME", "n1")]);
    world.wait_ready(&again);
    assert_eq!(index(&world), before, "the device is the same");
    assert!(!again.log().contains("step="), "nothing to do:\n{}", again.log());
}

#[test]
fn whatever_is_removed_or_changed_by_hand_returns() {
    let world = world();
    let flanneld = world.start(&[]);
    world.wait_ready(&flanneld);
    let mac = published_mac(&world, &flanneld);
    let wanted = right(&mac);
    for deed in [
        "ip route delete 172.20.2.0/24",
        "ip route delete 172.20.3.0/24",
        "ip route replace 172.20.2.0/24 via 192.168.0.1 dev eth0 proto 77",
        "ip route replace 172.20.2.0/24 via 172.20.2.0 dev flannel.1 onlink proto boot",
        "ip route add 172.20.77.0/24 via 172.20.77.0 dev flannel.1 onlink proto boot",
        "ip neighbour delete 172.20.2.0 dev flannel.1",
        "ip neighbour replace 172.20.2.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
        "ip neighbour add 172.20.66.0 lladdr 02:00:00:00:00:66 dev flannel.1 nud permanent",
        "bridge fdb delete 02:00:00:00:00:02 dev flannel.1 dst 10.7.0.2 self",
        "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 10.7.0.99 self permanent",
        "bridge fdb add 02:00:00:00:00:66 dev flannel.1 dst 10.7.0.66 self permanent",
        "ip address delete 172.20.1.0/32 dev flannel.1",
        "ip address add 172.20.9.9/32 dev flannel.1",
        "ip link set flannel.1 mtu 1400",
        "ip link set flannel.1 address 02:00:00:00:00:77",
        "ip link set flannel.1 type vxlan learning",
        "ip link set flannel.1 down",
        "ip link delete flannel.1",
        "sysctl -qw net.ipv6.conf.flannel/1.accept_ra=1",
    ] {
        let before = index(&world);
        world.look(deed);
        wait_for(&world, &flanneld, deed, &wanted);
        let after = index(&world);
        assert_eq!(
            before == after,
            deed != "ip link delete flannel.1",
            "{deed}: made anew only when it must be"
        );
        world.wait_ready(&flanneld);
    }
    world.ip("link delete flannel.1");
    world.look("ip link add flannel.1 type vxlan id 1 dstport 4789 local 192.168.0.5 dev eth0");
    wait_for(&world, &flanneld, "a device with another port gives way", &wanted);
    // A stranger's address, route, link and tunnel are nobody's business.
    world.ip("address add 10.99.0.1/32 dev flannel.1");
    world.ip("route add 10.98.0.0/24 via 192.168.0.1 dev eth0");
    world.ip("route add 172.20.88.0/24 via 192.168.0.1 dev eth0 proto static");
    // Another flannel begins to make its tunnel; then one appears that an earlier run of ours began and never finished.
    world.ip("link add flannel.7 type vxlan id 7 dstport 8472 dev eth0");
    let stranger = index_of(&world, "flannel.7");
    world.look(&format!("ip link add flannel.9 address {mac} type vxlan id 9 dstport 8472 dev eth0"));
    wait_until("what was half made is gone", &|| flanneld.log(), || index_of(&world, "flannel.9").is_empty());
    assert_eq!(index_of(&world, "flannel.7"), stranger, "{}", flanneld.log());
    world.ip("address add 10.97.0.0/32 dev flannel.7");
    world.ip("link set eth0 down");
    world.ip("link set eth0 up");
    world.ip("route add default via 192.168.0.1 dev eth0");
    let with_stranger = wanted.replace("172.20.1.0/32", "172.20.1.0/32 10.99.0.1/32");
    wait_for(&world, &flanneld, "what went with the link is back", &with_stranger);
    world.ip("route add 172.20.88.0/24 via 192.168.0.1 dev eth0 proto static");
    world.ip("link delete flannel.1");
    wait_for(&world, &flanneld, "the device is back", &wanted);
    assert!(world.look("ip address show dev flannel.7").contains("10.97.0.0/32"), "{}", flanneld.log());
    assert!(world.look("ip route show").contains("172.20.88.0/24"), "{}", flanneld.log());
}

#[test]
fn the_device_returns_with_the_external_interface() {
    let world = world();
    let flanneld = world.start(&[]);
    world.wait_ready(&flanneld);
    let wanted = right(&published_mac(&world, &flanneld));
    world.ip("link delete eth0");
    wait_until("the daemon has noticed", &|| flanneld.log(), || !world.is_ready());
    assert_eq!(world.look("ip link show dev flannel.1"), "");
    world.ip("link add eth0 type veth peer name uplink");
    world.ip("link set uplink up");
    world.ip("link set eth0 up");
    world.ip("address add 192.168.0.5/24 dev eth0");
    wait_for(&world, &flanneld, "the tunnel is back with all its peers", &wanted);
    world.wait_ready(&flanneld);
}

#[test]
fn peers_come_change_and_go_one_at_a_time() {
    let world = world();
    let flanneld = world.start(&["-v=1"]);
    world.wait_ready(&flanneld);
    let mac = published_mac(&world, &flanneld);
    let wanted = right(&mac);
    let patch = |node: &str, annotations: Value| {
        let patch = json!({"metadata": {"annotations": annotations}});
        world.kube.patch(Resource::Nodes, "", node, PatchType::Merge, &patch).unwrap();
    };
    peer(&world, 4, "10.7.0.4", "02:00:00:00:00:04");
    let with_four = format!(
        "mtu 1450 mac {mac} up true vni 1 local 192.168.0.5 dev eth0 port 8472 nolearning qlen 0\n172.20.1.0/32\n\
         172.20.2.0 lladdr 02:00:00:00:00:02 PERMANENT\n172.20.4.0 lladdr 02:00:00:00:00:04 PERMANENT\n\
         02:00:00:00:00:02 dst 10.7.0.2 self permanent\n02:00:00:00:00:04 dst 10.7.0.4 self permanent\n\
         172.20.2.0/24 via 172.20.2.0 dev flannel.1 onlink\n172.20.3.0/24 via 192.168.0.3 dev eth0\n\
         172.20.4.0/24 via 172.20.4.0 dev flannel.1 onlink\n0"
    );
    wait_for(&world, &flanneld, "the fourth is reached", &with_four);
    patch("n4", annotations("10.7.0.44", "02:00:00:00:00:44"));
    let moved = with_four.replace("10.7.0.4 ", "10.7.0.44 ").replace("00:00:04", "00:00:44");
    wait_for(&world, &flanneld, "the fourth has moved", &moved);
    patch("n4", annotations("192.168.0.4", "02:00:00:00:00:44"));
    let near = wanted.replace(
        "172.20.3.0/24 via 192.168.0.3 dev eth0",
        "172.20.3.0/24 via 192.168.0.3 dev eth0\n172.20.4.0/24 via 192.168.0.4 dev eth0",
    );
    wait_for(&world, &flanneld, "the fourth is a neighbour", &near);
    world.kube.delete(Resource::Nodes, "", "n4").unwrap();
    wait_for(&world, &flanneld, "the fourth is gone", &wanted);
    // Hostile or broken words reach nobody's kernel.
    patch("n3", annotations("10.7.0.3", "01:00:5e:00:00:03"));
    let alone = wanted.replace("\n172.20.3.0/24 via 192.168.0.3 dev eth0", "");
    wait_for(&world, &flanneld, "a group's MAC address is refused", &alone);
    patch("n3", annotations("192.168.0.5", "02:00:00:00:00:03"));
    wait_until("our own address is refused", &|| flanneld.log(), || {
        flanneld.log().contains("its public IP 192.168.0.5 is ours")
            && world.events().iter().any(|(reason, _)| reason == "PeerConflict")
    });
    assert_eq!(fabric(&world), alone);
    patch("n3", annotations("192.168.0.3", "02:00:00:00:00:03"));
    wait_for(&world, &flanneld, "a corrected peer is reached", &wanted);
    world.wait_ready(&flanneld);
    let log = flanneld.log();
    assert!(!log.contains("flannel.1 mtu"), "the device was not touched:\n{log}");
}

#[test]
fn a_thousand_peers_are_reached_and_one_that_moves_is_one_step() {
    let world = World::with_pod_cidr();
    world.write(
        "net-conf.json",
        r#"{"Network": "172.16.0.0/12", "EnableNFTables": true, "Backend": {"Type": "vxlan"}}"#,
    );
    for i in 0..1000_u32 {
        let (high, low) = (i / 250, i % 250);
        let cidr = format!("172.{}.{low}.0/24", 21 + high);
        let mac = format!("02:00:00:00:{high:02x}:{low:02x}");
        let node = json!({
            "metadata": {"name": format!("peer{i}"), "annotations": annotations(&format!("10.7.{high}.{low}"), &mac)},
            "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        });
        world.kube.create(Resource::Nodes, "", node).unwrap();
    }
    let flanneld = world.start(&["-v=1"]);
    world.wait_ready(&flanneld);
    let count = |line: &str| world.look(line).lines().count();
    assert_eq!(count("ip -4 route show proto 77"), 1000);
    assert_eq!(count("ip neighbour show dev flannel.1 nud permanent"), 1000);
    assert_eq!(count("bridge fdb show dev flannel.1"), 1000);
    let patch = json!({"metadata": {"annotations": annotations("10.9.9.9", "02:00:00:00:00:07")}});
    let before = flanneld.log().len();
    world.kube.patch(Resource::Nodes, "", "peer7", PatchType::Merge, &patch).unwrap();
    wait_until("the peer has moved", &|| flanneld.log(), || {
        world.look("bridge fdb show dev flannel.1").contains("dst 10.9.9.9")
    });
    world.ip("link delete flannel.1");
    wait_until("all are back", &|| flanneld.log(), || {
        count("ip -4 route show proto 77") == 1000 && count("bridge fdb show dev flannel.1") == 1000
    });
    let log = flanneld.log();
    let until_mended = log.split_at(before).1.lines().take_while(|line| !line.contains("ip link add"));
    let steps: Vec<&str> = until_mended.filter(|line| line.contains("step=")).collect();
    assert!(
        matches!(&steps[..], [one] if one.contains("bridge fdb replace 02:00:00:00:00:07 dev flannel.1 dst 10.9.9.9")),
        "{steps:?}"
    );
}

#[test]
fn what_go_flanneld_left_goes_at_start_and_its_mac_address_stays() {
    let world = world();
    let known = "12:c6:65:89:b4:e3";
    let own = json!({"metadata": {"annotations": annotations("192.168.0.5", known)}});
    world.kube.patch(Resource::Nodes, "", "n1", PatchType::Merge, &own).unwrap();
    std::fs::create_dir_all(world.subnet_file().parent().unwrap()).unwrap();
    let env = "FLANNEL_NETWORK=172.20.0.0/16\nFLANNEL_SUBNET=172.20.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    std::fs::write(world.subnet_file(), env).unwrap();
    for line in [
        "ip link add flannel.1 address 12:c6:65:89:b4:e3 mtu 1400 txqueuelen 0 type vxlan id 1 local 192.168.0.5 dev eth0 dstport 8472 learning",
        "ip address add 172.20.1.0/32 dev flannel.1",
        "ip link set flannel.1 up",
        "ip neighbour add 172.20.2.0 lladdr 02:00:00:00:00:22 dev flannel.1 nud permanent",
        "ip neighbour add 172.20.9.0 lladdr 02:00:00:00:00:09 dev flannel.1 nud permanent",
        "bridge fdb add 02:00:00:00:00:22 dev flannel.1 dst 10.7.0.2 self permanent",
        "bridge fdb add 02:00:00:00:00:09 dev flannel.1 dst 10.7.0.9 self permanent",
        "ip route add 172.20.2.0/24 via 172.20.2.0 dev flannel.1 onlink",
        "ip route add 172.20.9.0/24 via 172.20.9.0 dev flannel.1 onlink",
        "ip route add 172.20.8.0/24 via 192.168.0.8 dev eth0",
        "ip route add 10.98.0.0/24 via 192.168.0.8 dev eth0",
    ] {
        world.look(line);
    }
    let before = index(&world);
    let flanneld = world.start(&[]);
    world.wait_ready(&flanneld);
    wait_for(&world, &flanneld, "all is ours", &right(known));
    let routes = world.look("ip route show");
    assert!(!routes.contains("172.20.9.0/24") && !routes.contains("172.20.8.0/24"), "{routes}");
    assert!(routes.contains("10.98.0.0/24"), "{routes}");
    assert_eq!(index(&world), before, "the device is the same");
    assert_eq!(published_mac(&world, &flanneld), known);
}

#[test]
fn a_dry_run_prints_the_whole_tunnel_and_touches_nothing() {
    let world = world();
    let mut args = world.args();
    args.push("-dry-run".to_owned());
    let (code, text) = world.start_with(&args, &[("NODE_NAME", "n1")]).ended();
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "type vxlan id 1 local 192.168.0.5 dev eth0 dstport 8472 nolearning",
        "ip neighbour replace 172.20.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
        "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 10.7.0.2 self permanent",
        "ip route add 172.20.2.0/24 via 172.20.2.0 dev flannel.1 proto 77 onlink",
        "ip route add 172.20.3.0/24 via 192.168.0.3 dev eth0 proto 77",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert_eq!(world.look("ip link show dev flannel.1"), "");
}

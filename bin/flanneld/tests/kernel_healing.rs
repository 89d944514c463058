//! The real daemon against the real kernel: it comes up, keeps what it needs, clears what it left, and leaves the rest alone.

#![expect(clippy::unwrap_used, reason = "a test that cannot look must fail where it looked")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use common::{Tiny, World, wait_until};
use loden_netlink::monitor::{Monitor, Subject};

const TABLE: &str = "table ip flannel-ipv4 {
\tcomment \"rules for flannel-ipv4\"
\tchain forward {
\t\tcomment \"chain to accept flannel traffic\"
\t\ttype filter hook forward priority filter; policy accept;
\t\tip saddr 172.20.0.0/16 accept
\t\tip daddr 172.20.0.0/16 accept
\t}

\tchain postrtg {
\t\tcomment \"chain to manage traffic masquerading by flannel\"
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tmeta mark 0x00004000 return
\t\tip saddr 172.20.1.0/24 ip daddr 172.20.0.0/16 return
\t\tip saddr 172.20.0.0/16 ip daddr 172.20.1.0/24 return
\t\tip saddr != 172.20.1.0/24 ip daddr 172.20.0.0/16 return
\t\tip saddr 172.20.0.0/16 ip daddr 192.168.0.0/16 return
\t\tip saddr 172.20.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
\t\tip saddr != 172.20.0.0/16 ip daddr 172.20.0.0/16 masquerade fully-random
\t}
}
";

/// The table with its chains in the order of their names, as `nft` lists them by age.
fn table(world: &World) -> String {
    let chain = |name: &str| {
        let text = world.nft(&format!("list chain ip flannel-ipv4 {name}"));
        let from = text.find(&format!("\tchain {name}")).unwrap();
        text[from..].trim_end().trim_end_matches('}').trim_end().to_owned()
    };
    format!(
        "table ip flannel-ipv4 {{\n\tcomment \"rules for flannel-ipv4\"\n{}\n\n{}\n}}\n",
        chain("forward"),
        chain("postrtg")
    )
}

fn has_table(world: &World) -> bool {
    let tables = world.nft("list tables");
    ["ip flannel-ipv4", "ip6 flannel-ipv6"].iter().all(|name| tables.contains(&format!("table {name}\n")))
}

fn is_right(world: &World) -> bool {
    let chains = world.nft("list chains ip");
    has_table(world) && chains.contains("forward") && chains.contains("postrtg") && table(world) == TABLE
}

#[test]
fn comes_up_with_flannels_files_rules_and_annotations() {
    let world = World::with_pod_cidr();
    let flanneld = world.start(&[]);
    world.wait_ready(&flanneld);

    let file = world.subnet_file();
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(
        text,
        "FLANNEL_NETWORK=172.20.0.0/16\nFLANNEL_SUBNET=172.20.1.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=true\n"
    );
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(table(&world), TABLE);
    assert_eq!(
        world.nft("list table ip6 flannel-ipv6"),
        "table ip6 flannel-ipv6 {\n\tcomment \"rules for flannel-ipv6\"\n}\n"
    );
    assert_eq!(world.sysctl("net/ipv4/ip_forward"), "1");
    assert_eq!(world.health("/healthz").unwrap(), (200, "flanneld is running".to_owned()));
    assert_eq!(world.health("/").unwrap().0, 404);

    let annotation = |key: &str| {
        world.node()["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{key}")].clone()
    };
    wait_until("the lease is published", &|| flanneld.log(), || annotation("public-ip") == "192.168.0.5");
    assert_eq!(annotation("kube-subnet-manager"), "true");
    assert_eq!(annotation("backend-type"), "");
    assert_eq!(annotation("backend-data"), "null");
    assert!(
        world.node()["status"]["conditions"].as_array().is_none_or(Vec::is_empty),
        "the controller owns the condition"
    );

    flanneld.stop();
    assert!(is_right(&world), "nothing is torn down");
    assert_eq!(world.sysctl("net/ipv4/ip_forward"), "1");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn what_is_removed_by_hand_is_back_at_once() {
    let world = World::with_pod_cidr();
    world.ip("link add cni0 type bridge");
    world.ip("link set cni0 up");
    world
        .netns
        .run(|| {
            let alias = "loden gateway 172.20.1.1/24";
            let set = std::process::Command::new("ip").args(["link", "set", "cni0", "alias", alias]).status();
            assert!(set.unwrap().success());
        })
        .unwrap();
    let flanneld = world.start(&["--ip-blackhole-route"]);
    world.wait_ready(&flanneld);
    let gateway = || world.ip("address show dev cni0").contains("inet 172.20.1.1/24 ");
    let blackhole = || world.ip("route show proto 77").contains("blackhole 172.20.1.0/24 metric 65535");
    assert!(gateway() && blackhole() && is_right(&world), "{}", flanneld.log());

    let again = |what: &str, condition: &dyn Fn() -> bool| {
        wait_until(what, &|| format!("{}\n{}", flanneld.log(), world.nft("list ruleset")), condition);
        world.wait_ready(&flanneld);
    };
    world.nft("delete table ip flannel-ipv4");
    again("the table is back", &|| is_right(&world));
    world.nft("flush ruleset");
    again("both tables are back", &|| is_right(&world));
    world.nft("delete chain ip flannel-ipv4 forward");
    again("the chain is back", &|| is_right(&world));
    world.nft("flush chain ip flannel-ipv4 postrtg");
    again("the rules are back", &|| is_right(&world));
    world.nft("insert rule ip flannel-ipv4 forward ip saddr 172.20.0.0/16 drop");
    again("the strange rule is gone", &|| is_right(&world));
    world.nft("add chain ip flannel-ipv4 mine");
    again("the strange chain is gone", &|| !world.nft("list table ip flannel-ipv4").contains("mine"));
    world.nft("add set ip flannel-ipv4 mine { type ipv4_addr; }");
    again("the strange set is gone", &|| {
        !world.nft("list table ip flannel-ipv4").contains("mine") && is_right(&world)
    });
    world.set_sysctl("net/ipv4/ip_forward", "0");
    again("forwarding is on", &|| world.sysctl("net/ipv4/ip_forward") == "1");
    world.ip("address delete 172.20.1.1/24 dev cni0");
    again("the gateway address is back", &gateway);
    world.ip("route delete blackhole 172.20.1.0/24 metric 65535");
    again("the blackhole route is back", &blackhole);
    std::fs::remove_file(world.subnet_file()).unwrap();
    again("the subnet file is back", &|| world.subnet_file().exists());
    assert!(flanneld.log().contains("mended"), "{}", flanneld.log());
}

#[test]
fn leftovers_go_and_strangers_stay() {
    let world = World::with_pod_cidr();
    // Of ours: an earlier backend's device, a route with our mark, rules for another network.
    world.ip("link add flannel.1 type vxlan id 1 dstport 8472 local 192.168.0.5 nolearning");
    world.ip("address add 172.20.1.0/32 dev flannel.1");
    world.ip("link set flannel.1 up");
    world.ip("route add 172.20.9.0/24 via 172.20.9.0 dev flannel.1 onlink");
    world.ip("route add 172.21.0.0/24 via 192.168.0.9 dev eth0 proto 77");
    world.nft("add table ip flannel-ipv4");
    world.nft("add chain ip flannel-ipv4 old");
    // Of others: a table, routes, an address, a bridge with the right name but another kind, another flannel's device.
    world.nft("add table ip mine");
    world.nft("add chain ip mine stay");
    world.nft("add rule ip mine stay ip saddr 172.20.0.0/16 drop");
    world.ip("route add 10.9.0.0/16 via 192.168.0.9 dev eth0");
    world.ip("route add 172.20.8.0/24 via 192.168.0.8 dev eth0 proto static");
    world.ip("address add 192.168.0.77/24 dev eth0");
    world.ip("link add flannel.3 type bridge");
    world.ip("link add flannel.7 type vxlan id 7 dstport 8473 local 192.168.0.5 nolearning");
    world.ip("address add 10.77.1.0/32 dev flannel.7");
    // Of Go's flanneld in its iptables mode, among kube-proxy's.
    world.iptables("-t nat -N KUBE-POSTROUTING");
    world.iptables("-t nat -A POSTROUTING -j KUBE-POSTROUTING");
    world.iptables("-t nat -A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE");
    world.iptables("-t filter -N KUBE-FORWARD");
    world.iptables("-t filter -A FORWARD -j KUBE-FORWARD");
    // A table in one step, as Go's does it: a flanneld of ours that runs already clears up between two.
    world.write(
        "go-rules",
        "*nat\n:FLANNEL-POSTRTG - [0:0]\n-I POSTROUTING -m comment --comment flanneld -j FLANNEL-POSTRTG\n\
         -A FLANNEL-POSTRTG -s 172.20.0.0/16 -m comment --comment flanneld -j MASQUERADE\nCOMMIT\n\
         *filter\n:FLANNEL-FWD - [0:0]\n-A FORWARD -m comment --comment flanneld -j FLANNEL-FWD\n\
         -A FLANNEL-FWD -s 172.20.0.0/16 -j ACCEPT\nCOMMIT\n",
    );
    let go_flannel = || {
        let file = world.path("go-rules").display().to_string();
        world.netns.run(|| common::run("iptables-nft-restore", &["--noflush", &file])).unwrap();
    };
    let iptables = || [world.iptables("-t nat -S"), world.iptables("-t filter -S")];
    let kube_proxy = iptables();
    go_flannel();
    let strangers = || {
        [
            world.nft("list table ip mine"),
            world.ip("route show 10.9.0.0/16"),
            world.ip("route show 172.20.8.0/24"),
            world.ip("-4 -brief address show dev eth0"),
            world.ip("-brief link show dev flannel.3"),
            world.ip("-brief address show dev flannel.7"),
        ]
    };
    let before = strangers();

    let flanneld = world.start(&[]);
    world.wait_ready(&flanneld);
    let links = world.ip("-brief link");
    assert!(!links.contains("flannel.1 ") && !links.contains("flannel.1@"), "{links}");
    assert_eq!(world.ip("route show proto 77"), "");
    assert_eq!(world.ip("route show 172.20.9.0/24"), "");
    assert!(is_right(&world) && !world.nft("list table ip flannel-ipv4").contains("old"));
    assert_eq!(strangers(), before);
    assert_eq!(iptables(), kube_proxy);
    // A Go flanneld that comes back for a moment is cleared up after as well.
    go_flannel();
    let explain = || format!("{:?}\n{}", iptables(), flanneld.log());
    wait_until("Go's rules are gone again", &explain, || iptables() == kube_proxy);
    assert!(!flanneld.log().contains("iptables-legacy"), "{}", flanneld.log());
    flanneld.stop();
    assert_eq!(strangers(), before);
}

#[test]
fn rules_out_of_sight_are_warned_of() {
    let world = World::with_pod_cidr();
    world.netns.run(|| common::run("iptables-legacy", &["-t", "nat", "-N", "FLANNEL-POSTRTG"])).unwrap();
    let warning = "iptables-legacy -t nat -S FLANNEL-POSTRTG";
    let flanneld = world.start(&[]);
    world.wait_ready(&flanneld);
    assert!(!flanneld.log().contains(warning), "no flanneld was here before: {}", flanneld.log());
    flanneld.stop();
    let flanneld = world.start(&[]);
    world.wait_ready(&flanneld);
    let log = flanneld.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains(" WARN ")).collect();
    assert!(
        matches!(warnings.as_slice(), [one] if one.contains(warning) && !one.contains("filter")),
        "{log}"
    );
    flanneld.stop();
}

#[test]
fn a_restart_touches_nothing_that_is_right() {
    let world = World::with_pod_cidr();
    let mut first = world.start(&[]);
    world.wait_ready(&first);
    first.signal(rustix::process::Signal::KILL);
    first.wait();
    let written = std::fs::metadata(world.subnet_file()).unwrap().modified().unwrap();
    // The kernel looks for duplicates of the links' own IPv6 addresses for a while, and tells when it is done.
    world.set_sysctl("net/ipv6/conf/eth0/disable_ipv6", "1");
    world.set_sysctl("net/ipv6/conf/uplink/disable_ipv6", "1");
    let mut monitor = Monitor::open_in(&world.netns).unwrap();
    wait_until("the namespace is at rest", &String::new, || {
        monitor.wait(Duration::from_millis(500)).unwrap().is_empty()
    });

    let second = world.start(&[]);
    world.wait_ready(&second);
    let notices = monitor.drain().unwrap();
    let touched: Vec<_> = notices.iter().filter(|notice| notice.subject != Subject::Neighbour).collect();
    assert!(touched.is_empty(), "{touched:?}\n{}", second.log());
    assert_eq!(std::fs::metadata(world.subnet_file()).unwrap().modified().unwrap(), written);
}

#[test]
fn a_missing_pod_cidr_is_waited_for_and_said() {
    let world = World::new();
    let mut flanneld = world.start(&[]);
    let reason = "PodCIDRNotAssigned";
    wait_until("the event is there", &|| flanneld.log(), || world.events().iter().any(|(r, _)| r == reason));
    wait_until("the log says so too", &|| flanneld.log(), || {
        flanneld.log().contains("no pod CIDR is assigned yet")
    });
    assert_eq!(world.health("/healthz").unwrap().0, 200);
    assert_eq!(world.health("/readyz").unwrap(), (503, "flanneld is not ready yet".to_owned()));
    assert!(!world.subnet_file().exists());
    world.set_pod_cidr("172.20.1.0/24");
    world.wait_ready(&flanneld);
    assert!(is_right(&world));

    // The record of the node going away unmakes nothing; a new one with another subnet is followed.
    world.renew_node();
    wait_until("the loss is said", &|| flanneld.log(), || !world.is_ready());
    assert!(is_right(&world), "the lease stands meanwhile");
    world.set_pod_cidr("172.20.2.0/24");
    wait_until("the new subnet is taken", &|| flanneld.log(), || {
        std::fs::read_to_string(world.subnet_file()).unwrap().contains("FLANNEL_SUBNET=172.20.2.1/24\n")
    });
    world.wait_ready(&flanneld);
    assert!(table(&world).contains("ip saddr 172.20.2.0/24"));
    flanneld.signal(rustix::process::Signal::INT);
    assert_eq!(flanneld.wait().code(), Some(0));
}

#[test]
fn upstreams_condition_is_set_when_asked_for_and_warned_about() {
    let world = World::with_pod_cidr();
    let flanneld = world.start(&["-set-node-network-unavailable=true"]);
    world.wait_ready(&flanneld);
    let condition = || world.node()["status"]["conditions"][0].clone();
    wait_until("the condition is set", &|| flanneld.log(), || condition()["type"] == "NetworkUnavailable");
    assert_eq!(condition()["status"], "False");
    assert_eq!(condition()["reason"], "FlannelIsUp");
    assert_eq!(condition()["message"], "Flannel is running on this node");
    assert!(flanneld.log().contains("before its route entry exists"), "{}", flanneld.log());
}

#[test]
fn both_families_are_served_when_both_are_on() {
    let world = World::new();
    world.write(
        "net-conf.json",
        r#"{"network": "172.20.0.0/16", "enableIPv6": true, "ipv6Network": "fd00:172:20::/48", "enableNFTables": true,
            "backend": {"type": "ALLOC"}}"#,
    );
    world.ip("address add 2001:db8::5/64 dev eth0 nodad");
    world.ip("route add default via 2001:db8::1 dev eth0");
    let cidrs = serde_json::json!({"spec": {"podCIDR": "172.20.1.0/24", "podCIDRs": ["172.20.1.0/24", "fd00:172:20:1::/64"]}});
    world
        .kube
        .patch(loden_sim_kube::Resource::Nodes, "", common::NODE, loden_sim_kube::PatchType::Merge, &cidrs)
        .unwrap();
    let flanneld = world.start(&["--ip-blackhole-route"]);
    world.wait_ready(&flanneld);
    assert_eq!(
        std::fs::read_to_string(world.subnet_file()).unwrap(),
        "FLANNEL_NETWORK=172.20.0.0/16\nFLANNEL_SUBNET=172.20.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:172:20::/48\n\
         FLANNEL_IPV6_SUBNET=fd00:172:20:1::1/64\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=true\n"
    );
    let rules = || world.nft("list table ip6 flannel-ipv6");
    let last = "ip6 saddr fd00:172:20::/48 ip6 daddr != ff00::/8 masquerade fully-random";
    assert!(rules().contains(last), "{}", rules());
    assert!(world.ip("-6 route show proto 77").contains("blackhole fd00:172:20:1::/64"));
    world.set_sysctl("net/ipv6/conf/all/forwarding", "0");
    wait_until("IPv6 forwarding is back", &|| flanneld.log(), || {
        world.sysctl("net/ipv6/conf/all/forwarding") == "1"
    });
    world.ip("-6 route delete blackhole fd00:172:20:1::/64 metric 65535");
    wait_until("the route is back", &|| flanneld.log(), || {
        world.ip("-6 route show proto 77").contains("blackhole")
    });
    world.wait_ready(&flanneld);
}

#[test]
fn a_disk_that_fills_up_later_is_waited_for() {
    let world = World::with_pod_cidr();
    let disk = Tiny::mount(world.subnet_file().parent().unwrap().to_owned());
    let flanneld = world.start(&[]);
    world.wait_ready(&flanneld);
    let old = std::fs::read_to_string(world.subnet_file()).unwrap();
    disk.fill();
    world.renew_node();
    world.set_pod_cidr("172.20.2.0/24");
    wait_until("it is no longer ready", &|| flanneld.log(), || !world.is_ready());
    wait_until("the full disk is said", &|| flanneld.log(), || {
        flanneld.log().contains("No space left on device")
    });
    assert_eq!(std::fs::read_to_string(world.subnet_file()).unwrap(), old);
    // What is removed meanwhile comes back all the same.
    world.nft("flush ruleset");
    wait_until("the tables are back", &|| flanneld.log(), || has_table(&world));
    assert!(!world.is_ready());
    disk.make_room();
    world.wait_ready(&flanneld);
    assert!(std::fs::read_to_string(world.subnet_file()).unwrap().contains("FLANNEL_SUBNET=172.20.2.1/24\n"));
    assert_eq!(disk.entries(), ["subnet.env"]);
    flanneld.stop();
}

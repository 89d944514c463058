//! CAP_NET_ADMIN and a directory of its own are all that flanneld needs.

#![expect(clippy::unwrap_used, reason = "a test that cannot look must fail where it looked")]

mod common;

use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use common::{NODE, World, wait_until};

/// Nobody's number.
const UID: u32 = 65_534;

/// flanneld's program as anybody may run it; where it was built may be closed to others.
fn program(world: &World) -> std::path::PathBuf {
    let copy = world.path("flanneld");
    std::fs::copy(env!("CARGO_BIN_EXE_flanneld"), &copy).unwrap();
    copy
}

#[test]
fn as_nobody_with_one_capability_it_comes_up_and_heals() {
    let world = World::with_pod_cidr();
    world.ip("link add cni0 type bridge");
    world.ip("link set cni0 up");
    world
        .netns
        .run(|| common::run("ip", &["link", "set", "cni0", "alias", "loden gateway 172.20.1.1/24"]))
        .unwrap();
    world.iptables("-t nat -N FLANNEL-POSTRTG");
    world.set_sysctl("net/ipv4/ip_forward", "0");
    let run = world.subnet_file().parent().unwrap().to_owned();
    std::fs::create_dir(&run).unwrap();
    chown(&run, Some(UID), Some(UID)).unwrap();
    chown(world.path("kubeconfig"), Some(UID), None).unwrap();
    std::fs::set_permissions(world.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args([format!("--reuid={UID}"), format!("--regid={UID}")])
        .args(["--clear-groups", "--no-new-privs"])
        .args([
            "--inh-caps=-all,+net_admin",
            "--ambient-caps=-all,+net_admin",
            "--bounding-set=-all,+net_admin",
        ])
        .arg(program(&world))
        .args(world.args())
        .args(["--vpc-cidrs=none", "--ip-blackhole-route"]);
    let flanneld = world.start_command(command, &[("NODE_NAME", NODE)]);
    world.wait_ready(&flanneld);

    let status = std::fs::read_to_string(format!("/proc/{}/status", flanneld.id())).unwrap();
    let line = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let uid = UID.to_string();
    assert_eq!(line("Uid:"), [uid.as_str(); 4], "it runs as nobody");
    // Bit 12 is CAP_NET_ADMIN.
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(line(set), ["0000000000001000"], "{set}");
    }

    let forwarding = || world.sysctl("net/ipv4/ip_forward") == "1";
    let tables = || world.nft("list tables").contains("table ip flannel-ipv4");
    let gateway = || world.ip("address show dev cni0").contains("inet 172.20.1.1/24 ");
    let blackhole = || world.ip("route show proto 77").contains("blackhole 172.20.1.0/24");
    assert!(forwarding() && tables() && gateway() && blackhole(), "{}", flanneld.log());
    assert!(!world.iptables("-t nat -S").contains("FLANNEL"), "{}", flanneld.log());
    assert!(std::fs::read_to_string(world.subnet_file()).unwrap().contains("FLANNEL_SUBNET=172.20.1.1/24\n"));
    let again = |what: &str, condition: &dyn Fn() -> bool| {
        wait_until(what, &|| flanneld.log(), condition);
        world.wait_ready(&flanneld);
    };
    world.set_sysctl("net/ipv4/ip_forward", "0");
    again("forwarding is on", &forwarding);
    world.nft("flush ruleset");
    again("the tables are back", &tables);
    world.ip("address delete 172.20.1.1/24 dev cni0");
    again("the gateway address is back", &gateway);
    world.ip("route delete blackhole 172.20.1.0/24 metric 65535");
    again("the blackhole route is back", &blackhole);
    std::fs::remove_file(world.subnet_file()).unwrap();
    again("the subnet file is back", &|| world.subnet_file().exists());
    let log = flanneld.log();
    assert!(!log.contains("ERROR") && !log.contains("ermission denied"), "{log}");
    flanneld.stop();
}

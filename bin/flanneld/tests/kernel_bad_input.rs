//! Bad input: one clear error that says what, why and what to do; the right exit code; nothing half-done left behind.

mod common;

use std::process::Command;

use loden_sim_kube::{Config, Token};

use common::{NET_CONF, NODE, Tiny, World, wait_until};

/// What must not have happened when flanneld refused to start.
fn assert_untouched(world: &World) {
    assert!(!world.subnet_file().exists());
    assert_eq!(world.nft("list ruleset"), "");
    assert_eq!(world.ip("route show proto 77"), "");
    assert!(world.node().pointer("/metadata/annotations").is_none());
}

#[test]
fn wrong_flags_end_with_two_and_the_way_to_the_usage() {
    let world = World::new();
    for (arg, error) in [
        ("-nope", "flag provided but not defined: -nope"),
        ("--ip-masq=perhaps", "invalid value \"perhaps\" for flag -ip-masq"),
        ("-v", "flag needs an argument: -v"),
    ] {
        let (code, said) = world.start_with(&[arg.to_owned()], &[]).ended();
        assert_eq!(code, Some(2), "{arg}: {said}");
        let lines: Vec<&str> = said.lines().collect();
        assert!(
            matches!(lines.as_slice(), [first, "run flanneld --help for the flags there are"] if first.contains(error)),
            "{said}"
        );
    }
    let (code, said) = world.start_with(&["--help".to_owned()], &[]).ended();
    assert_eq!(code, Some(0));
    assert!(
        said.contains("Usage: flanneld") && said.contains("Not yet, and refused: etcd, iptables"),
        "{said}"
    );
    let (code, said) = world.start_with(&["-version".to_owned()], &[]).ended();
    assert_eq!((code, said.starts_with('v')), (Some(0), true), "{said}");
    assert_untouched(&world);
}

#[test]
fn what_cannot_work_ends_with_one_and_says_why() {
    let world = World::with_pod_cidr();
    let node_name = [("NODE_NAME", NODE)];
    let refused = |args: &[String], environment: &[(&str, &str)], words: &[&str]| {
        let (code, said) = world.start_with(args, environment).ended();
        assert_eq!(code, Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
        assert_untouched(&world);
    };
    let with = |more: &str| world.args().into_iter().chain([more.to_owned()]).collect::<Vec<_>>();

    // What is not built yet.
    refused(&["-ip-masq".to_owned()], &node_name, &["etcd lease store is not built yet", "-kube-subnet-mgr"]);
    for (conf, words) in [
        (r#"{"Network":"172.20.0.0/16","Backend":{"Type":"alloc"}}"#, ["EnableNFTables", "iptables"]),
        (
            r#"{"Network":"172.20.0.0/16","EnableNFTables":true,"Backend":{"Type":"ipip"}}"#,
            ["Backend.Type", "ipip is not built yet"],
        ),
        (
            r#"{"Network":"172.20.0.0/16","EnableNFTables":true,"Backend":{"Type":"ali-vpc"}}"#,
            ["Backend.Type", "unknown"],
        ),
        // What is malformed.
        ("{\"Network\": \"172.20.0.0/16\"", ["net-conf.json", "not a JSON object"]),
        ("", ["net-conf.json", "the text is empty"]),
        (r#"{"Network":"172.20.0.0","EnableNFTables":true}"#, ["key Network", "172.20.0.0"]),
        (r#"{"EnableNFTables":true,"Backend":{"Type":"alloc"}}"#, ["key Network", "is required"]),
    ] {
        world.write("net-conf.json", conf);
        refused(&world.args(), &node_name, &words);
    }
    world.write("net-conf.json", NET_CONF);
    refused(
        &with("-net-config-path=/nowhere/net-conf.json"),
        &node_name,
        &["/nowhere/net-conf.json", "-net-config-path"],
    );
    refused(&with("-kubeconfig-file=/nowhere/kubeconfig"), &node_name, &["/nowhere/kubeconfig"]);
    world.write("broken", "apiVersion: v1\nclusters: [");
    let broken = with(&format!("-kubeconfig-file={}", world.path("broken").display()));
    refused(&broken, &node_name, &["broken", "kubeconfig"]);
    refused(&world.args(), &[], &["NODE_NAME", "POD_NAME"]);
    refused(
        &world.args(),
        &[("POD_NAME", "p"), ("POD_NAMESPACE", "kube-system")],
        &["pod kube-system/p does not exist"],
    );
    refused(&with("-iface=wlan7"), &node_name, &["there is no link wlan7", "eth0"]);

    // A pod CIDR from another range.
    world.renew_node();
    world.set_pod_cidr("10.99.1.0/24");
    refused(
        &world.args(),
        &node_name,
        &["node n1", "10.99.1.0/24 lies outside Network 172.20.0.0/16", "cluster CIDR"],
    );
    wait_until("the event is there", &|| format!("{:?}", world.events()), || {
        world.events().iter().any(|(reason, _)| reason == "PodCIDRNotUsable")
    });
}

#[test]
fn a_taken_health_port_is_an_error_that_names_it() {
    let world = World::with_pod_cidr();
    let taken = world.netns.run(|| std::net::TcpListener::bind("127.0.0.1:8081").unwrap()).unwrap();
    let (code, said) = world.start(&[]).ended();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("127.0.0.1:8081") && said.contains("health"), "{said}");
    assert_untouched(&world);
    drop(taken);
}

#[test]
fn without_the_right_to_change_the_network_it_says_so_and_ends() {
    let world = World::with_pod_cidr();
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", env!("CARGO_BIN_EXE_flanneld")])
        .args(world.args());
    let (code, said) = world.start_command(command, &[("NODE_NAME", NODE)]).ended();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("CAP_NET_ADMIN") && said.contains("nf_tables"), "{said}");
    assert_untouched(&world);
}

#[test]
fn without_room_for_the_subnet_file_it_ends_and_leaves_everything_as_it_was() {
    let world = World::with_pod_cidr();
    let old = "FLANNEL_NETWORK=172.20.0.0/16\n";
    let disk = Tiny::mount(world.subnet_file().parent().unwrap().to_owned());
    world.write("run/subnet.env", old);
    disk.fill();
    let refused = |words: &[&str]| {
        let (code, said) = world.start(&[]).ended();
        assert_eq!(code, Some(1), "{said}");
        let errors: Vec<&str> = said.lines().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(errors.len(), 1, "{said}");
        let path = world.subnet_file().display().to_string();
        for word in words.iter().chain([&"write subnet file", &path.as_str()]) {
            assert!(errors[0].contains(word), "{word:?} is not in: {}", errors[0]);
        }
        assert_eq!(std::fs::read_to_string(world.subnet_file()).unwrap(), old);
        assert_eq!(world.nft("list ruleset"), "");
        assert!(world.node().pointer("/metadata/annotations").is_none());
        assert_eq!(disk.entries(), ["filler", "subnet.env"]);
    };
    refused(&["No space left on device", "free space on that file system"]);
    disk.make_read_only();
    refused(&["Read-only file system", "make its directory writable", "-subnet-file"]);
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error_that_names_the_file() {
    let world = World::with_pod_cidr();
    world.write("run", "a file where the directory should be\n");
    let (code, said) = world.start(&[]).ended();
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("subnet file") && said.contains(&world.subnet_file().display().to_string()),
        "{said}"
    );
    assert_eq!(world.nft("list ruleset"), "");
}

#[test]
fn a_dry_run_prints_and_changes_nothing() {
    let world = World::with_pod_cidr();
    let forwarding = world.sysctl("net/ipv4/ip_forward");
    world.set_sysctl("net/ipv4/ip_forward", "0");
    let (code, said) = world.start(&["--dry-run"]).ended();
    assert_eq!(code, Some(0), "{said}");
    for line in [
        "sysctl -w net.ipv4.ip_forward=1\n",
        "nft add table ip flannel-ipv4 {",
        "#   FLANNEL_SUBNET=172.20.1.1/24\n",
        "# annotate node n1 flannel.alpha.coreos.com/public-ip=192.168.0.5\n",
    ] {
        assert!(said.contains(line), "{line:?} is not in:\n{said}");
    }
    assert_eq!(world.sysctl("net/ipv4/ip_forward"), "0");
    world.set_sysctl("net/ipv4/ip_forward", &forwarding);
    assert_untouched(&world);
}

#[test]
fn credentials_that_the_api_server_refuses_end_the_start() {
    let config = Config { tokens: vec![Token::admin("another")], ..Config::default() };
    let world = World::serving(config);
    let (code, said) = world.start_with(&world.args(), &[("NODE_NAME", NODE)]).ended();
    assert_eq!(code, Some(1), "{said}");
    for word in ["get node n1", "http://127.0.0.1", "401", "check the token"] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert_untouched(&world);
}

//! Commands that fail: one clear error, and nothing left behind.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Attachment, GO, Namespace, Node, Tmpfs, copy_program, with_result};

const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// ADD must fail; the container and the node stay as they were.
#[track_caller]
fn refused(node: &Node, pod: &Namespace, config: &Value) -> (u64, String) {
    let answer = node.call(&node.ours(), "flannel", "ADD", &Attachment::new("c1", pod), config);
    let error = answer.error();
    node.assert_clean();
    assert_eq!(pod.link_names().len(), 1, "links left in the container");
    // The runtime's DEL after a failed ADD must succeed.
    node.call(&node.ours(), "flannel", "DEL", &Attachment::new("c1", pod), config).silent();
    error
}

#[test]
fn addresses_are_exhausted() {
    let node = Node::new();
    let config = node.flannel_config(&SUBNET_ENV.replace("10.244.1.1/24", "10.244.1.1/30"));
    let pods = [Namespace::new("pod"), Namespace::new("pod")];
    let first = Attachment::new("c0", &pods[0]);
    node.call(&node.ours(), "flannel", "ADD", &first, &config).result();
    let answer = node.call(&node.ours(), "flannel", "ADD", &Attachment::new("c1", &pods[1]), &config);
    assert_eq!(
        answer.error(),
        (
            999,
            "failed to allocate for range 0: no IP addresses available in range set: 10.244.1.1-10.244.1.2"
                .to_owned()
        )
    );
    assert_eq!(pods[1].link_names().len(), 1);
    assert_eq!(node.residue().len(), 2, "the first container keeps its reservation and its configuration");
    node.call(&node.ours(), "flannel", "DEL", &first, &config).silent();
    node.call(&node.ours(), "flannel", "ADD", &Attachment::new("c1", &pods[1]), &config).result();
    node.call(&node.ours(), "flannel", "DEL", &Attachment::new("c1", &pods[1]), &config).silent();
    node.assert_clean();
}

#[test]
fn the_second_family_is_exhausted() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = node.bridge_config(json!({"ipam": {"ranges": [
        [{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00::/64", "rangeStart": "fd00::1", "rangeEnd": "fd00::1"}],
    ]}}));
    let answer = node.call(&node.ours(), "bridge", "ADD", &Attachment::new("c1", &pod), &config);
    assert_eq!(
        answer.error().1,
        "failed to allocate for range 1: no IP addresses available in range set: fd00::1-fd00::1"
    );
    node.assert_clean();
}

#[test]
fn the_namespace_is_missing() {
    let node = Node::new();
    let config = node.flannel_config(SUBNET_ENV);
    let gone = Attachment { container: "c1", ifname: "eth0", netns: "/run/netns/absent".to_owned() };
    let (code, text) = node.call(&node.ours(), "flannel", "ADD", &gone, &config).error();
    assert_eq!(code, 999);
    assert_eq!(
        text,
        "failed to open netns \"/run/netns/absent\": failed to Statfs \"/run/netns/absent\": no such file or directory"
    );
    node.assert_clean();
    for netns in ["/run/netns/absent", "", "/etc/hostname"] {
        let gone = Attachment { netns: netns.to_owned(), ..gone.clone() };
        node.call(&node.ours(), "flannel", "DEL", &gone, &config).silent();
    }
}

#[test]
fn a_namespace_that_went_away_still_frees_the_address() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = node.flannel_config(SUBNET_ENV);
    let attachment = Attachment::new("c1", &pod);
    node.call(&node.ours(), "flannel", "ADD", &attachment, &config).result();
    drop(pod);
    node.call(&node.ours(), "flannel", "DEL", &attachment, &config).silent();
    assert_eq!(node.residue(), Vec::<String>::new());
}

#[test]
fn the_plugins_own_namespace_is_refused() {
    let node = Node::new();
    let config = node.flannel_config(SUBNET_ENV);
    let own = Attachment { container: "c1", ifname: "eth0", netns: node.home.path() };
    node.home.sh("ip", &["link", "add", "eth0", "type", "bridge"]);
    for command in ["ADD", "DEL"] {
        let (code, text) = node.call(&node.ours(), "flannel", command, &own, &config).error();
        assert_eq!(
            (code, text.as_str()),
            (8, "plugin's netns and netns from CNI_NETNS should not be the same")
        );
    }
    assert!(node.home.link_names().contains("eth0"), "the host's own link is not touched");
    let allowed = [("CNI_NETNS_OVERRIDE", "TRUE")];
    node.home.sh("ip", &["link", "delete", "eth0"]);
    let text = config.to_string();
    node.call_with(&node.ours(), "flannel", "ADD", &own, &text, &allowed).result();
    node.call_with(&node.ours(), "flannel", "DEL", &own, &text, &allowed).silent();
    node.assert_clean();
}

#[test]
fn directories_cannot_be_written() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let file = node.write("file", "");
    let read_only = Tmpfs::mount(&node.path("read-only"), "ro");
    for directory in [format!("{file}/x"), node.path("read-only/x")] {
        for key in ["dataDir", "ipam"] {
            let mut config = node.flannel_config(SUBNET_ENV);
            match key {
                "ipam" => config["ipam"]["dataDir"] = json!(directory),
                _ => config["dataDir"] = json!(directory),
            }
            let answer = node.call(&node.ours(), "flannel", "ADD", &Attachment::new("c1", &pod), &config);
            let text = answer.error().1;
            assert!(text.contains(&directory) && text.contains("is the disk writable"), "{text}");
            node.assert_clean();
            assert_eq!(pod.link_names().len(), 1);
            // The runtime's DEL after a failed ADD, by either way.
            let bridge = node.bridge_config(json!({"ipam": {"dataDir": directory}}));
            node.call(&node.ours(), "flannel", "DEL", &Attachment::new("c1", &pod), &config).silent();
            node.call(&node.ours(), "bridge", "DEL", &Attachment::new("c1", &pod), &bridge).silent();
        }
    }
    drop(read_only);
}

#[test]
fn the_disk_is_full() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    for full in ["state/networks", "state/flannel"] {
        let config = node.flannel_config(SUBNET_ENV);
        let disk = Tmpfs::mount(&node.path(full), "size=256k");
        disk.fill();
        let answer = node.call(&node.ours(), "flannel", "ADD", &Attachment::new("c1", &pod), &config);
        let text = answer.error().1;
        assert!(text.contains(full) && text.contains("No space left on device"), "{text}");
        let mut left = node.residue();
        left.retain(|path| !path.ends_with("filler"));
        assert_eq!(left, Vec::<String>::new(), "{full}");
        assert_eq!(pod.link_names().len(), 1);
        disk.empty();
        node.call(&node.ours(), "flannel", "ADD", &Attachment::new("c1", &pod), &config).result();
        node.call(&node.ours(), "flannel", "DEL", &Attachment::new("c1", &pod), &config).silent();
        node.assert_clean();
    }
}

#[test]
fn the_subnet_file_is_missing_or_cut_short() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = node.flannel_config(SUBNET_ENV);
    let file = node.path("subnet.env");
    for cut in [10, 30, 60, 80] {
        fs::write(&file, &SUBNET_ENV[..cut]).unwrap();
        let (code, text) = refused(&node, &pod, &config);
        assert_eq!(code, 999);
        assert!(text.starts_with(&format!("failed to load flannel 'subnet.env' file: {file}")), "{text}");
        assert!(text.ends_with(". Check the flannel pod log for this node."), "{text}");
    }
    fs::write(&file, "").unwrap();
    assert!(refused(&node, &pod, &config).1.contains(&format!(
        "{file} is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"
    )));
    fs::remove_file(&file).unwrap();
    assert_eq!(
        refused(&node, &pod, &config).1,
        format!(
            "failed to load flannel 'subnet.env' file: open {file}: no such file or directory. Check the flannel pod log for this node."
        )
    );
    let mut config = config;
    config["cniVersion"] = json!("1.1.0");
    let status = || node.call(&node.ours(), "flannel", "STATUS", &Attachment::new("c1", &pod), &config);
    assert_eq!(status().error().0, 50);
    // Besides, what flanneld has said about it.
    fs::write(format!("{file}.waiting"), "node a: spec.podCIDR is not set\n").unwrap();
    let (code, text) = status().error();
    assert_eq!(code, 50);
    assert!(text.contains("Check the flannel pod log for this node."), "{text}");
    assert!(text.ends_with("s ago what it waits for: node a: spec.podCIDR is not set"), "{text}");
    fs::write(&file, SUBNET_ENV).unwrap();
    status().silent();
    // The delegate's trouble is flannel's.
    fs::write(&file, SUBNET_ENV.replace("10.244.1.1/24", "10.244.1.1/30")).unwrap();
    fs::create_dir_all(node.path("state/networks/cbr0")).unwrap();
    fs::write(node.path("state/networks/cbr0/10.244.1.2"), "c9\r\neth0").unwrap();
    let (code, text) = status().error();
    assert!(code == 50 && text.contains("(10.244.1.1-10.244.1.2) are reserved"), "{text}");
}

#[test]
fn a_second_add_fails_and_the_first_stays_whole() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = node.flannel_config(SUBNET_ENV);
    let attachment = Attachment::new("c1", &pod);
    let result = node.call(&node.ours(), "flannel", "ADD", &attachment, &config).result();
    let before = (node.residue(), node.picture(&pod));
    let kept = fs::read(node.path("state/flannel/c1")).unwrap();
    fs::write(node.path("subnet.env"), SUBNET_ENV.replace("1450", "1400")).unwrap();
    let (_, text) = node.call(&node.ours(), "flannel", "ADD", &attachment, &config).error();
    assert!(text.starts_with("container veth name (\"eth0\") peer provided (\"veth"), "{text}");
    assert_eq!((node.residue(), node.picture(&pod)), before);
    assert_eq!(fs::read(node.path("state/flannel/c1")).unwrap(), kept);
    node.call(&node.ours(), "flannel", "CHECK", &attachment, &with_result(&config, &result)).silent();

    // The address plugin by itself refuses a second reservation as well.
    let bridge = node.bridge_config(json!({}));
    let (_, text) = node.call(&node.ours(), "host-local", "ADD", &attachment, &bridge).error();
    assert_eq!(
        text,
        "failed to allocate for range 0: 10.244.1.2 has been allocated to c1, duplicate allocation is not allowed"
    );
    assert_eq!(node.residue(), before.0);
    node.call(&node.ours(), "flannel", "DEL", &attachment, &config).silent();
    node.assert_clean();
}

#[test]
fn a_failure_after_the_address_was_given_takes_everything_back() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    // A route whose next hop is on no network of the container's: the kernel refuses it last of all.
    let mut config = node.flannel_config(&SUBNET_ENV.replace("IPMASQ=true", "IPMASQ=false"));
    config["ipam"]["routes"] = json!([{"dst": "10.9.0.0/16", "gw": "192.168.77.1"}]);
    let (_, text) = refused(&node, &pod, &config);
    assert!(
        text.starts_with("failed to configure \"eth0\": cannot append route 10.9.0.0/16 via 192.168.77.1"),
        "{text}"
    );

    // The bridge's address conflicts: found only after the container has everything.
    node.home.sh("ip", &["addr", "add", "10.9.0.1/24", "dev", "cni0"]);
    let config = node.flannel_config(SUBNET_ENV);
    assert!(
        refused(&node, &pod, &config).1.contains("already has an IP address different from 10.244.1.1/24")
    );
}

#[test]
fn a_failed_detach_can_be_repeated() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = node.flannel_config(SUBNET_ENV);
    let attachment = Attachment::new("c1", &pod);
    node.call(&node.ours(), "flannel", "ADD", &attachment, &config).result();
    fs::rename(node.path("bin/host-local"), node.path("aside")).unwrap();
    let (_, text) = node.call(&node.ours(), "flannel", "DEL", &attachment, &config).error();
    assert_eq!(text, format!("failed to find plugin \"host-local\" in path [{}]", node.ours()));
    assert!(node.residue().contains(&node.path("state/flannel/c1")), "what DEL needs is still there");
    fs::rename(node.path("aside"), node.path("bin/host-local")).unwrap();
    node.call(&node.ours(), "flannel", "DEL", &attachment, &config).silent();
    node.assert_clean();
}

#[test]
fn another_program_as_delegate_is_told_to_take_back() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let log = node.path("log");
    // A delegate that is a program of somebody's: ADD leaves something and fails, DEL takes it away.
    let script = format!(
        "#!/bin/sh\necho $CNI_COMMAND >> {log}\nif [ $CNI_COMMAND = ADD ]; then touch {0}/state/theirs; echo '{{\"code\": 121, \"msg\": \"no\", \"details\": \"really\"}}'; exit 1; fi\nrm {0}/state/theirs\n",
        node.root.path().display()
    );
    fs::remove_file(node.path("bin/bridge")).unwrap();
    fs::write(node.path("bin/bridge"), script).unwrap();
    fs::set_permissions(node.path("bin/bridge"), fs::Permissions::from_mode(0o755)).unwrap();
    let config = node.flannel_config(SUBNET_ENV);
    let answer = node.call(&node.ours(), "flannel", "ADD", &Attachment::new("c1", &pod), &config);
    assert_eq!(answer.error(), (121, "no; really".to_owned()), "the delegate's own error");
    assert_eq!(fs::read_to_string(log).unwrap(), "ADD\nDEL\n");
    assert_eq!(node.residue(), Vec::<String>::new());
}

#[test]
fn delegates_are_found_by_path_and_run_as_programs_when_they_are_others() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = node.flannel_config(SUBNET_ENV);
    let attachment = Attachment::new("c1", &pod);
    let log = node.path("log");
    // An operator's own host-local comes first in the path and passes on to Go's.
    fs::create_dir(node.path("first")).unwrap();
    fs::write(
        node.path("first/host-local"),
        format!("#!/bin/sh\necho $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $(readlink /proc/self/ns/net) >> {log}\nexec {GO}/host-local\n"),
    )
    .unwrap();
    fs::set_permissions(node.path("first/host-local"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", node.path("first"), node.ours());
    let result = node.call(&path, "flannel", "ADD", &attachment, &config).result();
    assert_eq!(result["ips"][0]["address"], "10.244.1.2/24");
    node.call(&path, "flannel", "CHECK", &attachment, &with_result(&config, &result)).silent();
    node.call(&path, "flannel", "DEL", &attachment, &config).silent();
    let home = node.home.sh("readlink", &["/proc/self/ns/net"]);
    let home = home.trim();
    assert_eq!(
        fs::read_to_string(log).unwrap(),
        format!("ADD c1 eth0 {home}\nCHECK c1 eth0 {home}\nDEL c1 eth0 {home}\n"),
        "in the namespace that the runtime called from"
    );
    node.assert_clean();
}

/// Programs that one command starts, itself included.
fn starts(node: &Node, path: &str, command: &str, attachment: &Attachment<'_>, config: &Value) -> usize {
    let log = node.path("starts");
    let stdin = node.write("stdin", &config.to_string());
    let run = || {
        Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=execve", "-o", &log, &format!("{path}/flannel")])
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", attachment.container)
            .env("CNI_NETNS", &attachment.netns)
            .env("CNI_IFNAME", attachment.ifname)
            .env("CNI_PATH", path)
            .stdin(fs::File::open(&stdin).unwrap())
            .output()
            .expect("apt-get install strace")
    };
    let output = node.home.ns.run(run).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    fs::read_to_string(log).unwrap().lines().filter(|line| line.ends_with("= 0")).count()
}

#[test]
fn links_and_copies_of_the_program_are_one_process_and_others_are_not() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = node.flannel_config(SUBNET_ENV);
    let attachment = Attachment::new("c1", &pod);
    let original = node.path("bin/loden-cni");
    let names = ["flannel", "bridge", "host-local"];
    let install = |how: &str, put: &dyn Fn(&str)| -> String {
        let directory = node.path(how);
        fs::create_dir(&directory).unwrap();
        names.iter().for_each(|name| put(&format!("{directory}/{name}")));
        directory
    };
    let mut pictures = Vec::new();
    let copy = |to: &str| copy_program(original.as_ref(), to.as_ref());
    for (directory, programs) in [
        (install("hard", &|to| fs::hard_link(&original, to).unwrap()), 1),
        (install("soft", &|to| std::os::unix::fs::symlink(&original, to).unwrap()), 1),
        (install("copies", &copy), 1),
        // A script of somebody's is run as what it is, and so is what it runs.
        (
            install("scripts", &|to| {
                copy(to);
                if to.ends_with("host-local") {
                    fs::write(
                        to,
                        format!("#!/bin/sh\nexec {}/copies/host-local\n", node.root.path().display()),
                    )
                    .unwrap();
                }
            }),
            3,
        ),
    ] {
        let _ = fs::remove_file(node.path("state/networks/cbr0/last_reserved_ip.0"));
        assert_eq!(starts(&node, &directory, "ADD", &attachment, &config), programs, "{directory}");
        pictures.push(node.picture(&pod));
        assert_eq!(starts(&node, &directory, "DEL", &attachment, &config), programs, "{directory}");
        node.assert_clean();
    }
    assert!(pictures.windows(2).all(|two| two[0] == two[1]));
}

#[test]
fn tracing_is_handed_on_to_other_programs() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let log = node.path("log");
    fs::remove_file(node.path("bin/host-local")).unwrap();
    fs::write(
        node.path("bin/host-local"),
        format!(
            "#!/bin/sh\necho $TRACEPARENT $TRACESTATE $BAGGAGE $CNI_ARGS >> {log}\nexec {GO}/host-local\n"
        ),
    )
    .unwrap();
    fs::set_permissions(node.path("bin/host-local"), fs::Permissions::from_mode(0o755)).unwrap();
    let environment = [
        ("TRACEPARENT", "00-a-b-01"),
        ("TRACESTATE", "s=1"),
        ("BAGGAGE", "b=1"),
        ("CNI_ARGS", "IgnoreUnknown=1"),
    ];
    let config = node.flannel_config(SUBNET_ENV).to_string();
    let attachment = Attachment::new("c1", &pod);
    node.call_with(&node.ours(), "flannel", "ADD", &attachment, &config, &environment).result();
    node.call_with(&node.ours(), "flannel", "DEL", &attachment, &config, &environment).silent();
    assert_eq!(fs::read_to_string(log).unwrap(), "00-a-b-01 s=1 b=1 IgnoreUnknown=1\n".repeat(2));
    node.assert_clean();
}

#[test]
fn an_unreadable_kept_configuration_does_not_keep_the_address() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = node.flannel_config(SUBNET_ENV);
    let attachment = Attachment::new("c1", &pod);
    for (text, knows_subnets) in [
        ("", true),
        ("{", true),
        ("[]", false),
        ("{\"type\":1}", true),
        ("{\"type\":\"bridge\"}", false),
        ("", false),
    ] {
        fs::write(node.path("subnet.env"), SUBNET_ENV).unwrap();
        node.call(&node.ours(), "flannel", "ADD", &attachment, &config).result();
        fs::write(node.path("state/flannel/c1"), text).unwrap();
        if !knows_subnets {
            // As after a start of the machine, before flanneld is up: the namespace is gone with everything else.
            fs::remove_file(node.path("subnet.env")).unwrap();
            pod.sh("ip", &["link", "delete", "eth0"]);
        }
        let answer = node.call(&node.ours(), "flannel", "DEL", &attachment, &config);
        assert!(answer.success && answer.stdout.is_empty(), "{text}: {answer:?}");
        assert!(answer.stderr.contains("state/flannel/c1"), "{answer:?}");
        node.assert_clean();
        assert_eq!(pod.link_names().len(), 1, "{text}");
    }
}

#[test]
fn killed_anywhere_a_detach_cleans_up() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = node.flannel_config(&SUBNET_ENV.replace("IPMASQ=true", "IPMASQ=false"));
    let attachment = Attachment::new("c1", &pod);
    let (mut killed, mut finished) = (0, 0);
    // An ADD of a debug build takes some milliseconds; the steps cover it from its first instruction to its last.
    for step in 0..80 {
        if node.kill_after(Duration::from_micros(step * 150), "flannel", "ADD", &attachment, &config) {
            killed += 1;
        } else {
            finished += 1;
        }
        node.call(&node.ours(), "flannel", "DEL", &attachment, &config).silent();
        node.assert_clean();
        assert_eq!(pod.link_names().len(), 1, "links left in the container after {step} steps");
    }
    assert!(
        killed > 5 && finished > 0,
        "{killed} killed, {finished} finished: the steps do not cover an ADD"
    );
    node.call(&node.ours(), "flannel", "ADD", &attachment, &config).result();
    node.call(&node.ours(), "flannel", "DEL", &attachment, &config).silent();
    node.assert_clean();
}

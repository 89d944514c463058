//! A lab from its beginning to its end.

use crate::support::{Lab, string, text};

#[test]
fn the_demo_is_green_and_leaves_nothing() {
    let lab = Lab::named();
    let output = lab.loden(&["demo"]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("all green"), "{said}");
    assert!(!printed.contains("none "), "every check must have had something to try: {said}");
    for part in [
        "VPC",
        "vRouter",
        "172.20.0.0/26",
        "node node-3",
        "pod-6",
        "internet host",
        "NAT gateway",
        "ECS ecs-1",
    ] {
        assert!(printed.contains(part), "the picture lacks {part}: {said}");
    }
    for line in printed.lines() {
        assert!(line.chars().count() <= 100, "too wide for a terminal: {line}");
        assert!(!line.contains('\u{1b}'), "colour without a terminal: {line}");
    }
    assert_eq!(lab.remains(), Vec::<String>::new());
}

#[test]
fn every_check_the_lab_promises_is_made() {
    let lab = Lab::up(&[]);
    let report = lab.json(&["check"]);
    let rows: Vec<(String, u64)> = report["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (string(&row["title"]), row["passed"].as_u64().unwrap()))
        .collect();
    // Ordered pairs of pods times three protocols times two sizes; services leave out ICMP.
    let expected = [
        ("pod to pod on one node", 6 * 6),
        ("pod to pod, node-1 and node-2", 8 * 6),
        ("pod to pod, node-1 and node-3", 8 * 6),
        ("pod to pod, node-2 and node-3", 8 * 6),
        ("pod to ECS instance", 6 * 6),
        ("ECS instance to pod", 6 * 6),
        ("pod to internet", 6 * 6),
        ("pod to service address", 4 * 4),
        ("CNI CHECK of every pod", 6),
        ("one route entry per node", 3),
        ("nothing encapsulated", 1),
    ];
    for (title, probes) in expected {
        assert!(rows.contains(&(title.to_owned(), probes)), "{title} with {probes}: {rows:#?}");
    }
    assert_eq!(rows.len(), expected.len(), "{rows:#?}");
    // The large UDP and ICMP probes between nodes really were datagrams too large for one packet: 44 fragments after the first, each way.
    let wire = report["rows"].as_array().unwrap().last().unwrap()["detail"].clone();
    let words: Vec<String> = string(&wire).split(' ').map(str::to_owned).collect();
    let at = words.iter().position(|word| word == "fragments").unwrap();
    let datagrams = 3 * 8 * 2 * 2;
    assert!(words[at - 1].parse::<u64>().unwrap() >= datagrams * 44 / 2, "{wire}");
}

#[test]
fn clients_outside_of_the_lab_reach_the_cluster_over_tls() {
    let lab = Lab::up(&["--nodes", "1", "--pods", "0"]);
    let kubeconfig = string(&lab.status()["clusters"][0]["kubeconfig"]);
    let controller = std::path::Path::new(env!("CARGO_BIN_EXE_loden")).with_file_name("loden-controller");
    let output = std::process::Command::new(controller)
        .args(["--cluster-cidr=172.20.0.0/16", "--controllers=ipam", "--dry-run"])
        .arg(format!("--kubeconfig={kubeconfig}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let content = std::fs::read_to_string(&kubeconfig).unwrap();
    assert!(
        content.contains("https://127.0.0.1:") && content.contains("certificate-authority-data"),
        "{content}"
    );
}

#[test]
fn two_labs_with_the_same_addresses_live_side_by_side() {
    let arguments = ["--nodes", "2", "--pods", "1"];
    let one = Lab::up(&arguments);
    let other = Lab::up(&arguments);
    one.assert_green();
    other.assert_green();
    let listed = || -> Vec<String> {
        let labs = one.json(&["list"]);
        let running =
            labs.as_array().unwrap().iter().filter(|lab| lab["running"] == true && lab["pods"] == 2);
        running.map(|lab| string(&lab["lab"])).collect()
    };
    assert!(listed().contains(&one.name) && listed().contains(&other.name), "{:?}", listed());
    let output = one.loden(&["down"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!listed().contains(&one.name) && listed().contains(&other.name), "{:?}", listed());
    assert_eq!(one.remains(), Vec::<String>::new());
    other.assert_green();
}

#[test]
fn what_the_planner_refuses_never_starts() {
    let lab = Lab::named();
    let refused: [(&[&str], [&str; 2]); 4] = [
        (&["--pod-cidr", "192.168.64.0/20"], ["pod CIDR 192.168.64.0/20", "VPC CIDR 192.168.0.0/16"]),
        (&["--service-cidr", "172.20.0.0/20"], ["pod CIDR 172.20.0.0/16", "service CIDR 172.20.0.0/20"]),
        (&["--vswitch", "10.0.0.0/24"], ["vSwitch 10.0.0.0/24", "VPC CIDR 192.168.0.0/16"]),
        (&["--nodes", "5", "--pod-cidr", "172.20.0.0/24"], ["5 nodes", "4 subnets"]),
    ];
    for (arguments, words) in refused {
        let output = lab.loden(&[&["up"], arguments].concat());
        let said = text(&output);
        assert!(!output.status.success(), "{arguments:?} was accepted: {said}");
        for word in words {
            assert!(said.contains(word), "{arguments:?} should name {word}: {said}");
        }
        assert_eq!(lab.remains(), Vec::<String>::new());
    }
}

#[test]
fn a_lab_that_is_there_is_not_built_twice() {
    let lab = Lab::up(&["--nodes", "1", "--pods", "1"]);
    let output = lab.loden(&["up", "--nodes", "1"]);
    assert!(!output.status.success() && text(&output).contains("already"), "{}", text(&output));
    // The refused command must not have taken the running lab down.
    assert_eq!(lab.status()["pods"].as_array().unwrap().len(), 1);
}

#[test]
fn requests_to_a_lab_that_is_not_there_say_so() {
    let lab = Lab::named();
    for arguments in [&["status"][..], &["check"], &["node", "add"], &["pod", "exec", "pod-1", "--", "true"]]
    {
        let output = lab.loden(arguments);
        assert!(
            !output.status.success() && text(&output).contains("there is no lab"),
            "{arguments:?}: {}",
            text(&output)
        );
    }
    let output = lab.loden(&["down"]);
    assert!(output.status.success() && text(&output).contains("nothing"), "{}", text(&output));
}

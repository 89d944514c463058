//! Pod sandboxes, as the kubelet asks containerd for them.

use loden_netlink::NetNs;
use std::collections::HashMap;

use crate::containerd::{Containerd, log_text, remove_namespace};
use crate::cri::{LinuxConfig, Metadata, PortMapping, Runtime, SandboxConfig};
use crate::machine::{HERE, Machine, Plugins, THERE, alone};
use crate::network::{self, Backend, GATEWAY};
use crate::probe::{Echo, ask, ask_from, ask_udp, assert_silent};

#[test]
fn sandboxes_come_and_go_with_iptables() {
    alone(Plugins::Ours, |machine| cycles(machine, Backend::Iptables, 20));
}

#[test]
fn the_same_holds_for_the_go_plugins() {
    alone(Plugins::Debian, |machine| cycles(machine, Backend::Iptables, 2));
}

fn cycles(machine: &Machine, backend: Backend, count: usize) {
    network::configure(machine, backend);
    let containerd = Containerd::set_up();
    let runtime = containerd.runtime();
    assert_ready(&runtime);
    let mut first = None;
    for n in 1..=count {
        let (web, other) = pair(&runtime, n);
        reach(machine, &web, &other);
        end(&runtime, web);
        end(&runtime, other);
        assert_silent(&machine.outside, HERE[0], 8080);
        match &first {
            None => first = Some(machine.at_rest()),
            Some(first) => machine.assert_holds(first, &format!("after cycle {n}")),
        }
    }
    assert_eq!(runtime.list_pod_sandbox().unwrap(), Vec::<String>::new());
    machine.tell(&format!("{count} cycles"));
}

#[test]
fn a_sandbox_ends_whatever_happened_to_it() {
    alone(Plugins::Ours, |machine| {
        network::configure(machine, Backend::Iptables);
        let mut containerd = Containerd::set_up();
        let runtime = containerd.runtime();
        let (web, other) = pair(&runtime, 0);
        end(&runtime, web);
        end(&runtime, other);
        let before = machine.at_rest();

        let (web, other) = pair(&runtime, 1);
        remove_namespace(&web.namespace_name);
        remove_namespace(&other.namespace_name);
        end(&runtime, web);
        end(&runtime, other);
        machine.assert_holds(&before, "after network namespaces were removed");

        let (web, other) = pair(&runtime, 2);
        containerd = containerd.killed_and_started();
        reach(machine, &web, &other);
        containerd = containerd.killed_and_started();
        end(&runtime, web);
        end(&runtime, other);
        machine.assert_holds(&before, "after containerd was killed");

        let (web, other) = pair(&runtime, 3);
        runtime.stop_pod_sandbox(&web.id).unwrap();
        runtime.stop_pod_sandbox(&web.id).unwrap();
        containerd = containerd.killed_and_started();
        end(&runtime, web);
        end(&runtime, other);
        machine.assert_holds(&before, "after sandboxes were stopped again and again");

        let (web, other) = pair(&runtime, 4);
        let _containerd = containerd.rebooted();
        // The kubelet ends what it finds.
        end(&runtime, web);
        end(&runtime, other);
        let (web, other) = pair(&runtime, 5);
        reach(machine, &web, &other);
        end(&runtime, web);
        end(&runtime, other);
        machine.assert_holds(&before, "after a reboot");
    });
}

/// A sandbox that runs.
#[derive(Debug)]
struct Pod {
    id: String,
    name: String,
    ips: [String; 2],
    namespace: NetNs,
    namespace_name: String,
}

/// A sandbox with host ports, and one without.
#[track_caller]
fn pair(runtime: &Runtime, n: usize) -> (Pod, Pod) {
    let port = |protocol, container_port, host_port| PortMapping {
        protocol,
        container_port,
        host_port,
        host_ip: String::new(),
    };
    let web = start(runtime, &format!("web{n}"), vec![port(0, 80, 8080), port(1, 53, 5353)]);
    (web, start(runtime, &format!("other{n}"), Vec::new()))
}

#[track_caller]
fn start(runtime: &Runtime, name: &str, port_mappings: Vec<PortMapping>) -> Pod {
    let config = SandboxConfig {
        metadata: Some(Metadata {
            name: name.to_owned(),
            uid: format!("{name}-uid"),
            namespace: "default".to_owned(),
        }),
        hostname: name.to_owned(),
        port_mappings,
        annotations: HashMap::new(),
        linux: Some(LinuxConfig {}),
    };
    let id = done(runtime.run_pod_sandbox(config));
    let told = done(runtime.pod_sandbox_status(&id));
    let status = told.status.unwrap();
    assert_eq!(status.state, 0, "{status:?}");
    let network = status.network.unwrap();
    let [other] = network.additional_ips.as_slice() else { panic!("one address a family: {network:?}") };
    // containerd prefers no family; the plugins' result begins with IPv4.
    let ips = [network.ip.clone(), other.ip.clone()];
    let info: serde_json::Value = serde_json::from_str(&told.info["info"]).unwrap();
    let path = info["runtimeSpec"]["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .find(|namespace| namespace["type"] == "network")
        .unwrap()["path"]
        .as_str()
        .unwrap()
        .to_owned();
    let namespace_name = path.rsplit_once('/').unwrap().1.to_owned();
    Pod { id, name: name.to_owned(), ips, namespace: NetNs::open(&path).unwrap(), namespace_name }
}

/// Stops and removes a sandbox, as the kubelet does.
#[track_caller]
fn end(runtime: &Runtime, pod: Pod) {
    // An open namespace would not go.
    drop(pod.namespace);
    done(runtime.stop_pod_sandbox(&pod.id));
    done(runtime.remove_pod_sandbox(&pod.id));
}

#[track_caller]
fn done<T>(answer: Result<T, String>) -> T {
    answer.unwrap_or_else(|refused| panic!("{refused}\n{}", log_text()))
}

#[track_caller]
fn assert_ready(runtime: &Runtime) {
    let conditions = done(runtime.ready());
    assert!(conditions.iter().all(|condition| condition.status) && conditions.len() == 2, "{conditions:?}");
}

#[track_caller]
fn reach(machine: &Machine, web: &Pod, other: &Pod) {
    for family in [0, 1] {
        let told = ask_from(&other.namespace, &web.ips[family], 80);
        assert_eq!((told.from.as_str(), told.to.to_string()), (web.name.as_str(), other.ips[family].clone()));
        let told = ask_from(&machine.outside, HERE[family], 8080);
        assert_eq!((told.from.as_str(), told.to.to_string().as_str()), (web.name.as_str(), THERE[family]));
    }
    assert_eq!(ask_from(&web.namespace, &other.ips[0], 80).from, other.name);
    let told = ask("127.0.0.1", 8080);
    assert_eq!((told.from.as_str(), told.to.to_string().as_str()), (web.name.as_str(), GATEWAY[0]));
    assert_eq!(ask_from(&web.namespace, HERE[0], 8080).from, web.name);
    let echo = Echo::on(&web.namespace, 53);
    assert_eq!(ask_udp(&machine.outside, HERE[0], 5353).to_string(), THERE[0]);
    drop(echo);
}

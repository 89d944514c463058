//! Pod sandboxes, as the kubelet asks containerd for them.

use std::collections::HashMap;

use loden_netlink::{NetNs, sysctl};

use crate::containerd::{Containerd, log_text};
use crate::cri::{LinuxConfig, Metadata, PortMapping, Runtime, SandboxConfig};
use crate::machine::{HERE, Machine, Plugins, THERE, alone, run};
use crate::network::{Backend, GATEWAY, Limits, Network, TUNED, TUNED_TO};
use crate::probe::{Echo, ask, ask_from, ask_udp, assert_silent};

#[test]
fn sandboxes_come_and_go_with_iptables() {
    alone(Plugins::Ours, |machine| cycles(machine, Backend::Iptables, 20));
}

#[test]
fn sandboxes_come_and_go_with_nftables() {
    alone(Plugins::Ours, |machine| cycles(machine, Backend::Nftables, 20));
}

#[test]
fn the_same_holds_for_the_go_plugins() {
    alone(Plugins::Debian, |machine| cycles(machine, Backend::Iptables, 2));
}

fn cycles(machine: &Machine, backend: Backend, count: usize) {
    let network = Network::configure(machine, backend, Limits::Runtime);
    let containerd = Containerd::set_up();
    let runtime = containerd.runtime();
    assert_ready(&runtime);
    let mut first = None;
    for n in 1..=count {
        let (web, other) = pair(&runtime, n);
        reach(machine, &web, &other);
        network.assert_backend();
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

/// A sandbox that runs.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: String,
    name: String,
    ips: [String; 2],
    namespace: NetNs,
    pub(crate) namespace_name: String,
}

/// A sandbox with host ports, and one without.
#[track_caller]
pub(crate) fn pair(runtime: &Runtime, n: usize) -> (Pod, Pod) {
    let web =
        start(runtime, &format!("web{n}"), vec![tcp(80, 8080), PortMapping { protocol: 1, ..tcp(53, 5353) }]);
    (web, start(runtime, &format!("other{n}"), Vec::new()))
}

pub(crate) fn tcp(container_port: i32, host_port: i32) -> PortMapping {
    PortMapping { protocol: 0, container_port, host_port, host_ip: String::new() }
}

pub(crate) fn config(name: &str, port_mappings: Vec<PortMapping>) -> SandboxConfig {
    SandboxConfig {
        metadata: Some(Metadata {
            name: name.to_owned(),
            uid: format!("{name}-uid"),
            namespace: "default".to_owned(),
        }),
        hostname: name.to_owned(),
        port_mappings,
        // What the bandwidth plugin is to do.
        annotations: HashMap::from(
            ["ingress", "egress"].map(|way| (format!("kubernetes.io/{way}-bandwidth"), "80M".to_owned())),
        ),
        linux: Some(LinuxConfig {}),
    }
}

#[track_caller]
pub(crate) fn start(runtime: &Runtime, name: &str, port_mappings: Vec<PortMapping>) -> Pod {
    let id = done(runtime.run_pod_sandbox(config(name, port_mappings)));
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
pub(crate) fn end(runtime: &Runtime, pod: Pod) {
    // An open namespace would not go.
    drop(pod.namespace);
    done(runtime.stop_pod_sandbox(&pod.id));
    done(runtime.remove_pod_sandbox(&pod.id));
}

#[track_caller]
pub(crate) fn done<T>(answer: Result<T, String>) -> T {
    answer.unwrap_or_else(|refused| panic!("{refused}\n{}", log_text()))
}

#[track_caller]
fn assert_ready(runtime: &Runtime) {
    let conditions = done(runtime.ready());
    assert!(conditions.iter().all(|condition| condition.status) && conditions.len() == 2, "{conditions:?}");
}

#[track_caller]
pub(crate) fn reach(machine: &Machine, web: &Pod, other: &Pod) {
    for family in [0, 1] {
        let told = ask_from(&other.namespace, &web.ips[family], 80);
        assert_eq!((told.from.as_str(), told.to.to_string()), (web.name.as_str(), other.ips[family].clone()));
        let told = ask_from(&machine.outside, HERE[family], 8080);
        assert_eq!((told.from.as_str(), told.to.to_string().as_str()), (web.name.as_str(), THERE[family]));
    }
    assert_eq!(ask_from(&web.namespace, &other.ips[0], 80).from, other.name);
    assert_eq!(sysctl::read_in(&web.namespace, TUNED).unwrap().as_deref(), Some(TUNED_TO));
    let limits = run("tc", &["qdisc", "show"]);
    assert_eq!(limits.matches("tbf").count(), 4, "two pods, two ways: {limits}");
    assert_eq!(limits.matches("rate 80Mbit").count(), 4, "{limits}");
    let told = ask("127.0.0.1", 8080);
    assert_eq!((told.from.as_str(), told.to.to_string().as_str()), (web.name.as_str(), GATEWAY[0]));
    assert_eq!(ask_from(&web.namespace, HERE[0], 8080).from, web.name);
    let echo = Echo::on(&web.namespace, 53);
    assert_eq!(ask_udp(&machine.outside, HERE[0], 5353).to_string(), THERE[0]);
    drop(echo);
}

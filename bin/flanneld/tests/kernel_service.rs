//! A daemon among others: an API server that comes and goes, a stranger in the way, a service manager that waits.

mod common;

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use common::{NODE, World, wait_until};
use loden_sim_kube::Resource;

#[test]
fn the_api_server_may_come_late_and_go_again() {
    let mut world = World::with_pod_cidr();
    world.stop_api();
    let flanneld = world.start(&[]);
    wait_until("the absence is said", &|| flanneld.log(), || {
        flanneld.log().contains("no answer from API server http://127.0.0.1:")
    });
    assert_eq!(world.health("/healthz").unwrap().0, 200);
    assert_eq!(world.health("/readyz").unwrap().0, 503);
    world.start_api();
    world.wait_ready(&flanneld);

    world.stop_api();
    world.nft("delete table ip flannel-ipv4");
    wait_until("the table is back without the API server", &|| flanneld.log(), || {
        world.nft("list tables").contains("flannel-ipv4") && world.is_ready()
    });
    flanneld.stop();
}

#[test]
fn a_stranger_in_the_way_takes_readiness_until_it_goes() {
    let world = World::with_pod_cidr();
    let flanneld = world.start(&["--ip-blackhole-route", "--log-format=json"]);
    world.wait_ready(&flanneld);
    world.ip("route replace blackhole 172.20.1.0/24 metric 65535 proto static");
    wait_until("the stranger is noticed and told of", &|| flanneld.log(), || {
        world.health("/readyz").unwrap().0 == 503 && flanneld.log().contains("no longer ready")
    });
    let said = flanneld.log();
    assert!(said.contains("somebody else's object"), "{said}");
    assert!(
        said.lines().all(|line| line.starts_with('{') && line.ends_with('}')),
        "one JSON object per line: {said}"
    );
    assert!(world.ip("route show 172.20.1.0/24").contains("proto static"), "it is left alone");
    world.ip("route delete blackhole 172.20.1.0/24 metric 65535");
    world.wait_ready(&flanneld);
    assert!(world.ip("route show proto 77").contains("blackhole 172.20.1.0/24"));
}

#[test]
fn the_pods_name_leads_to_the_node_and_the_service_manager_is_told() {
    let world = World::with_pod_cidr();
    let pod = serde_json::json!({
        "metadata": {"name": "kube-flannel-x", "namespace": "kube-system"},
        "spec": {"nodeName": NODE, "containers": [{"name": "kube-flannel", "image": "x"}]},
    });
    world.kube.create(Resource::Pods, "kube-system", pod).unwrap();
    let path = world.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let flanneld = world.start_with(
        &world.args(),
        &[
            ("POD_NAME", "kube-flannel-x"),
            ("POD_NAMESPACE", "kube-system"),
            ("NOTIFY_SOCKET", path.to_str().unwrap()),
            ("FLANNELD_VPC_CIDRS", "none"),
        ],
    );
    let mut buffer = [0; 16];
    let length = manager.recv(&mut buffer).unwrap();
    assert_eq!(buffer.get(..length), Some(&b"READY=1"[..]));
    world.wait_ready(&flanneld);
    flanneld.stop();
}

#[test]
fn the_operators_annotations_choose_what_peers_are_told() {
    let world = World::with_pod_cidr();
    let annotations = serde_json::json!({"metadata": {"annotations": {
        "flannel.alpha.coreos.com/node-public-ip": "192.168.0.5",
        "flannel.alpha.coreos.com/public-ip-overwrite": "203.0.113.9",
    }}});
    world.kube.patch(Resource::Nodes, "", NODE, loden_sim_kube::PatchType::Merge, &annotations).unwrap();
    let flanneld = world.start(&[]);
    world.wait_ready(&flanneld);
    let published =
        || world.node().pointer("/metadata/annotations/flannel.alpha.coreos.com~1public-ip").cloned();
    wait_until("the lease is published", &|| flanneld.log(), || published() == Some("203.0.113.9".into()));
}

//! The VPC's own networks from the metadata service: not masqueraded once known, a warning while not.

#![expect(clippy::unwrap_used, reason = "a test that cannot look must fail where it looked")]

mod common;

use std::net::TcpListener;

use common::{NODE, Service, World, wait_until};
use loden_netlink::monitor::{Monitor, Subject};
use loden_sim_cloud::{Emulator, Settings, Topology};

const EXEMPT: &str = "ip saddr 172.20.0.0/16 ip daddr 192.168.0.0/16 return";

fn metadata_service(world: &World, port: u16) -> Service {
    let listener = world.netns.run(|| TcpListener::bind(("127.0.0.1", port)).unwrap()).unwrap();
    let settings = Settings {
        metadata_instance: Some("i-loden1".to_owned()),
        hardened_metadata: true,
        ..Settings::default()
    };
    let handle = Emulator::new(&Topology::example(), settings).unwrap().handle();
    Service::start(listener, |listener| async move { handle.serve_metadata(listener).await.unwrap() })
}

#[test]
fn the_vpcs_networks_are_learnt_and_kept_over_a_restart_without_the_service() {
    let world = World::with_pod_cidr();
    let environment = [("NODE_NAME", NODE), ("METADATA_ENDPOINT", "http://127.0.0.1:8100")];
    let rules = || world.nft("list table ip flannel-ipv4");

    let first = world.start_with(&world.args(), &environment);
    world.wait_ready(&first);
    assert!(!rules().contains(EXEMPT) && rules().contains("masquerade fully-random"), "{}", rules());
    let warned =
        || first.log().contains("cannot learn the VPC's networks") && first.log().contains("-vpc-cidrs");
    wait_until("the missing service is warned about", &|| first.log(), warned);
    let service = metadata_service(&world, 8100);
    wait_until("the VPC's network is exempt", &|| first.log(), || rules().contains(EXEMPT));
    world.wait_ready(&first);
    first.stop();
    drop(service);

    let mut monitor = Monitor::open_in(&world.netns).unwrap();
    let second = world.start_with(&world.args(), &environment);
    world.wait_ready(&second);
    let touched = monitor.drain().unwrap().into_iter().any(|notice| notice.subject == Subject::NfTables);
    assert!(!touched && rules().contains(EXEMPT), "{}", second.log());

    let none: Vec<String> = world.args().into_iter().chain(["-vpc-cidrs=none".to_owned()]).collect();
    second.stop();
    let third = world.start_with(&none, &environment);
    world.wait_ready(&third);
    assert!(!rules().contains(EXEMPT));
}

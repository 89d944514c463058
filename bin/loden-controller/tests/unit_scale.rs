//! A thousand nodes that join at once: what that costs in calls. How long it takes is for benchmarks.

mod support;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use loden_sim_cloud::Topology;
use loden_sim_cloud::topology::InstanceSpec;
use serde_json::json;
use support::World;

const NODES: u64 = 1000;
/// Far more than it takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test]
async fn a_thousand_nodes_cost_twenty_batches_and_few_looks_at_the_table() {
    let mut topology = Topology::example();
    topology.instances.clear();
    topology.vpcs[0].vswitches[0].cidr = "192.168.0.0/20".parse().unwrap();
    let world = World::with_topology(&topology, 0).await;
    world.cloud.set_quota(&world.table, 2000).unwrap();
    for number in 0..u32::try_from(NODES).unwrap() {
        let (name, id) = (format!("n{number}"), format!("i-n{number}"));
        let address = Ipv4Addr::from(0xc0a8_0000 + 10 + number);
        world.cloud.add_instance(&InstanceSpec::new(&id, "vsw-loden", address)).unwrap();
        let subnet = format!("{}/26", Ipv4Addr::from(0xac14_0000 + (number << 6)));
        let spec =
            json!({"providerID": format!("cn-hangzhou.{id}"), "podCIDR": subnet, "podCIDRs": [subnet]});
        world.add_node(&name, spec);
    }

    let revision = world.kube.revision();
    // Node control and the source/destination check have a say in what nodes are written, and none in what their routes cost.
    let arguments =
        ["--allocate-node-cidrs=false", "--controllers=route", "--skip-disable-source-dest-check"];
    let controller = world.start(&arguments);
    let (begun, last) = (Instant::now(), format!("n{}", NODES - 1));
    let told = || (0..NODES).rev().all(|number| world.is_available(&format!("n{number}")));
    while !(world.is_available(&last) && told()) {
        assert!(begun.elapsed() < PATIENCE, "not all are available\n{}", controller.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let (calls, written) = (world.cloud.calls(), world.kube.revision() - revision);
    println!("{:?}: {calls:?}; {written} writes to the API server", begun.elapsed());
    let count = |action: &str| calls.get(action).copied().unwrap_or_default();
    assert_eq!(world.entries().len(), 1000);
    assert_eq!(count("CreateRouteEntries"), NODES / 50, "{calls:?}");
    assert_eq!(count("DeleteRouteEntries") + count("ModifyRouteEntry"), 0, "{calls:?}");
    // One listing while the table is empty, and what each batch wrote is read back by 20 destinations at a time. At most four more listings of up to
    // ten pages may come on top.
    let looks = count("DescribeRouteEntryList");
    assert!(looks <= 1 + NODES / 50 * 3 + 4 * 10, "{calls:?}");
    assert_eq!(count("ModifyNetworkInterfaceAttribute"), 0, "{calls:?}");
    // At most that it has no route yet, and that it has one; the lease is renewed meanwhile.
    let lease = begun.elapsed().as_secs() + 10;
    assert!(written <= 2 * NODES + lease, "{written} writes in {:?}", begun.elapsed());
    assert!(controller.stop().await);
}

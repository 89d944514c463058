//! The kernel's notices, in namespaces of the tests' own. Needs root.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use loden_firewall::{Family, Table};
use loden_netlink::monitor::{Monitor, Subject};
use loden_netlink::nft::NftSocket;
use loden_netlink::*;

fn namespace() -> NetNs {
    NetNs::anonymous().expect("kernel tests make network namespaces: run them as root")
}

/// Collects subjects until all that are wanted have been heard of.
fn hear(monitor: &mut Monitor, wanted: &[Subject]) -> BTreeSet<Subject> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut heard = BTreeSet::new();
    while !wanted.iter().all(|subject| heard.contains(subject)) {
        assert!(Instant::now() < deadline, "waited for {wanted:?}, heard only {heard:?}");
        heard.extend(
            monitor.wait(Duration::from_millis(500)).unwrap().into_iter().map(|notice| notice.subject),
        );
    }
    heard
}

#[test]
fn every_kind_of_change_is_heard() {
    let netns = namespace();
    let mut monitor = Monitor::open_in(&netns).unwrap();
    assert_eq!(monitor.drain().unwrap(), BTreeSet::new());

    let mut rt = RouteSocket::open_in(&netns).unwrap();
    let mut bridge = NewLink::new("br0", NewLinkKind::Bridge(BridgeConfig::default()));
    bridge.up = true;
    let index = rt.create_link(&bridge).unwrap().index;
    hear(&mut monitor, &[Subject::Link]);
    let net = "10.0.0.1/24".parse().unwrap();
    rt.add_address(Address::new(index, net)).unwrap();
    hear(&mut monitor, &[Subject::Address, Subject::Route]);
    let mac = MacAddress([2, 0, 0, 0, 0, 9]);
    rt.apply(&Change::ReplaceNeighbour(Neighbour::permanent(index, "10.0.0.2".parse().unwrap(), mac)))
        .unwrap();
    hear(&mut monitor, &[Subject::Neighbour]);
    rt.add_rule(Rule { priority: Some(7), ..Rule::lookup(IpFamily::V4, 1000) }).unwrap();
    hear(&mut monitor, &[Subject::Rule]);
    sysctl::write_in(&netns, "net/ipv4/ip_forward", "1").unwrap();
    hear(&mut monitor, &[Subject::Netconf]);
    NftSocket::open_in(&netns).unwrap().set_table(&Table::new(Family::Ip, "t")).unwrap();
    hear(&mut monitor, &[Subject::NfTables]);
    rt.delete_link(index).unwrap();
    hear(&mut monitor, &[Subject::Link, Subject::Address, Subject::Route]);
}

#[test]
fn another_namespaces_changes_are_not_heard() {
    let (here, there) = (namespace(), namespace());
    let mut monitor = Monitor::open_in(&here).unwrap();
    let bridge = |name: &str| NewLink::new(name, NewLinkKind::Bridge(BridgeConfig::default()));
    RouteSocket::open_in(&there).unwrap().create_link(&bridge("br0")).unwrap();
    assert_eq!(monitor.drain().unwrap(), BTreeSet::new());
    RouteSocket::open_in(&here).unwrap().create_link(&bridge("br0")).unwrap();
    hear(&mut monitor, &[Subject::Link]);
}

#[test]
fn a_flood_of_changes_tells_that_some_were_lost() {
    let netns = namespace();
    let mut monitor = Monitor::open_in(&netns).unwrap();
    let mut rt = RouteSocket::open_in(&netns).unwrap();
    rt.set_link(1, LinkSettings::up()).unwrap();
    let routes: Vec<Change> = (0..20_000_u32)
        .map(|i| {
            let destination = std::net::Ipv4Addr::from(0x0a00_0000 + i);
            let net = ipnet::IpNet::new(destination.into(), 32).unwrap();
            Change::AddRoute(Route { kind: RouteKind::Blackhole, ..Route::new(net) })
        })
        .collect();
    for chunk in routes.chunks(500) {
        rt.apply_all(chunk).unwrap();
    }
    hear(&mut monitor, &[Subject::Overrun, Subject::Route]);
    assert_eq!(monitor.drain().unwrap(), BTreeSet::new(), "after an overrun it listens on");
    let filter = RouteFilter { protocol: Some(4), ..RouteFilter::default() };
    assert_eq!(rt.routes(IpFamily::V4, filter).unwrap().len(), routes.len());
}

#[test]
fn a_listing_under_constant_change_is_complete() {
    let netns = namespace();
    let mut rt = RouteSocket::open_in(&netns).unwrap();
    let steady: Vec<Change> = (0..2000_u32)
        .map(|i| {
            let net = ipnet::IpNet::new(std::net::Ipv4Addr::from(0x0a00_0000 + i).into(), 32).unwrap();
            Change::AddRoute(Route { kind: RouteKind::Blackhole, ..Route::new(net) }.by(77))
        })
        .collect();
    for chunk in steady.chunks(500) {
        rt.apply_all(chunk).unwrap();
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rt = RouteSocket::open_in(&netns).unwrap();
            let other =
                Route { kind: RouteKind::Blackhole, ..Route::new("192.0.2.0/24".parse().unwrap()) }.by(78);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                rt.add_route(other.clone()).unwrap();
                rt.delete_route(other.clone()).unwrap();
                // Leaves gaps in which a listing can come through, on however few processors.
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        let filter = RouteFilter { protocol: Some(77), ..RouteFilter::default() };
        let mut whole = 0;
        for _ in 0..50 {
            match rt.routes(IpFamily::V4, filter) {
                Ok(routes) => {
                    assert_eq!(routes.len(), steady.len());
                    whole += 1;
                }
                Err(error) => assert!(matches!(error, Error::Interrupted { .. }), "{error}"),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(whole > 0, "not one of fifty listings came through");
    });
}

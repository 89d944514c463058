//! Loden's own crates at the work that no production binary does by itself, so that it can be timed beside the floor.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use loden_firewall::{Action, Base, Chain, ChainKind, Family, Hook, Match, Policy, Rule, Table};
use loden_floor::{Error, nft, peers, report};
use loden_kernel::Kernel;
use loden_netlink::nft::NftSocket;
use loden_node::{
    Address, Desired, FdbEntry, Link, LinkKind, MAIN_TABLE, Mac, Neighbour, Object, Objects, ROUTE_PROTOCOL,
    Route, RouteKind, Scope, Vxlan, settle,
};

const USAGE: &str = "loden-measured: Loden's crates at the floor's work.

Usage: loden-measured peers COUNT [again]
       loden-measured nft-add | nft-delete

`peers` goes the daemon's way: observe, diff, check, apply, observe again; with `again` the peers must be there already and it finds nothing
to do. Works in the network namespace it is started in; prints as loden-floor does.";

fn main() -> ExitCode {
    let begun = Instant::now();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let told = match run(&words) {
        Ok(objects) => std::io::stdout().write_all(report(objects, begun.elapsed()).as_bytes()),
        Err(error) => {
            let _nowhere_to_tell = writeln!(std::io::stderr(), "loden-measured: {error}");
            return ExitCode::FAILURE;
        }
    };
    if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(words: &[&str]) -> Result<usize, Error> {
    let usage = || Error::Usage(USAGE.to_owned());
    match words {
        ["peers", count] => program(count.parse().map_err(|_| usage())?, false),
        ["peers", count, "again"] => program(count.parse().map_err(|_| usage())?, true),
        ["nft-add"] => {
            let mut socket = NftSocket::open().map_err(told)?;
            socket.set_table(&table()).map_err(told)?;
            Ok(3)
        }
        ["nft-delete"] => {
            let mut socket = NftSocket::open().map_err(told)?;
            socket.delete_table(&table().key()).map_err(told)?;
            Ok(3)
        }
        _ => Err(usage()),
    }
}

fn told(error: impl std::fmt::Display) -> Error {
    Error::Measured(error.to_string())
}

fn program(count: u16, again: bool) -> Result<usize, Error> {
    let wanted = desired(count)?;
    let mut kernel = Kernel::open().map_err(told)?;
    let round = settle(&mut kernel, &wanted.scope, |_| wanted.clone()).map_err(told)?;
    if let Some((_, error)) = round.failed.first() {
        return Err(told(error));
    }
    let made = usize::from(count) * peers::OBJECTS_PER_PEER;
    // The device and its address come on top.
    let expected = if again { 0 } else { made + 2 };
    if !round.is_right() || round.applied.len() != expected {
        return Err(Error::Measured(format!("{} steps instead of {expected}", round.applied.len())));
    }
    Ok(made)
}

fn desired(count: u16) -> Result<Desired, Error> {
    let device = || peers::DEVICE.to_owned();
    let mut objects = Objects::default();
    objects.insert(Object::Link(Link {
        name: device(),
        kind: LinkKind::Vxlan(Vxlan {
            vni: peers::VNI,
            port: peers::PORT,
            local: None,
            parent: None,
            group: None,
            learning: false,
            gbp: false,
        }),
        mtu: None,
        mac: Some(Mac(peers::MAC)),
        alias: None,
        up: true,
    }));
    let address = ipnet::Ipv4Net::from(peers::ADDRESS).into();
    objects.insert(Object::Address(Address { link: device(), address }));
    for peer in peers::peers(count) {
        let mac = Mac(peer.mac);
        objects.insert(Object::Neighbour(Neighbour { link: device(), address: peer.vtep.into(), mac }));
        objects.insert(Object::Fdb(FdbEntry { link: device(), mac, destination: peer.public_ip.into() }));
        objects.insert(Object::Route(Route {
            table: MAIN_TABLE,
            destination: peer.subnet.into(),
            metric: 0,
            protocol: ROUTE_PROTOCOL,
            kind: RouteKind::Unicast,
            via: Some(peer.vtep.into()),
            link: Some(device()),
            onlink: true,
            source: None,
        }));
    }
    let network = peers::NETWORK.parse().map_err(told)?;
    let scope = Scope { networks: vec![network], ..Scope::default() };
    Ok(Desired { scope, objects, ..Desired::default() })
}

fn table() -> Table {
    let mut table = Table::new(Family::Ip, nft::TABLE);
    let source = ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 0, 0, 0), 8).into();
    let rule = Rule::new([Match::source(source)], Action::Masquerade { fully_random: false });
    let base = Base { kind: ChainKind::Nat, hook: Hook::Postrouting, priority: 100, policy: Policy::Accept };
    table.chains.insert(nft::CHAIN.to_owned(), Chain { base: Some(base), comment: None, rules: vec![rule] });
    table
}

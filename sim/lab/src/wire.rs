//! What the packets on the wire say: whether pods' packets travelled as they are, or in the tunnel they were meant to be in.
//!
//! Pure: flows in, a verdict out. A lab in which nothing passed proves nothing, so no packets are a failure too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::capture::{Flow, Flows};
use crate::check::{Row, observed};
use crate::status::Status;

const IGMP: u8 = 2;
/// flannel's VXLAN network identifier where its configuration names none.
const VNI: u32 = 1;
/// What the receiver's kernel leaves of the identifier when it has read it. It writes into the very packet of which a copy may still wait here to
/// be read, and so does its translation of service addresses; packets with an address of nobody inside count for nothing.
const REWRITTEN: u32 = 0;

/// Destination ports and IP protocols that carry packets inside packets.
const TUNNEL_PORTS: [(u16, &str); 6] = [
    (8472, "VXLAN"),
    (4789, "VXLAN"),
    (8285, "flannel UDP"),
    (51820, "WireGuard"),
    (51821, "WireGuard"),
    (4500, "IPsec NAT-T"),
];
const TUNNEL_PROTOCOLS: [(u8, &str); 5] = [(4, "IPIP"), (41, "6in4"), (47, "GRE"), (50, "ESP"), (51, "AH")];

/// Looks at the outermost header of every packet that crossed the vRouter.
pub(crate) fn nothing_encapsulated(pods: &BTreeSet<Ipv4Addr>, across_nodes: bool, flows: &Flows) -> Row {
    let mut failures = Vec::new();
    let mut between_pods = 0_u64;
    let mut packets = 0_u64;
    let mut fragments = 0_u64;
    for (flow, count) in flows {
        packets += count;
        match flow {
            Flow::Ipv4 { source, destination, protocol, port, later_fragment } => {
                fragments += if *later_fragment { *count } else { 0 };
                if let Some((_, name)) = TUNNEL_PROTOCOLS.iter().find(|(number, _)| number == protocol) {
                    failures.push(format!("{name}: {flow}"));
                } else if let Some((_, name)) =
                    TUNNEL_PORTS.iter().find(|(number, _)| *protocol == 17 && number == port)
                {
                    failures.push(format!("{name}: {flow}"));
                } else if *protocol == IGMP && destination.is_multicast() {
                    // A bridge tells which groups it is in when it comes up.
                } else if !matches!(protocol, 1 | 6 | 17) {
                    failures.push(format!("neither ICMP, TCP nor UDP: {flow}"));
                } else if pods.contains(source) && pods.contains(destination) {
                    between_pods += count;
                }
            }
            Flow::Vxlan { .. } => failures.push(flow.to_string()),
            // ARP on the ports; IPv6 is off in the VPC.
            Flow::Other(0x0806) => {}
            Flow::Other(_) => failures.push(flow.to_string()),
        }
    }
    if between_pods == 0 && across_nodes {
        failures.push("no packet from one pod's address to another's crossed the vRouter".to_owned());
    }
    let detail = format!("{packets} packets, {fragments} fragments");
    observed("nothing encapsulated", detail, usize::from(packets > 0), failures)
}

/// Addresses of the nodes of all pods, by the pods' addresses.
pub(crate) fn homes(status: &Status) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
    let home = |pod: &crate::status::Pod| Some((pod.address, status.instance(&pod.node)?.address));
    status.pods.iter().filter_map(home).collect()
}

/// Pods' packets pass between nodes only inside VXLAN, from the sender's node to the receiver's, in both directions of every pair of nodes.
pub(crate) fn in_vxlan(homes: &BTreeMap<Ipv4Addr, Ipv4Addr>, flows: &Flows) -> Row {
    let mut failures = Vec::new();
    let nodes: BTreeSet<Ipv4Addr> = homes.values().copied().collect();
    let mut seen = BTreeSet::new();
    let mut packets = 0_u64;
    for (flow, count) in flows {
        match flow {
            Flow::Vxlan { source, destination, vni, inner_source, inner_destination } => {
                let home = |pod, node| homes.get(pod).map_or(nodes.contains(node), |home| home == node);
                let between = home(inner_source, source) && home(inner_destination, destination);
                let whole = homes.contains_key(inner_source) && homes.contains_key(inner_destination);
                match *vni {
                    VNI | REWRITTEN if between && whole => {
                        packets += count;
                        seen.insert((*source, *destination));
                    }
                    VNI | REWRITTEN if between => {}
                    _ => failures.push(flow.to_string()),
                }
            }
            // The addresses of later fragments cannot be relied upon; their first one tells.
            Flow::Ipv4 { later_fragment: true, .. } => {}
            Flow::Ipv4 { source, destination, .. }
                if homes.contains_key(source) || homes.contains_key(destination) =>
            {
                failures.push(format!("outside of the tunnel: {flow}"));
            }
            Flow::Ipv4 { .. } | Flow::Other(_) => {}
        }
    }
    for from in &nodes {
        for to in nodes.iter().filter(|to| *to != from && !seen.contains(&(*from, **to))) {
            failures.push(format!("no VXLAN packet passed from {from} to {to}"));
        }
    }
    let detail = format!("UDP port 8472, {packets} packets, pod to pod");
    observed("in VXLAN between nodes", detail, seen.len(), failures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::flow;
    use crate::check::Verdict;

    const NODE: [u8; 4] = [192, 168, 0, 11];
    const POD: [u8; 4] = [172, 20, 0, 2];
    const PEER: [u8; 4] = [172, 20, 0, 66];

    fn pods() -> BTreeSet<Ipv4Addr> {
        [POD, PEER].map(Ipv4Addr::from).into()
    }

    #[test]
    fn plain_packets_between_pods_are_what_is_wanted() {
        let flows = Flows::from([
            (flow(POD, PEER, 6, 7007), 3),
            (flow(PEER, POD, 1, 0), 2),
            (Flow::Other(0x0806), 1),
            (flow([0, 0, 0, 0], [224, 0, 0, 22], IGMP, 0), 1),
        ]);
        let row = nothing_encapsulated(&pods(), true, &flows);
        assert_eq!((row.verdict, row.failures.len()), (Verdict::Passed, 0), "{row:?}");
        assert!(row.detail.contains("7 packets, 0 fragments"), "{row:?}");
    }

    #[test]
    fn every_kind_of_tunnel_is_noticed() {
        let tunnels = [
            flow(NODE, [192, 168, 0, 12], 17, 8472),
            flow(NODE, [192, 168, 0, 12], 17, 51820),
            flow(NODE, [192, 168, 0, 12], 4, 0),
            flow(NODE, [192, 168, 0, 12], 47, 0),
            flow(NODE, [192, 168, 0, 12], 132, 0),
            flow(NODE, [192, 168, 0, 12], IGMP, 0),
            Flow::Other(0x86dd),
        ];
        for tunnel in tunnels {
            let flows = Flows::from([(flow(POD, PEER, 6, 7007), 3), (tunnel, 1)]);
            let row = nothing_encapsulated(&pods(), true, &flows);
            assert!(row.verdict == Verdict::Failed && row.failures.len() == 1, "{tunnel}: {row:?}");
        }
    }

    #[test]
    fn pods_that_were_not_seen_at_all_are_no_success() {
        let flows = Flows::from([(flow(NODE, [192, 168, 0, 12], 6, 7007), 3)]);
        assert_eq!(nothing_encapsulated(&pods(), true, &flows).verdict, Verdict::Failed);
        assert_eq!(nothing_encapsulated(&pods(), false, &flows).verdict, Verdict::Passed);
        assert_eq!(nothing_encapsulated(&pods(), false, &Flows::new()).verdict, Verdict::Failed);
    }

    const OTHER: [u8; 4] = [192, 168, 0, 12];

    fn tunnel(nodes: [[u8; 4]; 2], pods: [[u8; 4]; 2]) -> Flow {
        let [source, destination] = nodes.map(Ipv4Addr::from);
        let [inner_source, inner_destination] = pods.map(Ipv4Addr::from);
        Flow::Vxlan { source, destination, vni: VNI, inner_source, inner_destination }
    }

    fn judged(flows: impl IntoIterator<Item = Flow>) -> Row {
        let homes = BTreeMap::from([(POD.into(), NODE.into()), (PEER.into(), OTHER.into())]);
        let there_and_back = [tunnel([NODE, OTHER], [POD, PEER]), tunnel([OTHER, NODE], [PEER, POD])];
        in_vxlan(&homes, &there_and_back.into_iter().chain(flows).map(|flow| (flow, 2)).collect())
    }

    #[test]
    fn packets_in_the_tunnel_are_what_is_wanted() {
        let service = tunnel([NODE, OTHER], [[172, 21, 0, 10], PEER]);
        let row = judged([flow(NODE, [203, 0, 113, 80], 6, 7007), Flow::Other(0x0806), service]);
        assert_eq!((row.verdict, row.passed), (Verdict::Passed, 2), "{row:?}");
        assert!(row.detail.contains("4 packets"), "{row:?}");
    }

    #[test]
    fn what_is_outside_of_the_tunnel_or_between_the_wrong_nodes_is_noticed() {
        for wrong in [
            flow(POD, PEER, 6, 7007),
            flow(POD, [203, 0, 113, 80], 17, 7007),
            tunnel([NODE, OTHER], [PEER, POD]),
            tunnel([POD, PEER], [POD, PEER]),
            tunnel([NODE, [192, 168, 0, 99]], [POD, [172, 21, 0, 10]]),
        ] {
            let row = judged([wrong]);
            assert!(row.verdict == Verdict::Failed && row.failures.len() == 1, "{wrong}: {row:?}");
        }
    }

    #[test]
    fn a_direction_without_packets_is_noticed() {
        let homes = BTreeMap::from([(POD.into(), NODE.into()), (PEER.into(), OTHER.into())]);
        let row = in_vxlan(&homes, &Flows::from([(tunnel([NODE, OTHER], [POD, PEER]), 1)]));
        assert_eq!(row.failures, ["no VXLAN packet passed from 192.168.0.12 to 192.168.0.11"]);
        assert_eq!(in_vxlan(&homes, &Flows::new()).verdict, Verdict::Failed);
    }
}

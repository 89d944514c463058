//! Which destinations an entry may have: nothing that the VPC itself routes, and nothing that no router forwards.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::super::{Cloud, SHARED_RANGE, Table};
use super::Refusal;
use crate::topology::{NextHop, TableKind};

/// Ranges whose packets never leave a host or a link, or have no one host at their end.
const NOT_ROUTED: &[&str] = &[
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/128",
    "::1/128",
    "fe80::/10",
    "ff00::/8",
];

/// A destination that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    /// IPv4.
    V4(Ipv4Net),
    /// IPv6.
    V6(Ipv6Net),
}

impl Destination {
    pub(super) fn net(self) -> IpNet {
        match self {
            Self::V4(net) => IpNet::V4(net),
            Self::V6(net) => IpNet::V6(net),
        }
    }
}

fn refused(code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal::new(400, code, message)
}

impl Cloud {
    /// The batch action's page is stricter than the single one's.
    pub(super) fn check_destination(
        &self,
        table: &Table,
        destination: IpNet,
        batch: bool,
    ) -> Result<Destination, Refusal> {
        let inside = |range: &str| range.parse::<IpNet>().is_ok_and(|range| range.contains(&destination));
        // The default route is everything, not the range of "this network".
        let default = destination.prefix_len() == 0;
        if !default && NOT_ROUTED.iter().any(|range| inside(range)) {
            return Err(refused("IllegalParam.CidrBlock", "The specified CidrBlock is illegal."));
        }
        match destination {
            IpNet::V4(net) => self.check_ipv4_destination(&table.vpc, net, batch)?,
            IpNet::V6(net) => self.check_ipv6_destination(&table.vpc, net)?,
        }
        Ok(match destination {
            IpNet::V4(net) => Destination::V4(net),
            IpNet::V6(net) => Destination::V6(net),
        })
    }

    fn check_ipv4_destination(&self, vpc: &str, net: Ipv4Net, batch: bool) -> Result<(), Refusal> {
        if let Ok(shared) = SHARED_RANGE.parse::<Ipv4Net>()
            && (net == shared || (shared.contains(&net) && !self.settings.allow_inside_shared_range))
        {
            return Err(refused(
                "InvalidDestinationCidrBlock",
                format!(
                    "The specified destinationCidrBlock must not included in black list cidr. {net} is in {SHARED_RANGE}."
                ),
            ));
        }
        let vswitches = self.vpcs.get(vpc).into_iter().flat_map(|vpc| vpc.vswitches.values());
        for vswitch in vswitches {
            let cidr = vswitch.spec.cidr;
            let relation = if cidr.contains(&net) {
                "is the range of a vSwitch or inside it"
            } else if batch && net.contains(&cidr) {
                "contains the range of a vSwitch"
            } else {
                continue;
            };
            return Err(refused(
                "InvalidDestinationCidrBlock",
                format!("The destination {net} {relation}: {} {cidr}.", vswitch.spec.id),
            ));
        }
        Ok(())
    }

    fn check_ipv6_destination(&self, vpc: &str, net: Ipv6Net) -> Result<(), Refusal> {
        let vpc = self.vpcs.get(vpc).filter(|vpc| vpc.ipv6_cidr.is_some()).ok_or_else(|| {
            refused("OperationDenied.VpcIpv6NotEnabled", "IPv6 has not been enabled for the VPC.")
        })?;
        let inside_vswitch =
            |cidr: &Ipv6Net| cidr.contains(&net) || (net.prefix_len() > 0 && net.contains(cidr));
        if vpc.vswitches.values().filter_map(|vswitch| vswitch.spec.ipv6_cidr.as_ref()).any(inside_vswitch) {
            return Err(refused(
                "OperationUnsupported.DestinationCidrBlockOverlapWithVSwitch",
                "The destination IPv6 network segment specified in the route entry overlaps with the vSwitch network segment.",
            ));
        }
        Ok(())
    }

    /// What an IPv6 entry may not be.
    pub(super) fn check_ipv6(
        &self,
        table: &Table,
        destination: Destination,
        next_hops: &[NextHop],
    ) -> Result<(), Refusal> {
        if matches!(destination, Destination::V4(_)) {
            return Ok(());
        }
        if table.kind == TableKind::Custom && !self.settings.ipv6_in_custom_tables {
            return Err(refused(
                "OperationDenied.Ipv6EntryOnCustomTable",
                "You cannot create any IPv6 route entry on a custom route table.",
            ));
        }
        if next_hops.len() > 1 {
            return Err(refused(
                "OperationUnsupported.Ipv6EcmpRouteEntry",
                "The EcmpRouteEntry is not supported for IPv6.",
            ));
        }
        let primary = |hop: &NextHop| {
            hop.kind == "NetworkInterface" && self.interface(&hop.id).is_some_and(|(_, index)| index == 0)
        };
        if next_hops.iter().any(primary) {
            return Err(refused(
                "OperationUnsupported.Ipv6EntryOnPrimaryNetworkInterface",
                "You cannot create IPv6 route entries on a primary network interface.",
            ));
        }
        Ok(())
    }
}

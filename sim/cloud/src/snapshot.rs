//! The emulated cloud as its data plane sees it: what a router needs to forward packets by.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use loden_aliyun::vpc::EntryStatus;
use serde::{Deserialize, Serialize};

use crate::topology::{EntryKind, NextHop, TableKind};

/// Everything at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Grows with every change.
    pub revision: u64,
    /// VPCs by ID.
    pub vpcs: Vec<VpcView>,
    /// Instances by ID.
    pub instances: Vec<InstanceView>,
}

impl Snapshot {
    /// The table of that ID.
    #[must_use]
    pub fn table(&self, id: &str) -> Option<&TableView> {
        self.vpcs.iter().flat_map(|vpc| &vpc.tables).find(|table| table.id == id)
    }

    /// The instance of that ID.
    #[must_use]
    pub fn instance(&self, id: &str) -> Option<&InstanceView> {
        self.instances.iter().find(|instance| instance.id == id)
    }
}

/// A VPC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VpcView {
    /// `vpc-…`.
    pub id: String,
    /// IPv4 ranges, the primary one first.
    pub cidrs: Vec<Ipv4Net>,
    /// vSwitches by ID.
    pub vswitches: Vec<VSwitchView>,
    /// Route tables, the system table first.
    pub tables: Vec<TableView>,
}

/// A vSwitch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VSwitchView {
    /// `vsw-…`.
    pub id: String,
    /// Zone.
    pub zone: String,
    /// IPv4 range.
    pub cidr: Ipv4Net,
    /// The table by which packets from this vSwitch are routed.
    pub table: String,
}

/// A route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableView {
    /// `vtb-…`.
    pub id: String,
    /// What it is for.
    pub kind: TableKind,
    /// vSwitches that use it.
    pub vswitches: Vec<String>,
    /// Custom entries that fit.
    pub quota: u32,
    /// Custom entries that count towards it.
    pub used: u32,
    /// Entries in the order of their creation, system entries first.
    pub entries: Vec<EntryView>,
}

/// A row of a route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryView {
    /// `rte-…`.
    pub id: String,
    /// Destination.
    pub destination: IpNet,
    /// Where packets go.
    pub next_hops: Vec<NextHop>,
    /// State.
    pub status: EntryStatus,
    /// Who made it.
    pub kind: EntryKind,
    /// Name.
    pub name: String,
    /// Description.
    pub description: String,
}

impl EntryView {
    /// Whether packets follow the entry now: from when it is Available until it is gone.
    #[must_use]
    pub fn forwards(&self) -> bool {
        self.status != EntryStatus::Pending
    }
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceView {
    /// `i-…`.
    pub id: String,
    /// VPC.
    pub vpc: String,
    /// Interfaces, the primary one first.
    pub interfaces: Vec<InterfaceView>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceView {
    /// `eni-…`.
    pub id: String,
    /// vSwitch.
    pub vswitch: String,
    /// Primary private address.
    pub address: Ipv4Addr,
    /// MAC address.
    pub mac: String,
    /// Whether packets whose source or destination is not the interface's own are dropped.
    pub source_dest_check: bool,
    /// Sources that its security groups let in; `None` when it is in no group, which lets everything in.
    pub ingress: Option<Vec<IpNet>>,
}

impl InterfaceView {
    /// Whether a packet from `source` may enter.
    #[must_use]
    pub fn admits(&self, source: IpAddr) -> bool {
        self.ingress.as_ref().is_none_or(|nets| nets.iter().any(|net| net.contains(&source)))
    }
}

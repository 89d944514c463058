//! What the emulator starts with: VPCs, vSwitches, route tables, instances, access keys; as a value and as JSON.
//!
//! The JSON form is the configuration file of `loden cloud-emulator`. Unknown keys are refused, so that a misspelt one is noticed.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use crate::settings::{Per, RateLimit, Settings};

/// Configuration of a stand-alone emulator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Where the VPC and ECS API listens.
    pub api: SocketAddr,
    /// Where the metadata service listens.
    pub metadata: SocketAddr,
    /// Where the control path listens; nothing there is authenticated, so keep it on loopback.
    pub control: SocketAddr,
    /// Behaviour that a test may want different.
    pub settings: Settings,
    /// Trouble from the start; see [`crate::Fault`].
    pub faults: Vec<crate::Fault>,
    /// Where the cloud's state is kept from one run to the next. When the file is there, it is what the emulator starts with, and
    /// `topology` and `settings` are not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<PathBuf>,
    /// The cloud's contents.
    pub topology: Topology,
}

impl Default for Config {
    fn default() -> Self {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self {
            api: at(8790),
            metadata: at(8791),
            control: at(8792),
            settings: Settings::default(),
            faults: Vec::new(),
            state: None,
            topology: Topology::example(),
        }
    }
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not readable.
    #[error("cannot read the emulator's {what} {path}: {cause}")]
    Read {
        /// What the file is.
        what: &'static str,
        /// The file.
        path: String,
        /// Why.
        cause: std::io::Error,
    },
    /// Not the JSON that is expected.
    #[error(
        "the emulator's {what} {path} is not valid: {cause}; see `loden cloud-emulator --help` for the keys"
    )]
    Parse {
        /// What the file is.
        what: &'static str,
        /// The file.
        path: String,
        /// Where and why.
        cause: serde_json::Error,
    },
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// The file cannot be read, or is not of this form.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        read_json(path, "configuration")
    }
}

/// Reads a script of faults: a JSON list of [`crate::Fault`].
///
/// # Errors
/// The file cannot be read, or is not of this form.
pub fn read_faults(path: &Path) -> Result<Vec<crate::Fault>, ConfigError> {
    read_json(path, "script of faults")
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path, what: &'static str) -> Result<T, ConfigError> {
    let name = || path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|cause| ConfigError::Read { what, path: name(), cause })?;
    serde_json::from_str(&text).map_err(|cause| ConfigError::Parse { what, path: name(), cause })
}

/// The contents of the emulated cloud: one region of one account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Topology {
    /// Region, e.g. `cn-hangzhou`.
    pub region: String,
    /// Account number.
    pub account: u64,
    /// VPCs.
    pub vpcs: Vec<VpcSpec>,
    /// Instances.
    pub instances: Vec<InstanceSpec>,
    /// Access keys that the API accepts.
    pub access_keys: Vec<AccessKeySpec>,
    /// RAM roles that instances may have.
    pub roles: Vec<RoleSpec>,
}

impl Default for Topology {
    /// An empty region.
    fn default() -> Self {
        Self {
            region: "cn-hangzhou".to_owned(),
            account: 1_234_567_890_123_456,
            vpcs: Vec::new(),
            instances: Vec::new(),
            access_keys: Vec::new(),
            roles: Vec::new(),
        }
    }
}

impl Topology {
    /// One VPC (192.168.0.0/16) with one vSwitch (192.168.0.0/24), three instances, the access key `testid`/`testsecret`, and a RAM
    /// role.
    #[must_use]
    pub fn example() -> Self {
        let net = |a, b, c, d, length| Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length);
        let zone = "cn-hangzhou-h".to_owned();
        Self {
            vpcs: vec![VpcSpec {
                vswitches: vec![VSwitchSpec::new("vsw-loden", zone, net(192, 168, 0, 0, 24))],
                ..VpcSpec::new("vpc-loden", net(192, 168, 0, 0, 16))
            }],
            instances: (1..=3_u8)
                .map(|n| InstanceSpec {
                    role: Some("LodenNode".to_owned()),
                    ..InstanceSpec::new(
                        format!("i-loden{n}"),
                        "vsw-loden",
                        Ipv4Addr::new(192, 168, 0, 10 + n),
                    )
                })
                .collect(),
            access_keys: vec![AccessKeySpec::new("testid", "testsecret")],
            roles: vec![RoleSpec { name: "LodenNode".to_owned(), ..RoleSpec::default() }],
            ..Self::default()
        }
    }
}

/// A VPC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VpcSpec {
    /// `vpc-…`.
    pub id: String,
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Primary IPv4 range.
    pub cidr: Ipv4Net,
    /// Further IPv4 ranges.
    #[serde(default)]
    pub secondary_cidrs: Vec<Ipv4Net>,
    /// IPv6 range; a VPC without one takes no IPv6 entries.
    #[serde(default)]
    pub ipv6_cidr: Option<Ipv6Net>,
    /// Custom tables that fit, 9 unless said.
    #[serde(default)]
    pub table_quota: Option<u32>,
    /// vSwitches.
    #[serde(default)]
    pub vswitches: Vec<VSwitchSpec>,
    /// Route tables. Without a system table here, one named `vtb-<VPC's suffix>` is made.
    #[serde(default)]
    pub route_tables: Vec<RouteTableSpec>,
    /// Security groups.
    #[serde(default)]
    pub security_groups: Vec<SecurityGroupSpec>,
    /// Other things that entries may point at: NAT gateways, HaVips, …
    #[serde(default)]
    pub gateways: Vec<NextHop>,
}

impl VpcSpec {
    /// A VPC with a system table and nothing else.
    #[must_use]
    pub fn new(id: impl Into<String>, cidr: Ipv4Net) -> Self {
        Self {
            id: id.into(),
            name: String::new(),
            cidr,
            secondary_cidrs: Vec::new(),
            ipv6_cidr: None,
            table_quota: None,
            vswitches: Vec::new(),
            route_tables: Vec::new(),
            security_groups: Vec::new(),
            gateways: Vec::new(),
        }
    }
}

/// A vSwitch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VSwitchSpec {
    /// `vsw-…`.
    pub id: String,
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Zone.
    pub zone: String,
    /// IPv4 range, within the VPC's.
    pub cidr: Ipv4Net,
    /// IPv6 range, within the VPC's; 64 bits long with the vendor.
    #[serde(default)]
    pub ipv6_cidr: Option<Ipv6Net>,
}

impl VSwitchSpec {
    /// A vSwitch without a name.
    #[must_use]
    pub fn new(id: impl Into<String>, zone: impl Into<String>, cidr: Ipv4Net) -> Self {
        Self { id: id.into(), name: String::new(), zone: zone.into(), cidr, ipv6_cidr: None }
    }
}

/// What a route table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TableKind {
    /// Made with the VPC; every vSwitch without another table uses it.
    System,
    /// Used by the vSwitches that name it.
    Custom,
    /// Steers what enters through a gateway; takes no entries of users.
    Gateway,
}

/// A route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteTableSpec {
    /// `vtb-…`.
    pub id: String,
    /// Name.
    #[serde(default)]
    pub name: String,
    /// What it is for.
    pub kind: TableKind,
    /// vSwitches that use it; none for a system table, which has all others.
    #[serde(default)]
    pub vswitches: Vec<String>,
    /// Custom entries that fit, 200 unless said.
    #[serde(default)]
    pub quota: Option<u32>,
    /// Destinations that come from prefix lists, by list. They are not listed as entries and have no quota here; other entries must not
    /// have them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prefix_lists: BTreeMap<String, Vec<IpNet>>,
    /// Entries that are there from the start. They are taken as given, without the API's checks.
    #[serde(default)]
    pub entries: Vec<EntrySpec>,
}

impl RouteTableSpec {
    /// An empty table.
    #[must_use]
    pub fn new(id: impl Into<String>, kind: TableKind) -> Self {
        Self {
            id: id.into(),
            name: String::new(),
            kind,
            vswitches: Vec::new(),
            quota: None,
            prefix_lists: BTreeMap::new(),
            entries: Vec::new(),
        }
    }
}

/// Who made an entry, which decides who may delete it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum EntryKind {
    /// A user or a controller.
    #[default]
    Custom,
    /// The VPC itself.
    System,
    /// Learned by BGP.
    #[serde(rename = "BGP")]
    Bgp,
    /// Learned from a Cloud Enterprise Network.
    #[serde(rename = "CEN")]
    Cen,
    /// Learned from an Express Connect router.
    #[serde(rename = "ECR")]
    Ecr,
}

impl EntryKind {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Custom => "Custom",
            Self::System => "System",
            Self::Bgp => "BGP",
            Self::Cen => "CEN",
            Self::Ecr => "ECR",
        }
    }
}

/// An entry put into a table without asking the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EntrySpec {
    /// Destination.
    pub destination: IpNet,
    /// One next hop, or several with equal cost.
    pub next_hops: Vec<NextHop>,
    /// Who made it.
    #[serde(default)]
    pub kind: EntryKind,
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Description.
    #[serde(default)]
    pub description: String,
}

/// Where an entry sends packets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NextHop {
    /// `Instance`, `NetworkInterface`, `NatGateway`, …; `local` and `service` in system entries.
    pub kind: String,
    /// `i-…`, `eni-…`, `ngw-…`, …; may be empty in system entries.
    #[serde(default)]
    pub id: String,
    /// Share among several.
    #[serde(default)]
    pub weight: u32,
}

impl NextHop {
    /// A next hop of `kind`.
    #[must_use]
    pub fn new(kind: impl Into<String>, id: impl Into<String>) -> Self {
        Self { kind: kind.into(), id: id.into(), weight: 0 }
    }
}

/// A security group. Data only: whoever moves packets enforces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecurityGroupSpec {
    /// `sg-…`.
    pub id: String,
    /// Sources that may reach members.
    #[serde(default)]
    pub ingress: Vec<Ingress>,
}

/// Who may reach the members of a security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ingress {
    /// Sources in this range.
    Cidr(IpNet),
    /// Addresses of the members of this group.
    Group(String),
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstanceSpec {
    /// `i-…`.
    pub id: String,
    /// Name.
    #[serde(default)]
    pub name: String,
    /// E.g. `ecs.g7.large`.
    #[serde(default = "default_instance_type")]
    pub instance_type: String,
    /// RAM role.
    #[serde(default)]
    pub role: Option<String>,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// `PostPaid` or `PrePaid`.
    #[serde(default = "default_charge_type")]
    pub charge_type: String,
    /// `NoSpot`, `SpotWithPriceLimit` or `SpotAsPriceGo`.
    #[serde(default = "default_spot_strategy")]
    pub spot_strategy: String,
    /// Address of the vendor's choosing on the internet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_address: Option<Ipv4Addr>,
    /// Elastic address on the internet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elastic_address: Option<Ipv4Addr>,
    /// Network interfaces, the primary one first; at least one.
    pub interfaces: Vec<InterfaceSpec>,
}

fn default_charge_type() -> String {
    "PostPaid".to_owned()
}

fn default_spot_strategy() -> String {
    "NoSpot".to_owned()
}

fn default_instance_type() -> String {
    "ecs.g7.large".to_owned()
}

impl InstanceSpec {
    /// An instance with one interface, whose source/destination check is on, in no security group.
    #[must_use]
    pub fn new(id: impl Into<String>, vswitch: impl Into<String>, address: Ipv4Addr) -> Self {
        Self {
            id: id.into(),
            name: String::new(),
            instance_type: default_instance_type(),
            role: None,
            tags: BTreeMap::new(),
            charge_type: default_charge_type(),
            spot_strategy: default_spot_strategy(),
            public_address: None,
            elastic_address: None,
            interfaces: vec![InterfaceSpec::new(vswitch, address)],
        }
    }
}

/// A network interface of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InterfaceSpec {
    /// `eni-…`; made from the instance's ID unless given.
    #[serde(default)]
    pub id: Option<String>,
    /// vSwitch.
    pub vswitch: String,
    /// Primary private address, within the vSwitch's range.
    pub address: Ipv4Addr,
    /// IPv6 addresses, within the vSwitch's range.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ipv6: Vec<Ipv6Addr>,
    /// MAC address; made from the address unless given.
    #[serde(default)]
    pub mac: Option<String>,
    /// Security groups. An interface in none accepts everything.
    #[serde(default)]
    pub security_groups: Vec<String>,
    /// Whether packets whose source or destination is not the interface's own are dropped.
    #[serde(default = "yes")]
    pub source_dest_check: bool,
}

fn yes() -> bool {
    true
}

impl InterfaceSpec {
    /// An interface with the source/destination check on, in no security group.
    #[must_use]
    pub fn new(vswitch: impl Into<String>, address: Ipv4Addr) -> Self {
        Self {
            id: None,
            vswitch: vswitch.into(),
            address,
            ipv6: Vec::new(),
            mac: None,
            security_groups: Vec::new(),
            source_dest_check: true,
        }
    }
}

/// An access key that does not expire.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessKeySpec {
    /// `AccessKeyId`.
    pub id: String,
    /// `AccessKeySecret`.
    pub secret: String,
    /// Whether it is disabled.
    #[serde(default)]
    pub disabled: bool,
}

impl AccessKeySpec {
    /// An enabled key.
    #[must_use]
    pub fn new(id: impl Into<String>, secret: impl Into<String>) -> Self {
        Self { id: id.into(), secret: secret.into(), disabled: false }
    }
}

impl std::fmt::Debug for AccessKeySpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKeySpec").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A RAM role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RoleSpec {
    /// Name.
    pub name: String,
    /// Lifetime of the credentials that the metadata service gives out, in seconds. New ones are given out when half of it is over.
    pub lifetime_s: u64,
}

impl Default for RoleSpec {
    fn default() -> Self {
        Self { name: String::new(), lifetime_s: 21_600 }
    }
}

//! The names and contents of the emulated cloud of a lab, and how its programs are told about them.
//!
//! IDs are readable on purpose (`i-node-1` instead of `i-bp1…`): they appear in route tables, logs and pictures that people read.

use ipnet::IpNet;
use loden_netlink::netns::NetNs;
use loden_sim_cloud::topology::{
    EntryKind, EntrySpec, Ingress, InstanceSpec, InterfaceSpec, NextHop, RoleSpec, RouteTableSpec,
    SecurityGroupSpec, Settings, TableKind, Topology, VSwitchSpec, VpcSpec,
};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::fabric::{API_ADDRESS, INSTANCE_LINK, METADATA_ADDRESS};
use crate::forwarding::NAT_GATEWAY;
use crate::kubernetes::Kubernetes;
use crate::names::LabName;
use crate::node_files::NodeFiles;
use crate::process::Recipe;
use crate::spec::Inputs;
use crate::status::Services;

/// The region of every lab.
pub const REGION: &str = "cn-hangzhou";
/// The RAM role that nodes and the control instance have.
const ROLE: &str = "LodenLab";
/// Port of the cloud API on its address.
pub const CLOUD_API_PORT: u16 = 80;
/// Port of the metadata service.
pub const METADATA_PORT: u16 = 80;

/// `vpc-…`
#[must_use]
pub fn vpc_id(lab: &LabName) -> String {
    format!("vpc-{lab}")
}

/// `vsw-…` of the vSwitch at this place of the list.
#[must_use]
pub fn vswitch_id(lab: &LabName, at: usize) -> String {
    format!("vsw-{lab}-{}", at + 1)
}

/// The custom route table, in a lab that has one.
#[must_use]
pub fn custom_table_id(lab: &LabName) -> String {
    format!("vtb-{lab}-custom")
}

/// The system route table.
#[must_use]
pub fn table_id(lab: &LabName) -> String {
    format!("vtb-{lab}")
}

/// `i-…` of the instance of that name.
#[must_use]
pub fn instance_id(name: &str) -> String {
    format!("i-{name}")
}

/// How `spec.providerID` names an instance.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProviderIdSpelling {
    /// `<region>.<instance>`
    #[default]
    Plain,
    /// `alicloud://<region>.<instance>`
    Alicloud,
}

/// `spec.providerID` of a node on that instance.
#[must_use]
pub fn provider_id(instance: &str, spelling: ProviderIdSpelling) -> String {
    match spelling {
        ProviderIdSpelling::Plain => format!("{REGION}.{instance}"),
        ProviderIdSpelling::Alicloud => format!("alicloud://{REGION}.{instance}"),
    }
}

fn security_group(lab: &LabName) -> String {
    format!("sg-{lab}")
}

/// Where the emulators answer.
#[must_use]
pub fn service_addresses() -> Services {
    Services { metadata: format!("http://{METADATA_ADDRESS}"), cloud_api: format!("http://{API_ADDRESS}") }
}

fn nat_gateway_id(lab: &LabName) -> String {
    format!("ngw-{lab}")
}

/// The entry that leads to the internet.
fn to_internet(lab: &LabName) -> EntrySpec {
    EntrySpec {
        destination: IpNet::default(),
        next_hops: vec![NextHop::new(NAT_GATEWAY, nat_gateway_id(lab))],
        // Of the VPC's own making, so that the quota is the nodes' alone.
        kind: EntryKind::System,
        name: String::new(),
        description: "the NAT gateway".to_owned(),
    }
}

/// A further route table, which no vSwitch uses yet: the way to the internet, and `entries`.
#[must_use]
pub fn further_table(lab: &LabName, id: &str, quota: u32, entries: Vec<EntrySpec>) -> RouteTableSpec {
    RouteTableSpec {
        quota: Some(quota),
        entries: [to_internet(lab)].into_iter().chain(entries).collect(),
        ..RouteTableSpec::new(id, TableKind::Custom)
    }
}

/// The cloud as a lab finds it: one VPC with its vSwitches, a system table with the way to the internet, one security group that admits the VPC and
/// the pods.
#[must_use]
pub fn cloud(lab: &LabName, inputs: &Inputs) -> Topology {
    let gateway = nat_gateway_id(lab);
    let to_internet = to_internet(lab);
    let table = |id, kind, vswitches| RouteTableSpec {
        quota: Some(inputs.quota),
        entries: vec![to_internet.clone()],
        vswitches,
        ..RouteTableSpec::new(id, kind)
    };
    let mut route_tables = vec![table(table_id(lab), TableKind::System, Vec::new())];
    let custom = inputs.vswitches.iter().position(|vswitch| Some(*vswitch) == inputs.custom_table);
    route_tables
        .extend(custom.map(|at| table(custom_table_id(lab), TableKind::Custom, vec![vswitch_id(lab, at)])));
    let vswitches = inputs.vswitches.iter().enumerate().map(|(at, cidr)| {
        let zone = char::from(b'h' + u8::try_from(at % 10).unwrap_or(0));
        VSwitchSpec::new(vswitch_id(lab, at), format!("{REGION}-{zone}"), *cidr)
    });
    let admitted =
        [inputs.vpc_cidr].into_iter().chain(inputs.pod_cidrs()).map(|net| Ingress::Cidr(IpNet::V4(net)));
    let vpc = VpcSpec {
        vswitches: vswitches.collect(),
        route_tables,
        security_groups: vec![SecurityGroupSpec { id: security_group(lab), ingress: admitted.collect() }],
        gateways: vec![NextHop::new(NAT_GATEWAY, gateway)],
        ..VpcSpec::new(vpc_id(lab), inputs.vpc_cidr)
    };
    Topology {
        region: REGION.to_owned(),
        vpcs: vec![vpc],
        roles: vec![RoleSpec { name: ROLE.to_owned(), ..RoleSpec::default() }],
        ..Topology::default()
    }
}

/// How the cloud behaves: as the vendor's, with tokens demanded by the metadata service.
#[must_use]
pub fn settings(inputs: &Inputs) -> Settings {
    Settings { entry_delay_ms: inputs.entry_delay_ms, hardened_metadata: true, ..Settings::default() }
}

/// An instance as it comes from the vendor: source/destination check on.
#[must_use]
pub fn instance(lab: &LabName, name: &str, vswitch: usize, address: Ipv4Addr) -> InstanceSpec {
    let vswitch = vswitch_id(lab, vswitch);
    let interface = InterfaceSpec {
        id: Some(interface_id(&instance_id(name))),
        security_groups: vec![security_group(lab)],
        ..InterfaceSpec::new(vswitch.clone(), address)
    };
    InstanceSpec {
        name: name.to_owned(),
        role: Some(ROLE.to_owned()),
        interfaces: vec![interface],
        ..InstanceSpec::new(instance_id(name), vswitch, address)
    }
}

/// `eni-…` of an instance's primary interface.
#[must_use]
pub fn interface_id(instance: &str) -> String {
    format!("eni-{}", instance.strip_prefix("i-").unwrap_or(instance))
}

/// The instance that takes another's place: another ID, another interface, the same name and address.
#[must_use]
pub fn replaced(mut spec: InstanceSpec, id: &str) -> InstanceSpec {
    id.clone_into(&mut spec.id);
    for interface in &mut spec.interfaces {
        interface.id = Some(interface_id(id));
    }
    spec
}

/// The instance as a machine on a plain network has it: nobody looks at what it sends.
#[must_use]
pub fn on_a_plain_network(mut spec: InstanceSpec) -> InstanceSpec {
    for interface in &mut spec.interfaces {
        interface.source_dest_check = false;
        interface.security_groups.clear();
    }
    spec
}

/// How a node's flanneld is started: as the DaemonSet of our manifests does, with the node's own paths.
#[must_use]
pub fn flanneld_recipe(cluster: &Cluster, node: &str, files: &NodeFiles, namespace: NetNs) -> Recipe {
    let path = |path: PathBuf| path.display().to_string();
    Recipe {
        program: cluster.programs.flanneld.clone(),
        arguments: vec![
            "--kube-subnet-mgr".to_owned(),
            "--ip-masq".to_owned(),
            format!("--iface={INSTANCE_LINK}"),
            format!("--kubeconfig-file={}", path(files.kubeconfig())),
            format!("--net-config-path={}", path(files.net_conf())),
            format!("--subnet-file={}", path(files.subnet_env())),
            "--healthz-port=10248".to_owned(),
            // Where there are route entries, the controller owns that condition: it knows when they are there.
            format!("--set-node-network-unavailable={}", !cluster.inputs.backend.needs_entries()),
        ],
        environment: BTreeMap::from([("NODE_NAME".to_owned(), node.to_owned())]),
        namespace,
        log: files.flanneld_log(),
    }
}

/// The controller's option for the tables to serve; it wins over the cloud-config file.
pub const TABLES_FLAG: &str = "--route-table-ids";
/// Name of the file that a controller reads its access key and its tables from.
pub const CLOUD_CONFIG: &str = "cloud-config.json";

/// Where the files of a cluster's controller are.
///
/// # Errors
/// It cannot be made.
pub fn controller_directory(cluster: &Cluster, kube: &Kubernetes) -> Result<PathBuf> {
    let directory = cluster.lab.directory().join("controllers").join(&kube.name);
    std::fs::create_dir_all(&directory).map_err(|e| Error::io("create", &directory, e))?;
    Ok(directory)
}

/// How a cluster's controller is started on its instance: credentials and VPC come from the metadata service.
///
/// # Errors
/// Its kubeconfig cannot be written.
pub fn controller_recipe(
    cluster: &Cluster,
    kube: &Kubernetes,
    namespace: NetNs,
    route_table_ids: &[String],
) -> Result<Recipe> {
    let directory = controller_directory(cluster, kube)?;
    let kubeconfig = directory.join("kubeconfig");
    kube.write_kubeconfig(&kubeconfig, kube.address)?;
    let mask = cluster.inputs.node_mask();
    let tables =
        (!route_table_ids.is_empty()).then(|| format!("{TABLES_FLAG}={}", route_table_ids.join(",")));
    Ok(Recipe {
        program: cluster.programs.controller.clone(),
        arguments: [
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--cluster-name={}", kube.name),
            format!("--cloud-config={}", directory.join(CLOUD_CONFIG).display()),
            format!("--cluster-cidr={}", kube.pod_cidr),
            format!("--node-cidr-mask-size={mask}"),
            format!("--service-cluster-ip-range={}", cluster.inputs.service_cidr),
            // Without, it gives nodes their subnets and leaves the cloud alone.
            format!("--configure-cloud-routes={}", cluster.inputs.backend.needs_entries()),
            // Entries changed by hand come without notice; a lab should not have to wait minutes for the audit that finds them.
            "--route-reconciliation-period=3s".to_owned(),
            // What a stopped controller did not see leave is collected after this long; a lab should not have to wait a minute for that.
            "--stale-route-grace-period=5s".to_owned(),
            // Short, so that a killed controller's successor is soon at work.
            "--leader-elect-lease-duration=4s".to_owned(),
            "--leader-elect-renew-deadline=3s".to_owned(),
            "--leader-elect-retry-period=500ms".to_owned(),
        ]
        .into_iter()
        .chain(tables)
        .collect(),
        environment: BTreeMap::from([
            ("VPC_ENDPOINT".to_owned(), API_ADDRESS.to_string()),
            ("ECS_ENDPOINT".to_owned(), API_ADDRESS.to_string()),
            ("ALICLOUD_CLIENT_SCHEME".to_owned(), "HTTP".to_owned()),
        ]),
        namespace,
        log: directory.join("controller.log"),
    })
}

//! ECS actions, version 2014-05-26: instances and their network interfaces.

use serde::{Deserialize, Serialize};

use crate::request::{list_in, request};

/// Instances per [`DescribeInstances`] call, and interfaces per [`DescribeNetworkInterfaces`] call, at most.
pub const MAX_RESULTS: u32 = 100;

list_in!(in_instance, "Instance");
list_in!(in_tag, "Tag");
list_in!(in_network_interface, "NetworkInterface");
list_in!(in_network_interface_set, "NetworkInterfaceSet");
list_in!(in_ip_address, "IpAddress");
list_in!(in_ipv6_set, "Ipv6Set");
list_in!(in_security_group_id, "SecurityGroupId");
list_in!(in_private_ip_set, "PrivateIpSet");

request! {
    /// Lists instances.
    DescribeInstances in Ecs -> DescribeInstancesAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// Only these: a JSON array written as a string, `["i-1","i-2"]`.
        instance_ids: Option<String> = "InstanceIds",
        /// Only instances in this VPC.
        vpc_id: Option<String> = "VpcId",
        /// Only instances on this vSwitch.
        vswitch_id: Option<String> = "VSwitchId",
        /// Only instances in this zone.
        zone_id: Option<String> = "ZoneId",
        /// Only instances of this name.
        instance_name: Option<String> = "InstanceName",
        /// Only instances with one of these private addresses: a JSON array written as a string, 100 at most. Wants `vpc_id` beside it.
        private_ip_addresses: Option<String> = "PrivateIpAddresses",
        /// Instances per page, by token.
        max_results: Option<u32> = "MaxResults",
        /// From the page before.
        next_token: Option<String> = "NextToken",
        /// Page, from 1.
        page_number: Option<u32> = "PageNumber",
        /// Instances per page, by number.
        page_size: Option<u32> = "PageSize",
        /// Further parts of the answer, e.g. `NETWORK_PRIMARY_ENI_IP`.
        additional_attributes: Vec<String> = "AdditionalAttributes",
    }
}

impl DescribeInstances {
    /// A request for the named instances.
    #[must_use]
    pub fn of(region: &str, instances: &[&str]) -> Self {
        Self {
            region_id: Some(region.to_owned()),
            instance_ids: Some(serde_json::Value::from(instances.to_vec()).to_string()),
            max_results: Some(MAX_RESULTS),
            additional_attributes: vec!["NETWORK_PRIMARY_ENI_IP".to_owned()],
            ..Self::default()
        }
    }

    /// A request for the instances of a VPC that have one of these private addresses.
    #[must_use]
    pub fn with_addresses(region: &str, vpc: &str, addresses: &[String]) -> Self {
        Self {
            region_id: Some(region.to_owned()),
            vpc_id: Some(vpc.to_owned()),
            private_ip_addresses: Some(serde_json::Value::from(addresses.to_vec()).to_string()),
            max_results: Some(MAX_RESULTS),
            ..Self::default()
        }
    }
}

/// Answer of [`DescribeInstances`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeInstancesAnswer {
    /// Request.
    pub request_id: String,
    /// Asks for the next page; empty on the last.
    #[serde(default)]
    pub next_token: String,
    /// All instances that match.
    #[serde(default)]
    pub total_count: u32,
    /// Size of a page as the server took it. Some clients stop when it is below 100.
    #[serde(default)]
    pub page_size: u32,
    /// This page.
    #[serde(default)]
    pub page_number: u32,
    /// Instances of this page.
    #[serde(with = "in_instance")]
    pub instances: Vec<Instance>,
}

/// An ECS instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Instance {
    /// `i-…`.
    pub instance_id: String,
    /// Name.
    #[serde(default)]
    pub instance_name: String,
    /// Host name.
    #[serde(default)]
    pub host_name: String,
    /// `Running`, `Stopped`, …
    #[serde(default)]
    pub status: String,
    /// E.g. `ecs.g7.large`.
    #[serde(default)]
    pub instance_type: String,
    /// Zone.
    #[serde(default)]
    pub zone_id: String,
    /// Region.
    #[serde(default)]
    pub region_id: String,
    /// `PostPaid` or `PrePaid`.
    #[serde(default)]
    pub instance_charge_type: String,
    /// `NoSpot`, …
    #[serde(default)]
    pub spot_strategy: String,
    /// `vpc` or `classic`.
    #[serde(default)]
    pub instance_network_type: String,
    /// Creation, UTC.
    #[serde(default)]
    pub creation_time: String,
    /// Tags.
    #[serde(with = "in_tag", default)]
    pub tags: Vec<Tag>,
    /// Interfaces; none while the instance is being made.
    #[serde(with = "in_network_interface", default)]
    pub network_interfaces: Vec<InstanceInterface>,
    /// Security groups.
    #[serde(with = "in_security_group_id", default)]
    pub security_group_ids: Vec<String>,
    /// Addresses of the vendor's choosing on the internet.
    #[serde(with = "in_ip_address", default)]
    pub public_ip_address: Vec<String>,
    /// Addresses in the classic network.
    #[serde(with = "in_ip_address", default)]
    pub inner_ip_address: Vec<String>,
    /// Elastic address.
    #[serde(default)]
    pub eip_address: EipAddress,
    /// Place in the VPC.
    #[serde(default)]
    pub vpc_attributes: VpcAttributes,
}

/// A tag of an ECS object; its fields are named differently from a VPC object's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Tag {
    /// Key.
    pub tag_key: String,
    /// Value.
    #[serde(default)]
    pub tag_value: String,
}

/// An elastic address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EipAddress {
    /// Its ID, empty if there is none.
    #[serde(default)]
    pub allocation_id: String,
    /// The address, empty if there is none.
    #[serde(default)]
    pub ip_address: String,
}

/// Where in a VPC an instance is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct VpcAttributes {
    /// VPC.
    #[serde(default)]
    pub vpc_id: String,
    /// vSwitch.
    #[serde(rename = "VSwitchId", default)]
    pub vswitch_id: String,
    /// Private addresses.
    #[serde(with = "in_ip_address", default)]
    pub private_ip_address: Vec<String>,
}

/// An interface as an instance lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceInterface {
    /// `eni-…`.
    pub network_interface_id: String,
    /// `Primary` or `Secondary`.
    #[serde(rename = "Type", default)]
    pub kind: String,
    /// MAC address.
    #[serde(default)]
    pub mac_address: String,
    /// Primary private address.
    #[serde(default)]
    pub primary_ip_address: String,
    /// IPv6 addresses.
    #[serde(with = "in_ipv6_set", default)]
    pub ipv6_sets: Vec<Ipv6Set>,
}

/// An IPv6 address of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Ipv6Set {
    /// The address.
    pub ipv6_address: String,
}

request! {
    /// Lists network interfaces.
    DescribeNetworkInterfaces in Ecs -> DescribeNetworkInterfacesAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// Only these, 100 at most.
        network_interface_ids: Vec<String> = "NetworkInterfaceId",
        /// Only interfaces of this instance.
        instance_id: Option<String> = "InstanceId",
        /// Only interfaces in this VPC.
        vpc_id: Option<String> = "VpcId",
        /// Only interfaces on this vSwitch.
        vswitch_id: Option<String> = "VSwitchId",
        /// Only `Primary` or only `Secondary` interfaces.
        kind: Option<String> = "Type",
        /// Interfaces per page, by token.
        max_results: Option<u32> = "MaxResults",
        /// From the page before.
        next_token: Option<String> = "NextToken",
        /// Page, from 1.
        page_number: Option<u32> = "PageNumber",
        /// Interfaces per page, by number.
        page_size: Option<u32> = "PageSize",
    }
}

/// Answer of [`DescribeNetworkInterfaces`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeNetworkInterfacesAnswer {
    /// Request.
    pub request_id: String,
    /// Asks for the next page; empty on the last.
    #[serde(default)]
    pub next_token: String,
    /// All interfaces that match.
    #[serde(default)]
    pub total_count: u32,
    /// Size of a page.
    #[serde(default)]
    pub page_size: u32,
    /// This page.
    #[serde(default)]
    pub page_number: u32,
    /// Interfaces of this page.
    #[serde(with = "in_network_interface_set")]
    pub network_interface_sets: Vec<NetworkInterface>,
}

/// A network interface in full.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkInterface {
    /// `eni-…`.
    pub network_interface_id: String,
    /// `InUse`, `Available`, …
    #[serde(default)]
    pub status: String,
    /// `Primary` or `Secondary`.
    #[serde(rename = "Type", default)]
    pub kind: String,
    /// Instance, empty if detached.
    #[serde(default)]
    pub instance_id: String,
    /// VPC.
    #[serde(default)]
    pub vpc_id: String,
    /// vSwitch.
    #[serde(rename = "VSwitchId", default)]
    pub vswitch_id: String,
    /// Zone.
    #[serde(default)]
    pub zone_id: String,
    /// MAC address.
    #[serde(default)]
    pub mac_address: String,
    /// Primary private address.
    #[serde(default)]
    pub private_ip_address: String,
    /// Private addresses.
    #[serde(with = "in_private_ip_set", default)]
    pub private_ip_sets: Vec<PrivateIpSet>,
    /// Security groups.
    #[serde(with = "in_security_group_id", default)]
    pub security_group_ids: Vec<String>,
    /// Whether packets whose source or destination is not the interface's own are dropped.
    #[serde(default)]
    pub source_dest_check: bool,
}

/// A private address of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PrivateIpSet {
    /// The address.
    pub private_ip_address: String,
    /// Whether it is the primary one.
    #[serde(default)]
    pub primary: bool,
}

request! {
    /// Changes a network interface. Only what is given changes.
    ModifyNetworkInterfaceAttribute in Ecs -> ModifyNetworkInterfaceAttributeAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// The interface.
        network_interface_id: String = "NetworkInterfaceId",
        /// Whether the source/destination check is on.
        source_dest_check: Option<bool> = "SourceDestCheck",
    }
}

/// Answer of [`ModifyNetworkInterfaceAttribute`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ModifyNetworkInterfaceAttributeAnswer {
    /// Request.
    pub request_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;

    #[test]
    fn instance_ids_are_a_json_array_in_a_string() {
        let request = DescribeInstances::of("cn-hangzhou", &["i-1", "i-2"]);
        let params = request.to_params();
        assert_eq!(params.get("InstanceIds"), Some(r#"["i-1","i-2"]"#));
        assert_eq!(params.get("AdditionalAttributes.1"), Some("NETWORK_PRIMARY_ENI_IP"));
        assert_eq!(DescribeInstances::from_params(&params).unwrap(), request);
    }

    #[test]
    fn an_empty_page_is_read() {
        let answer: DescribeInstancesAnswer = serde_json::from_str(
            r#"{"RequestId":"R","Instances":{"Instance":[]},"NextToken":"","TotalCount":0,"PageSize":10,"PageNumber":1}"#,
        )
        .unwrap();
        assert_eq!((answer.instances.len(), answer.page_size), (0, 10));
    }
}

//! Instances and network interfaces.

use loden_aliyun::sign::format_date;
use loden_aliyun::{ApiError, ecs};
use time::OffsetDateTime;

use super::api::Answers;
use super::pages::{self, page};
use super::{Cloud, Instance, Interface, count};

/// One page by token or by number, whichever the caller uses.
struct Paged<T> {
    items: Vec<T>,
    next_token: String,
    page_number: u32,
    page_size: u32,
}

/// Which page of a list is asked for.
struct Asked<'a> {
    max_results: Option<u32>,
    token: Option<&'a String>,
    number: Option<u32>,
    size: Option<u32>,
    filters: &'a str,
    token_lifetime: u64,
    now: OffsetDateTime,
}

/// `items` come with their positions, ascending.
fn paged<T>(items: Vec<(String, T)>, asked: &Asked<'_>) -> Result<Paged<T>, ApiError> {
    if asked.max_results.is_none() && asked.token.is_none() {
        let items = items.into_iter().map(|(_, item)| item).collect();
        let (items, page_number, page_size) = page(items, asked.number, asked.size, ecs::MAX_RESULTS)?;
        return Ok(Paged { items, next_token: String::new(), page_number, page_size });
    }
    let page_size = asked.max_results.unwrap_or(10);
    if page_size == 0 || page_size > ecs::MAX_RESULTS {
        return Err(ApiError::invalid_parameter("MaxResults"));
    }
    let after = asked
        .token
        .map(|token| pages::read_token(token, asked.filters, asked.token_lifetime, asked.now))
        .transpose()
        .map_err(|_| ApiError::invalid_parameter("NextToken"))?;
    let mut rest =
        items.into_iter().filter(|(at, _)| after.as_ref().is_none_or(|after| at > after)).peekable();
    let taken: Vec<(String, T)> =
        rest.by_ref().take(usize::try_from(page_size).unwrap_or(usize::MAX)).collect();
    let next_token = match (taken.last(), rest.peek()) {
        (Some((last, _)), Some(_)) => pages::write_token(last, asked.filters, asked.now),
        _ => String::new(),
    };
    Ok(Paged {
        items: taken.into_iter().map(|(_, item)| item).collect(),
        next_token,
        page_number: 1,
        page_size,
    })
}

fn equal(filter: Option<&String>, value: &str) -> bool {
    filter.is_none_or(|filter| filter == value)
}

const fn interface_type(index: usize) -> &'static str {
    if index == 0 { "Primary" } else { "Secondary" }
}

impl Cloud {
    /// Zone of a vSwitch.
    fn zone(&self, vpc: &str, vswitch: &str) -> String {
        self.vpcs
            .get(vpc)
            .and_then(|vpc| vpc.vswitches.get(vswitch))
            .map(|vswitch| vswitch.spec.zone.clone())
            .unwrap_or_default()
    }

    fn describe_instance(&self, instance: &Instance) -> ecs::Instance {
        let spec = &instance.spec;
        let primary = instance.interfaces.first();
        let vswitch_id = primary.map(|primary| primary.vswitch.clone()).unwrap_or_default();
        ecs::Instance {
            instance_id: spec.id.clone(),
            instance_name: spec.name.clone(),
            host_name: spec.id.clone(),
            status: self.statuses.get(&spec.id).map_or("Running", String::as_str).to_owned(),
            instance_type: spec.instance_type.clone(),
            zone_id: self.zone(&instance.vpc, &vswitch_id),
            region_id: self.region.clone(),
            instance_charge_type: spec.charge_type.clone(),
            spot_strategy: spec.spot_strategy.clone(),
            instance_network_type: "vpc".to_owned(),
            creation_time: format_date(self.created),
            tags: spec
                .tags
                .iter()
                .map(|(key, value)| ecs::Tag { tag_key: key.clone(), tag_value: value.clone() })
                .collect(),
            network_interfaces: instance
                .interfaces
                .iter()
                .enumerate()
                .map(|(index, interface)| ecs::InstanceInterface {
                    network_interface_id: interface.id.clone(),
                    kind: interface_type(index).to_owned(),
                    mac_address: interface.mac.clone(),
                    primary_ip_address: interface.address.to_string(),
                    ipv6_sets: interface
                        .ipv6
                        .iter()
                        .map(|address| ecs::Ipv6Set { ipv6_address: address.to_string() })
                        .collect(),
                })
                .collect(),
            security_group_ids: primary.map(|primary| primary.security_groups.clone()).unwrap_or_default(),
            public_ip_address: spec.public_address.iter().map(ToString::to_string).collect(),
            inner_ip_address: Vec::new(),
            eip_address: spec.elastic_address.map_or_else(ecs::EipAddress::default, |address| {
                ecs::EipAddress { allocation_id: format!("eip-{}", spec.id), ip_address: address.to_string() }
            }),
            vpc_attributes: ecs::VpcAttributes {
                vpc_id: instance.vpc.clone(),
                vswitch_id,
                private_ip_address: primary.map(|primary| primary.address.to_string()).into_iter().collect(),
            },
        }
    }

    fn describe_interface(
        &self,
        instance: &Instance,
        index: usize,
        interface: &Interface,
    ) -> ecs::NetworkInterface {
        ecs::NetworkInterface {
            network_interface_id: interface.id.clone(),
            status: "InUse".to_owned(),
            kind: interface_type(index).to_owned(),
            instance_id: instance.spec.id.clone(),
            vpc_id: instance.vpc.clone(),
            vswitch_id: interface.vswitch.clone(),
            zone_id: self.zone(&instance.vpc, &interface.vswitch),
            mac_address: interface.mac.clone(),
            private_ip_address: interface.address.to_string(),
            private_ip_sets: vec![ecs::PrivateIpSet {
                private_ip_address: interface.address.to_string(),
                primary: true,
            }],
            security_group_ids: interface.security_groups.clone(),
            source_dest_check: interface.source_dest_check,
        }
    }
}

impl Answers for ecs::DescribeInstances {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        let ids: Option<Vec<String>> = match &self.instance_ids {
            None => None,
            Some(text) => match serde_json::from_str::<Vec<String>>(text) {
                Ok(ids) if ids.len() <= 100 => Some(ids),
                _ => {
                    return Err(ApiError::new(
                        400,
                        "InvalidInstanceIds.Malformed",
                        "The specified InstanceIds are malformed.",
                    ));
                }
            },
        };
        let addresses = match self.private_ip_addresses.as_deref().map(serde_json::from_str::<Vec<String>>) {
            None => None,
            Some(Ok(addresses)) if addresses.len() <= 100 => Some(addresses),
            Some(_) => return Err(ApiError::invalid_parameter("PrivateIpAddresses")),
        };
        let matching: Vec<(String, ecs::Instance)> = cloud
            .instances
            .values()
            .filter(|instance| ids.as_ref().is_none_or(|ids| ids.contains(&instance.spec.id)))
            .map(|instance| cloud.describe_instance(instance))
            .filter(|instance| {
                equal(self.vpc_id.as_ref(), &instance.vpc_attributes.vpc_id)
                    && equal(self.vswitch_id.as_ref(), &instance.vpc_attributes.vswitch_id)
                    && equal(self.zone_id.as_ref(), &instance.zone_id)
                    && equal(self.instance_name.as_ref(), &instance.instance_name)
                    && addresses.as_ref().is_none_or(|wanted| {
                        instance.vpc_attributes.private_ip_address.iter().any(|own| wanted.contains(own))
                    })
            })
            .map(|instance| (instance.instance_id.clone(), instance))
            .collect();
        let total_count = count(&matching);
        let taken = paged(
            matching,
            &Asked {
                max_results: self.max_results,
                token: self.next_token.as_ref(),
                number: self.page_number,
                size: self.page_size,
                filters: &pages::digest(&self),
                token_lifetime: cloud.settings.next_token_lifetime_s,
                now,
            },
        )?;
        Ok(ecs::DescribeInstancesAnswer {
            request_id: request_id.to_owned(),
            next_token: taken.next_token,
            total_count,
            page_size: taken.page_size,
            page_number: taken.page_number,
            instances: taken.items,
        })
    }
}

impl Answers for ecs::DescribeNetworkInterfaces {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        if self.network_interface_ids.len() > 100 {
            return Err(ApiError::invalid_parameter("NetworkInterfaceId"));
        }
        let ids = &self.network_interface_ids;
        let matching: Vec<(String, ecs::NetworkInterface)> = cloud
            .instances
            .values()
            .filter(|instance| {
                equal(self.instance_id.as_ref(), &instance.spec.id)
                    && equal(self.vpc_id.as_ref(), &instance.vpc)
            })
            .flat_map(|instance| {
                instance
                    .interfaces
                    .iter()
                    .enumerate()
                    .map(move |(index, interface)| (instance, index, interface))
            })
            .filter(|(_, index, interface)| {
                (ids.is_empty() || ids.contains(&interface.id))
                    && equal(self.vswitch_id.as_ref(), &interface.vswitch)
                    && equal(self.kind.as_ref(), interface_type(*index))
            })
            .map(|(instance, index, interface)| {
                // Nothing in an ID sorts before this separator.
                let at = format!("{}\0{index:04}", instance.spec.id);
                (at, cloud.describe_interface(instance, index, interface))
            })
            .collect();
        let total_count = count(&matching);
        let taken = paged(
            matching,
            &Asked {
                max_results: self.max_results,
                token: self.next_token.as_ref(),
                number: self.page_number,
                size: self.page_size,
                filters: &pages::digest(&self),
                token_lifetime: cloud.settings.next_token_lifetime_s,
                now,
            },
        )?;
        Ok(ecs::DescribeNetworkInterfacesAnswer {
            request_id: request_id.to_owned(),
            next_token: taken.next_token,
            total_count,
            page_size: taken.page_size,
            page_number: taken.page_number,
            network_interface_sets: taken.items,
        })
    }
}

impl Answers for ecs::ModifyNetworkInterfaceAttribute {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        _now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        let interface = cloud
            .instances
            .values_mut()
            .flat_map(|instance| &mut instance.interfaces)
            .find(|interface| interface.id == self.network_interface_id)
            .ok_or_else(|| {
                ApiError::new(
                    404,
                    "InvalidEniId.NotFound",
                    format!("The specified EniId {} does not exist.", self.network_interface_id),
                )
            })?;
        if let Some(check) = self.source_dest_check {
            interface.source_dest_check = check;
            cloud.revision += 1;
        }
        Ok(ecs::ModifyNetworkInterfaceAttributeAnswer { request_id: request_id.to_owned() })
    }
}

//! Node control's port to the cloud, on top of the client.

use std::collections::BTreeSet;
use std::net::IpAddr;

use loden_aliyun::ecs;
use loden_nodes::port::{Failure, ReadInstances};
use loden_nodes::{Instance, NODEPOOL_TAG};
use loden_routes::model::{InstanceId, VpcId};

use crate::client::Client;
use crate::tables::incomplete;

impl Client {
    /// Every page of a list of instances.
    pub(crate) async fn all_instances(
        &self,
        mut request: ecs::DescribeInstances,
        about: &str,
    ) -> Result<Vec<ecs::Instance>, Failure> {
        let mut instances = Vec::new();
        let mut tokens = BTreeSet::new();
        loop {
            let answer = self.call(&request, about).await?;
            instances.extend(answer.instances);
            if answer.next_token.is_empty() {
                // The API's count says nothing where pages go by token; the end of the tokens is the end.
                return Ok(instances);
            }
            if !tokens.insert(answer.next_token.clone()) {
                return Err(incomplete("the list of instances"));
            }
            request.next_token = Some(answer.next_token);
        }
    }

    fn read_instance(&self, instance: ecs::Instance) -> Instance {
        let primary = instance.network_interfaces.into_iter().find(|interface| interface.kind == "Primary");
        let nodepool = instance.tags.into_iter().find(|tag| tag.tag_key == NODEPOOL_TAG);
        let mut external = instance.public_ip_address;
        external.push(instance.eip_address.ip_address);
        let mut internal = instance.inner_ip_address;
        internal.extend(instance.vpc_attributes.private_ip_address);
        for list in [&mut external, &mut internal] {
            list.retain(|text| !text.is_empty());
            list.shrink_to_fit();
        }
        let region =
            if instance.region_id.is_empty() { self.region().to_owned() } else { instance.region_id };
        Instance {
            id: InstanceId::from(instance.instance_id),
            region,
            zone: instance.zone_id,
            instance_type: instance.instance_type,
            charge_type: instance.instance_charge_type,
            spot_strategy: instance.spot_strategy,
            nodepool: nodepool.map(|tag| tag.tag_value).filter(|value| !value.is_empty()),
            external,
            internal,
            ipv6: primary
                .map(|eni| eni.ipv6_sets.into_iter().map(|set| set.ipv6_address).collect())
                .unwrap_or_default(),
        }
    }
}

impl ReadInstances for Client {
    async fn describe_nodes(&self, ids: &[InstanceId]) -> Result<Vec<Instance>, Failure> {
        // Without a filter the API would answer with every instance of the account.
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = ids.iter().map(InstanceId::as_str).collect();
        let request = ecs::DescribeInstances::of(self.region(), &names);
        let found = self.all_instances(request, &names.join(" ")).await?;
        Ok(found.into_iter().map(|instance| self.read_instance(instance)).collect())
    }

    async fn find_by_address(&self, vpc: &VpcId, addresses: &[IpAddr]) -> Result<Vec<Instance>, Failure> {
        if addresses.is_empty() {
            return Ok(Vec::new());
        }
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let request = ecs::DescribeInstances::with_addresses(self.region(), vpc.as_str(), &texts);
        let found = self.all_instances(request, &texts.join(" ")).await?;
        Ok(found.into_iter().map(|instance| self.read_instance(instance)).collect())
    }
}

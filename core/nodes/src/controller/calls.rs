//! Calls to the cloud: one at a time, what is asked, and what follows from the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use loden_reconcile::Moment;
use loden_routes::controller::About;
use loden_routes::model::InstanceId;

use super::{Action, Call, Controller, Flight, Heard, Nodes, RETRY, note_node};
use crate::model::Instance;
use crate::port::{Failure, FailureClass, INSTANCES_LIMIT};

impl Controller {
    pub(super) fn next_call(&mut self, now: Moment, nodes: &impl Nodes) -> Option<Action> {
        if self.flight.is_some() || self.pause > now {
            return None;
        }
        let mut asked = Vec::new();
        while asked.len() < INSTANCES_LIMIT
            && let Some(instance) = self.describe.pop(now)
        {
            asked.push(instance);
        }
        if !asked.is_empty() {
            let call = Call::Describe(asked.clone());
            return Some(self.call(Flight::Describe(asked), call));
        }
        let mut wanted: Vec<(IpAddr, String)> = Vec::new();
        while wanted.len() < INSTANCES_LIMIT
            && let Some(name) = self.find.pop(now)
        {
            match nodes.node(&name).and_then(|node| node.private_address()) {
                Some(address) => wanted.push((address, name)),
                None => self.stand(About::Node(name), "ProviderIDNotFound", || {
                    "the node has neither a provider ID nor an address to find its instance by; start kubelet with --provider-id=<region>.<instance> or --node-ip".to_owned()
                }),
            }
        }
        if wanted.is_empty() {
            return None;
        }
        let addresses: BTreeSet<IpAddr> = wanted.iter().map(|(address, _)| *address).collect();
        let call = Call::Find(addresses.into_iter().collect());
        Some(self.call(Flight::Find(wanted), call))
    }

    fn call(&mut self, flight: Flight, call: Call) -> Action {
        self.next_call += 1;
        self.flight = Some((self.next_call, flight));
        Action::Cloud { id: self.next_call, call }
    }

    pub(super) fn answered(&mut self, now: Moment, id: u64, result: Result<Vec<Instance>, Failure>) {
        let Some((_, flight)) = self.flight.take_if(|(flight, _)| *flight == id) else { return };
        let instances = match result {
            Ok(instances) => instances,
            Err(failure) => return self.call_failed(now, flight, &failure),
        };
        self.failures = 0;
        self.over(&About::Controller, "CloudAccessDenied");
        match flight {
            Flight::Describe(asked) => self.described(now, asked, instances),
            Flight::Find(wanted) => self.found(now, wanted, &instances),
        }
    }

    fn call_failed(&mut self, now: Moment, flight: Flight, failure: &Failure) {
        match flight {
            Flight::Describe(asked) => {
                asked.into_iter().for_each(|instance| self.describe.add(instance, now))
            }
            Flight::Find(wanted) => wanted.into_iter().for_each(|(_, name)| self.find.add(name, now)),
        }
        self.failures = self.failures.saturating_add(1);
        let rest = RETRY.delay(self.failures, self.next_call);
        self.pause = now + failure.retry_after.unwrap_or_default().max(rest);
        if failure.class == FailureClass::Denied {
            self.stand(About::Controller, "CloudAccessDenied", || {
                format!("the ECS API refuses the controller's credentials: {failure}; node control needs ecs:DescribeInstances, or leave node out of --controllers")
            });
        }
    }

    fn described(&mut self, now: Moment, asked: Vec<InstanceId>, instances: Vec<Instance>) {
        let mut here: BTreeMap<InstanceId, Instance> =
            instances.into_iter().map(|instance| (instance.id.clone(), instance)).collect();
        for id in asked {
            // A node may have left while the call was under way.
            if !self.on_instance.contains_key(&id) {
                continue;
            }
            let (heard, news) = match (here.remove(&id), self.heard.get(&id)) {
                (Some(now_here), Some(Heard::Here(known))) if **known == now_here => continue,
                (Some(now_here), _) => (Heard::Here(Box::new(now_here)), true),
                (None, Some(Heard::Missing(times))) => (Heard::Missing(times.saturating_add(1)), true),
                (None, _) => (Heard::Missing(1), true),
            };
            self.describe.succeeded(&id);
            self.heard.insert(id.clone(), heard);
            if news {
                self.look_at_nodes_of(now, &id);
            }
        }
    }

    fn found(&mut self, now: Moment, wanted: Vec<(IpAddr, String)>, instances: &[Instance]) {
        for (address, name) in wanted {
            if !self.nodes.contains_key(&name) {
                continue;
            }
            let at = |instance: &&Instance| instance.internal.iter().any(|text| text.parse() == Ok(address));
            let matching: Vec<&Instance> = instances.iter().filter(at).collect();
            let problem = match matching.as_slice() {
                [] => format!("no instance of the VPC has the node's address {address}"),
                [instance] => match self.on_instance.get(&instance.id).and_then(|nodes| nodes.first()) {
                    Some(other) if *other != name => format!(
                        "instance {} has the node's address {address}, and node {other} says that it runs there",
                        instance.id
                    ),
                    _ => {
                        self.found.insert(name.clone(), instance.id.clone());
                        note_node(&mut self.on_instance, &instance.id, &name);
                        self.heard.insert(instance.id.clone(), Heard::Here(Box::new((*instance).clone())));
                        if let Some(seen) = self.nodes.get_mut(&name) {
                            seen.instance = Some(instance.id.clone());
                        }
                        self.find.succeeded(&name);
                        self.over(&About::Node(name.clone()), "ProviderIDNotFound");
                        self.look.add(name, now);
                        continue;
                    }
                },
                several => format!(
                    "{} instances have the node's address {address}: {}",
                    several.len(),
                    several.iter().map(|instance| instance.id.as_str()).collect::<Vec<_>>().join(", ")
                ),
            };
            self.stand(About::Node(name.clone()), "ProviderIDNotFound", || {
                format!("the node has no provider ID, and {problem}; start kubelet with --provider-id=<region>.<instance>")
            });
            self.find.failed(name.clone(), now, name.len() as u64);
        }
    }
}

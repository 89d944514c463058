//! What must hold of every plan, tried on small worlds in which destinations, instances and marks collide often.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use proptest::prelude::*;

use crate::check::{Bounds, check};
use crate::desired::{Desired, desired};
use crate::mark::{ClusterId, Mark, Owner};
use crate::model::{EntryStatus, EntryType, InstanceId, NextHop, Node, RouteEntry, VpcRouteTableId};
use crate::observed::{Observed, TableView};
use crate::plan::{Conflict, Plan, Policy, Step, diff};
use crate::testing::{net, node};

const TABLES: [&str; 2] = ["vtb-1", "vtb-2"];
const DESTINATIONS: [&str; 10] = [
    "172.20.0.0/24",
    "172.20.1.0/24",
    "172.20.2.0/24",
    "172.20.2.0/25",
    "172.20.1.128/25",
    "172.20.1.7/32",
    "172.20.0.0/22",
    "172.20.0.0/16",
    "10.0.0.0/8",
    "0.0.0.0/0",
];

#[derive(Debug, Clone)]
struct World {
    nodes: Vec<Node>,
    tables: BTreeMap<VpcRouteTableId, Vec<RouteEntry>>,
    quota: Option<usize>,
}

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    proptest::collection::btree_map(0usize..4, (0usize..5, any::<bool>(), 0i64..3), 0..4).prop_map(|chosen| {
        let build = |(name, (cidr, prefixed, created)): (usize, (usize, bool, i64))| {
            let mut node = node(&name.to_string(), DESTINATIONS[cidr]);
            node.created = created;
            if prefixed {
                node.provider_id = format!("alicloud://{}", node.provider_id);
            }
            node
        };
        chosen.into_iter().map(build).collect()
    })
}

fn entries(table: &'static str) -> impl Strategy<Value = Vec<RouteEntry>> {
    let kind = prop_oneof![
        8 => Just(EntryType::Custom),
        1 => Just(EntryType::System),
        1 => Just(EntryType::Dynamic("CEN".to_owned())),
    ];
    let hops = prop_oneof![
        8 => (0usize..5).prop_map(|n| vec![NextHop::instance(&format!("i-{n}").as_str().into())]),
        1 => Just(vec![NextHop { kind: "HaVip".to_owned(), id: "havip-1".to_owned() }]),
        1 => Just(vec![NextHop::instance(&"i-0".into()), NextHop::instance(&"i-1".into())]),
    ];
    let name = prop_oneof![Just(""), Just("loden-c1"), Just("loden-c2"), Just("by hand")];
    proptest::collection::btree_map(0usize..10, (kind, hops, name), 0..7).prop_map(move |chosen| {
        chosen
            .into_iter()
            .map(|(destination, (kind, next_hops, name))| RouteEntry {
                table: table.into(),
                id: format!("rte-{table}-{destination}"),
                destination: net(DESTINATIONS[destination]),
                next_hops,
                status: EntryStatus::Available,
                kind,
                name: name.to_owned(),
                description: String::new(),
            })
            .collect()
    })
}

fn worlds() -> impl Strategy<Value = World> {
    (nodes(), entries("vtb-1"), entries("vtb-2"), proptest::option::of(0usize..8)).prop_map(
        |(nodes, first, second, quota)| World {
            nodes,
            tables: BTreeMap::from([("vtb-1".into(), first), ("vtb-2".into(), second)]),
            quota,
        },
    )
}

impl World {
    fn policy(&self) -> Policy {
        let tables: Vec<VpcRouteTableId> = TABLES.iter().map(|id| (*id).into()).collect();
        let limits = self.quota.map(|quota| tables.iter().map(|id| (id.clone(), quota)).collect());
        let mark = Mark::new(ClusterId::parse("c1").unwrap());
        let mut policy = Policy::new(mark, vec![net("172.20.0.0/16")], tables);
        policy.limits = limits.unwrap_or_default();
        policy
    }

    fn observed(&self) -> Observed {
        self.tables.iter().map(|(id, entries)| (id.clone(), TableView::new(entries.clone()))).collect()
    }

    fn desired(&self) -> Desired {
        let observed = self.observed();
        let installed = |destination, instance: &InstanceId| {
            observed.values().any(|view| view.good(destination, instance).is_some())
        };
        desired(&self.nodes, &self.policy().cluster, installed)
    }

    fn plan(&self) -> Plan {
        let desired = self.desired();
        let plan = diff(&desired, &self.observed(), &self.policy(), |_| true);
        check(&plan, &desired, &self.observed(), &self.policy(), &Bounds::lifted())
            .expect("every plan passes the check");
        plan
    }

    /// Does what the cloud would, with its refusals.
    fn apply(&mut self, step: &Step) {
        let quota = self.quota;
        let table = self.tables.get_mut(step.table()).unwrap();
        match step {
            Step::RemoveConflict { entry, .. } | Step::Collect { entry } => {
                assert_eq!(entry.kind, EntryType::Custom, "only custom entries can be deleted");
                let before = table.len();
                table.retain(|held| held.id != entry.id);
                assert_eq!(table.len() + 1, before, "{step}: there is no such entry");
            }
            Step::Repoint { entry, to, .. } => {
                let held = table.iter_mut().find(|held| held.id == entry.id).expect("there is such an entry");
                held.next_hops = vec![NextHop::instance(&to.instance)];
            }
            Step::Create { entry, .. } => {
                assert!(
                    table.iter().all(|held| held.destination != entry.destination),
                    "{step}: the destination is taken"
                );
                let custom = table.iter().filter(|held| held.kind == EntryType::Custom).count();
                assert!(quota.is_none_or(|quota| custom < quota), "{step}: the table is full");
                table.push(RouteEntry {
                    table: entry.table.clone(),
                    id: format!("rte-new-{}-{}", entry.table, entry.destination),
                    destination: entry.destination,
                    next_hops: vec![NextHop::instance(&entry.instance)],
                    status: EntryStatus::Available,
                    kind: EntryType::Custom,
                    name: entry.name.clone(),
                    description: entry.description.clone(),
                });
            }
        }
    }

    /// Every step that somebody could think of, right or wrong.
    fn conceivable(&self) -> Vec<Step> {
        let (policy, desired) = (self.policy(), self.desired());
        let mut steps = Vec::new();
        for entry in self.tables.values().flatten() {
            steps.push(Step::Collect { entry: entry.clone() });
            for (pod_cidr, wanted) in &desired.entries {
                for conflict in [Conflict::PointsElsewhere, Conflict::MoreSpecific] {
                    steps.push(Step::RemoveConflict {
                        entry: entry.clone(),
                        conflict,
                        node: wanted.node.clone(),
                        pod_cidr: *pod_cidr,
                        instance: wanted.instance.clone(),
                    });
                }
                let to = policy.mark.entry(&entry.table, *pod_cidr, &wanted.instance, &wanted.node);
                steps.push(Step::Repoint { entry: entry.clone(), to, node: wanted.node.clone() });
            }
        }
        for (table, destination) in TABLES.iter().flat_map(|t| DESTINATIONS.iter().map(move |d| (t, d))) {
            for wanted in desired.entries.values() {
                let entry =
                    policy.mark.entry(&(*table).into(), net(destination), &wanted.instance, &wanted.node);
                steps.push(Step::Create { entry, node: wanted.node.clone() });
            }
        }
        steps
    }

    /// Entries that belong to others and are in nobody's way, and live nodes' good entries: what has to be there afterwards.
    fn untouchable(&self) -> BTreeSet<(VpcRouteTableId, IpNet, String)> {
        let (policy, desired) = (self.policy(), self.desired());
        let kept = |entry: &&RouteEntry| {
            let good = entry.instance().is_some_and(|instance| desired.keeps(entry.destination, &instance));
            let in_the_way = entry.instance().is_some()
                && desired.entries.keys().any(|range| loden_addr::contains(*range, entry.destination));
            good || !in_the_way && policy.mark.owner(entry) != Owner::Ours
        };
        let all = self.tables.values().flatten().filter(kept);
        all.map(|entry| (entry.table.clone(), entry.destination, entry.via())).collect()
    }

    fn contents(&self) -> BTreeSet<(VpcRouteTableId, IpNet, String)> {
        let flat = |(id, entries): (&VpcRouteTableId, &Vec<RouteEntry>)| -> Vec<_> {
            entries.iter().map(|entry| (id.clone(), entry.destination, entry.via())).collect()
        };
        self.tables.iter().flat_map(flat).collect()
    }

    /// Every node that is wanted has its entry, waits for room, or is told what stands in its way.
    fn is_reached(&self) -> bool {
        let (desired, observed, plan) = (self.desired(), self.observed(), self.plan());
        desired.entries.iter().all(|(destination, wanted)| {
            observed.iter().all(|(table, view)| {
                view.carries(*destination, &wanted.instance)
                    || plan.waiting.iter().any(|wait| wait.table == *table && wait.node == wanted.node)
                    || plan
                        .obstructions
                        .iter()
                        .any(|o| o.entry.table == *table && o.node == wanted.node && o.whole())
            })
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn applied_plan_reaches_desired_and_diff_of_equal_is_empty(mut world in worlds()) {
        for step in world.plan().steps {
            world.apply(&step);
        }
        prop_assert!(world.is_reached());
        prop_assert_eq!(world.plan().steps, Vec::new());
    }

    #[test]
    fn any_prefix_then_replan_converges(mut world in worlds(), cut in 0usize..12) {
        let mut whole = world.clone();
        for step in whole.plan().steps {
            whole.apply(&step);
        }
        for step in world.plan().steps.iter().take(cut) {
            world.apply(step);
        }
        for step in world.plan().steps {
            world.apply(&step);
        }
        prop_assert!(world.is_reached());
        prop_assert_eq!(world.plan().steps, Vec::new());
        if world.quota.is_none() && whole.desired() == world.desired() {
            prop_assert_eq!(world.contents(), whole.contents());
        }
    }

    #[test]
    fn whatever_passes_the_check_harms_nobody(world in worlds()) {
        let (desired, observed, policy) = (world.desired(), world.observed(), world.policy());
        let untouchable = world.untouchable();
        for step in world.conceivable() {
            let plan = Plan { steps: vec![step.clone()], ..Plan::default() };
            if check(&plan, &desired, &observed, &policy, &Bounds::lifted()).is_err() {
                continue;
            }
            let mut after = world.clone();
            // What the cloud would refuse fails here.
            after.apply(&step);
            let contents = after.contents();
            prop_assert!(untouchable.is_subset(&contents), "{step}");
        }
    }

    #[test]
    fn foreign_objects_never_appear(world in worlds()) {
        let (policy, desired) = (world.policy(), world.desired());
        for step in world.plan().steps {
            let Some(entry) = step.removes() else { continue };
            let ours = policy.mark.owner(entry) == Owner::Ours;
            let conflicting = desired.entries.iter().any(|(destination, wanted)| {
                loden_addr::contains(*destination, entry.destination)
                    && (*destination != entry.destination || entry.instance().as_ref() != Some(&wanted.instance))
            });
            prop_assert!(ours || conflicting, "{step}");
            prop_assert!(entry.instance().is_some(), "{step}");
            let winner = desired.entries.get(&entry.destination);
            let takes_from_live = entry.instance().is_some_and(|instance| match winner {
                Some(wanted) => wanted.instance == instance,
                None => desired.live.get(&entry.destination).is_some_and(|live| live.contains(&instance)),
            });
            prop_assert!(!takes_from_live, "{step}");
        }
    }

    #[test]
    fn order_respects_dependencies(mut world in worlds()) {
        // The cloud refuses a second entry for one destination and one more than the quota: applying asserts both.
        for step in world.plan().steps {
            world.apply(&step);
        }
    }

    #[test]
    fn plans_depend_on_nothing_but_their_inputs(world in worlds()) {
        let mut turned = world.clone();
        turned.nodes.reverse();
        turned.tables.values_mut().for_each(|entries| entries.reverse());
        prop_assert_eq!(world.plan().to_string(), turned.plan().to_string());
    }
}

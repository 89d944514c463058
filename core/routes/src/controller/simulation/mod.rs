//! The controller against a fake VPC and fake nodes, in virtual time: first its behaviours one by one, then whole histories under seeded faults.

mod behaviour;
mod bounds;
mod extent;
mod history;
mod scale;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::fake::Vpc;
use crate::model::Node;
use crate::testing::node;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// What goes wrong, in thousandths of all calls.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    lost_requests: u64,
    lost_answers: u64,
    throttled: u64,
    failed_conditions: u64,
}

struct World {
    now: Moment,
    vpc: Vpc,
    controller: Controller,
    settings: Settings,
    nodes: BTreeMap<String, Node>,
    /// What comes back to the controller, and when.
    inbox: BTreeMap<(Moment, u64), Event>,
    turn: u64,
    random: u64,
    faults: Faults,
    /// The watch shows a written condition before the write itself is answered.
    watch_first: bool,
    notices: Vec<Notice>,
    calls: usize,
    /// The same, by kind.
    kinds: BTreeMap<&'static str, usize>,
    condition_writes: usize,
    /// Destinations that people changed: there a condition may lag behind.
    meddled: BTreeSet<String>,
    last_wait: Option<(Option<Moment>, Why)>,
}

impl World {
    fn new(delay: Duration) -> Self {
        let pod_cidrs = vec!["172.20.0.0/16".parse().unwrap()];
        let settings = Settings::new("vpc-1".into(), ClusterId::parse("c1").unwrap(), pod_cidrs);
        Self {
            now: SECOND,
            vpc: Vpc::new(delay),
            controller: Controller::new(settings.clone()),
            settings,
            nodes: BTreeMap::new(),
            inbox: BTreeMap::new(),
            turn: 0,
            random: 1,
            faults: Faults::default(),
            watch_first: false,
            notices: Vec::new(),
            calls: 0,
            kinds: BTreeMap::new(),
            condition_writes: 0,
            meddled: BTreeSet::new(),
            last_wait: None,
        }
    }

    fn with_nodes(delay: Duration, count: usize) -> Self {
        let mut world = Self::new(delay);
        for index in 0..count {
            world.join(index);
        }
        world.start();
        world
    }

    fn start(&mut self) {
        self.controller = Controller::new(self.settings.clone());
        self.inbox.clear();
        for node in self.nodes.values().cloned().collect::<Vec<_>>() {
            self.controller.on_event(self.now, Event::Node(Box::new(node)));
        }
        self.controller.on_event(self.now, Event::NodesComplete);
    }

    fn chance(&mut self, thousandths: u64) -> bool {
        self.roll(1000) < thousandths
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.random = loden_reconcile::mix(self.random);
        self.random % sides
    }

    fn join(&mut self, index: usize) {
        let name = format!("n{index}");
        let mut node = node(&name, &format!("172.20.{index}.0/24"));
        node.created = i64::try_from(index).unwrap();
        if index.is_multiple_of(3) {
            node.provider_id = format!("alicloud://{}", node.provider_id);
        }
        self.vpc.add_instance(&format!("i-{name}"), "vsw-1");
        self.put_node(node);
    }

    fn put_node(&mut self, node: Node) {
        self.nodes.insert(node.name.clone(), node.clone());
        self.send(MS, Event::Node(Box::new(node)));
    }

    fn leave(&mut self, name: &str) {
        self.nodes.remove(name);
        self.send(MS, Event::NodeGone(name.to_owned()));
    }

    fn send(&mut self, after: Duration, event: Event) {
        self.turn += 1;
        self.inbox.insert((self.now + after, self.turn), event);
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Notice(notice) => self.notices.push(notice),
            Action::Condition { node, uid, wanted } => {
                if !wanted.unavailable {
                    let node = &self.nodes.get(&node);
                    if let Some(node) =
                        node.filter(|node| node.uid == uid && !self.meddled.contains(&node.name))
                    {
                        let (cidr, instance) =
                            (node.pod_cidrs[0].clone(), node.instance().unwrap().to_string());
                        for table in self.tables() {
                            assert!(
                                self.vpc.carries(self.now, &table, &cidr, &instance),
                                "{} is called available without its entry in {table}",
                                node.name
                            );
                        }
                    }
                }
                if self.chance(self.faults.failed_conditions) {
                    let result = Err("the API server is away".to_owned());
                    self.send(5 * MS, Event::ConditionWritten { node, result });
                    return;
                }
                let Some(known) = self.nodes.get_mut(&node).filter(|known| known.uid == uid) else {
                    self.send(5 * MS, Event::ConditionWritten { node, result: Err("not found".to_owned()) });
                    return;
                };
                self.condition_writes += 1;
                known.network_unavailable = Some(wanted.clone());
                let echo = known.clone();
                self.send(5 * MS, Event::ConditionWritten { node, result: Ok(wanted) });
                self.send(if self.watch_first { 4 } else { 6 } * MS, Event::Node(Box::new(echo)));
            }
            Action::Cloud { id, call } => {
                self.calls += 1;
                *self.kinds.entry(kind_of(&call)).or_default() += 1;
                let kind = |failure: Failure| match &call {
                    Call::HasIpv6 => Answer::Ipv6(Err(failure)),
                    Call::Quota => Answer::Quota(Err(failure)),
                    Call::ListTables => Answer::Tables(Err(failure)),
                    Call::ListEntries(_) | Call::ReadBack(..) => Answer::Entries(Err(failure)),
                    Call::Create(_) | Call::Delete(_) | Call::Repoint(..) => Answer::Batch(Err(failure)),
                    Call::DescribeInstances(_) => Answer::Instances(Err(failure)),
                    Call::ReadSourceDestChecks(_) => Answer::ChecksOn(Err(failure)),
                    Call::SourceDestCheckOff(_) => Answer::CheckOff(Err(failure)),
                };
                let answer = if self.chance(self.faults.lost_requests) {
                    kind(Failure::transport("connection refused"))
                } else if self.chance(self.faults.throttled) {
                    kind(Failure::api(
                        400,
                        "Throttling.User",
                        "Request was denied due to user flow control.",
                        "R",
                        None,
                    ))
                } else {
                    let answer = self.vpc.call(self.now, &call);
                    if self.chance(self.faults.lost_answers) {
                        kind(Failure::transport("reset"))
                    } else {
                        answer
                    }
                };
                self.send(10 * MS, Event::Answered { id, answer });
            }
        }
    }

    /// Runs until nothing happens before `until`.
    fn run_until(&mut self, until: Moment) {
        loop {
            let mut polls = 0;
            let wake = loop {
                polls += 1;
                assert!(polls < 10_000, "the controller never rests");
                match self.controller.poll(self.now) {
                    Poll::Act(action) => self.perform(action),
                    Poll::Wait { until, why } => {
                        self.last_wait = Some((until, why));
                        assert!(until.is_none_or(|until| until > self.now), "waits for the past: {why}");
                        break until;
                    }
                }
            };
            let mail = self.inbox.keys().next().map(|(at, _)| *at);
            let next = [wake, mail].into_iter().flatten().min();
            match next {
                Some(next) if next <= until => self.now = next.max(self.now),
                _ => {
                    self.now = until;
                    return;
                }
            }
            while let Some(entry) = self.inbox.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let event = entry.remove();
                self.controller.on_event(self.now, event);
            }
        }
    }

    fn run(&mut self, duration: Duration) {
        self.run_until(self.now + duration);
    }

    fn tables(&self) -> Vec<String> {
        let listed = match &self.settings.tables {
            TableChoice::Listed(listed) => listed.iter().map(ToString::to_string).collect(),
            TableChoice::Discover => Vec::new(),
        };
        std::iter::once("vtb-1".to_owned()).chain(listed).collect()
    }

    fn table(&mut self) -> Vec<String> {
        self.vpc.table(self.now, "vtb-1")
    }

    fn condition(&self, name: &str) -> &NetworkUnavailable {
        self.nodes[name].network_unavailable.as_ref().expect("no condition")
    }

    fn available(&self) -> Vec<&str> {
        let has = |node: &&Node| node.network_unavailable.as_ref().is_some_and(|c| !c.unavailable);
        self.nodes.values().filter(has).map(|node| node.name.as_str()).collect()
    }

    fn reasons(&self) -> Vec<&'static str> {
        self.notices.iter().map(|notice| notice.reason).collect()
    }

    fn assert_right(&mut self) {
        for table in self.tables() {
            let mut expected: Vec<String> =
                self.nodes.values().map(|n| format!("{} via i-{}", n.pod_cidrs[0], n.name)).collect();
            let held = self.vpc.table(self.now, &table);
            expected.retain(|line| !held.contains(line));
            assert!(expected.is_empty(), "missing {expected:?} in {table}: {held:?}");
        }
        let unavailable: Vec<_> =
            self.nodes.keys().filter(|n| !self.available().contains(&n.as_str())).collect();
        assert!(unavailable.is_empty(), "unavailable: {unavailable:?}");
    }
}

fn kind_of(call: &Call) -> &'static str {
    match call {
        Call::HasIpv6 => "DescribeVpcs",
        Call::Quota => "GetProductQuota",
        Call::ListTables => "DescribeRouteTableList",
        Call::ListEntries(_) => "full listing",
        Call::ReadBack(..) => "filtered read-back",
        Call::Create(_) => "CreateRouteEntries",
        Call::Delete(_) => "DeleteRouteEntries",
        Call::Repoint(..) => "ModifyRouteEntry",
        Call::DescribeInstances(_) => "DescribeInstances",
        Call::ReadSourceDestChecks(_) => "DescribeNetworkInterfaces",
        Call::SourceDestCheckOff(_) => "ModifyNetworkInterfaceAttribute",
    }
}

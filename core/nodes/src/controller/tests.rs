//! The state machine against a cloud and an API server that fit into a test.

use proptest::prelude::*;

use super::*;
use crate::model::Address;
use crate::port::Failure;
use crate::testing::{complete, instance, node};

/// Cloud, API server and clock.
struct World {
    controller: Controller,
    now: Moment,
    cloud: BTreeMap<InstanceId, Instance>,
    nodes: BTreeMap<String, Node>,
    /// Calls fail as long as this says so.
    failure: Option<Failure>,
    /// Writes fail as long as this holds.
    refuses: bool,
    calls: Vec<Call>,
    lines: Vec<String>,
    notices: Vec<String>,
}

fn settings() -> Settings {
    Settings {
        region: "cn-hangzhou".to_owned(),
        dual_stack: false,
        routes: false,
        source_dest_check_off: false,
        audit: Duration::from_secs(300),
    }
}

impl World {
    fn new(settings: Settings) -> Self {
        Self {
            controller: Controller::new(settings),
            now: Moment::from_secs(1),
            cloud: BTreeMap::new(),
            nodes: BTreeMap::new(),
            failure: None,
            refuses: false,
            calls: Vec::new(),
            lines: Vec::new(),
            notices: Vec::new(),
        }
    }

    fn instance(&mut self, name: &str) -> &mut Instance {
        let made = instance(name);
        self.cloud.entry(made.id.clone()).or_insert(made)
    }

    fn put(&mut self, node: Node) {
        self.controller.on_event(self.now, Event::Node(Box::new(node.clone())));
        self.nodes.insert(node.name.clone(), node);
    }

    fn start(&mut self) {
        self.controller.on_event(self.now, Event::NodesComplete);
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Node)) {
        let mut node = self.nodes[name].clone();
        change(&mut node);
        self.put(node);
    }

    /// Performs everything that comes up until `span` has passed.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        for _ in 0..100_000 {
            match self.controller.poll(self.now, &self.nodes) {
                Poll::Act(Action::Cloud { id, call }) => {
                    let result = match &self.failure {
                        Some(failure) => Err(failure.clone()),
                        None => Ok(self.answer(&call)),
                    };
                    self.calls.push(call);
                    self.controller.on_event(self.now, Event::Answered { id, result });
                }
                Poll::Act(Action::Apply(plan)) => self.apply(&plan),
                Poll::Act(Action::Notice(notice)) => {
                    let about = match notice.about {
                        About::Controller => "controller".to_owned(),
                        About::Node(name) => name,
                    };
                    self.notices.push(format!("{about} {}: {}", notice.reason, notice.message));
                }
                Poll::Wait(Some(until)) if until <= end => {
                    assert!(until > self.now, "it wants to be asked again at once");
                    self.now = until;
                }
                Poll::Wait(_) => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("it never rests");
    }

    fn answer(&self, call: &Call) -> Vec<Instance> {
        let all = self.cloud.values();
        match call {
            Call::Describe(ids) => all.filter(|instance| ids.contains(&instance.id)).cloned().collect(),
            Call::Find(addresses) => all
                .filter(|instance| {
                    instance.internal.iter().any(|text| addresses.contains(&text.parse().unwrap()))
                })
                .cloned()
                .collect(),
        }
    }

    fn apply(&mut self, plan: &Plan) {
        let (node, uid) = (plan.node.clone(), plan.uid.clone());
        if self.refuses {
            let result = Err("refused".to_owned());
            self.controller.on_event(self.now, Event::Applied { node, uid, result });
            return;
        }
        self.lines.extend(plan.to_string().lines().map(str::to_owned));
        for (index, step) in plan.steps.iter().enumerate() {
            match step {
                Step::Delete { .. } => {
                    assert_eq!(plan.steps.len(), 1);
                    self.nodes.remove(&node);
                    self.controller.on_event(self.now, Event::NodeGone(node.clone()));
                }
                Step::Describe { provider_id, labels } => self.change(&node, |node| {
                    if let Some(id) = provider_id {
                        assert_eq!(node.provider_id, "", "it is set once in a node's life");
                        node.provider_id.clone_from(id);
                    }
                    node.labels.extend(labels.clone());
                }),
                Step::Addresses(addresses) => self.change(&node, |node| node.addresses.clone_from(addresses)),
                Step::RemoveTaint => {
                    assert_eq!(index + 1, plan.steps.len(), "the taint goes last");
                    self.change(&node, |node| node.uninitialized = false);
                }
            }
        }
        self.controller.on_event(self.now, Event::Applied { node, uid, result: Ok(()) });
    }
}

fn fresh(name: &str) -> Node {
    Node { uninitialized: true, ..node(name) }
}

fn silent(name: &str) -> Node {
    Node { readiness: Readiness::Unknown, ..complete(name) }
}

#[test]
fn a_fresh_node_becomes_complete_and_then_nothing_is_written() {
    let mut world = World::new(settings());
    world.start();
    world.instance("n1").nodepool = Some("np-1".to_owned());
    world.put(fresh("n1"));
    world.run(Duration::from_millis(100));
    let node = &world.nodes["n1"];
    assert!(!node.uninitialized);
    assert_eq!(node.addresses, [Address::new("InternalIP", "192.168.0.1")]);
    assert_eq!(node.labels["node.alibabacloud.com/nodepool-id"], "np-1");
    assert_eq!(world.notices.len(), 1, "{:?}", world.notices);
    let written = world.lines.len();
    world.run(Duration::from_secs(3600));
    assert_eq!(world.lines.len(), written);
    assert_eq!(world.calls.len(), 1 + 12, "one call for the node, and one per audit");
}

#[test]
fn the_taint_stays_until_the_condition_is_written_and_the_check_is_off() {
    let mut world = World::new(Settings { routes: true, source_dest_check_off: true, ..settings() });
    world.start();
    world.instance("n1");
    world.put(fresh("n1"));
    world.run(Duration::from_secs(60));
    assert!(world.nodes["n1"].uninitialized && !world.nodes["n1"].addresses.is_empty());
    world.controller.on_event(world.now, Event::Check { instance: "i-n1".into(), off: true });
    world.run(Duration::from_secs(60));
    assert!(world.nodes["n1"].uninitialized, "the route controller has not judged yet");
    world.change("n1", |node| node.has_network_condition = true);
    world.run(Duration::from_secs(1));
    assert!(!world.nodes["n1"].uninitialized);
}

#[test]
fn a_node_without_a_provider_id_is_found_by_its_address_and_only_if_that_is_clear() {
    let mut world = World::new(settings());
    world.start();
    for name in ["n1", "n2", "n3", "n4"] {
        world.instance(name);
    }
    world.instance("n3x").internal = vec!["192.168.0.3".to_owned()];
    let nameless = |name: &str, address: &str| Node {
        provider_id: String::new(),
        addresses: vec![Address::new("InternalIP", address)],
        ..fresh(name)
    };
    world.put(nameless("n1", "192.168.0.1"));
    world.put(Node { provided_ip: Some("192.168.0.2".to_owned()), ..nameless("n2", "10.0.0.1") });
    world.put(nameless("n3", "192.168.0.3"));
    world.put(complete("n4"));
    world.put(nameless("n5", "192.168.0.4"));
    world.put(Node { addresses: Vec::new(), ..nameless("cn-hangzhou.192.168.0.9", "") });
    world.put(Node { addresses: Vec::new(), ..nameless("n7", "") });
    world.run(Duration::from_secs(30));
    assert_eq!(world.nodes["n1"].provider_id, "cn-hangzhou.i-n1");
    assert_eq!(world.nodes["n2"].provider_id, "cn-hangzhou.i-n2");
    for (name, part) in [
        ("n3", "2 instances have the node's address 192.168.0.3: i-n3, i-n3x"),
        ("n5", "node n4 says that it runs there"),
        ("cn-hangzhou.192.168.0.9", "no instance of the VPC has the node's address 192.168.0.9"),
        ("n7", "neither a provider ID nor an address"),
    ] {
        assert!(world.nodes[name].uninitialized, "{name}");
        let told = world.notices.iter().filter(|line| line.starts_with(&format!("{name} ")));
        let told: Vec<&String> = told.collect();
        assert!(told.len() == 1 && told[0].contains(part), "{name}: {told:?}");
    }
    world.instance("n9");
    world.run(Duration::from_secs(300));
    assert_eq!(world.nodes["cn-hangzhou.192.168.0.9"].provider_id, "cn-hangzhou.i-n9");
}

#[test]
fn what_others_change_comes_back_and_a_fight_is_told() {
    let mut world = World::new(settings());
    world.start();
    world.instance("n1");
    world.put(complete("n1"));
    world.run(Duration::from_secs(10));
    assert!(world.lines.is_empty(), "{:?}", world.lines);
    world.change("n1", |node| {
        node.addresses = vec![Address::new("InternalIP", "10.0.0.1"), Address::new("Hostname", "n1")];
        node.labels.insert("topology.kubernetes.io/zone".to_owned(), "elsewhere".to_owned());
        node.labels.insert("mine".to_owned(), "kept".to_owned());
    });
    world.run(Duration::from_secs(10));
    assert_eq!(
        world.lines,
        [
            "node n1 + label topology.kubernetes.io/zone=cn-hangzhou-h",
            "node n1 ~ addresses InternalIP 192.168.0.1, Hostname n1"
        ]
    );
    assert_eq!(world.nodes["n1"].labels["mine"], "kept");
    for _ in 0..100 {
        world.change("n1", |node| node.addresses = vec![Address::new("InternalIP", "10.0.0.1")]);
        world.run(Duration::from_secs(10));
    }
    assert!(world.lines.len() < 15, "{}", world.lines.len());
    assert_eq!(world.notices.iter().filter(|line| line.contains("NodeContested")).count(), 1);
}

#[test]
fn what_changes_in_the_cloud_is_told_at_the_audit() {
    let mut world = World::new(settings());
    world.start();
    world.instance("n1");
    world.put(complete("n1"));
    world.run(Duration::from_secs(10));
    world.instance("n1").external = vec!["47.0.0.1".to_owned()];
    world.run(Duration::from_secs(300));
    assert_eq!(world.lines, ["node n1 ~ addresses ExternalIP 47.0.0.1, InternalIP 192.168.0.1"]);
}

#[test]
fn a_node_goes_with_its_instance_when_its_kubelet_is_silent() {
    let mut world = World::new(settings());
    world.start();
    world.instance("n1");
    world.instance("n2");
    world.put(complete("n1"));
    world.put(complete("n2"));
    world.run(Duration::from_secs(10));
    world.cloud.remove(&"i-n2".into());
    world.run(Duration::from_secs(600));
    assert!(world.nodes.contains_key("n2"), "its kubelet speaks");
    assert_eq!(world.notices.iter().filter(|line| line.starts_with("n2 InstanceNotFound")).count(), 1);
    world.change("n2", |node| node.readiness = Readiness::Unknown);
    world.run(Duration::from_secs(30));
    assert!(!world.nodes.contains_key("n2"));
    assert!(world.nodes.contains_key("n1"));
    assert!(world.notices.iter().any(|line| line.starts_with("n2 DeletingNode")));
}

#[test]
fn nothing_is_deleted_on_a_failure_or_when_the_cloud_knows_nobody() {
    let mut world = World::new(settings());
    world.start();
    world.put(silent("n1"));
    world.put(silent("n2"));
    world.failure = Some(Failure::transport("incomplete"));
    world.run(Duration::from_secs(3600));
    assert_eq!(world.nodes.len(), 2);
    assert!(world.calls.len() < 60, "{}", world.calls.len());
    world.failure = None;
    world.run(Duration::from_secs(3600));
    assert_eq!(world.nodes.len(), 2);
    assert_eq!(world.notices.iter().filter(|line| line.contains("NoInstanceFound")).count(), 1);
}

#[test]
fn deletions_are_bounded_by_the_minute() {
    let mut world = World::new(settings());
    world.start();
    world.instance("n0");
    world.put(complete("n0"));
    for number in 1..=40 {
        world.put(silent(&format!("n{number}")));
    }
    world.run(Duration::from_secs(30));
    assert_eq!(world.nodes.len(), 31);
    world.run(Duration::from_secs(300));
    assert_eq!(world.nodes.len(), 1);
}

#[test]
fn nodes_outside_of_cloud_control_are_left_alone() {
    let mut world = World::new(settings());
    world.start();
    world.put(Node { excluded: true, ..fresh("n1") });
    world.put(Node { provider_id: "ack-hybrid://x.y".to_owned(), ..fresh("n2") });
    world.put(Node { deleting: true, ..fresh("n3") });
    world.put(Node {
        provider_id: "cn-beijing.i-n4".to_owned(),
        readiness: Readiness::Unknown,
        ..fresh("n4")
    });
    world.put(Node { provider_id: "nonsense".to_owned(), ..fresh("n5") });
    world.put(Node { provider_id: String::new(), ..node("n6") });
    world.run(Duration::from_secs(3600));
    assert!(world.calls.is_empty() && world.lines.is_empty());
    assert_eq!(world.nodes.len(), 6);
    assert_eq!(world.notices.len(), 2, "{:?}", world.notices);
}

#[test]
fn a_kubelets_address_that_the_instance_lacks_keeps_the_taint() {
    let mut world = World::new(settings());
    world.start();
    world.instance("n1");
    world.put(Node { provided_ip: Some("10.0.0.1".to_owned()), ..fresh("n1") });
    world.run(Duration::from_secs(60));
    assert!(world.nodes["n1"].uninitialized);
    assert!(world.notices[0].starts_with("n1 NodeAddressProblem"), "{:?}", world.notices);
    world.change("n1", |node| node.provided_ip = Some("192.168.0.1".to_owned()));
    world.run(Duration::from_secs(1));
    assert!(!world.nodes["n1"].uninitialized);
}

#[test]
fn writes_that_fail_are_tried_again_and_told() {
    let mut world = World::new(settings());
    world.start();
    world.instance("n1");
    world.put(fresh("n1"));
    world.refuses = true;
    world.run(Duration::from_secs(120));
    assert!(world.notices.iter().any(|line| line.starts_with("n1 NodeWriteFailed")));
    let initialized =
        |world: &World| world.notices.iter().filter(|line| line.starts_with("n1 NodeInitialized")).count();
    assert_eq!(initialized(&world), 0, "what was refused is not called done");
    world.refuses = false;
    world.run(Duration::from_secs(130));
    assert!(!world.nodes["n1"].uninitialized);
    assert_eq!(initialized(&world), 1);
}

#[test]
fn a_burst_of_nodes_is_one_call_per_hundred() {
    let mut world = World::new(settings());
    world.start();
    for number in 0..250 {
        let name = format!("n{number}");
        world.instance(&name);
        world.put(fresh(&name));
    }
    world.run(Duration::from_secs(2));
    assert!(world.nodes.values().all(|node| !node.uninitialized));
    assert_eq!(world.calls.len(), 3);
}

#[derive(Debug, Clone)]
enum Move {
    Join(u8),
    Leave(u8),
    Reborn(u8),
    Silent(u8),
    Speak(u8),
    Release(u8),
    Meddle(u8),
    Check(u8),
    Fail(bool),
    Wait(u16),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = || 0u8..6;
    proptest::collection::vec(
        prop_oneof![
            one().prop_map(Move::Join),
            one().prop_map(Move::Leave),
            one().prop_map(Move::Reborn),
            one().prop_map(Move::Silent),
            one().prop_map(Move::Speak),
            one().prop_map(Move::Release),
            one().prop_map(Move::Meddle),
            one().prop_map(Move::Check),
            any::<bool>().prop_map(Move::Fail),
            (1u16..2000).prop_map(Move::Wait),
        ],
        0..40,
    )
}

proptest! {
    /// Whatever happens: no node of a live instance is ever deleted, nor one whose kubelet speaks, and in the end every live node says what it should.
    #[test]
    fn live_nodes_stay_and_become_complete(moves in moves()) {
        let mut world = World::new(Settings { source_dest_check_off: true, ..settings() });
        world.start();
        world.instance("n9");
        world.put(complete("n9"));
        for step in moves {
            let name = |n: u8| format!("n{n}");
            match step {
                Move::Join(n) => { world.instance(&name(n)); world.put(fresh(&name(n))); }
                Move::Leave(n) if world.nodes.contains_key(&name(n)) => {
                    world.nodes.remove(&name(n));
                    world.controller.on_event(world.now, Event::NodeGone(name(n)));
                }
                Move::Reborn(n) if world.nodes.contains_key(&name(n)) => {
                    let uid = format!("{}+", world.nodes[&name(n)].uid);
                    world.put(Node { uid, ..fresh(&name(n)) });
                }
                Move::Silent(n) if world.nodes.contains_key(&name(n)) =>
                    world.change(&name(n), |node| node.readiness = Readiness::Unknown),
                Move::Speak(n) if world.nodes.contains_key(&name(n)) =>
                    world.change(&name(n), |node| node.readiness = Readiness::Ready),
                Move::Release(n) => { world.cloud.remove(&InstanceId::from(format!("i-n{n}"))); }
                Move::Meddle(n) if world.nodes.contains_key(&name(n)) =>
                    world.change(&name(n), |node| node.addresses.clear()),
                Move::Check(n) =>
                    world.controller.on_event(world.now, Event::Check { instance: InstanceId::from(format!("i-n{n}")), off: true }),
                Move::Fail(fails) => world.failure = fails.then(|| Failure::transport("x")),
                Move::Wait(tenths) => {
                    let (cloud, before) = (world.cloud.clone(), world.nodes.clone());
                    world.run(Duration::from_millis(u64::from(tenths) * 100));
                    for (name, node) in before {
                        let alive = cloud.contains_key(&InstanceId::from(format!("i-{name}")));
                        if alive || node.readiness != Readiness::Unknown {
                            prop_assert!(world.nodes.contains_key(&name), "{name} was deleted");
                        }
                    }
                }
                _ => {}
            }
        }
        world.failure = None;
        let ids: Vec<InstanceId> = world.cloud.keys().cloned().collect();
        for instance in ids {
            world.controller.on_event(world.now, Event::Check { instance, off: true });
        }
        world.run(Duration::from_secs(3600));
        for (name, node) in &world.nodes {
            if world.cloud.contains_key(&InstanceId::from(format!("i-{name}"))) {
                prop_assert!(!node.uninitialized && node.addresses == complete(name).addresses, "{node:?}");
            } else {
                prop_assert!(node.readiness != Readiness::Unknown, "{name} is left behind");
            }
        }
    }
}

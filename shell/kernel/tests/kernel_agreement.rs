//! The fake kernel against the real one: the same random plans must leave both in the same state. Needs root.
//!
//! Everything above this crate is tested on the fake, so what those tests say about plans is only worth something if the fake
//! behaves like the kernel: what a removed link takes along, what a lost address flushes, what is refused.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use loden_kernel::Kernel;
use loden_netlink::{self as netlink, LinkSettings, NetNs, NewLink, NewLinkKind, RouteSocket, VethPeer};
use loden_node::fake::{self, Random};
use loden_node::{Desired, Key, Object, Objects, Observed, Plan, Scope, Step, diff};

/// Plans per run, where the environment does not ask for another number (an emulated machine takes its time over each).
const PLANS: u64 = 520;
/// Plans applied one after the other in one namespace before it is given up for a fresh one.
const PLANS_PER_NAMESPACE: u64 = 10;
const STEPS: usize = 5;

/// `LODEN_AGREEMENT_PLANS`, or as many as a run on a machine of usual speed should have.
fn plans_wanted() -> u64 {
    match std::env::var("LODEN_AGREEMENT_PLANS") {
        Ok(number) => number.parse().expect("LODEN_AGREEMENT_PLANS is a number of plans"),
        Err(_) => PLANS,
    }
}

fn namespace() -> NetNs {
    NetNs::anonymous().expect("kernel tests make network namespaces: run them as root")
}

/// A fresh namespace with the same foreign objects on both sides. What every namespace has (the loopback) is given to the
/// fake as the kernel shows it.
fn both(random: &mut Random, scope: &Scope) -> (Kernel, fake::Kernel) {
    let netns = namespace();
    // As on every machine; without any IPv4 address at all the kernel takes each next hop for a broadcast address.
    let mut route = RouteSocket::open_in(&netns).unwrap();
    route.set_link(1, LinkSettings::up()).unwrap();
    // A pod's link, which no plan may touch.
    let peer = VethPeer { name: "eth0".to_owned(), ..VethPeer::default() };
    let mut pair = NewLink::new("veth0", NewLinkKind::Veth(peer));
    pair.up = true;
    let pair = route.create_link(&pair).unwrap();
    let address = "10.244.200.1/24".parse().unwrap();
    route.add_address(netlink::Address::new(pair.index, address)).unwrap();
    let mut real = Kernel::open_in(&netns).unwrap();
    let mut start = real.observe(scope).unwrap().objects;
    let foreign = random.foreign();
    for object in foreign.iter() {
        real.apply(&Step::Add(object.clone())).unwrap_or_else(|e| panic!("{e}"));
    }
    start.extend(foreign.iter().cloned());
    (real, fake::Kernel::with(start))
}

fn differences(real: &Observed, fake: &Observed) -> Vec<String> {
    let keys: std::collections::BTreeSet<&Key> = real.objects.keys().chain(fake.objects.keys()).collect();
    let side =
        |objects: &Objects, key: &Key| objects.get(key).map_or("nothing".to_owned(), |o| format!("{o:?}"));
    keys.into_iter()
        .filter(|key| real.objects.get(key) != fake.objects.get(key))
        .map(|key| {
            format!("{key:?}\n  real: {}\n  fake: {}", side(&real.objects, key), side(&fake.objects, key))
        })
        .collect()
}

fn assert_agreement(seed: u64, what: &str, real: &Observed, fake: &Observed) {
    let differences = differences(real, fake);
    assert!(differences.is_empty(), "seed {seed}, after {what}:\n{}", differences.join("\n"));
}

#[test]
fn the_fake_agrees_with_the_kernel_on_random_plans() {
    let scope = Random::scope();
    let mut kinds: BTreeMap<&'static str, u32> = BTreeMap::new();
    let mut plans = 0;
    for seed in 0..plans_wanted().div_ceil(PLANS_PER_NAMESPACE) {
        let mut random = Random::new(seed);
        let (mut real, mut fake) = both(&mut random, &scope);
        assert_agreement(seed, "the start", &real.observe(&scope).unwrap(), &fake.observe(&scope));
        for turn in 0..PLANS_PER_NAMESPACE {
            let (desired, plan) = random.plan(&fake.observe(&scope), STEPS);
            for step in &plan.steps {
                *kinds.entry(kind(step)).or_default() += 1;
                fake.apply(step)
                    .unwrap_or_else(|e| panic!("seed {seed}, plan {turn}, the fake: {step}: {e}"));
                real.apply(step).unwrap_or_else(|e| panic!("seed {seed}, plan {turn}, the kernel: {e}"));
            }
            let seen = real.observe(&scope).unwrap();
            let text = format!("plan {turn}:\n{plan}");
            assert_agreement(seed, &text, &seen, &fake.observe(&scope));
            assert_settled(seed, &text, &desired, &plan, &seen);
            plans += 1;
        }
    }
    assert!(plans >= plans_wanted(), "only {plans} plans");
    for verb in ["add", "change", "delete"] {
        for object in ["link", "address", "neighbour", "fdb", "route", "table", "sysctl"] {
            // Addresses have nothing to change, tables and sysctls of ours are never deleted or added here.
            let seen =
                kinds.iter().filter(|(k, _)| **k == format!("{verb} {object}")).map(|(_, n)| n).sum::<u32>();
            let impossible = matches!((verb, object), ("change", "address") | ("add" | "delete", "sysctl"));
            assert!(seen > 0 || impossible, "no plan had a step to {verb} a {object}: {kinds:?}");
        }
    }
}

/// A plan reaches its goal in one go: the next one is empty.
fn assert_settled(seed: u64, what: &str, desired: &Desired, plan: &Plan, seen: &Observed) {
    let rest = diff(desired, seen);
    assert!(rest.steps.is_empty(), "seed {seed}, after {what}\nstill to do:\n{rest}");
    assert_eq!(rest.blocked, plan.blocked, "seed {seed}, after {what}");
}

/// Things done by hand in between must also agree: the plan that heals them starts from what both show.
#[test]
fn the_fake_agrees_with_the_kernel_on_what_tampering_does() {
    let scope = Random::scope();
    for seed in 1000..1030 {
        let mut random = Random::new(seed);
        let (mut real, mut fake) = both(&mut random, &scope);
        let (desired, plan) = random.plan(&fake.observe(&scope), STEPS);
        for step in &plan.steps {
            fake.apply(step).unwrap();
            real.apply(step).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
        for _ in 0..4 {
            let here: Vec<Object> =
                fake.observe(&scope).objects.iter().filter(|o| may_remove(o)).cloned().collect();
            let Some(victim) = pick(&mut random, &here) else { break };
            let step = Step::Delete(victim.clone());
            fake.apply(&step).unwrap();
            real.apply(&step).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            let text = format!("tampering:\n{step}");
            assert_agreement(seed, &text, &real.observe(&scope).unwrap(), &fake.observe(&scope));
        }
        let heal = diff(&desired, &real.observe(&scope).unwrap());
        for step in &heal.steps {
            real.apply(step).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
        assert_settled(seed, &format!("healing:\n{heal}"), &desired, &heal, &real.observe(&scope).unwrap());
    }
}

fn may_remove(object: &Object) -> bool {
    match object {
        Object::Sysctl(_) => false,
        Object::Link(link) => link.name.starts_with("flannel") || link.name.starts_with("br"),
        other => other.link().is_none_or(|link| !matches!(link, "lo" | "veth0" | "eth0")),
    }
}

fn pick<'a>(random: &mut Random, from: &'a [Object]) -> Option<&'a Object> {
    let count = u64::try_from(from.len()).ok().filter(|n| *n > 0)?;
    from.get(usize::try_from(random.below(count)).ok()?)
}

fn kind(step: &Step) -> &'static str {
    let (verb, object) = match step {
        Step::Add(object) => (0, object),
        Step::Change { to, .. } => (1, to),
        Step::Delete(object) => (2, object),
    };
    let names: [&'static str; 3] = match object {
        Object::Link(_) => ["add link", "change link", "delete link"],
        Object::Sysctl(_) => ["add sysctl", "change sysctl", "delete sysctl"],
        Object::Table(_) => ["add table", "change table", "delete table"],
        Object::Chain(_) => ["add chain", "change chain", "delete chain"],
        Object::Address(_) => ["add address", "change address", "delete address"],
        Object::Neighbour(_) => ["add neighbour", "change neighbour", "delete neighbour"],
        Object::Fdb(_) => ["add fdb", "change fdb", "delete fdb"],
        Object::Route(_) => ["add route", "change route", "delete route"],
    };
    names.get(verb).copied().unwrap_or_default()
}

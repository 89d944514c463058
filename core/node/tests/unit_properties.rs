//! What must hold of every plan, over random scenarios in a small world where keys collide.

#![expect(clippy::panic, reason = "a broken scenario must say which step of which plan broke")]

use loden_node::fake::{Kernel, Random};
use loden_node::{Desired, Key, Object, Objects, Plan, Step, check, diff};
use proptest::prelude::*;

/// A kernel with a past: foreign objects, one desired network applied, then some of it damaged by hand.
fn lived_in(random: &mut Random) -> Kernel {
    let mut kernel = Kernel::with(random.foreign());
    let earlier = random.desired();
    let way = plan(&earlier, &kernel);
    apply_all(&mut kernel, &way);
    let keys: Vec<Key> = kernel.observe(&Random::scope()).objects.keys().cloned().collect();
    for key in keys {
        let ours = kernel.objects().get(&key).is_some_and(|o| Random::scope().owns(kernel.objects(), o));
        if ours && random.below(4) == 0 {
            kernel.remove(&key);
        }
    }
    kernel
}

fn plan(desired: &Desired, kernel: &Kernel) -> Plan {
    let observed = kernel.observe(&desired.scope);
    let plan = diff(desired, &observed);
    check(&plan, desired, &observed).unwrap_or_else(|error| panic!("{error}\n{plan}"));
    assert_eq!(plan.blocked, [], "every scenario can be had in full:\n{plan}");
    plan
}

fn apply_all(kernel: &mut Kernel, plan: &Plan) {
    for step in &plan.steps {
        kernel.apply(step).unwrap_or_else(|error| panic!("`{step}`: {error}, in\n{plan}"));
    }
}

fn assert_reached(desired: &Desired, kernel: &Kernel) {
    let observed = kernel.observe(&desired.scope).objects;
    for want in desired.objects.iter() {
        let have = observed.get(&want.key());
        assert!(have.is_some_and(|have| have.satisfies(want)), "wanted {want:?}, have {have:?}");
    }
    for have in observed.iter() {
        let surplus = desired.scope.owns(&observed, have) && desired.objects.get(&have.key()).is_none();
        assert!(!surplus, "{have:?} is ours, stale, and still there");
    }
}

fn foreign(kernel: &Kernel) -> Vec<Object> {
    let scope = Random::scope();
    let all = kernel.objects();
    all.iter().filter(|o| !scope.owns(all, o) && !matches!(o, Object::Sysctl(_))).cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn diff_of_equal_is_empty(seed: u64) {
        let mut random = Random::new(seed);
        let desired = random.desired();
        let kernel = Kernel::with(desired.objects.clone());
        prop_assert!(diff(&desired, &kernel.observe(&desired.scope)).is_empty());
    }

    #[test]
    fn applied_plan_reaches_desired(seed: u64) {
        let mut random = Random::new(seed);
        let mut kernel = lived_in(&mut random);
        let desired = random.desired();
        let plan = plan(&desired, &kernel);
        apply_all(&mut kernel, &plan);
        assert_reached(&desired, &kernel);
        prop_assert!(diff(&desired, &kernel.observe(&desired.scope)).is_empty());
    }

    #[test]
    fn any_prefix_then_replan_converges(seed: u64, cut in 0_usize..40) {
        let mut random = Random::new(seed);
        let mut kernel = lived_in(&mut random);
        let desired = random.desired();
        let first = plan(&desired, &kernel);
        let begun = Plan { steps: first.steps.into_iter().take(cut).collect(), blocked: Vec::new() };
        apply_all(&mut kernel, &begun);
        let second = plan(&desired, &kernel);
        apply_all(&mut kernel, &second);
        assert_reached(&desired, &kernel);
    }

    #[test]
    fn foreign_objects_never_appear(seed: u64) {
        let mut random = Random::new(seed);
        let mut kernel = lived_in(&mut random);
        let before = foreign(&kernel);
        let desired = random.desired();
        let plan = plan(&desired, &kernel);
        for step in &plan.steps {
            prop_assert!(!before.iter().any(|o| o.key() == step.key()), "`{step}` is about somebody else's object");
        }
        apply_all(&mut kernel, &plan);
        prop_assert_eq!(foreign(&kernel), before);
    }

    #[test]
    fn order_respects_dependencies(seed: u64) {
        let mut random = Random::new(seed);
        let mut kernel = lived_in(&mut random);
        let desired = random.desired();
        let plan = plan(&desired, &kernel);
        for (i, step) in plan.steps.iter().enumerate() {
            let link = |o: &Object| o.link().map(|name| Key::Link(name.to_owned()));
            match step {
                // What a new object lives on is there by then, and stays.
                Step::Add(object) | Step::Change { to: object, .. } => if let Some(link) = link(object) {
                    prop_assert!(kernel.objects().get(&link).is_some(), "`{step}` before its link");
                    let torn = plan.steps[i..].iter().any(|s| matches!(s, Step::Delete(o) if o.key() == link));
                    prop_assert!(!torn, "`{step}` is torn down again later");
                },
                // Nothing of ours goes before what replaces it stands: only a link that is made anew may precede an add.
                Step::Delete(object) => {
                    let follows_add = plan.steps[i..].iter().any(|s| matches!(s, Step::Add(o) if o.key() == object.key()));
                    prop_assert_eq!(follows_add, desired.objects.get(&object.key()).is_some());
                    prop_assert!(!follows_add || matches!(object, Object::Link(_)));
                }
            }
            kernel.apply(step).unwrap();
        }
    }

    #[test]
    fn a_plan_that_was_tampered_with_is_refused(seed: u64) {
        let mut random = Random::new(seed);
        let kernel = lived_in(&mut random);
        let desired = random.desired();
        let observed = kernel.observe(&desired.scope);
        let mut plan = diff(&desired, &observed);
        if let Some(stranger) = foreign(&kernel).pop() {
            plan.steps.push(Step::Delete(stranger));
            prop_assert!(check(&plan, &desired, &observed).is_err());
            plan.steps.pop();
        }
        if let Some(right) = desired.objects.iter().find(|o| !matches!(o, Object::Sysctl(_))) {
            plan.steps.push(Step::Delete(right.clone()));
            prop_assert!(check(&plan, &desired, &observed).is_err());
        }
    }
}

#[test]
fn the_generator_reaches_every_kind_of_step() {
    let mut kinds = std::collections::BTreeSet::new();
    let mut random = Random::new(1);
    let mut kernel = Kernel::with(random.foreign());
    for _ in 0..500 {
        let (_, plan) = random.plan(&kernel.observe(&Random::scope()), 5);
        assert!(plan.steps.len() >= 5);
        for step in &plan.steps {
            let verb = match step {
                Step::Add(_) => "add",
                Step::Change { .. } => "change",
                Step::Delete(_) => "delete",
            };
            let what = match step.key() {
                Key::Link(_) => "link",
                Key::Sysctl(_) => "sysctl",
                Key::Table(_) => "table",
                Key::Address { .. } => "address",
                Key::Neighbour { .. } => "neighbour",
                Key::Fdb { .. } => "FDB entry",
                Key::Route { .. } => "route",
                Key::Chain { .. } => "chain",
            };
            kinds.insert(format!("{verb} {what}"));
        }
        apply_all(&mut kernel, &plan);
    }
    let missing: Vec<String> = ["link", "table", "neighbour", "FDB entry", "route"]
        .iter()
        .flat_map(|what| ["add", "change", "delete"].map(|verb| format!("{verb} {what}")))
        .chain(["add address", "delete address", "change sysctl"].map(str::to_owned))
        .filter(|kind| !kinds.contains(kind))
        .collect();
    assert_eq!(missing, [] as [String; 0], "reached only {kinds:?}");
}

#[test]
fn the_fake_refuses_what_the_kernel_refuses() {
    let mut random = Random::new(7);
    let desired = random.desired();
    let mut empty = Kernel::with(Objects::default());
    let route = desired.objects.iter().find(|o| matches!(o, Object::Route(r) if r.link.is_some()));
    if let Some(route) = route {
        assert!(empty.apply(&Step::Add(route.clone())).is_err(), "a route without its link");
    }
    let mut full = Kernel::with(desired.objects.clone());
    let link = desired.objects.iter().find(|o| matches!(o, Object::Link(_))).expect("seed 7 has a link");
    assert!(full.apply(&Step::Add(link.clone())).is_err(), "a link twice");
}

use proptest::prelude::*;
use serde_json::{Value, json};

use super::entries::{Author, Owners, blank};
use super::fields::{FieldSet, root};
use super::*;
use crate::resource::Resource;

const NOW: &str = "2026-01-01T00:00:00Z";

fn by(manager: &str) -> Author<'_> {
    Author { manager, applies: true, status: false }
}

/// Applies and stores, as the model does.
fn apply(live: &Value, manager: &str, wanted: Value, force: bool) -> Result<Value, String> {
    let mut whole = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    whole.as_object_mut().unwrap().extend(wanted.as_object().unwrap().clone());
    applied(Resource::ConfigMaps, by(manager), live, &whole, force, NOW)
        .map(|(mut after, owners)| {
            owners.write(&mut after);
            after
        })
        .map_err(|failure| failure.message)
}

fn start() -> Value {
    blank(Resource::ConfigMaps)
}

#[test]
fn what_is_no_longer_wanted_goes_unless_another_wants_it() {
    let one = apply(&start(), "a", json!({"data": {"x": "1", "y": "1"}}), false).unwrap();
    let shared = apply(&one, "b", json!({"data": {"x": "1"}}), false).unwrap();
    let after = apply(&shared, "a", json!({}), false).unwrap();
    assert_eq!(after["data"], json!({"x": "1"}), "b still wants x");
    let after = apply(&after, "b", json!({}), false).unwrap();
    assert_eq!(after.get("data"), None, "nobody wants anything");
}

#[test]
fn a_foreign_field_is_a_conflict_until_it_is_forced() {
    let one = apply(&start(), "a", json!({"data": {"x": "1", "y": "1"}}), false).unwrap();
    let refused = apply(&one, "b", json!({"data": {"x": "2"}}), false).unwrap_err();
    assert_eq!(refused, "Apply failed with 1 conflict: conflict with \"a\": .data.x");
    let taken = apply(&one, "b", json!({"data": {"x": "2"}}), true).unwrap();
    assert_eq!(taken["data"], json!({"x": "2", "y": "1"}));
    let after = apply(&taken, "b", json!({"data": {"z": "3"}}), false).unwrap();
    assert_eq!(after["data"], json!({"y": "1", "z": "3"}), "a lost x, so b could drop it");
}

#[test]
fn an_update_takes_what_it_changes() {
    let one = apply(&start(), "a", json!({"data": {"x": "1", "y": "1"}}), false).unwrap();
    let mut other = one.clone();
    other["data"]["x"] = json!("2");
    let mut owners = Owners::read(&one).unwrap();
    let author = Author { manager: "u", applies: false, status: false };
    owners.record(author, Resource::ConfigMaps, &one, &other, NOW);
    owners.write(&mut other);
    let refused = apply(&other, "a", json!({"data": {"x": "1", "y": "1"}}), false).unwrap_err();
    assert!(refused.contains("conflict with \"u\" using v1 at 2026-01-01T00:00:00Z: .data.x"), "{refused}");
    // Agreeing is no conflict.
    assert!(apply(&other, "a", json!({"data": {"x": "2"}}), false).is_ok());
}

#[test]
fn list_items_are_owned_by_their_keys() {
    let pod = |name: &str, image: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": name, "image": image, "ports": [{"containerPort": 1}]}]}})
    };
    let mut live = blank(Resource::Pods);
    for (manager, name) in [("a", "one"), ("b", "two")] {
        let wanted = pod(name, "i");
        let (mut after, owners) = applied(Resource::Pods, by(manager), &live, &wanted, false, NOW).unwrap();
        owners.write(&mut after);
        live = after;
    }
    let names = |pod: &Value| -> Vec<String> {
        let list = pod["spec"]["containers"].as_array().unwrap();
        list.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&live), ["one", "two"]);
    let failure = applied(Resource::Pods, by("b"), &live, &pod("one", "j"), false, NOW).unwrap_err().message;
    assert!(failure.contains(".spec.containers[name=\"one\"].image"), "{failure}");
    let (after, _) = applied(Resource::Pods, by("a"), &live, &pod("three", "i"), false, NOW).unwrap();
    assert_eq!(names(&after), ["two", "three"]);
    let set = FieldSet::of(&root(Resource::Pods), &pod("one", "i")).to_json().to_string();
    assert!(set.contains(r#"k:{\"containerPort\":1,\"protocol\":\"TCP\"}"#), "{set}");
}

#[test]
fn malformed_owners_are_no_owners() {
    for fields in [json!({"x:a": {}}), json!({"f:a": 1}), json!({"k:{": {}}), json!([]), Value::Null] {
        let entry = json!({"manager": "m", "operation": "Apply", "apiVersion": "v1", "fieldsV1": fields});
        assert_eq!(Owners::read(&json!({"metadata": {"managedFields": [entry]}})), None);
    }
    let reset = json!({"metadata": {"managedFields": [{}]}});
    assert_eq!(Owners::read(&reset), Some(Owners::default()));
}

fn data() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-c]", "[01]", 0..3).prop_map(|map| json!({"data": map}))
}

proptest! {
    /// Whoever applied last has exactly the values it asked for, applying again changes nothing, and what was applied
    /// and is in the object has an owner.
    #[test]
    fn the_last_apply_holds(steps in prop::collection::vec((0usize..3, data(), any::<bool>()), 1..12)) {
        let mut live = start();
        for (who, wanted, force) in steps {
            let manager = ["a", "b", "c"][who];
            let Ok(after) = apply(&live, manager, wanted.clone(), force) else {
                prop_assert!(!force, "force overcomes every conflict");
                continue;
            };
            for (key, value) in wanted["data"].as_object().unwrap() {
                prop_assert_eq!(&after["data"][key], value);
            }
            prop_assert_eq!(&apply(&after, manager, wanted, false).unwrap(), &after);
            let owned = Owners::read(&after).map(|owners| owners.all()).unwrap_or_default().to_json();
            for key in after["data"].as_object().into_iter().flatten().map(|(key, _)| key) {
                prop_assert!(owned["f:data"].get(format!("f:{key}")).is_some(), "{} in {}", key, owned);
            }
            live = after;
        }
    }

    #[test]
    fn sets_of_fields_survive_their_notation(a in data(), b in data()) {
        let of = root(Resource::ConfigMaps);
        let (mut one, two) = (FieldSet::of(&of, &a), FieldSet::of(&of, &b));
        one.union(&two);
        if !one.is_empty() {
            prop_assert_eq!(FieldSet::from_json(&one.to_json()), Some(one.clone()));
        }
        let mut rest = one.clone();
        rest.subtract(&two);
        prop_assert!(rest.intersection(&two).is_empty());
        rest.union(&one.intersection(&two));
        prop_assert_eq!(rest, one);
    }
}

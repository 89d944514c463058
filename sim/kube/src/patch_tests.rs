use proptest::prelude::*;
use serde_json::json;

use super::*;

fn strategic(object: Value, patch: Value) -> Value {
    apply(Resource::Nodes, PatchType::Strategic, &object, &patch).unwrap()
}

fn node() -> Value {
    json!({
        "metadata": {"name": "n", "annotations": {"a": "1", "b": "2"}, "finalizers": ["x"]},
        "spec": {"taints": [{"key": "t", "effect": "NoSchedule"}], "podCIDRs": ["10.0.0.0/24"]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "1.1.1.1"}, {"type": "Hostname", "address": "n"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "r"}, {"type": "X", "status": "False"}]}
    })
}

#[test]
fn conditions_merge_by_type() {
    let after = strategic(
        node(),
        json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "New", "status": "True"}]}}),
    );
    assert_eq!(
        after["status"]["conditions"],
        json!([{"type": "Ready", "status": "False", "reason": "r"}, {"type": "X", "status": "False"},
            {"type": "New", "status": "True"}])
    );
    assert_eq!(after["status"]["addresses"], node()["status"]["addresses"]);
}

#[test]
fn annotations_merge_and_null_removes() {
    let after = strategic(node(), json!({"metadata": {"annotations": {"a": null, "c": "3"}}}));
    assert_eq!(after["metadata"]["annotations"], json!({"b": "2", "c": "3"}));
}

#[test]
fn taints_have_no_merge_key_and_are_replaced() {
    let after =
        strategic(node(), json!({"spec": {"taints": [{"key": "u", "effect": "NoExecute", "value": null}]}}));
    assert_eq!(after["spec"]["taints"], json!([{"key": "u", "effect": "NoExecute"}]));
    assert_eq!(strategic(node(), json!({"spec": {"taints": []}}))["spec"]["taints"], json!([]));
}

#[test]
fn plain_sets_grow_and_shrink_by_directive() {
    let after = strategic(node(), json!({"spec": {"podCIDRs": ["10.0.0.0/24", "fd00::/64"]}}));
    assert_eq!(after["spec"]["podCIDRs"], json!(["10.0.0.0/24", "fd00::/64"]));
    let after = strategic(
        node(),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x"], "$setElementOrder/finalizers": ["z", "y"],
            "finalizers": ["y", "z"]}}),
    );
    assert_eq!(after["metadata"]["finalizers"], json!(["z", "y"]));
}

#[test]
fn list_items_can_be_deleted_and_lists_replaced() {
    let after =
        strategic(node(), json!({"status": {"addresses": [{"$patch": "delete", "type": "Hostname"}]}}));
    assert_eq!(after["status"]["addresses"], json!([{"type": "InternalIP", "address": "1.1.1.1"}]));
    let after = strategic(
        node(),
        json!({"status": {"addresses": [{"$patch": "replace"}, {"type": "InternalIP", "address": "2.2.2.2"}]}}),
    );
    assert_eq!(after["status"]["addresses"], json!([{"type": "InternalIP", "address": "2.2.2.2"}]));
}

#[test]
fn maps_can_be_replaced_deleted_and_narrowed() {
    let after = strategic(node(), json!({"metadata": {"annotations": {"$patch": "replace", "z": "9"}}}));
    assert_eq!(after["metadata"]["annotations"], json!({"z": "9"}));
    let after = strategic(node(), json!({"metadata": {"annotations": {"$patch": "delete"}}}));
    assert_eq!(after["metadata"]["annotations"], json!({}));
    let after = strategic(node(), json!({"metadata": {"annotations": {"$retainKeys": ["a"]}}}));
    assert_eq!(after["metadata"]["annotations"], json!({"a": "1"}));
}

#[test]
fn an_element_order_sorts_the_merged_list() {
    let after = strategic(
        node(),
        json!({"status": {"$setElementOrder/conditions": [{"type": "X"}, {"type": "Ready"}],
            "conditions": [{"type": "X", "status": "True"}]}}),
    );
    assert_eq!(after["status"]["conditions"][0], json!({"type": "X", "status": "True"}));
    assert_eq!(after["status"]["conditions"][1]["type"], "Ready");
}

#[test]
fn broken_strategic_patches_are_refused() {
    for patch in [
        json!({"status": {"conditions": [{"status": "True"}]}}),
        json!({"status": {"conditions": ["Ready"]}}),
        json!({"$patch": "explode"}),
        json!({"metadata": {"$retainKeys": 1}}),
        json!({"metadata": {"$setElementOrder/finalizers": "x"}}),
        json!({"metadata": {"$unknown": 1}}),
        json!([1]),
    ] {
        let refused = apply(Resource::Nodes, PatchType::Strategic, &node(), &patch).unwrap_err();
        assert_eq!(refused.code, 400, "{patch}");
    }
}

#[test]
fn containers_merge_by_name_and_their_ports_by_number() {
    let pod = json!({"spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "name": "w"}]}]}});
    let patch =
        json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}});
    let after = apply(Resource::Pods, PatchType::Strategic, &pod, &patch).unwrap();
    assert_eq!(
        after["spec"]["containers"],
        json!([{"name": "c", "image": "i", "ports": [{"containerPort": 80, "name": "w", "protocol": "TCP"}]}])
    );
}

/// The examples of RFC 7386, appendix A.
#[test]
fn merge_patch_follows_its_rfc() {
    for (object, patch, wanted) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
    ] {
        assert_eq!(apply(Resource::Nodes, PatchType::Merge, &object, &patch).unwrap(), wanted);
    }
}

#[test]
fn json_patch_follows_its_rfc() {
    let object = json!({"a": {"b": [1, 2]}, "x/y": 1});
    for (patch, wanted) in [
        (json!([{"op": "add", "path": "/a/b/1", "value": 9}]), json!({"a": {"b": [1, 9, 2]}, "x/y": 1})),
        (json!([{"op": "add", "path": "/a/b/-", "value": 9}]), json!({"a": {"b": [1, 2, 9]}, "x/y": 1})),
        (json!([{"op": "remove", "path": "/x~1y"}]), json!({"a": {"b": [1, 2]}})),
        (json!([{"op": "replace", "path": "/a", "value": 1}]), json!({"a": 1, "x/y": 1})),
        (json!([{"op": "move", "from": "/a/b", "path": "/c"}]), json!({"a": {}, "c": [1, 2], "x/y": 1})),
        (
            json!([{"op": "copy", "from": "/a/b/0", "path": "/c"}]),
            json!({"a": {"b": [1, 2]}, "c": 1, "x/y": 1}),
        ),
        (json!([{"op": "test", "path": "/a/b/0", "value": 1}]), object.clone()),
    ] {
        assert_eq!(apply(Resource::Nodes, PatchType::Json, &object, &patch).unwrap(), wanted, "{patch}");
    }
    for patch in [
        json!({}),
        json!([{"op": "remove", "path": "/none"}]),
        json!([{"op": "replace", "path": "/none/x", "value": 1}]),
        json!([{"op": "add", "path": "/a/b/7", "value": 1}]),
        json!([{"op": "add", "path": "a", "value": 1}]),
        json!([{"op": "test", "path": "/a", "value": 1}]),
        json!([{"op": "fly", "path": "/a"}]),
        json!([{"path": "/a"}]),
        json!([7]),
    ] {
        assert!(apply(Resource::Nodes, PatchType::Json, &object, &patch).is_err(), "{patch}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u8>().prop_map(Value::from),
        prop::sample::select(vec!["delete", "replace", "merge", "Ready", "x"]).prop_map(Value::from),
    ];
    let name = prop::sample::select(vec![
        "metadata",
        "spec",
        "status",
        "conditions",
        "type",
        "taints",
        "finalizers",
        "$patch",
        "$retainKeys",
        "$setElementOrder/conditions",
        "$deleteFromPrimitiveList/finalizers",
        "op",
        "path",
    ]);
    leaf.prop_recursive(5, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone(), inner, 0..5).prop_map(|map| Value::Object(
                map.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            )),
        ]
    })
}

proptest! {
    #[test]
    fn no_patch_panics(object in any_json(), patch in any_json()) {
        for kind in [PatchType::Json, PatchType::Merge, PatchType::Strategic] {
            if let Ok(after) = apply(Resource::Nodes, kind, &object, &patch) {
                // What came out can be patched again.
                let _second = apply(Resource::Nodes, kind, &after, &patch);
            }
        }
    }

    #[test]
    fn a_strategic_patch_of_conditions_is_idempotent(status in "[A-Z][a-z]{1,5}", kind in "[A-Z][a-z]{1,5}") {
        let patch = json!({"status": {"conditions": [{"type": kind, "status": status}]}});
        let once = strategic(node(), patch.clone());
        prop_assert_eq!(&strategic(once.clone(), patch), &once);
    }
}

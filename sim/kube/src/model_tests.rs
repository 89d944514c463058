use super::*;
use crate::listing::{At, Continue, ListOptions, Page, list};

fn write(number: u32) -> Write {
    let stamp = Stamp {
        now: "2026-01-01T00:00:00Z".to_owned(),
        uid: format!("uid-{number}"),
        suffix: format!("x{number:04}"),
    };
    Write {
        stamp,
        dry_run: false,
        manager: "tester".to_owned(),
        validation: Validation::Warn,
        warnings: Vec::new(),
    }
}

fn dry_run(number: u32) -> Write {
    Write { dry_run: true, ..write(number) }
}

fn store() -> Store {
    let mut store = Store::new(0, 100);
    for name in ["default", "kube-system"] {
        create(&mut store, Resource::Namespaces, "", json!({"metadata": {"name": name}}), &mut write(0))
            .unwrap();
    }
    store
}

fn node(name: &str) -> Key {
    Key::new(Resource::Nodes, "", name)
}

fn make(store: &mut Store, body: Value) -> Arc<Value> {
    create(store, Resource::Nodes, "", body, &mut write(1)).unwrap()
}

fn strategic(store: &mut Store, part: Part, change: Value) -> Result<Arc<Value>, Failure> {
    patch(store, &node("n1"), part, PatchType::Strategic, &change, &mut write(1))
}

#[test]
fn a_created_object_gets_what_the_server_gives() {
    let mut store = store();
    let made = make(
        &mut store,
        json!({"metadata": {"name": "n1", "uid": "mine", "creationTimestamp": null, "managedFields": []}}),
    );
    assert_eq!(made["metadata"]["uid"], "uid-1");
    assert_eq!(made["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
    assert_eq!(made["metadata"]["resourceVersion"], store.revision().to_string());
    assert_eq!((&made["kind"], &made["apiVersion"]), (&json!("Node"), &json!("v1")));
    assert_eq!(made["metadata"].get("managedFields"), None);
}

#[test]
fn create_refuses_what_the_server_refuses() {
    let mut store = store();
    make(&mut store, json!({"metadata": {"name": "n1"}}));
    for (resource, namespace, body, code) in [
        (Resource::Nodes, "", json!({"metadata": {"name": "n1"}}), 409),
        (Resource::Nodes, "", json!({"metadata": {"name": "N_1"}}), 422),
        (Resource::Nodes, "", json!({"metadata": {}}), 422),
        (Resource::Nodes, "", json!({"metadata": {"name": "n2", "resourceVersion": "5"}}), 400),
        (Resource::Nodes, "", json!({"metadata": {"name": "n2", "namespace": "default"}}), 400),
        (Resource::Nodes, "", json!({"kind": "Pod", "metadata": {"name": "n2"}}), 400),
        (Resource::Nodes, "", json!({"metadata": {"name": "n2", "labels": {"a": 1}}}), 400),
        (Resource::Nodes, "", json!({"metadata": {"name": "n2", "labels": {"a b": "1"}}}), 422),
        (Resource::Nodes, "", json!({"metadata": {"name": "n2"}, "spec": 7}), 400),
        (Resource::Nodes, "", json!({"metadata": {"name": "n2"}, "spec": {"podCIDR": "10.0.0.0/33"}}), 422),
        (
            Resource::Nodes,
            "",
            json!({"metadata": {"name": "n2"}, "spec": {"podCIDRs": ["10.0.0.0/24", "10.1.0.0/24"]}}),
            422,
        ),
        (Resource::Nodes, "", json!([]), 400),
        (Resource::Pods, "nowhere", json!({"metadata": {"name": "p"}}), 404),
        (Resource::Pods, "default", json!({"metadata": {"name": "p", "namespace": "other"}}), 400),
        (
            Resource::Events,
            "kube-system",
            json!({"metadata": {"name": "e"}, "involvedObject": {"name": "n1"}}),
            422,
        ),
        (
            Resource::Leases,
            "default",
            json!({"metadata": {"name": "l"}, "spec": {"leaseDurationSeconds": 0}}),
            422,
        ),
        (Resource::Leases, "default", json!({"metadata": {"name": "l"}, "spec": {"renewTime": "noon"}}), 400),
        (Resource::ConfigMaps, "default", json!({"metadata": {"name": "c"}, "data": {"a": 1}}), 400),
    ] {
        let refused = create(&mut store, resource, namespace, body.clone(), &mut write(2)).unwrap_err();
        assert_eq!(refused.code, code, "{body}: {refused}");
        assert_eq!(refused.to_status()["code"], code);
    }
}

#[test]
fn the_two_spellings_of_the_pod_cidr_are_one_field() {
    let mut store = store();
    make(&mut store, json!({"metadata": {"name": "n1"}}));
    let after = strategic(&mut store, Part::Main, json!({"spec": {"podCIDR": "10.0.0.0/24"}})).unwrap();
    assert_eq!(after["spec"]["podCIDRs"], json!(["10.0.0.0/24"]));
    let other = make(
        &mut store,
        json!({"metadata": {"name": "n2"}, "spec": {"podCIDRs": ["10.0.1.0/24", "fd00::/64"]}}),
    );
    assert_eq!(other["spec"]["podCIDR"], "10.0.1.0/24");
}

#[test]
fn pod_cidr_and_provider_id_are_set_once() {
    let mut store = store();
    make(
        &mut store,
        json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.0.0.0/24", "providerID": "a.i-1"}}),
    );
    let refused = strategic(
        &mut store,
        Part::Main,
        json!({"spec": {"podCIDR": "10.0.1.0/24", "podCIDRs": ["10.0.1.0/24"]}}),
    );
    let refused = refused.unwrap_err();
    assert_eq!(refused.code, 422);
    assert!(refused.message.contains("may not change podCIDR except from \"\" to valid"), "{refused}");
    assert_eq!(
        strategic(&mut store, Part::Main, json!({"spec": {"podCIDR": null, "podCIDRs": null}}))
            .unwrap_err()
            .code,
        422
    );
    assert_eq!(
        strategic(&mut store, Part::Main, json!({"spec": {"providerID": "a.i-2"}})).unwrap_err().code,
        422
    );
    assert!(
        strategic(&mut store, Part::Main, json!({"spec": {"podCIDR": "10.0.0.0/24"}})).is_ok(),
        "the same again"
    );
}

#[test]
fn status_and_the_rest_are_written_apart() {
    let mut store = store();
    make(&mut store, json!({"metadata": {"name": "n1"}, "spec": {"providerID": "a.i-1"}}));
    let both = json!({
        "metadata": {"annotations": {"flannel.alpha.coreos.com/public-ip": "1.2.3.4"}},
        "spec": {"unschedulable": true}, "status": {"phase": "x"}});
    let after = strategic(&mut store, Part::Status, both).unwrap();
    assert_eq!(after["spec"], json!({"providerID": "a.i-1"}));
    assert_eq!(after["status"], json!({"phase": "x"}));
    assert_eq!(after["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"], "1.2.3.4");
    let after =
        strategic(&mut store, Part::Main, json!({"spec": {"unschedulable": true}, "status": {"phase": "y"}}))
            .unwrap();
    assert_eq!((&after["spec"]["unschedulable"], &after["status"]["phase"]), (&json!(true), &json!("x")));
}

#[test]
fn versions_and_uids_guard_writes() {
    let mut store = store();
    let made = make(&mut store, json!({"metadata": {"name": "n1"}}));
    let old = made["metadata"]["resourceVersion"].clone();
    strategic(&mut store, Part::Main, json!({"metadata": {"labels": {"a": "1"}}})).unwrap();
    for change in [
        json!({"metadata": {"resourceVersion": old, "labels": {"a": "2"}}}),
        json!({"metadata": {"uid": "another"}}),
    ] {
        assert_eq!(strategic(&mut store, Part::Main, change.clone()).unwrap_err().code, 409, "{change}");
    }
    let stale = json!({"metadata": {"name": "n1", "resourceVersion": old}});
    assert_eq!(update(&mut store, &node("n1"), Part::Main, stale, &mut write(2)).unwrap_err().code, 409);
    let misnamed = json!({"metadata": {"name": "n2"}});
    assert_eq!(update(&mut store, &node("n1"), Part::Main, misnamed, &mut write(2)).unwrap_err().code, 400);
    let absent = json!({"metadata": {"name": "n9"}});
    assert_eq!(update(&mut store, &node("n9"), Part::Main, absent, &mut write(2)).unwrap_err().code, 404);
}

#[test]
fn a_lease_may_be_created_by_put_but_not_updated_blindly() {
    let mut store = store();
    let key = Key::new(Resource::Leases, "default", "l");
    let body = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}});
    update(&mut store, &key, Part::Main, body.clone(), &mut write(3)).unwrap();
    assert_eq!(update(&mut store, &key, Part::Main, body, &mut write(3)).unwrap_err().code, 422);
}

#[test]
fn a_write_without_effect_makes_no_version() {
    let mut store = store();
    make(&mut store, json!({"metadata": {"name": "n1", "labels": {"a": "1"}}}));
    let before = store.revision();
    strategic(&mut store, Part::Main, json!({"metadata": {"labels": {"a": "1"}}})).unwrap();
    assert_eq!(store.revision(), before);
}

#[test]
fn a_dry_run_keeps_nothing() {
    let mut store = store();
    make(&mut store, json!({"metadata": {"name": "n1"}}));
    let before = store.revision();
    create(&mut store, Resource::Nodes, "", json!({"metadata": {"name": "n2"}}), &mut dry_run(4)).unwrap();
    patch(
        &mut store,
        &node("n1"),
        Part::Main,
        PatchType::Merge,
        &json!({"metadata": {"labels": {"a": "1"}}}),
        &mut dry_run(4),
    )
    .unwrap();
    delete(&mut store, &node("n1"), &DeleteOptions::default(), &dry_run(4)).unwrap();
    assert_eq!(store.revision(), before);
}

#[test]
fn finalizers_hold_an_object_until_the_last_is_gone() {
    let mut store = store();
    make(&mut store, json!({"metadata": {"name": "n1", "finalizers": ["a/b"]}}));
    let held = delete(&mut store, &node("n1"), &DeleteOptions::default(), &write(5)).unwrap();
    assert!(
        matches!(held, Deleted::Held(object) if object["metadata"]["deletionTimestamp"] == "2026-01-01T00:00:00Z")
    );
    assert!(store.get(&node("n1")).is_some());
    patch(
        &mut store,
        &node("n1"),
        Part::Main,
        PatchType::Merge,
        &json!({"metadata": {"finalizers": null}}),
        &mut write(5),
    )
    .unwrap();
    assert!(store.get(&node("n1")).is_none());
}

#[test]
fn delete_obeys_its_preconditions() {
    let mut store = store();
    make(&mut store, json!({"metadata": {"name": "n1"}}));
    let wrong = DeleteOptions { uid: Some("other".to_owned()), resource_version: None };
    assert_eq!(delete(&mut store, &node("n1"), &wrong, &write(6)).unwrap_err().code, 409);
    let wrong = DeleteOptions { uid: None, resource_version: Some("1".to_owned()) };
    assert_eq!(delete(&mut store, &node("n1"), &wrong, &write(6)).unwrap_err().code, 409);
    let right = DeleteOptions { uid: Some("uid-1".to_owned()), resource_version: None };
    assert!(matches!(delete(&mut store, &node("n1"), &right, &write(6)), Ok(Deleted::Gone(_))));
    assert_eq!(delete(&mut store, &node("n1"), &right, &write(6)).unwrap_err().code, 404);
}

#[test]
fn a_namespace_takes_its_content_along() {
    let mut store = store();
    create(&mut store, Resource::Namespaces, "", json!({"metadata": {"name": "a"}}), &mut write(7)).unwrap();
    create(&mut store, Resource::ConfigMaps, "a", json!({"metadata": {"name": "c"}}), &mut write(7)).unwrap();
    delete(&mut store, &Key::new(Resource::Namespaces, "", "a"), &DeleteOptions::default(), &write(7))
        .unwrap();
    assert_eq!(store.list(Resource::ConfigMaps, None).count(), 0);
    let kept = delete(
        &mut store,
        &Key::new(Resource::Namespaces, "", "default"),
        &DeleteOptions::default(),
        &write(7),
    );
    assert_eq!(kept.unwrap_err().code, 403);
}

fn page(store: &Store, at: At, limit: Option<usize>, from: Option<Continue>) -> Result<Page, Failure> {
    list(store, Resource::Nodes, None, |_| true, &ListOptions { at, limit, from })
}

#[test]
fn pages_show_one_moment_whatever_happens_meanwhile() {
    let mut store = store();
    for name in ["a", "b", "c", "d", "e"] {
        make(&mut store, json!({"metadata": {"name": name}}));
    }
    let first = page(&store, At::Latest, Some(2), None).unwrap();
    assert_eq!((first.items.len(), first.remaining), (2, 3));
    delete(&mut store, &node("d"), &DeleteOptions::default(), &write(8)).unwrap();
    make(&mut store, json!({"metadata": {"name": "cc"}}));
    let mut names = Vec::new();
    let mut from = first.next.clone();
    while let Some(token) = from {
        let next =
            page(&store, At::Latest, Some(2), Some(Continue::decode(&token.encode()).unwrap())).unwrap();
        assert_eq!(next.revision, first.revision);
        names.extend(next.items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()));
        from = next.next;
    }
    assert_eq!(names, ["c", "d", "e"]);
    store.compact();
    assert_eq!(page(&store, At::Latest, Some(2), first.next).unwrap_err().code, 410);
}

#[test]
fn versions_of_a_list() {
    let mut store = store();
    make(&mut store, json!({"metadata": {"name": "a"}}));
    let then = store.revision();
    make(&mut store, json!({"metadata": {"name": "b"}}));
    assert_eq!(page(&store, At::Exact(then), None, None).unwrap().items.len(), 1);
    assert_eq!(page(&store, At::NotOlder(then), None, None).unwrap().items.len(), 2);
    assert_eq!(page(&store, At::NotOlder(then + 50), None, None).unwrap_err().code, 504);
    store.compact();
    assert_eq!(page(&store, At::Exact(then), None, None).unwrap_err().code, 410);
}

#[test]
fn a_foreign_token_is_refused() {
    for token in ["x", "zz", "2f", "ffff", "é", "2f2f2f"] {
        assert_eq!(Continue::decode(token).unwrap_err().code, 400, "{token}");
    }
}

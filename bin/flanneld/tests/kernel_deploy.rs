//! What `deploy/` says of flanneld, held against flanneld.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot read the manifest must say where it failed"
)]

mod common;

use std::path::Path;

use common::{NODE, World, wait_until};
use loden_sim_kube::{Config, Permission, Token, Verb};
use serde_json::Value;

fn object(kind: &str, name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/loden.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let all: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let found = all.into_iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn with_the_manifests_flags_role_and_configuration_it_comes_up() {
    let role = object("ClusterRole", "flannel");
    let permissions = role["rules"].as_array().unwrap().iter().map(|rule| Permission {
        resources: texts(&rule["resources"]),
        verbs: texts(&rule["verbs"])
            .iter()
            .map(|verb| match verb.as_str() {
                "get" => Verb::Get,
                "list" => Verb::List,
                "watch" => Verb::Watch,
                "create" => Verb::Create,
                "patch" => Verb::Patch,
                other => panic!("verb {other}"),
            })
            .collect(),
    });
    let token = Token {
        token: "token".to_owned(),
        user: "flannel".to_owned(),
        permissions: Some(permissions.collect()),
    };
    let world = World::serving(Config { tokens: vec![token], ..Config::default() });
    let data = object("ConfigMap", "kube-flannel-cfg");
    world.write("net-conf.json", data["data"]["net-conf.json"].as_str().unwrap());

    let container =
        object("DaemonSet", "kube-flannel-ds")["spec"]["template"]["spec"]["containers"][0].clone();
    assert_eq!(texts(&container["command"]), ["/opt/bin/flanneld"]);
    let port = &container["readinessProbe"]["httpGet"]["port"];
    let mut args = texts(&container["args"]);
    assert!(args.contains(&format!("--healthz-port={port}")), "{args:?}");
    assert_eq!(container["env"][0]["name"], "NODE_NAME");
    args.extend([
        format!("--kubeconfig-file={}", world.path("kubeconfig").display()),
        format!("--net-config-path={}", world.path("net-conf.json").display()),
        format!("--subnet-file={}", world.subnet_file().display()),
        "--vpc-cidrs=192.168.0.0/16".to_owned(),
    ]);
    let flanneld = world.start_with(&args, &[("NODE_NAME", NODE)]);
    wait_until("it waits for a pod CIDR", &|| flanneld.log(), || flanneld.log().contains("no pod CIDR"));
    world.set_pod_cidr("172.20.1.0/24");
    world.wait_ready(&flanneld);
    wait_until("the lease is published", &|| flanneld.log(), || {
        world.node()["metadata"]["annotations"]["flannel.alpha.coreos.com/kube-subnet-manager"] == "true"
    });
    assert!(!flanneld.log().contains("forbidden"), "{}", flanneld.log());
}

//! What the controller signs with is revoked while it works.

use std::process::Stdio;

use crate::pings::Pings;
use crate::support::{Lab, string, text, wait_until};

#[test]
fn nodes_join_while_the_role_credentials_are_revoked() {
    let lab = Lab::up(&["--nodes", "2", "--pods", "1"]);
    join_while_credentials_are_revoked(&lab);
    let denied = lab.events().into_iter().filter(|(reason, _)| reason == "CloudAccessDenied").count();
    assert_eq!(denied, 0, "expired credentials are fetched anew, not complained of");
}

#[test]
fn nodes_join_while_the_access_key_is_revoked() {
    let lab = Lab::up(&["--nodes", "2", "--pods", "1", "--access-key"]);
    join_while_credentials_are_revoked(&lab);
    lab.wait_event("CloudConfigReloaded", &["other credentials are used"]);
}

fn join_while_credentials_are_revoked(lab: &Lab) {
    let controller = lab.status()["clusters"][0]["controller"].clone();
    let pings = Pings::start(lab, "pod-1", &lab.address_of("pod-2"));
    for node in ["node-3", "node-4"] {
        lab.json(&["credentials", "rotate"]);
        let joining = lab
            .command(&["node", "add", node])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Once more in the middle of it.
        wait_until(
            "the node object",
            || lab.status()["nodes"].as_array().unwrap().iter().any(|each| each["instance"]["name"] == node),
            |there| *there,
        );
        lab.json(&["credentials", "rotate"]);
        let output = joining.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
    assert_eq!(lab.entries(), lab.desired());
    assert_eq!(lab.status()["clusters"][0]["controller"], controller, "no restart may be needed");
    pings.assert_none_lost();
    assert!(string(&lab.node("node-4")["networkUnavailable"]["status"]) == "False");
    lab.assert_green();
}

//! The cloud is told to behave otherwise while the lab runs, and takes it back.

use std::process::Stdio;

use serde_json::json;

use crate::support::{Lab, string, text, wait_until};

#[test]
fn what_the_cloud_is_told_takes_effect_and_is_taken_back() {
    let lab = Lab::up(&["--nodes", "1", "--pods", "0"]);
    let at_start = lab.json(&["cloud"]);
    assert_eq!((&at_start["readLagMs"], &at_start["rateLimits"]), (&json!(0), &json!([])));

    assert_eq!(lab.json(&["cloud", "readLagMs=2000"])["readLagMs"], 2000);
    let seen = text(&lab.loden(&["cloud"]));
    assert!(seen.contains("changed since the lab began: readLagMs (was 0)"), "{seen}");
    let joined = lab.json(&["node", "add"]);
    assert!(
        joined["usableMs"].as_u64().unwrap() >= 2000,
        "a node takes pods once lists show its entry: {joined}"
    );

    let said = text(&lab.loden(&["cloud", "--reset", r#"rateLimits=[{"burst": 1, "perMinute": 12}]"#]));
    assert!(said.contains("readLagMs: 2000 -> 0") && said.contains("rateLimits: [] -> "), "{said}");
    let joining =
        lab.command(&["node", "add"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let refused = || {
        let calls = lab.json(&["calls"]);
        calls.as_object().unwrap().values().map(|each| each["refused"].as_u64().unwrap()).sum::<u64>()
    };
    wait_until("calls beyond the rate", refused, |count| *count >= 3);
    let log = format!("{}/controllers/{}/controller.log", string(&lab.status()["directory"]), lab.name);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("Throttling.User"), "{log}");

    assert_eq!(lab.json(&["cloud", "--reset"]), at_start);
    let output = joining.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    wait_until("the desired entries", || (lab.entries(), lab.desired()), |(found, wanted)| found == wanted);
}

#[test]
fn what_the_cloud_cannot_do_is_refused_and_changes_nothing() {
    let lab = Lab::named();
    let nobody = text(&lab.loden(&["cloud", "latencyMs=1"]));
    assert!(nobody.contains("there is no lab"), "{nobody}");
    drop(lab);
    let lab = Lab::up(&["--nodes", "1", "--pods", "0"]);
    let at_start = lab.json(&["cloud"]);
    for (word, said) in [
        ("latencyMs=soon", "latencyMs cannot be \"soon\""),
        ("latency=1", "there is no latency; there are entryDelayMs"),
        ("latencyMs", "write latencyMs=VALUE"),
        (r#"tableReadLagMs={"vtb-other": 1}"#, "the route table vtb-other"),
        ("metadataInstance=i-other", "i-other"),
        (
            r#"rateLimits=[{"action": "CreateRoute", "burst": 1, "perMinute": 1}]"#,
            "CreateRoute, which is not emulated",
        ),
    ] {
        let output = lab.loden(&["cloud", "readLagMs=1", word]);
        let answer = text(&output);
        assert!(!output.status.success() && answer.contains(said), "{word}: {answer}");
    }
    assert_eq!(lab.json(&["cloud"]), at_start);
    let output = lab.loden(&["fault", "add", "throttled", "--action", "CreateRouteEntry2"]);
    assert!(!output.status.success() && text(&output).contains("CreateRouteEntries"), "{}", text(&output));
}

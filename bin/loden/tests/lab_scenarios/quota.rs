//! More nodes than the route table has room for.

use serde_json::Value;

use crate::support::{Lab, string, wait_until};

#[test]
fn nodes_beyond_the_quota_wait_and_say_why_until_it_is_raised() {
    let lab = Lab::up(&["--nodes", "8", "--pods", "1", "--quota", "5"]);
    let status = lab.status();
    let table = string(&status["routeTables"][0]["id"]);
    let (available, waiting): (Vec<&Value>, Vec<&Value>) = status["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .partition(|node| node["networkUnavailable"]["status"] == "False");
    assert_eq!((available.len(), waiting.len()), (5, 3), "{status:#}");
    assert_eq!(status["pods"].as_array().unwrap().len(), 5, "only nodes with an entry take pods");
    for node in waiting {
        let condition = &node["networkUnavailable"];
        assert_eq!(condition["status"], "True");
        let why = string(&condition["message"]);
        assert!(why.contains(&table) && why.contains("quota of 5") && why.contains("holds 5"), "{why}");
    }
    wait_until(
        "the warning with the numbers",
        || lab.events(),
        |events| {
            let told = |(reason, message): &(String, String)| {
                reason == "RouteQuotaNearlyUsed"
                    && message.contains("holds 5 custom route entries of a quota of 5")
            };
            events.iter().any(told)
        },
    );
    let controller = status["clusters"][0]["controller"]["pid"].clone();
    let ninth = lab.json(&["node", "add"]);
    assert!(string(&ninth["text"]).contains("quota of 5"), "{ninth}");

    // Room that a node leaves behind goes to the oldest of those who wait, though nobody raised anything.
    let first = string(
        &status["nodes"].as_array().unwrap().iter().find(|node| is_available(node)).unwrap()["instance"]["name"],
    );
    lab.json(&["node", "remove", &first]);
    let available =
        || lab.status()["nodes"].as_array().unwrap().iter().filter(|node| is_available(node)).count();
    wait_until("one more node available", available, |count| *count == 5);
    assert_eq!(lab.entries().len(), 5);

    lab.json(&["quota", "9"]);
    let unavailable = || {
        let status = lab.status();
        status["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|node| node["networkUnavailable"]["status"] != "False")
            .count()
    };
    wait_until("every node available", unavailable, |count| *count == 0);
    assert_eq!(lab.status()["clusters"][0]["controller"]["pid"], controller, "no restart may be needed");
    let directory = std::path::PathBuf::from(string(&lab.status()["directory"]));
    for node in ["node-7", "node-8", "node-9"] {
        // The route entry and the node's own daemon are two things; the daemon of the youngest may have only just started.
        let subnet_file = directory.join("nodes").join(node).join("run/flannel/subnet.env");
        wait_until("the daemon's subnet file", || subnet_file.exists(), |there| *there);
        lab.json(&["pod", "add", "--node", node]);
    }
    lab.assert_green();
}

fn is_available(node: &Value) -> bool {
    node["networkUnavailable"]["status"] == "False"
}

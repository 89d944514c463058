//! How a lab looks to people.

use std::collections::BTreeMap;

use loden_lab::control::{ActionCalls, Event};
use loden_lab::status::RouteTable;
use loden_lab::{LabName, Status, picture};

use crate::render;

pub(super) fn lab(status: &Status) {
    for line in picture::draw(status) {
        render::print(&line);
    }
    render::print("");
    let nodes: Vec<Vec<String>> = status
        .nodes
        .iter()
        .map(|node| {
            let condition = node.network_unavailable.as_ref();
            vec![
                node.name().to_owned(),
                node.instance.id.clone(),
                node.instance.address.to_string(),
                node.subnet.map_or_else(|| "-".to_owned(), |subnet| subnet.to_string()),
                condition.map_or("-", |condition| condition.status.as_str()).to_owned(),
                condition.map_or(String::new(), |condition| {
                    format!("{}: {}", condition.reason, condition.message)
                }),
            ]
        })
        .collect();
    render::table(&["NODE", "INSTANCE", "ADDRESS", "SUBNET", "NETWORK UNAVAILABLE", "REASON"], &nodes);
    // The picture shows who is not available; why is told in full, since it says what to do.
    for node in &status.nodes {
        if let Some(condition) =
            node.network_unavailable.as_ref().filter(|condition| condition.status != "False")
        {
            render::print(&format!("{}: {}", node.name(), condition.message));
        }
    }
    render::print("");
    render::print(&format!("files and logs: {}", status.directory));
}

pub(super) fn routes(status: &Status) {
    if let Some(table) = status.system_table() {
        route_table(table, "system");
    }
}

/// All tables, each with the vSwitches that route by it.
pub(super) fn tables(status: &Status) {
    for (at, table) in status.route_tables.iter().enumerate() {
        if at > 0 {
            render::print("");
        }
        route_table(table, if table.system { "system" } else { "custom" });
        let users: Vec<String> = status
            .vpc
            .vswitches
            .iter()
            .filter(|vswitch| vswitch.route_table == table.id)
            .map(|vswitch| format!("{} ({})", vswitch.id, vswitch.cidr))
            .collect();
        let used = if users.is_empty() { "no vSwitch".to_owned() } else { users.join(", ") };
        render::print(&format!("used by {used}"));
    }
}

/// How often each action was called.
pub(super) fn calls(calls: &BTreeMap<String, ActionCalls>) {
    let row = |(action, counted): (&String, &ActionCalls)| {
        vec![action.clone(), counted.calls.to_string(), counted.refused.to_string()]
    };
    render::table(&["ACTION", "CALLS", "REFUSED"], &calls.iter().map(row).collect::<Vec<_>>());
}

fn route_table(table: &RouteTable, kind: &str) {
    let used = table.entries.iter().filter(|entry| entry.custom).count();
    render::print(&format!("{kind} route table {}, {used} of {} custom entries", table.id, table.quota));
    let rows: Vec<Vec<String>> = table
        .entries
        .iter()
        .map(|entry| {
            let kind = if entry.custom { "Custom" } else { "System" };
            [
                entry.destination.to_string(),
                entry.next_hop_type.clone(),
                entry.next_hop.clone(),
                entry.status.clone(),
            ]
            .into_iter()
            .chain([kind.to_owned(), entry.name.clone()])
            .collect()
        })
        .collect();
    render::table(&["DESTINATION", "TYPE", "NEXT HOP", "STATUS", "KIND", "NAME"], &rows);
}

pub(super) fn labs(found: &[(LabName, loden_lab::Result<Status>)]) {
    if found.is_empty() {
        return render::print("there is no lab; `loden lab up` starts one");
    }
    let row = |(lab, state): &(LabName, loden_lab::Result<Status>)| match state {
        Ok(status) => vec![
            lab.to_string(),
            "running".to_owned(),
            status.nodes.len().to_string(),
            status.pods.len().to_string(),
            status.directory.clone(),
        ],
        Err(error) => {
            vec![lab.to_string(), "not running".to_owned(), String::new(), String::new(), error.to_string()]
        }
    };
    render::table(&["LAB", "STATE", "NODES", "PODS", "WHERE"], &found.iter().map(row).collect::<Vec<_>>());
}

pub(super) fn events(events: &[Event]) {
    let rows: Vec<Vec<String>> = events
        .iter()
        .map(|event| {
            vec![
                event.kind.clone(),
                event.object.clone(),
                event.reason.clone(),
                event.count.to_string(),
                event.message.clone(),
            ]
        })
        .collect();
    render::table(&["TYPE", "OBJECT", "REASON", "COUNT", "MESSAGE"], &rows);
}

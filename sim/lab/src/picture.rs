//! The topology as a drawing of text, at most 100 columns wide.
//!
//! Pure: a [`Status`] in, lines out. Everything drawn is read from the status, so the picture shows what is there and not what was asked for.

use crate::status::{Instance, Node, Pod, RouteTable, Status};

/// Widest line that is drawn.
pub const WIDTH: usize = 100;

/// Columns of one box, borders included; three of them and the gaps between them fill the frame.
const BOX: usize = 31;
/// Boxes side by side.
const PER_ROW: usize = 3;
/// Columns between the frame's borders.
const INNER: usize = WIDTH - 3;
/// Column, within the frame, of the line that leads out of the VPC.
const WAY_OUT: usize = 72;
/// More pods than this on one node are counted instead of listed.
const PODS_LISTED: usize = 6;
/// More nodes than this are counted instead of drawn.
const NODES_DRAWN: usize = 12;
/// More entries than this in a table are counted instead of listed.
const ENTRIES_LISTED: usize = 12;

/// Draws the lab.
#[must_use]
pub fn draw(status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    outside(status, &mut lines);
    let title = format!(" VPC {} {} ", status.vpc.id, status.vpc.cidr);
    lines.push(format!(" ╔{}╗", edge(&title, &[(10, '╧'), (WAY_OUT, '╧')])));
    vrouter(status, &mut lines);
    let mut boxes: Vec<Vec<String>> = status.instances.iter().map(instance_box).collect();
    let listed = status.nodes.iter().take(NODES_DRAWN);
    boxes.splice(0..0, listed.map(|node| node_box(status, node)));
    if status.nodes.len() > NODES_DRAWN {
        framed(&mut lines, "");
        framed(&mut lines, &format!("   {} nodes, the first {NODES_DRAWN} of them:", status.nodes.len()));
    }
    for row in boxes.chunks(PER_ROW) {
        framed(&mut lines, "");
        let height = row.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..height {
            let cells: Vec<String> =
                row.iter().map(|cell| pad(cell.get(line).map_or("", String::as_str), BOX)).collect();
            framed(&mut lines, &format!(" {}", cells.join(" ")));
        }
    }
    lines.push(format!(" ╚{}╝", "═".repeat(INNER)));
    lines
}

fn outside(status: &Status, lines: &mut Vec<String>) {
    let internet = status.internet;
    let left = [
        format!("metadata   {}", status.services.metadata),
        format!("cloud API  {}", status.services.cloud_api),
        format!("kube API   {}", kube_apis(status)),
    ];
    let right = [
        format!("internet host {}", internet.host),
        "│".to_owned(),
        format!("NAT gateway {} as {}", internet.nat, internet.elastic_ip),
    ];
    for (left, right) in left.iter().zip(right) {
        let begin = (2 + WAY_OUT).saturating_sub(width(&right) / 2);
        lines.push(format!("{}{right}", pad(&format!("  {left}"), begin)));
    }
    lines.push(format!("{}│", pad("            │", 2 + WAY_OUT)));
}

fn kube_apis(status: &Status) -> String {
    status.clusters.iter().map(|cluster| cluster.kube_api.as_str()).collect::<Vec<_>>().join(", ")
}

fn vrouter(status: &Status, lines: &mut Vec<String>) {
    let flat = if status.inputs.backend.is_flat() { ", one layer 2" } else { "" };
    let backend = status.inputs.backend;
    framed(lines, &format!(" vRouter   {}{flat}   backend {backend}", vswitches(status)));
    for table in &status.route_tables {
        let used = table.entries.iter().filter(|entry| entry.custom).count();
        let kind = if table.system { "system route table" } else { "route table" };
        let users = status.vpc.vswitches.iter().filter(|vswitch| vswitch.route_table == table.id);
        let users: Vec<String> = users.map(|vswitch| format!(", of {}", vswitch.cidr)).collect();
        let users = if table.system { String::new() } else { users.concat() };
        framed(lines, &format!("   {kind} {}, {used} of {} custom entries{users}", table.id, table.quota));
        entries(status, table, lines);
    }
}

fn vswitches(status: &Status) -> String {
    let listed: Vec<String> = status.vpc.vswitches.iter().map(|vswitch| vswitch.cidr.to_string()).collect();
    format!("vSwitches {}", listed.join(", "))
}

fn entries(status: &Status, table: &RouteTable, lines: &mut Vec<String>) {
    let custom: Vec<_> = table.entries.iter().filter(|entry| !entry.next_hop.is_empty()).collect();
    for entry in custom.iter().take(ENTRIES_LISTED) {
        let hop = status
            .nodes
            .iter()
            .map(|node| &node.instance)
            .chain(&status.instances)
            .find(|i| i.id == entry.next_hop);
        let hop = hop.map_or_else(
            || entry.next_hop.clone(),
            |instance| format!("{} ({})", instance.name, instance.id),
        );
        let state = if entry.status == "Available" { String::new() } else { format!("  {}", entry.status) };
        framed(lines, &format!("     {:<18} ─▶ {hop}{state}", entry.destination.to_string()));
    }
    if custom.len() > ENTRIES_LISTED {
        framed(lines, &format!("     … and {} more", custom.len() - ENTRIES_LISTED));
    }
}

fn node_box(status: &Status, node: &Node) -> Vec<String> {
    let state = match node {
        Node { crashed: true, .. } => " crashed",
        node if node.available() => "",
        _ => " not available",
    };
    let mut lines = vec![top(&format!("node {}{state}", node.name()))];
    body(&mut lines, &format!("eth0  {}", node.instance.address));
    body(
        &mut lines,
        &format!(
            "pods  {}",
            node.subnet.map_or_else(|| "no subnet yet".to_owned(), |subnet| subnet.to_string())
        ),
    );
    let pods: Vec<&Pod> = status.pods.iter().filter(|pod| pod.node == node.name()).collect();
    let listed = pods.len().min(PODS_LISTED);
    for (at, pod) in pods.iter().take(PODS_LISTED).enumerate() {
        let branch = if at + 1 == listed && pods.len() <= PODS_LISTED { '└' } else { '├' };
        body(&mut lines, &format!(" {branch} {:<8} {}", pod.name, pod.address));
    }
    if pods.len() > PODS_LISTED {
        body(&mut lines, &format!(" └ and {} more", pods.len() - PODS_LISTED));
    }
    lines.push(bottom());
    lines
}

fn instance_box(instance: &Instance) -> Vec<String> {
    let mut lines = vec![top(&format!("ECS {}", instance.name))];
    body(&mut lines, &format!("eth0  {}", instance.address));
    if instance.name.starts_with(crate::CONTROL_INSTANCE) {
        body(&mut lines, "loden-controller");
    } else {
        body(&mut lines, "no Kubernetes node");
    }
    lines.push(bottom());
    lines
}

fn top(title: &str) -> String {
    let title = cut(&format!(" {title} "), BOX - 3);
    format!("┌─{title}{}┐", "─".repeat(BOX - 3 - width(&title)))
}

fn bottom() -> String {
    format!("└{}┘", "─".repeat(BOX - 2))
}

fn body(lines: &mut Vec<String>, text: &str) {
    lines.push(format!("│{}│", pad(&cut(&format!(" {text}"), BOX - 2), BOX - 2)));
}

fn framed(lines: &mut Vec<String>, text: &str) {
    lines.push(format!(" ║{}║", pad(&cut(text, INNER), INNER)));
}

/// `text` in the middle of the frame's upper edge, with marks where lines from outside meet it.
fn edge(text: &str, marks: &[(usize, char)]) -> String {
    let mut line = vec!['═'; INNER];
    let text = cut(text, INNER / 2);
    for (place, letter) in line.iter_mut().skip(16).zip(text.chars()) {
        *place = letter;
    }
    for (at, mark) in marks {
        if let Some(place) = line.get_mut(*at) {
            *place = *mark;
        }
    }
    line.into_iter().collect()
}

/// Columns of `text`; everything drawn here is one column wide per character.
fn width(text: &str) -> usize {
    text.chars().count()
}

fn pad(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    text.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::*;
    use crate::{Inputs, topology};

    fn instance(name: &str, address: [u8; 4]) -> Instance {
        Instance {
            name: name.to_owned(),
            id: topology::instance_id(name),
            address: address.into(),
            vswitch: "vsw-x-1".to_owned(),
            namespace: format!("loden-x-{name}"),
            source_dest_check: false,
        }
    }

    fn status(nodes: u8, pods_on_each: u8) -> Status {
        let inputs = Inputs::default();
        let subnet = |node: u8| format!("172.20.{node}.0/26").parse().unwrap();
        Status {
            lab: "x".parse().unwrap(),
            directory: "/run/loden/labs/x".to_owned(),
            vpc: Vpc {
                id: "vpc-x".to_owned(),
                cidr: inputs.vpc_cidr,
                vswitches: inputs
                    .vswitches
                    .iter()
                    .map(|cidr| VSwitch {
                        id: String::new(),
                        cidr: *cidr,
                        gateway: crate::spec::gateway(*cidr),
                        route_table: String::new(),
                    })
                    .collect(),
            },
            inputs,
            services: topology::service_addresses(),
            internet: Internet {
                nat: [192, 168, 0, 1].into(),
                elastic_ip: [203, 0, 113, 10].into(),
                host: [203, 0, 113, 80].into(),
            },
            instances: vec![instance("ecs-1", [192, 168, 0, 250]), instance("control", [192, 168, 0, 251])],
            nodes: (0..nodes)
                .map(|node| Node {
                    instance: instance(&format!("node-{node}"), [192, 168, 0, 100 + node]),
                    cluster: "x".to_owned(),
                    subnet: Some(subnet(node)),
                    network_unavailable: Some(Condition {
                        status: if node == 0 { "False" } else { "True" }.to_owned(),
                        reason: String::new(),
                        message: String::new(),
                    }),
                    flanneld: Process::default(),
                    crashed: false,
                })
                .collect(),
            pods: (0..nodes)
                .flat_map(|node| (0..pods_on_each).map(move |pod| (node, pod)))
                .map(|(node, pod)| Pod {
                    name: format!("pod-{node}-{pod}"),
                    node: format!("node-{node}"),
                    address: [172, 20, node, pod + 2].into(),
                    namespace: String::new(),
                })
                .collect(),
            route_tables: vec![RouteTable {
                id: "vtb-x".to_owned(),
                system: true,
                quota: 200,
                entries: (0..nodes)
                    .map(|node| RouteEntry {
                        id: String::new(),
                        destination: subnet(node),
                        next_hop_type: "Instance".to_owned(),
                        next_hop: topology::instance_id(&format!("node-{node}")),
                        status: if node == 1 { "Pending" } else { "Available" }.to_owned(),
                        custom: true,
                        name: String::new(),
                    })
                    .collect(),
            }],
            cluster_services: Vec::new(),
            clusters: vec![KubeCluster {
                revision: 1,
                name: "x".to_owned(),
                pod_cidr: Inputs::default().pod_cidr,
                kube_api: "https://100.100.0.10:6443".to_owned(),
                kubeconfig: String::new(),
                controller: Process::default(),
            }],
        }
    }

    #[test]
    fn every_line_fits_and_the_frame_is_straight() {
        for (nodes, pods) in [(0, 0), (1, 1), (3, 2), (4, 9), (30, 1)] {
            let lines = draw(&status(nodes, pods));
            for line in &lines {
                assert!(width(line) <= WIDTH, "{line}");
                if line.starts_with(" ║") {
                    assert!(width(line) == WIDTH && line.ends_with('║'), "{line}");
                }
            }
        }
    }

    #[test]
    fn addresses_and_states_are_shown() {
        let text = draw(&status(3, 2)).join("\n");
        for part in [
            "VPC vpc-x 192.168.0.0/16",
            "system route table vtb-x, 3 of 200 custom entries",
            "172.20.0.0/26      ─▶ node-0 (i-node-0)",
            "172.20.1.0/26      ─▶ node-1 (i-node-1)  Pending",
            "eth0  192.168.0.102",
            "pod-2-1  172.20.2.3",
            "node node-1 not available",
            "NAT gateway 192.168.0.1 as 203.0.113.10",
            "ECS ecs-1",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("node node-0 not available"));
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let text = draw(&status(30, 9)).join("\n");
        assert!(text.contains("30 nodes, the first 12 of them"), "{text}");
        assert!(text.contains("… and 18 more") && text.contains("and 3 more"), "{text}");
    }
}

//! The older iptables, which keeps its rules outside nf_tables.
//!
//! Only its own program can show or remove single rules there. What can be known without it is which tables it has.

use std::fs;

/// A family of the older iptables: the kernel's list of its tables, and its program.
const FAMILIES: [(&str, &str); 2] = [
    ("/proc/thread-self/net/ip_tables_names", "iptables-legacy"),
    ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy"),
];

/// Commands that show whether rules of Go's flanneld are left in the older iptables of the calling thread's namespace. Empty when
/// it has no tables that flannel writes to, or when we may not know (the list is root's).
pub(crate) fn look_with() -> Vec<String> {
    let mut commands = Vec::new();
    for (list, program) in FAMILIES {
        let tables = fs::read_to_string(list).unwrap_or_default();
        for (table, chain, _) in loden_node::IPTABLES_CHAINS {
            if tables.lines().any(|line| line == table) {
                commands.push(format!("{program} -t {table} -S {chain}"));
            }
        }
    }
    commands
}

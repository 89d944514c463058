//! flanneld's flags: Go flanneld's, with its defaults, and a few of our own.

use std::fmt::Write as _;

use crate::go_flags::{Flag, Kind};

const fn text(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::Text, default, value, help }
}

const fn switch(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::Bool, default, value: "", help }
}

const fn int(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::Int, default, value, help }
}

const fn list(name: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { name, kind: Kind::List, default: "", value, help }
}

/// Groups of flags as the usage shows them.
const GROUPS: [(&str, &[Flag]); 7] = [
    (
        "Lease store",
        &[
            switch(
                "kube-subnet-mgr",
                "false",
                "take this node's subnet from its Kubernetes Node object (the only store built yet)",
            ),
            text(
                "kube-api-url",
                "URL",
                "",
                "API server, for example https://10.0.0.1:6443; replaces the kubeconfig's",
            ),
            text(
                "kubeconfig-file",
                "PATH",
                "",
                "kubeconfig; with neither this nor -kube-api-url the pod's service account is used",
            ),
            text(
                "kube-annotation-prefix",
                "PREFIX",
                "flannel.alpha.coreos.com",
                "prefix of the node annotations",
            ),
            text("net-config-path", "PATH", "/etc/kube-flannel/net-conf.json", "the network configuration"),
            switch(
                "set-node-network-unavailable",
                "true",
                "set the node's condition NetworkUnavailable to False once the network stands; give =false with backend alloc, where loden-controller owns that condition",
            ),
        ],
    ),
    (
        "External interface (the address peers use)",
        &[
            list(
                "iface",
                "NAME|IP",
                "take this link, or the link that has this address; may be repeated, the first found counts",
            ),
            list(
                "iface-regex",
                "REGEX",
                "take the first link an address of which (else the name of which) matches; tried after -iface",
            ),
            text(
                "iface-can-reach",
                "IP",
                "",
                "take the link and source address the kernel would use to this address; tried last",
            ),
            text(
                "public-ip",
                "IP",
                "",
                "publish this IPv4 address; without an -iface flag it also selects the link",
            ),
            text("public-ipv6", "IP", "", "publish this IPv6 address"),
        ],
    ),
    (
        "Traffic",
        &[
            switch("ip-masq", "false", "masquerade what pods send outside the network"),
            switch("ip-masq-fully-random-disable", "false", "do not choose source ports fully at random"),
            switch(
                "iptables-forward-rules",
                "true",
                "accept forwarded pod traffic explicitly (also in nftables mode)",
            ),
            switch(
                "ip-blackhole-route",
                "false",
                "drop what is sent to an unused address of this node's subnet",
            ),
            int(
                "iptables-resync",
                "SECONDS",
                "5",
                "without effect: lost rules come back at once in nftables mode",
            ),
            text(
                "vpc-cidrs",
                "auto|none|CIDR,..",
                "auto",
                "backend alloc: networks that see pods' own addresses although -ip-masq is on; auto asks the cloud's metadata service (Loden's own)",
            ),
        ],
    ),
    (
        "Files and health",
        &[
            text(
                "subnet-file",
                "PATH",
                "/run/flannel/subnet.env",
                "where to tell the CNI plugin this node's subnet",
            ),
            text("healthz-ip", "IP", "0.0.0.0", "address to serve /healthz and /readyz on"),
            int("healthz-port", "PORT", "0", "its port; 0 serves nothing"),
        ],
    ),
    (
        "Log and help",
        &[
            int("v", "N", "0", "verbosity: 1 tells more of flanneld, 5 more of its libraries, 10 everything"),
            text("vmodule", "LIST", "", "not built yet; use -log-filter"),
            text("log_backtrace_at", "FILE:N", "", "not built yet"),
            text("log-format", "text|json", "text", "how a log line looks (Loden's own)"),
            text(
                "log-filter",
                "LEVELS",
                "",
                "levels by module, for example info,loden_kube=trace; replaces -v (Loden's own)",
            ),
            switch(
                "dry-run",
                "false",
                "print what would be done, as ip, nft and sysctl lines, and change nothing (Loden's own)",
            ),
            switch("version", "false", "print the version and exit"),
        ],
    ),
    (
        "etcd (not built yet: without -kube-subnet-mgr flanneld says so and exits)",
        &[
            text("etcd-endpoints", "URL,..", "http://127.0.0.1:4001,http://127.0.0.1:2379", "etcd servers"),
            text("etcd-prefix", "KEY", "/coreos.com/network", "key prefix"),
            text("etcd-keyfile", "PATH", "", "client key"),
            text("etcd-certfile", "PATH", "", "client certificate"),
            text("etcd-cafile", "PATH", "", "certificate authority"),
            text("etcd-username", "NAME", "", "user"),
            text("etcd-password", "SECRET", "", "password"),
        ],
    ),
    (
        "etcd leases",
        &[int(
            "subnet-lease-renew-margin",
            "MINUTES",
            "60",
            "how long before its end a lease is renewed, 1 to 1439",
        )],
    ),
];

/// All flags.
pub(crate) fn all() -> Vec<Flag> {
    GROUPS.iter().flat_map(|(_, flags)| flags.iter().copied()).collect()
}

/// The text of `-help`.
pub(crate) fn usage() -> String {
    let mut out = String::from(
        "flanneld gives this node its part of the pod network: it takes the node's subnet from the lease store, tells the CNI\n\
         plugin about it, and keeps forwarding, masquerading and the bridge's gateway address as they must be. What somebody\n\
         removes by hand comes back; what an earlier run left behind goes; what belongs to others is not touched.\n\
         It needs CAP_NET_ADMIN and a directory it may write the subnet file to; it need not be root.\n\n\
         Usage: flanneld -kube-subnet-mgr [flags]\n\n\
         A flag may begin with one dash or two, and take its value after = or as the next word. A flag that is not given is\n\
         taken from the environment: -ip-masq from FLANNELD_IP_MASQ.\n\n\
         Built so far: Kubernetes as lease store, nftables (\"EnableNFTables\": true in the network configuration), backends\n\
         alloc, vxlan and host-gw (the latter two for IPv4).\n\
         Not yet, and refused: etcd, iptables, backends wireguard, ipip, udp, ipsec, extension, tencent-vpc.\n",
    );
    for (title, flags) in GROUPS {
        let _ = write!(out, "\n{title}\n");
        for flag in flags {
            let head = format!("  -{} {}", flag.name, flag.value);
            let default = match flag.default {
                "" | "false" => String::new(),
                default => format!(" [{default}]"),
            };
            let _ = writeln!(out, "{}", head.trim_end());
            for line in wrapped(&format!("{}{default}", flag.help), 100) {
                let _ = writeln!(out, "        {line}");
            }
        }
    }
    out.push_str(
        "\nEnvironment: NODE_NAME, or POD_NAME and POD_NAMESPACE, say which node this is; METADATA_ENDPOINT replaces the metadata\n\
         service's address; NOTIFY_SOCKET is told when the node is ready.\n\
         Exit codes: 0 stopped by SIGINT or SIGTERM, 1 cannot do its work (the last log line says why), 2 wrong flags.\n\n\
         Example: flanneld -kube-subnet-mgr -ip-masq -set-node-network-unavailable=false -healthz-port=8081\n",
    );
    out
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::{all, usage};
    use std::collections::BTreeSet;

    #[test]
    fn every_upstream_flag_is_there_with_its_default() {
        let flags = all();
        for (name, default) in [
            ("etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379"),
            ("etcd-prefix", "/coreos.com/network"),
            ("etcd-keyfile", ""),
            ("etcd-certfile", ""),
            ("etcd-cafile", ""),
            ("etcd-username", ""),
            ("etcd-password", ""),
            ("iface", ""),
            ("iface-regex", ""),
            ("iface-can-reach", ""),
            ("subnet-file", "/run/flannel/subnet.env"),
            ("public-ip", ""),
            ("public-ipv6", ""),
            ("subnet-lease-renew-margin", "60"),
            ("ip-masq", "false"),
            ("ip-masq-fully-random-disable", "false"),
            ("kube-subnet-mgr", "false"),
            ("kube-api-url", ""),
            ("kubeconfig-file", ""),
            ("kube-annotation-prefix", "flannel.alpha.coreos.com"),
            ("net-config-path", "/etc/kube-flannel/net-conf.json"),
            ("set-node-network-unavailable", "true"),
            ("healthz-ip", "0.0.0.0"),
            ("healthz-port", "0"),
            ("iptables-resync", "5"),
            ("iptables-forward-rules", "true"),
            ("ip-blackhole-route", "false"),
            ("version", "false"),
            ("v", "0"),
            ("vmodule", ""),
            ("log_backtrace_at", ""),
        ] {
            let flag =
                flags.iter().find(|flag| flag.name == name).unwrap_or_else(|| panic!("-{name} is missing"));
            assert_eq!(flag.default, default, "-{name}");
        }
        let names: BTreeSet<&str> = flags.iter().map(|flag| flag.name).collect();
        assert_eq!(names.len(), flags.len(), "a flag is declared twice");
    }

    #[test]
    fn the_usage_names_every_flag_and_what_is_not_built() {
        let text = usage();
        for flag in all() {
            assert!(text.contains(&format!("  -{}", flag.name)), "-{}", flag.name);
        }
        assert!(text.contains("Not yet, and refused: etcd, iptables"));
    }
}

//! What the kernel's tools say, made comparable.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::{Error, Section, rules};

/// Flags that an administrator sets; the others follow from carrier and kind.
const FLAGS: [&str; 3] = ["UP", "PROMISC", "ALLMULTI"];
/// Queueing disciplines that the kernel puts on a link by itself.
const DEFAULT_QUEUES: [&str; 6] = ["noqueue", "noop", "mq", "pfifo_fast", "fq_codel", "fq"];

pub(crate) fn all() -> Result<BTreeMap<Section, Vec<String>>, Error> {
    let nft = rules::flat(&run("nft", &["list", "ruleset"])?);
    let iptables = iptables(&nft)?;
    Ok(BTreeMap::from([
        (Section::Links, links()?),
        (Section::Addresses, addresses()?),
        (Section::Routes, routes()?),
        (Section::PolicyRules, [run("ip", &["-4", "rule"])?, run("ip", &["-6", "rule"])?].concat()),
        (Section::Vlans, vlans()?),
        (Section::Nft, nft),
        (Section::Iptables, iptables),
        (Section::Queues, queues()?),
        (Section::Connections, connections()?),
    ]))
}

fn links() -> Result<Vec<String>, Error> {
    let command = ["-d", "-j", "link", "show"];
    let list = json("ip", &command)?;
    Ok(list
        .iter()
        .map(|link| {
            let word = |key: &str| link.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let kind =
                link.pointer("/linkinfo/info_kind").and_then(Value::as_str).unwrap_or("plain").to_owned();
            let mut words = vec![word("ifname"), kind.clone()];
            words.push(format!("mtu {}", link.get("mtu").unwrap_or(&Value::Null)));
            // A bridge without a pinned address takes that of a port.
            if kind != "bridge" {
                words.push(word("address"));
            }
            if !word("master").is_empty() {
                words.push(format!("master {}", word("master")));
            }
            if link.pointer("/linkinfo/info_data/vlan_filtering").and_then(Value::as_u64) == Some(1) {
                words.push("vlan_filtering".to_owned());
            }
            let flags = link.get("flags").and_then(Value::as_array).into_iter().flatten();
            let set: Vec<&str> = flags.filter_map(Value::as_str).collect();
            words.extend(FLAGS.iter().filter(|flag| set.contains(flag)).map(|flag| (*flag).to_owned()));
            if !word("ifalias").is_empty() {
                words.push(format!("alias {:?}", word("ifalias")));
            }
            words.join(" ")
        })
        .collect())
}

fn addresses() -> Result<Vec<String>, Error> {
    let list = json("ip", &["-j", "addr", "show"])?;
    let mut lines = Vec::new();
    for link in &list {
        for address in link.get("addr_info").and_then(Value::as_array).into_iter().flatten() {
            let word = |key: &str| address.get(key).map(ToString::to_string).unwrap_or_default();
            if word("scope") == "\"link\"" && word("family") == "\"inet6\"" {
                continue;
            }
            let name = link.get("ifname").and_then(Value::as_str).unwrap_or_default();
            lines.push(
                format!(
                    "{name} {}/{} scope {} broadcast {} label {}",
                    word("local"),
                    word("prefixlen"),
                    word("scope"),
                    word("broadcast"),
                    word("label")
                )
                .replace('"', ""),
            );
        }
    }
    Ok(lines)
}

fn routes() -> Result<Vec<String>, Error> {
    let mut lines = Vec::new();
    for family in ["-4", "-6"] {
        for line in run("ip", &[family, "route", "show", "table", "all"])? {
            let words: Vec<&str> =
                line.split_whitespace().filter(|word| !["linkdown", "dead"].contains(word)).collect();
            // Routes of link-local addresses, multicast routes and IPv6's own routes to addresses follow a link's carrier.
            let own = family == "-6" && line.contains("table local proto kernel");
            if !own && !words.iter().any(|word| word.starts_with("fe80:") || word.starts_with("ff00::")) {
                lines.push(words.join(" "));
            }
        }
    }
    Ok(lines)
}

fn vlans() -> Result<Vec<String>, Error> {
    let list = json("bridge", &["-j", "vlan", "show"])?;
    Ok(list
        .iter()
        .map(|port| {
            let name = port.get("ifname").and_then(Value::as_str).unwrap_or_default();
            format!("{name} {}", port.get("vlans").unwrap_or(&Value::Null))
        })
        .collect())
}

/// What both variants of `iptables-save` say. Each is asked only where the namespace has a table of its kind, because asking takes a while.
fn iptables(nft: &[String]) -> Result<Vec<String>, Error> {
    let has = |family: &str| {
        let names = ["raw", "mangle", "nat", "filter", "security"];
        names.iter().any(|name| nft.contains(&format!("table {family} {name}")))
    };
    let asked = [
        (has("ip"), "iptables-nft-save"),
        (has("ip6"), "ip6tables-nft-save"),
        (!own_file("ip_tables_names")?.is_empty(), "iptables-legacy-save"),
        (!own_file("ip6_tables_names")?.is_empty(), "ip6tables-legacy-save"),
    ];
    let mut lines = Vec::new();
    for (_, program) in asked.into_iter().filter(|(there, _)| *there) {
        let mut table = String::new();
        for line in run(program, &[])? {
            if let Some(name) = line.strip_prefix('*') {
                name.clone_into(&mut table);
            } else if !line.starts_with('#') && line != "COMMIT" {
                lines.push(format!("{program} {table}: {}", rules::without_bracketed_counters(&line)));
            }
        }
    }
    Ok(lines)
}

fn queues() -> Result<Vec<String>, Error> {
    let mut lines = Vec::new();
    let mut shaped = Vec::new();
    for line in run("tc", &["qdisc", "show"])? {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, kind, handle, "dev", device, rest @ ..] = words.as_slice() else {
            lines.push(line);
            continue;
        };
        if !DEFAULT_QUEUES.contains(kind) {
            lines.push(format!("{device} {kind} {handle} {}", rest.join(" ")));
            shaped.push(((*device).to_owned(), (*kind).to_owned()));
        }
    }
    for (device, kind) in shaped {
        let parent: &[&str] = if kind == "ingress" { &["parent", "ffff:"] } else { &[] };
        let mut words = vec!["filter", "show", "dev", &device];
        words.extend(parent);
        lines.extend(run("tc", &words)?.into_iter().map(|line| format!("{device} {kind} {}", line.trim())));
    }
    Ok(lines)
}

/// Families, protocols, addresses and ports of the tracked connections; states and timers change by themselves.
fn connections() -> Result<Vec<String>, Error> {
    let told =
        |word: &&str| ["src=", "dst=", "sport=", "dport=", "zone="].iter().any(|key| word.starts_with(key));
    Ok(own_file("nf_conntrack")?
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let protocol = [words.first(), words.get(2)].into_iter().flatten();
            protocol.copied().chain(words.iter().copied().filter(told)).collect::<Vec<_>>().join(" ")
        })
        .collect())
}

/// A file of the calling thread's own namespace; one that the kernel has not is empty.
fn own_file(name: &str) -> Result<String, Error> {
    let path = PathBuf::from("/proc/thread-self/net").join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(Error::Read { path, source }),
    }
}

/// Runs a program; its output without empty lines.
fn run(program: &str, words: &[&str]) -> Result<Vec<String>, Error> {
    let text = output(program, words)?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect())
}

fn json(program: &str, words: &[&str]) -> Result<Vec<Value>, Error> {
    let text = output(program, words)?;
    if text.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&text).map_err(|error| Error::Unreadable {
        command: format!("{program} {}", words.join(" ")),
        reason: error.to_string(),
    })
}

fn output(program: &str, words: &[&str]) -> Result<Vec<u8>, Error> {
    let command = || format!("{program} {}", words.join(" ")).trim().to_owned();
    let output = Command::new(program)
        .args(words)
        .output()
        .map_err(|source| Error::Start { command: command(), source })?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Failed { command: command(), stderr });
    }
    Ok(output.stdout)
}

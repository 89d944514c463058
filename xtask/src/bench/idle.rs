//! What flanneld costs when nothing happens: processor time and memory on one node of a small and of a large cluster.
//!
//! The node is a namespace, the API server an emulator in it. "Nothing" is what a cluster does by itself: every kubelet writes its node's status
//! once in five minutes, and a node object is as large as kubelets make it, with conditions and fifty images.

use super::Programs;
use super::process::{Running, cpu, memory, mib, request, wait};
use super::stage::{Directory, Namespace};
use anyhow::{Context, Result, ensure};
use std::fmt::Write as _;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const API: &str = "127.0.0.1:8793";
const HEALTH: &str = "127.0.0.1:8081";
/// The node whose flanneld is measured.
const OWN: &str = "node-1";
/// A kubelet with nothing to say writes its node's status this often.
const HEARTBEAT: Duration = Duration::from_secs(300);

/// One flanneld at rest.
#[derive(Debug)]
pub(crate) struct Idle {
    backend: &'static str,
    nodes: u16,
    /// Until it was ready.
    start: Duration,
    start_cpu: Duration,
    /// Share of one processor while nothing happened.
    cpu: f64,
    watched: Duration,
    /// Kilobytes: resident, of that its own (not of files), and the most ever resident.
    resident: u64,
    own: u64,
    peak: u64,
}

/// Backends × cluster sizes.
pub(crate) fn measure(programs: &Programs, watch: Duration) -> Result<Vec<Idle>> {
    let mut all = Vec::new();
    for backend in ["alloc", "vxlan"] {
        for nodes in [3, 1000] {
            all.push(one(programs, backend, nodes, watch)?);
        }
    }
    Ok(all)
}

fn one(programs: &Programs, backend: &'static str, nodes: u16, watch: Duration) -> Result<Idle> {
    let node = Namespace::new("idle")?;
    let directory = Directory::new()?;
    for line in [
        "link set lo up",
        "link add eth0 type veth peer name uplink",
        "link set uplink up",
        "link set eth0 up",
        "address add 192.168.0.1/16 dev eth0",
        "route add default via 192.168.255.1 dev eth0",
    ] {
        node.ip(line)?;
    }
    let conf =
        format!(r#"{{"Network":"10.96.0.0/12","EnableNFTables":true,"Backend":{{"Type":"{backend}"}}}}"#);
    let conf = directory.write("net-conf.json", &conf)?;
    let log = directory.path.join("flanneld.log");
    node.run(|| {
        let mut emulator = Command::new(programs.path("loden")?);
        emulator.args(["kube-emulator", "--listen", API]).stdin(Stdio::null()).stdout(Stdio::null());
        let _emulator = Running(emulator.spawn().context("cannot start the API server")?);
        wait("the API server", || TcpStream::connect(API).is_ok(), String::new)?;
        for number in 1..=nodes {
            let (code, body) =
                http("POST", "/api/v1/nodes", "application/json", &described(number, backend))?;
            ensure!(code == 201, "the API server does not take node {number}: {code} {body}");
        }

        let begun = Instant::now();
        let mut flanneld = Command::new(programs.path("flanneld")?);
        flanneld.env("NODE_NAME", OWN).args(["-kube-subnet-mgr", "-ip-masq", "-healthz-ip=127.0.0.1"]);
        flanneld.args(["-healthz-port=8081", "-vpc-cidrs=none", "-set-node-network-unavailable=false"]);
        flanneld.arg(format!("-kube-api-url=http://{API}")).arg(format!("-net-config-path={conf}"));
        flanneld.arg(format!("-subnet-file={}", directory.path.join("subnet.env")));
        flanneld.stdin(Stdio::null()).stdout(Stdio::null());
        flanneld.stderr(std::fs::File::create(&log).with_context(|| format!("cannot write {log}"))?);
        let mut flanneld = Running(flanneld.spawn().context("cannot start flanneld")?);
        let told = || std::fs::read_to_string(&log).unwrap_or_default();
        let process = flanneld.0.id();
        wait(
            "flanneld",
            || {
                if matches!(flanneld.0.try_wait(), Ok(Some(_))) {
                    return false;
                }
                request(HEALTH, "GET", "/readyz", "", "").is_ok_and(|(code, _)| code == 200)
            },
            told,
        )?;
        let start = begun.elapsed();
        let start_cpu = cpu(process)?;
        let peers = if backend == "vxlan" { usize::from(nodes) - 1 } else { 0 };
        wait("the peers' routes", || routes().is_ok_and(|count| count == peers), told)?;
        let watched = beat(nodes, watch, process)?;
        Ok(Idle {
            backend,
            nodes,
            start,
            start_cpu,
            cpu: watched.1.as_secs_f64() / watched.0.as_secs_f64(),
            watched: watched.0,
            resident: memory(process, "VmRSS:")?,
            own: memory(process, "RssAnon:")?,
            peak: memory(process, "VmHWM:")?,
        })
    })
}

/// Lets the kubelets write for a while; answers how long it was and the processor time flanneld used in it.
fn beat(nodes: u16, watch: Duration, process: u32) -> Result<(Duration, Duration)> {
    // What a start leaves to do (first notices of its own changes) is over by then.
    std::thread::sleep(Duration::from_secs(3));
    let pause = HEARTBEAT / u32::from(nodes);
    let (begun, before) = (Instant::now(), cpu(process)?);
    let mut beats = 0_u32;
    while begun.elapsed() < watch {
        let next = pause * beats.saturating_add(1);
        std::thread::sleep(next.min(watch).saturating_sub(begun.elapsed()));
        if begun.elapsed() < next {
            break;
        }
        let node = 1 + beats % u32::from(nodes);
        let status = format!(
            r#"{{"status":{{"conditions":[{{"type":"Ready","status":"True","reason":"KubeletReady","lastHeartbeatTime":"2026-01-01T{:02}:{:02}:{:02}Z"}}]}}}}"#,
            beats / 3600 % 24,
            beats / 60 % 60,
            beats % 60
        );
        let path = format!("/api/v1/nodes/node-{node}/status");
        let (code, body) = http("PATCH", &path, "application/strategic-merge-patch+json", &status)?;
        ensure!(code == 200, "the API server does not take a status: {code} {body}");
        beats += 1;
    }
    Ok((begun.elapsed(), cpu(process)?.saturating_sub(before)))
}

/// A node as a kubelet and flannel describe it.
fn described(number: u16, backend: &str) -> String {
    let [high, low] = number.to_be_bytes();
    let subnet = format!("10.{}.{low}.0/24", 96 + high);
    let ip = format!("192.168.{high}.{low}");
    let (kind, data) = match backend {
        "vxlan" => ("vxlan", format!(r#"{{\"VNI\":1,\"VtepMAC\":\"0a:00:00:00:{high:02x}:{low:02x}\"}}"#)),
        _ => ("", "null".to_owned()),
    };
    let annotations = if number == 1 {
        String::new()
    } else {
        let key = "flannel.alpha.coreos.com";
        format!(
            r#""{key}/backend-type":"{kind}","{key}/backend-data":"{data}","{key}/public-ip":"{ip}","{key}/kube-subnet-manager":"true","#
        )
    };
    let mut conditions = String::new();
    for (kind, status) in
        [("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False"), ("Ready", "True")]
    {
        let _infallible = write!(
            conditions,
            r#"{{"type":"{kind}","status":"{status}","reason":"Kubelet","message":"kubelet has looked at {kind}","lastHeartbeatTime":"2026-01-01T00:00:00Z","lastTransitionTime":"2026-01-01T00:00:00Z"}},"#
        );
    }
    let images = images();
    format!(
        r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"node-{number}","labels":{{"kubernetes.io/hostname":"node-{number}","kubernetes.io/os":"linux"}},
        "annotations":{{{annotations}"node.alpha.kubernetes.io/ttl":"0"}}}},"spec":{{"podCIDR":"{subnet}","podCIDRs":["{subnet}"]}},
        "status":{{"addresses":[{{"type":"InternalIP","address":"{ip}"}}],"capacity":{{"cpu":"8","memory":"32Gi","pods":"110"}},
        "conditions":[{}],"images":[{}]}}}}"#,
        conditions.trim_end_matches(','),
        images
    )
}

/// The fifty images that a kubelet tells of, as JSON without the brackets.
pub(crate) fn images() -> String {
    let image = |image: u8| {
        format!(
            r#"{{"names":["registry.example.com/team/application-{image}@sha256:{image:064x}","registry.example.com/team/application-{image}:v1.{image}"],"sizeBytes":104857600}}"#
        )
    };
    (0..50).map(image).collect::<Vec<_>>().join(",")
}

fn http(method: &str, path: &str, kind: &str, body: &str) -> Result<(u16, String)> {
    request(API, method, path, kind, body)
}

/// How many routes of Loden's there are in the namespace of the calling thread.
fn routes() -> Result<usize> {
    let output = Command::new("ip").args(["-4", "route", "show", "proto", "77"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().count())
}

/// The table.
pub(crate) fn table(all: &[Idle]) -> String {
    let mut out = String::from(
        "| backend | nodes | idle CPU, % of one | watched s | resident MiB | of that its own | peak MiB | ready after ms | CPU until ready ms |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for idle in all {
        let _infallible = writeln!(
            out,
            "| {} | {} | {:.3} | {} | {} | {} | {} | {} | {} |",
            idle.backend,
            idle.nodes,
            100.0 * idle.cpu,
            idle.watched.as_secs(),
            mib(idle.resident),
            mib(idle.own),
            mib(idle.peak),
            idle.start.as_millis(),
            idle.start_cpu.as_millis(),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_subnets_of_their_own() {
        let subnet = |number| {
            let text = described(number, "vxlan");
            text.split(r#""podCIDR":""#).nth(1).unwrap().split('"').next().unwrap().to_owned()
        };
        assert_eq!((subnet(1), subnet(1000)), ("10.96.1.0/24".to_owned(), "10.99.232.0/24".to_owned()));
        assert!(described(1000, "vxlan").contains(r#""{\"VNI\":1,\"VtepMAC\":\"0a:00:00:00:03:e8\"}""#));
        assert!(!described(1, "vxlan").contains("backend-data"));
        assert!(described(7, "alloc").contains(r#"backend-data":"null""#));
    }
}

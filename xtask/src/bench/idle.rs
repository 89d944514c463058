//! What flanneld costs when nothing happens: processor time and memory on one node of a small and of a large cluster.
//!
//! The node is a namespace, the API server an emulator in it. "Nothing" is what a cluster does by itself: every kubelet writes its node's status
//! once in five minutes, and a node object is as large as kubelets make it, with conditions and fifty images.

use super::Programs;
use super::stage::{Directory, Namespace};
use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const API: &str = "127.0.0.1:8793";
const HEALTH: &str = "127.0.0.1:8081";
/// The node whose flanneld is measured.
const OWN: &str = "node-1";
/// A kubelet with nothing to say writes its node's status this often.
const HEARTBEAT: Duration = Duration::from_secs(300);
const DEADLINE: Duration = Duration::from_secs(120);

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

/// Ends with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _ended_already = self.0.wait();
    }
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
    let mut images = String::new();
    for image in 0..50 {
        let _infallible = write!(
            images,
            r#"{{"names":["registry.example.com/team/application-{image}@sha256:{image:064x}","registry.example.com/team/application-{image}:v1.{image}"],"sizeBytes":104857600}},"#
        );
    }
    format!(
        r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"node-{number}","labels":{{"kubernetes.io/hostname":"node-{number}","kubernetes.io/os":"linux"}},
        "annotations":{{{annotations}"node.alpha.kubernetes.io/ttl":"0"}}}},"spec":{{"podCIDR":"{subnet}","podCIDRs":["{subnet}"]}},
        "status":{{"addresses":[{{"type":"InternalIP","address":"{ip}"}}],"capacity":{{"cpu":"8","memory":"32Gi","pods":"110"}},
        "conditions":[{}],"images":[{}]}}}}"#,
        conditions.trim_end_matches(','),
        images.trim_end_matches(',')
    )
}

fn http(method: &str, path: &str, kind: &str, body: &str) -> Result<(u16, String)> {
    request(API, method, path, kind, body)
}

/// Status code and body of one request on a connection of its own.
fn request(to: &str, method: &str, path: &str, kind: &str, body: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {to}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.context("the server does not answer in HTTP")?, answer.into_owned()))
}

fn wait(what: &str, mut ready: impl FnMut() -> bool, told: impl Fn() -> String) -> Result<()> {
    let begun = Instant::now();
    while !ready() {
        if begun.elapsed() > DEADLINE {
            bail!("{what} is not there after {} s: {}", DEADLINE.as_secs(), told());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// How many routes of Loden's there are in the namespace of the calling thread.
fn routes() -> Result<usize> {
    let output = Command::new("ip").args(["-4", "route", "show", "proto", "77"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().count())
}

/// Processor time of a process's living threads, to the nanosecond.
fn cpu(process: u32) -> Result<Duration> {
    let mut all = Duration::ZERO;
    let tasks = format!("/proc/{process}/task");
    for task in std::fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))? {
        // A thread may end meanwhile; what it used is small and gone.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        all += parse_schedstat(&text).context("schedstat does not look as expected")?;
    }
    Ok(all)
}

fn parse_schedstat(text: &str) -> Option<Duration> {
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// A line of `/proc/<pid>/status`, in kilobytes.
fn memory(process: u32, key: &str) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse_status(&text, key).with_context(|| format!("{path} has no {key}"))
}

fn parse_status(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix(" kB")?.parse().ok()
}

/// The table.
pub(crate) fn table(all: &[Idle]) -> String {
    let mut out = String::from(
        "| backend | nodes | idle CPU, % of one | watched s | resident MiB | of that its own | peak MiB | ready after ms | CPU until ready ms |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for idle in all {
        let mib = |kb: u64| {
            let tenths = kb.saturating_mul(10) / 1024;
            format!("{}.{}", tenths / 10, tenths % 10)
        };
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
    fn the_kernels_files_are_read() {
        let status =
            "Name:\tflanneld\nVmHWM:\t   20480 kB\nVmRSS:\t   12288 kB\nRssAnon:\t    4096 kB\nThreads:\t3\n";
        assert_eq!(parse_status(status, "VmRSS:"), Some(12288));
        assert_eq!(parse_status(status, "VmSwap:"), None);
        assert_eq!(parse_status(status, "Threads:"), None);
        assert_eq!(parse_schedstat("1500000 20 3\n"), Some(Duration::from_micros(1500)));
        assert_eq!(parse_schedstat("\n"), None);
        let own = std::process::id();
        assert!(memory(own, "VmRSS:").unwrap() > 0 && cpu(own).unwrap() > Duration::ZERO);
    }

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

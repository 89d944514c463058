//! Unmodified kubectl against the emulator: the version of Debian (1.20, which validates by itself) and the machine's own
//! where it has one (which leaves that to the server).

// Always true here; it tells clippy that helpers outside of #[test] functions may unwrap, too.
#![cfg(test)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use loden_sim_kube::{Config, Emulator, Handle, PatchType, Resource, Tls, Token, Verb, tls_kubeconfig};
use serde_json::json;

/// Far beyond what anything here takes, so that only a real hang fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the machine's own kubectl is, when it has one.
const OWN: &str = "/usr/bin/kubectl";

fn programs() -> Vec<PathBuf> {
    let tools = std::env::var_os("LODEN_TOOLS")
        .expect("LODEN_TOOLS is not set: run `cargo xtask test peers`, which brings the clients");
    let unpacked = Path::new(&tools).join("kubectl/usr/bin/kubectl");
    assert!(unpacked.exists(), "{} is missing: run `cargo xtask test peers`", unpacked.display());
    [unpacked, PathBuf::from(OWN)].into_iter().filter(|program| program.exists()).collect()
}

/// An emulator, and one kubectl with a home of its own.
struct Bench {
    program: PathBuf,
    handle: Handle,
    home: tempfile::TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    server: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(server) = self.server.take() {
            let _panicked_already = server.join();
        }
    }
}

impl Bench {
    fn new(program: PathBuf) -> Self {
        let home = tempfile::tempdir().unwrap();
        let emulator = Emulator::new(Config { tokens: vec![Token::admin("secret")], ..Config::default() });
        let handle = emulator.handle();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let tls = Tls::new(&["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(home.path().join("kubeconfig"), tls_kubeconfig(&url, "secret", &tls)).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = emulator.serve_tls(listener, &tls) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { program, handle, home, stop: Some(stop), server: Some(server) }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.home.path().join("kubeconfig"))
            .env("PATH", "/usr/bin:/bin")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests"))
            .stdin(Stdio::null());
        command
    }

    /// What it says, on both channels, and whether it was content.
    fn run(&self, args: &[&str]) -> (bool, String) {
        let output = self.command(args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let (success, text) = self.run(args);
        assert!(success, "{} {args:?}: {text}", self.program.display());
        text
    }

    #[track_caller]
    fn refused(&self, args: &[&str]) -> String {
        let (success, text) = self.run(args);
        assert!(!success, "{} {args:?} was not refused: {text}", self.program.display());
        text
    }

    /// A table as rows of words.
    #[track_caller]
    fn table(&self, args: &[&str]) -> Vec<Vec<String>> {
        let text = self.ok(args);
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn set_ready(&self, node: &str, status: &str) {
        let change = json!({"status": {"conditions": [{"type": "Ready", "status": status, "reason": "KubeletReady"}],
            "nodeInfo": {"kubeletVersion": "v1.34.1"}}});
        self.handle.patch_status(Resource::Nodes, "", node, PatchType::Strategic, &change).unwrap();
    }
}

/// A kubectl that goes on, with the lines that it has printed. Ends with the value.
struct Following {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Drop for Following {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Following {
    fn start(bench: &Bench, args: &[&str]) -> Self {
        let mut child = bench.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    /// The words of the next line.
    #[track_caller]
    fn line(&self) -> Vec<String> {
        let line = self.lines.recv_timeout(PATIENCE).expect("kubectl printed no further line");
        line.split_whitespace().map(str::to_owned).collect()
    }
}

#[track_caller]
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

const MANIFESTS: [&str; 5] =
    ["node.yaml", "rbac.yaml", "configmap.yaml", "daemonset.yaml", "deployment.yaml"];

#[test]
fn manifests_are_applied_and_found_unchanged() {
    for program in programs() {
        let bench = Bench::new(program);
        for manifest in MANIFESTS {
            let text = bench.ok(&["apply", "-f", manifest]);
            assert!(text.lines().all(|line| line.ends_with(" created")), "{text}");
        }
        for manifest in ["node.yaml", "configmap.yaml", "daemonset.yaml"] {
            let text = bench.ok(&["apply", "-f", manifest]);
            assert!(text.lines().all(|line| line.ends_with(" unchanged")), "{text}");
        }
        let set = bench.table(&["get", "daemonsets", "-n", "pod-network"]);
        assert_eq!(set[0], words("NAME DESIRED CURRENT READY UP-TO-DATE AVAILABLE NODE SELECTOR AGE"));
        assert_eq!(set[1][..7], words("node-network 0 0 0 0 0 <none>"));
        let maps = bench.table(&["get", "configmaps", "-n", "pod-network"]);
        assert_eq!((&maps[0], &maps[1][..2]), (&words("NAME DATA AGE"), &words("node-network 2")[..]));
        let bindings = bench.table(&["get", "clusterrolebindings", "-o", "wide"]);
        assert_eq!(bindings[0], words("NAME ROLE AGE USERS GROUPS SERVICEACCOUNTS"));
        assert_eq!(bindings[1][1], "ClusterRole/node-network");
        let described = bench.ok(&["describe", "daemonset", "-n", "pod-network", "node-network"]);
        assert!(described.contains("registry.example/flanneld:v1"), "{described}");
        let role = bench.ok(&["describe", "clusterrole", "node-network"]);
        assert!(role.contains("nodes/status") && role.contains("[patch]"), "{role}");
        // A change of a list that merges: kubectl computes the patch from what the API says of its types.
        let changed = std::fs::read_to_string(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests/daemonset.yaml"),
        )
        .unwrap()
        .replace("flanneld:v1", "flanneld:v2");
        let changed = bench.write("changed.yaml", &changed);
        assert!(bench.ok(&["apply", "-f", &changed]).contains("configured"));
        let set = bench.handle.get(Resource::DaemonSets, "pod-network", "node-network").unwrap();
        assert_eq!(set["spec"]["template"]["spec"]["containers"][0]["image"], "registry.example/flanneld:v2");
        assert_eq!(set["metadata"]["generation"], 2);
        bench.ok(&["delete", "-f", "daemonset.yaml"]);
        bench.ok(&["delete", "namespace", "pod-network"]);
        assert!(bench.handle.list(Resource::ConfigMaps, Some("pod-network")).is_empty());
    }
}

#[test]
fn what_we_tell_people_to_apply_is_applied() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/loden.yaml");
    for program in programs() {
        let bench = Bench::new(program);
        let text = bench.ok(&["apply", "-f", manifest.to_str().unwrap()]);
        assert!(text.lines().count() > 5 && text.lines().all(|line| line.ends_with(" created")), "{text}");
    }
}

#[test]
fn a_misspelt_field_is_refused() {
    for program in programs() {
        let bench = Bench::new(program);
        bench.ok(&["apply", "-f", "rbac.yaml"]);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests/daemonset.yaml");
        let misspelt = std::fs::read_to_string(path).unwrap().replace("hostNetwork", "hostNetwrok");
        let misspelt = bench.write("misspelt.yaml", &misspelt);
        for args in [&["apply", "-f", misspelt.as_str()][..], &["apply", "--server-side", "-f", &misspelt]] {
            let text = bench.refused(args);
            assert!(text.contains("hostNetwrok"), "{text}");
        }
        assert!(bench.handle.list(Resource::DaemonSets, None).is_empty());
        // Asked not to look, it drops what nobody knows.
        bench.ok(&["apply", "--validate=false", "-f", &misspelt]);
        let set = bench.handle.get(Resource::DaemonSets, "pod-network", "node-network").unwrap();
        assert_eq!(set["spec"]["template"]["spec"].get("hostNetwrok"), None);
    }
}

#[test]
fn nodes_are_shown_changed_and_deleted() {
    for program in programs() {
        let bench = Bench::new(program);
        bench.ok(&["apply", "-f", "node.yaml"]);
        bench.set_ready("node-a", "True");
        let nodes = bench.table(&["get", "nodes"]);
        assert_eq!(nodes[0], words("NAME STATUS ROLES AGE VERSION"));
        assert_eq!((&nodes[1][..3], nodes[1][4].as_str()), (&words("node-a Ready worker")[..], "v1.34.1"));
        let wide = bench.table(&["get", "nodes", "-o", "wide"]);
        assert_eq!(
            wide[0],
            words(
                "NAME STATUS ROLES AGE VERSION INTERNAL-IP EXTERNAL-IP OS-IMAGE KERNEL-VERSION CONTAINER-RUNTIME"
            )
        );
        bench.ok(&["cordon", "node-a"]);
        assert_eq!(bench.table(&["get", "nodes"])[1][1], "Ready,SchedulingDisabled");
        bench.ok(&["uncordon", "node-a"]);
        bench.ok(&["label", "node", "node-a", "zone=b"]);
        bench.ok(&["annotate", "node", "node-a", "note=seen"]);
        bench.ok(&["taint", "node", "node-a", "only=this:NoSchedule"]);
        bench.ok(&["patch", "node", "node-a", "-p", r#"{"metadata":{"labels":{"rack":"7"}}}"#]);
        bench.ok(&[
            "patch",
            "node",
            "node-a",
            "--type=json",
            "-p",
            r#"[{"op":"add","path":"/metadata/labels/row","value":"3"}]"#,
        ]);
        bench.ok(&[
            "patch",
            "node",
            "node-a",
            "--type=merge",
            "-p",
            r#"{"metadata":{"labels":{"row":null}}}"#,
        ]);
        let refused =
            bench.refused(&["patch", "node", "node-a", "-p", r#"{"spec":{"podCIDR":"10.9.0.0/24"}}"#]);
        assert!(refused.contains("podCIDR"), "{refused}");
        let node = bench.handle.get(Resource::Nodes, "", "node-a").unwrap();
        assert_eq!(
            (&node["metadata"]["labels"]["rack"], node["metadata"]["labels"].get("row")),
            (&json!("7"), None)
        );
        let event = json!({"metadata": {"name": "node-a.1"}, "type": "Warning", "reason": "RouteMissing",
            "message": "no route", "involvedObject": {"kind": "Node", "name": "node-a", "uid": "node-a"},
            "source": {"component": "tester"}, "count": 2, "lastTimestamp": "2026-01-01T00:00:00Z"});
        bench.handle.create(Resource::Events, "default", event).unwrap();
        let described = bench.ok(&["describe", "node", "node-a"]);
        for part in ["zone=b", "note: seen", "only=this:NoSchedule", "10.244.1.0/24", "RouteMissing"] {
            assert!(described.contains(part), "{part} is not in {described}");
        }
        let events = bench.table(&["get", "events"]);
        assert_eq!(events[0], words("LAST SEEN TYPE REASON OBJECT MESSAGE"));
        assert_eq!(events[1][1..], words("Warning RouteMissing node/node-a no route"));
        assert_eq!(bench.table(&["get", "nodes", "-l", "zone in (a,b)", "--no-headers"]).len(), 1);
        bench.ok(&["delete", "node", "node-a"]);
        assert!(bench.refused(&["get", "node", "node-a"]).contains("nodes \"node-a\" not found"));
    }
}

#[test]
fn watches_follow_nodes() {
    for program in programs() {
        let bench = Bench::new(program);
        bench.handle.create(Resource::Nodes, "", json!({"metadata": {"name": "a"}})).unwrap();
        let following = Following::start(&bench, &["get", "nodes", "-w"]);
        assert_eq!(following.line()[..2], words("NAME STATUS"));
        assert_eq!(following.line()[..2], words("a Unknown"));
        wait_until("the watch", || bench.handle.running_watches() > 0);
        bench.set_ready("a", "True");
        assert_eq!(following.line()[..2], words("a Ready"));
        bench.handle.create(Resource::Nodes, "", json!({"metadata": {"name": "b"}})).unwrap();
        assert_eq!(following.line()[..2], words("b Unknown"));
        bench.set_ready("a", "False");
        assert_eq!(following.line()[..2], words("a NotReady"));
        drop(following);
        // Waiting for a condition is a list and a watch of one name.
        let before = bench.handle.served(Verb::Watch, Resource::Nodes);
        let waiting = Following::start(&bench, &["wait", "--for=condition=Ready", "node/b", "--timeout=60s"]);
        wait_until("the second watch", || bench.handle.served(Verb::Watch, Resource::Nodes) > before);
        bench.set_ready("b", "True");
        assert_eq!(waiting.line(), words("node/b condition met"));
    }
}

#[test]
fn things_are_created_from_the_command_line() {
    for program in programs() {
        let bench = Bench::new(program);
        for (args, name) in [
            (&["create", "namespace", "n"][..], "namespace/n"),
            (&["create", "configmap", "c", "-n", "n", "--from-literal=a=b"], "configmap/c"),
            (&["create", "secret", "generic", "s", "-n", "n", "--from-literal=k=v"], "secret/s"),
            (&["create", "serviceaccount", "sa", "-n", "n"], "serviceaccount/sa"),
            (
                &["create", "role", "r", "-n", "n", "--verb=get,list", "--resource=pods"],
                "role.rbac.authorization.k8s.io/r",
            ),
            (
                &["create", "rolebinding", "rb", "-n", "n", "--role=r", "--user=jane"],
                "rolebinding.rbac.authorization.k8s.io/rb",
            ),
            (
                &["create", "clusterrole", "cr", "--verb=watch", "--resource=nodes"],
                "clusterrole.rbac.authorization.k8s.io/cr",
            ),
            (
                &["create", "clusterrolebinding", "crb", "--clusterrole=cr", "--serviceaccount=n:sa"],
                "clusterrolebinding.rbac.authorization.k8s.io/crb",
            ),
        ] {
            assert_eq!(bench.ok(args).trim(), format!("{name} created"));
        }
        let get = |resource, name| bench.handle.get(resource, "n", name).unwrap();
        assert_eq!(get(Resource::ConfigMaps, "c")["data"], json!({"a": "b"}));
        assert_eq!(get(Resource::Secrets, "s")["data"], json!({"k": "dg=="}));
        assert_eq!(get(Resource::Roles, "r")["rules"][0]["verbs"], json!(["get", "list"]));
        let binding = bench.handle.get(Resource::ClusterRoleBindings, "", "crb").unwrap();
        assert_eq!(binding["subjects"], json!([{"kind": "ServiceAccount", "name": "sa", "namespace": "n"}]));
        assert!(bench.refused(&["create", "namespace", "n"]).contains("already exists"));
        assert!(bench.ok(&["describe", "configmap", "c", "-n", "n"]).contains("a:\n----\nb"));
        assert_eq!(bench.table(&["get", "namespaces"])[0], words("NAME STATUS AGE"));
        assert!(bench.ok(&["explain", "daemonset.spec.template.spec.hostNetwork"]).contains("<boolean>"));
    }
}

#[test]
fn server_side_apply_knows_the_owners() {
    for program in programs() {
        let bench = Bench::new(program);
        bench.ok(&["create", "namespace", "pod-network"]);
        let first = ["apply", "--server-side", "-f", "configmap.yaml"];
        bench.ok(&first);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests/configmap.yaml");
        let other = std::fs::read_to_string(path).unwrap().replace("vxlan", "host-gw");
        let other = bench.write("other.yaml", &other);
        let second = ["apply", "--server-side", "--field-manager=other", "-f", other.as_str()];
        let text = bench.refused(&second);
        assert!(text.contains("conflict with \"kubectl\": .data.net-conf.json"), "{text}");
        bench.ok(&[&second[..], &["--force-conflicts"]].concat());
        let map = || bench.handle.get(Resource::ConfigMaps, "pod-network", "node-network").unwrap();
        assert!(map()["data"]["net-conf.json"].as_str().unwrap().contains("host-gw"));
        assert!(bench.refused(&first).contains("conflict with \"other\": .data.net-conf.json"));
        let version = map()["metadata"]["resourceVersion"].clone();
        bench.ok(&second);
        assert_eq!(map()["metadata"]["resourceVersion"], version, "the same again changes nothing");
        bench.ok(&["apply", "--server-side", "-f", "daemonset.yaml"]);
        bench.ok(&["apply", "--server-side", "-f", "daemonset.yaml"]);
    }
}

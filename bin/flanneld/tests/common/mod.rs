//! A machine of its own for one flanneld: a network namespace with an external interface, and an API server in it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot set its stage must say where it failed"
)]
#![expect(dead_code, reason = "each test binary uses its own part of the stage")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use loden_netlink::{NetNs, NewLink, NewLinkKind, RouteSocket, VethPeer};
use loden_sim_kube::{Config, Emulator, Handle, PatchType, Resource, write_kubeconfig};
use serde_json::{Value, json};

pub(crate) const NODE: &str = "n1";
pub(crate) const NET_CONF: &str =
    r#"{"Network": "172.20.0.0/16", "EnableNFTables": true, "Backend": {"Type": "alloc"}}"#;
const HEALTH_PORT: u16 = 8081;
/// Far longer than anything takes; only a hang meets it.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) netns: NetNs,
    pub(crate) kube: Handle,
    pub(crate) dir: tempfile::TempDir,
    api: SocketAddr,
    emulator: Emulator,
    server: Option<Service>,
}

/// Something that answers on a listener, on a thread of its own, until dropped.
pub(crate) struct Service {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Service {
    pub(crate) fn start<F>(
        listener: TcpListener,
        serve: impl FnOnce(tokio::net::TcpListener) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()>,
    {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _reported_already = thread.join();
        }
    }
}

impl World {
    /// A machine with `eth0` 192.168.0.5/24, a default route, and the node `n1` without a pod CIDR.
    pub(crate) fn new() -> Self {
        Self::serving(Config::default())
    }

    /// The same, with an API server of these settings. The token that flanneld shows is `token`.
    pub(crate) fn serving(config: Config) -> Self {
        let netns =
            NetNs::anonymous().expect("kernel tests need root: they make network namespaces of their own");
        let listener = netns
            .run(|| {
                run("ip", &["link", "set", "lo", "up"]);
                TcpListener::bind("127.0.0.1:0").unwrap()
            })
            .unwrap();
        let api = listener.local_addr().unwrap();
        let emulator = Emulator::new(config);
        let kube = emulator.handle();
        let mut world = Self { netns, kube, dir: tempfile::tempdir().unwrap(), api, emulator, server: None };
        world.serve_api(listener);
        world.ip("link add eth0 type veth peer name uplink");
        world.ip("link set uplink up");
        world.ip("link set eth0 up");
        world.ip("address add 192.168.0.5/24 dev eth0");
        world.ip("route add default via 192.168.0.1 dev eth0");
        world.kube.create(Resource::Nodes, "", json!({"metadata": {"name": NODE}})).unwrap();
        write_kubeconfig(&world.path("kubeconfig"), &format!("http://{api}"), "token").unwrap();
        world.write("net-conf.json", NET_CONF);
        world
    }

    /// A machine on a segment: `eth0` 192.168.0.N/24 and the node `nN` with the pod CIDR 172.20.N.0/24.
    pub(crate) fn on(segment: &Segment, number: u8) -> Self {
        let netns = NetNs::anonymous().unwrap();
        let mut pair = NewLink::new(
            "eth0",
            NewLinkKind::Veth(VethPeer {
                name: format!("port{number}"),
                netns: Some(segment.netns.clone()),
                ..VethPeer::default()
            }),
        );
        pair.up = true;
        RouteSocket::open_in(&netns).unwrap().create_link(&pair).unwrap();
        segment.ip(&format!("link set port{number} master br0 up"));
        let name = format!("n{number}");
        let cidr = format!("172.20.{number}.0/24");
        let spec = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
        segment.kube.create(Resource::Nodes, "", json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        let world = Self {
            netns,
            kube: segment.kube.clone(),
            dir: tempfile::tempdir().unwrap(),
            api: segment.api,
            emulator: segment.emulator.clone(),
            server: None,
        };
        world.ip("link set lo up");
        world.ip(&format!("address add 192.168.0.{number}/24 dev eth0"));
        world.ip("route add default via 192.168.0.254 dev eth0");
        write_kubeconfig(&world.path("kubeconfig"), &format!("http://{}", segment.api), "token").unwrap();
        world
    }

    /// A machine whose node has the pod CIDR 172.20.1.0/24.
    pub(crate) fn with_pod_cidr() -> Self {
        let world = Self::new();
        world.set_pod_cidr("172.20.1.0/24");
        world
    }

    pub(crate) fn set_pod_cidr(&self, cidr: &str) {
        let spec = json!({"spec": {"podCIDR": cidr, "podCIDRs": [cidr]}});
        self.kube.patch(Resource::Nodes, "", NODE, PatchType::Merge, &spec).unwrap();
    }

    /// The Node object goes and comes back bare, as another one of the same name.
    pub(crate) fn renew_node(&self) {
        self.kube.delete(Resource::Nodes, "", NODE).unwrap();
        self.kube.create(Resource::Nodes, "", json!({"metadata": {"name": NODE}})).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn subnet_file(&self) -> PathBuf {
        self.path("run/subnet.env")
    }

    pub(crate) fn node(&self) -> Value {
        self.kube.get(Resource::Nodes, "", NODE).unwrap()
    }

    /// `ip` inside, its arguments as one line; must succeed.
    pub(crate) fn ip(&self, line: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.netns.run(|| run("ip", &args)).unwrap()
    }

    /// What a program prints inside, whether or not it succeeds.
    pub(crate) fn look(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        let output = self.netns.run(|| command.output().unwrap()).unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `nft` inside, the rest of the line as it would be typed; must succeed.
    pub(crate) fn nft(&self, line: &str) -> String {
        self.netns.run(|| run("nft", &[line])).unwrap()
    }

    /// iptables on nf_tables inside, its arguments as one line; must succeed.
    pub(crate) fn iptables(&self, line: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.netns.run(|| run("iptables-nft", &args)).unwrap()
    }

    pub(crate) fn sysctl(&self, path: &str) -> String {
        self.netns
            .run(|| std::fs::read_to_string(Path::new("/proc/sys").join(path)).unwrap())
            .unwrap()
            .trim()
            .to_owned()
    }

    pub(crate) fn set_sysctl(&self, path: &str, value: &str) {
        self.netns.run(|| std::fs::write(Path::new("/proc/sys").join(path), value).unwrap()).unwrap();
    }

    /// The arguments every flanneld of this world gets.
    pub(crate) fn args(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        vec![
            "-kube-subnet-mgr".into(),
            format!("-kubeconfig-file={}", path("kubeconfig")),
            format!("-net-config-path={}", path("net-conf.json")),
            format!("--subnet-file={}", self.subnet_file().display()),
            "-healthz-ip=127.0.0.1".into(),
            format!("--healthz-port={HEALTH_PORT}"),
            "-ip-masq".into(),
            "-set-node-network-unavailable=false".into(),
        ]
    }

    /// Starts flanneld with the usual arguments, `--vpc-cidrs=192.168.0.0/16`, and these.
    pub(crate) fn start(&self, more: &[&str]) -> Flanneld {
        let mut args = self.args();
        args.push("--vpc-cidrs=192.168.0.0/16".into());
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        self.start_with(&args, &[("NODE_NAME", NODE)])
    }

    pub(crate) fn start_with(&self, args: &[String], environment: &[(&str, &str)]) -> Flanneld {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
        command.args(args);
        self.start_command(command, environment)
    }

    pub(crate) fn start_command(&self, mut command: Command, environment: &[(&str, &str)]) -> Flanneld {
        let log = self.path(&format!("log-{}", std::fs::read_dir(self.dir.path()).unwrap().count()));
        command.env_remove("NODE_NAME").env_remove("NOTIFY_SOCKET").envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(std::fs::File::create(&log).unwrap());
        let child = self.netns.run(|| command.spawn().unwrap()).unwrap();
        Flanneld { child, log }
    }

    /// Status code and body of a health page; `None` while nobody listens.
    pub(crate) fn health(&self, page: &str) -> Option<(u16, String)> {
        self.netns
            .run(|| {
                let mut stream = TcpStream::connect(("127.0.0.1", HEALTH_PORT)).ok()?;
                stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
                write!(stream, "GET {page} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).ok()?;
                let (head, body) = answer.split_once("\r\n\r\n")?;
                Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
            })
            .unwrap()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.health("/readyz") == Some((200, "flanneld is ready".to_owned()))
    }

    pub(crate) fn wait_ready(&self, flanneld: &Flanneld) {
        wait_until("flanneld is ready", &|| flanneld.log(), || self.is_ready());
    }

    /// Reasons and messages of the events recorded so far.
    pub(crate) fn events(&self) -> Vec<(String, String)> {
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let events = self.kube.list(Resource::Events, None);
        events.iter().map(|event| (text(event, "reason"), text(event, "message"))).collect()
    }

    fn serve_api(&mut self, listener: TcpListener) {
        let emulator = self.emulator.clone();
        self.server =
            Some(Service::start(listener, |listener| async move { emulator.serve(listener).await }));
    }

    /// The API server goes away; its state stays.
    pub(crate) fn stop_api(&mut self) {
        self.server = None;
    }

    /// The API server is back at its address.
    pub(crate) fn start_api(&mut self) {
        let api = self.api;
        let listener = self.netns.run(|| TcpListener::bind(api).unwrap()).unwrap();
        self.serve_api(listener);
    }
}

/// A switch that machines are on, with an API server at 192.168.0.254.
pub(crate) struct Segment {
    pub(crate) netns: NetNs,
    pub(crate) kube: Handle,
    api: SocketAddr,
    emulator: Emulator,
    _server: Service,
}

impl Segment {
    pub(crate) fn new() -> Self {
        let netns =
            NetNs::anonymous().expect("kernel tests need root: they make network namespaces of their own");
        let listener = netns
            .run(|| {
                run("ip", &["link", "set", "lo", "up"]);
                run("ip", &["link", "add", "br0", "up", "type", "bridge"]);
                run("ip", &["address", "add", "192.168.0.254/24", "dev", "br0"]);
                TcpListener::bind("192.168.0.254:0").unwrap()
            })
            .unwrap();
        let api = listener.local_addr().unwrap();
        let emulator = Emulator::new(Config::default());
        let serving = emulator.clone();
        let server = Service::start(listener, |listener| async move { serving.serve(listener).await });
        Self { netns, kube: emulator.handle(), api, emulator, _server: server }
    }

    fn ip(&self, line: &str) {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.netns.run(|| run("ip", &args)).unwrap();
    }
}

/// A file system of two pages, unmounted when dropped.
pub(crate) struct Tiny(PathBuf);

impl Tiny {
    pub(crate) fn mount(at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8k", "tiny"]).arg(&at).status();
        assert!(mounted.unwrap().success(), "mount a tmpfs; kernel tests need root");
        Self(at)
    }

    /// Leaves no room for anything.
    pub(crate) fn fill(&self) {
        assert!(std::fs::write(self.0.join("filler"), vec![0; 1 << 20]).is_err(), "the disk is full now");
    }

    /// Takes back what [`Tiny::fill`] did.
    pub(crate) fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }

    pub(crate) fn make_read_only(&self) {
        let done = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0).status();
        assert!(done.unwrap().success());
    }

    /// The names in it, in order.
    pub(crate) fn entries(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _reported_by_the_test_that_follows = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A running flanneld; killed when dropped.
pub(crate) struct Flanneld {
    child: Child,
    log: PathBuf,
}

impl Flanneld {
    /// Every whole line so far: the last one may still be on its way into the file.
    pub(crate) fn log(&self) -> String {
        let mut text = std::fs::read_to_string(&self.log).unwrap();
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        text
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Waits for the end; a flanneld that does not end is a failure.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        let log = self.log.clone();
        wait_until("flanneld ends", &|| std::fs::read_to_string(&log).unwrap(), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// The exit code and everything it said.
    pub(crate) fn ended(mut self) -> (Option<i32>, String) {
        let code = self.wait().code();
        let mut out = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut out).unwrap();
        }
        (code, out + &self.log())
    }

    /// Stops it as Kubernetes does; it must end with 0.
    pub(crate) fn stop(mut self) {
        self.signal(rustix::process::Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

impl Drop for Flanneld {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _no_zombie = self.child.wait();
    }
}

/// Polls until the condition holds; fails with what `explain` says when it never does.
pub(crate) fn wait_until(what: &str, explain: &dyn Fn() -> String, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}:\n{}", explain());
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; install it"));
    let (out, err) = (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{program} {args:?}: {err}{out}");
    out
}

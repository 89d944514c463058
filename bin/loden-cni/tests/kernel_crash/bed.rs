//! A node of its own for each worker, and one killed operation on it after the other.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use loden_residue::{Diff, Section, Snapshot};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use serde_json::{Value, json};

use crate::support::{Answer, Namespace, Node};
use crate::tracer::{self, Trace, Victim, When};

/// How long the kernel may take to remove the links of a namespace that is gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// The commands that change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Add,
    Del,
}

/// What the runtime does after the crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Recovery {
    /// DEL while the container's namespace is still there.
    Del,
    /// DEL after the namespace went.
    DelWithoutNamespace,
    /// No DEL at all: the namespace goes, and a GC says that nothing is attached.
    Gc,
}

impl Recovery {
    pub(crate) const ALL: [Self; 3] = [Self::Del, Self::DelWithoutNamespace, Self::Gc];
}

/// A kind of crash.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    /// Which plugin of the chain is killed, from the front.
    pub(crate) step: usize,
    pub(crate) operation: Operation,
    pub(crate) victim: Victim,
    pub(crate) recovery: Recovery,
    /// Whether nothing was ever attached on the node before.
    pub(crate) fresh: bool,
}

/// A plugin of a chain with its configuration.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) plugin: &'static str,
    pub(crate) config: Value,
}

/// A node with a chain that leaves nothing behind when nothing goes wrong.
pub(crate) struct Bed<'a> {
    node: &'a Node,
    pod: Namespace,
    chain: Vec<Member>,
    /// What stays on purpose.
    baseline: Snapshot,
    count: Cell<u32>,
}

/// Gives the calling thread, and those that it starts, mounts of its own with an empty `/run`: locks are not shared with other workers.
pub(crate) fn separate_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("kernel tests need root: run them as root");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
}

impl<'a> Bed<'a> {
    /// To be called in the node's namespace, and used by the calling thread only.
    pub(crate) fn new(node: &'a Node, chain: Vec<Member>) -> Self {
        fs::create_dir(node.path("state")).unwrap();
        let pod = Namespace::new("pod");
        let mut bed = Self { node, pod, chain, baseline: Snapshot::default(), count: Cell::new(0) };
        let first = bed.attachment(&bed.pod.path());
        bed.add_all(&first);
        bed.del_all(&first, None);
        assert_eq!(bed.pod.link_names().len(), 1, "links left in the container without any crash");
        bed.baseline = bed.picture();
        bed
    }

    pub(crate) fn chain(&self) -> &[Member] {
        &self.chain
    }

    /// Runs one operation to its kill point and recovers; `Err` says what was left or went wrong.
    pub(crate) fn crash(&self, scenario: Scenario, when: When) -> Result<Trace, String> {
        if scenario.fresh {
            self.make_fresh();
        }
        let mut goes = (scenario.recovery != Recovery::Del).then(|| Namespace::new("pod"));
        let attachment = self.attachment(&goes.as_ref().unwrap_or(&self.pod).path());
        let mut result = None;
        let before = match scenario.operation {
            Operation::Add => scenario.step,
            Operation::Del => self.chain.len(),
        };
        for member in &self.chain[..before] {
            result = Some(self.add(member, &attachment, result.as_ref()));
        }
        let member = &self.chain[scenario.step];
        let trace = match scenario.operation {
            Operation::Add => self.traced(member, "ADD", &attachment, result.as_ref(), when, scenario.victim),
            Operation::Del => {
                for later in self.chain[scenario.step + 1..].iter().rev() {
                    self.del(later, &attachment, result.as_ref());
                }
                self.traced(member, "DEL", &attachment, result.as_ref(), when, scenario.victim)
            }
        };
        if !trace.killed && !trace.success {
            return Err(format!("failed without being killed: {trace:?}"));
        }
        // A runtime keeps the result of a whole ADD only.
        let known = result.filter(|_| scenario.operation == Operation::Del);
        let gone = goes.take().is_some();
        match scenario.recovery {
            Recovery::Del => self.try_del_all(&attachment, known.as_ref())?,
            Recovery::DelWithoutNamespace => {
                // Some runtimes forget the path, others send that of a file that is gone.
                let forgets = self.count.get().is_multiple_of(2);
                let netns = if forgets { String::new() } else { attachment.netns.clone() };
                let attachment = Attachment { netns, ..attachment };
                self.try_del_all(&attachment, known.as_ref())?;
            }
            Recovery::Gc => self.gc()?,
        }
        self.judge(gone, scenario.fresh).map_err(|left| format!("{left}\nafter {}", told(&trace)))?;
        Ok(trace)
    }

    /// Nothing is left, and the address can be had again.
    fn judge(&self, gone: bool, fresh: bool) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let difference = self.baseline.diff(&self.picture());
            let clean = if fresh { difference.came().is_empty() } else { difference.is_empty() };
            if clean {
                break;
            }
            // The links into a namespace that is gone go by themselves, a while later, and only they do.
            if !gone || Instant::now() > deadline || !only_links(&difference) {
                return Err(format!("left behind:\n{difference}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if !gone {
            let links = self.pod.link_names();
            if links.len() != 1 {
                return Err(format!("links left in the container: {links:?}"));
            }
        }
        // Each family has one address to give.
        let probe = self.attachment("/proc/1/ns/net");
        let ipam = self.ipam_probe();
        for command in ["ADD", "DEL"] {
            let answer = self.call(&ipam, command, Some(&probe), &ipam.config);
            if !answer.success {
                return Err(format!("the address is not free: {answer:?}"));
            }
        }
        if fresh {
            let next = self.attachment(&self.pod.path());
            self.add_all(&next);
            self.del_all(&next, None);
            let difference = self.baseline.diff(&self.picture());
            if !difference.is_empty() {
                return Err(format!("the next ADD and DEL do not converge:\n{difference}"));
            }
        }
        Ok(())
    }

    fn ipam_probe(&self) -> Member {
        let config = json!({
            "cniVersion": "1.1.0", "name": "cbr0", "type": "host-local",
            "ipam": {
                "type": "host-local", "dataDir": self.node.path("state/networks"),
                "ranges": [
                    [{"subnet": "10.244.1.0/30"}],
                    [{"subnet": "fd00:10:244:1::/126", "rangeEnd": "fd00:10:244:1::2"}],
                ],
            },
        });
        Member { plugin: "host-local", config }
    }

    fn picture(&self) -> Snapshot {
        let run = fs::read_dir("/run").unwrap().map(|entry| entry.unwrap().path());
        // Namespaces are no files to look into.
        let mut places: Vec<PathBuf> = run.filter(|path| !path.ends_with("netns")).collect();
        places.push(self.node.path("state").into());
        // No connection is made but for what the kernel itself says to multicast groups.
        let picture = Snapshot::here(&places).unwrap().without(Section::Connections, |_| true);
        // The bridge stays; its MTU and the routes over it follow its ports.
        let picture = picture.without(Section::Links, |line| line.starts_with("cni0 "));
        picture.without(Section::Routes, |line| line.contains(" dev cni0 "))
    }

    /// As after the machine's start.
    fn make_fresh(&self) {
        for link in self.node.home.link_names() {
            if link != "lo" {
                self.node.home.sh("ip", &["link", "delete", &link]);
            }
        }
        self.node.home.sh("nft", &["flush", "ruleset"]);
        self.node.home.sh("sysctl", &["-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0"]);
        fs::remove_dir_all(self.node.path("state")).unwrap();
        fs::create_dir(self.node.path("state")).unwrap();
    }

    fn attachment(&self, netns: &str) -> Attachment {
        self.count.set(self.count.get() + 1);
        Attachment { container: format!("c{}", self.count.get()), netns: netns.to_owned() }
    }

    fn add_all(&self, attachment: &Attachment) -> Option<Value> {
        self.chain.iter().fold(None, |result, member| Some(self.add(member, attachment, result.as_ref())))
    }

    fn del_all(&self, attachment: &Attachment, result: Option<&Value>) {
        self.try_del_all(attachment, result).unwrap_or_else(|failure| panic!("{failure}"));
    }

    /// DEL as a runtime does it: from the last plugin to the first, stopping at the first failure.
    fn try_del_all(&self, attachment: &Attachment, result: Option<&Value>) -> Result<(), String> {
        for member in self.chain.iter().rev() {
            let answer = self.call(member, "DEL", Some(attachment), &with_previous(member, result));
            if !answer.success || !answer.stdout.is_empty() {
                return Err(format!("DEL of {} failed: {answer:?}", member.plugin));
            }
        }
        Ok(())
    }

    fn add(&self, member: &Member, attachment: &Attachment, result: Option<&Value>) -> Value {
        self.call(member, "ADD", Some(attachment), &with_previous(member, result)).result()
    }

    fn del(&self, member: &Member, attachment: &Attachment, result: Option<&Value>) {
        self.call(member, "DEL", Some(attachment), &with_previous(member, result)).silent();
    }

    fn gc(&self) -> Result<(), String> {
        for member in &self.chain {
            let mut config = member.config.clone();
            config["cni.dev/valid-attachments"] = json!([]);
            let answer = self.call(member, "GC", None, &config);
            if !answer.success || !answer.stdout.is_empty() {
                return Err(format!("GC of {} failed: {answer:?}", member.plugin));
            }
        }
        Ok(())
    }

    fn call(
        &self,
        member: &Member,
        command: &str,
        attachment: Option<&Attachment>,
        config: &Value,
    ) -> Answer {
        let command = self.command(member, command, attachment);
        tracer::untraced(command, &config.to_string())
    }

    fn traced(
        &self,
        member: &Member,
        command: &str,
        attachment: &Attachment,
        result: Option<&Value>,
        when: When,
        victim: Victim,
    ) -> Trace {
        let command = self.command(member, command, Some(attachment));
        tracer::run(command, &with_previous(member, result).to_string(), when, victim)
    }

    /// The plugin as a runtime calls it, in the calling thread's namespaces.
    fn command(&self, member: &Member, command: &str, attachment: Option<&Attachment>) -> Command {
        let mut line = Command::new(format!("{}/{}", self.node.ours(), member.plugin));
        line.env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", self.node.ours());
        if let Some(attachment) = attachment {
            line.env("CNI_CONTAINERID", &attachment.container)
                .env("CNI_NETNS", &attachment.netns)
                .env("CNI_IFNAME", "eth0");
        }
        line
    }
}

/// Which container, and where it is.
#[derive(Clone, Debug)]
struct Attachment {
    container: String,
    netns: String,
}

fn with_previous(member: &Member, result: Option<&Value>) -> Value {
    let mut config = member.config.clone();
    if let Some(result) = result {
        config["prevResult"] = result.clone();
    }
    config
}

/// Whether everything that differs hangs on a link.
fn only_links(difference: &Diff) -> bool {
    let follows = [Section::Links, Section::Addresses, Section::Routes, Section::Vlans, Section::Queues];
    difference.went().is_empty() && difference.came().iter().all(|(section, _)| follows.contains(section))
}

fn told(trace: &Trace) -> String {
    let calls: Vec<String> = trace.last.iter().map(|call| format!("  {call}")).collect();
    format!(
        "{} calls, {} with an effect; the last one did not happen:\n{}",
        trace.calls,
        trace.effects,
        calls.join("\n")
    )
}

//! Where a pod's ADD and DEL go: the system calls of one run, and how many instructions of the program itself lie between them.
//!
//! Times under `strace` are those of being watched, so calls are only counted. Instructions are counted by valgrind, in user mode, with the
//! process's start and end; they do not depend on how busy the machine is. What is not in either is the kernel's.

use super::Programs;
use super::plugins::{self, DEBIAN, LINK};
use super::stage::{Directory, Namespace, counted, program, timed, traced};
use anyhow::{Context, Result};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

/// How many of the calls are named.
const NAMED: usize = 12;

/// One program's command, as it was counted.
struct Profile {
    what: String,
    programs: usize,
    instructions: Option<u64>,
    calls: BTreeMap<String, u64>,
}

/// The section, ready to print.
pub(crate) fn measure(programs: &Programs) -> Result<String> {
    let (node, pod) = (Namespace::new("profile")?, Namespace::new("pod")?);
    let directory = Directory::new()?;
    let folder = plugins::install(programs, &directory)?;
    let state = &directory.path;
    node.ip("link add br-floor type bridge")?;
    node.ip("link set br-floor up")?;
    let subnet_file = directory.write(
        "profile.env",
        "FLANNEL_NETWORK=10.91.0.0/16\nFLANNEL_SUBNET=10.91.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    )?;
    let flannel = directory.write(
        "profile-flannel.json",
        &format!(
            r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","subnetFile":"{subnet_file}","dataDir":"{state}/profile-flannel",
            "delegate":{{"bridge":"br-ours","isDefaultGateway":true,"hairpinMode":true}},"ipam":{{"dataDir":"{state}/profile-ours"}}}}"#
        ),
    )?;
    let bridge = directory.write(
        "profile-bridge.json",
        &format!(
            r#"{{"cniVersion":"1.0.0","name":"peer","type":"bridge","bridge":"br-peer","isDefaultGateway":true,"hairpinMode":true,
            "ipam":{{"type":"host-local","dataDir":"{state}/profile-peer","ranges":[[{{"subnet":"10.90.0.0/24"}}]]}}}}"#
        ),
    )?;
    let netns = pod.path();
    let plugin = |folder: &Utf8Path, name: &str, verb: &str| plugins::call(folder, name, verb, "pod", &netns);
    let floor = |verb: &str| {
        let mut command = program(&programs.floor);
        match verb {
            "ADD" => command.args(["attach", &netns, "br-floor", "vethf", LINK, "10.89.0.5/24", "10.89.0.1"]),
            _ => command.args(["detach", &netns, LINK]),
        };
        command
    };
    let debian = Utf8Path::new(DEBIAN);
    // The peer's runtime does not bear valgrind; its instructions stay unknown.
    type Make<'a> = Box<dyn Fn(&str) -> Command + Send + Sync + 'a>;
    let subjects: [(&str, Make<'_>, Option<&Utf8PathBuf>, bool); 3] = [
        (
            "Loden: flannel → bridge → host-local",
            Box::new(|verb| plugin(&folder, "flannel", verb)),
            Some(&flannel),
            true,
        ),
        (
            "Debian's plugins: bridge → host-local",
            Box::new(|verb| plugin(debian, "bridge", verb)),
            Some(&bridge),
            false,
        ),
        ("floor", Box::new(floor), None, true),
    ];
    let mut profiles = Vec::new();
    for (what, make, stdin, countable) in &subjects {
        let stdin = stdin.map(|path| path.as_path());
        profiles.extend(node.run(|| both(what, make, stdin, *countable))?);
    }
    Ok(printed(&profiles))
}

/// ADD and DEL of one program. The first round makes what stays; each of the others is for one way of counting.
fn both(
    what: &str,
    make: &(dyn Fn(&str) -> Command + Send + Sync),
    stdin: Option<&Utf8Path>,
    countable: bool,
) -> Result<[Profile; 2]> {
    let verbs = ["ADD", "DEL"];
    for verb in verbs {
        timed(&mut make(verb), stdin)?;
    }
    let mut profiles = verbs.map(|verb| Profile {
        what: format!("{what} {verb}"),
        programs: 0,
        instructions: None,
        calls: BTreeMap::new(),
    });
    for (profile, verb) in profiles.iter_mut().zip(verbs) {
        profile.programs = counted(&make(verb), stdin)?;
    }
    for (profile, verb) in profiles.iter_mut().zip(verbs) {
        profile.calls = calls(&traced(&make(verb), stdin, &["-f", "-c", "-U", "calls,name"])?);
    }
    if countable {
        for (profile, verb) in profiles.iter_mut().zip(verbs) {
            profile.instructions = Some(instructions(&make(verb), stdin)?);
        }
    }
    Ok(profiles)
}

/// From `strace -c`: a number and a name a line.
fn calls(told: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (number, name) = line.trim().split_once(char::is_whitespace)?;
        let name = name.trim();
        let call = (name != "total").then(|| name.to_owned())?;
        Some((call, number.parse().ok()?))
    };
    told.lines().filter_map(line).collect()
}

fn instructions(command: &Command, stdin: Option<&Utf8Path>) -> Result<u64> {
    let log = Utf8PathBuf::from(format!("/dev/shm/loden-bench-{}.valgrind", std::process::id()));
    let mut counted = program(Utf8Path::new("/usr/bin/valgrind"));
    counted.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(format!("--log-file={log}"));
    counted.arg(command.get_program()).args(command.get_args());
    counted.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let outcome = timed(&mut counted, stdin);
    let told = std::fs::read_to_string(&log).with_context(|| format!("cannot read {log}"));
    let _in_memory_only = std::fs::remove_file(&log);
    outcome?;
    collected(&told?).context("valgrind does not say how many instructions it saw")
}

/// From callgrind: `==1== Collected : 12345`.
fn collected(told: &str) -> Option<u64> {
    let line = told.lines().find_map(|line| line.split_once("Collected :"))?;
    line.1.trim().parse().ok()
}

fn printed(profiles: &[Profile]) -> String {
    let mut out = String::from(
        "| run | programs | instructions in user mode | system calls | most frequent |\n|---|---:|---:|---:|---|\n",
    );
    for Profile { what, programs, instructions, calls } in profiles {
        let total: u64 = calls.values().sum();
        let mut by_count: Vec<_> = calls.iter().collect();
        by_count.sort_by(|one, other| other.1.cmp(one.1).then(one.0.cmp(other.0)));
        let named: Vec<String> =
            by_count.iter().take(NAMED).map(|(name, count)| format!("{name} {count}")).collect();
        let instructions = instructions.map_or_else(|| "–".to_owned(), |count| count.to_string());
        let _infallible =
            writeln!(out, "| {what} | {programs} | {instructions} | {total} | {} |", named.join(", "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_counters_print_is_read() {
        let told = "    calls syscall\n--------- ----------------\n       12 read\n        3 sendto\n--------- ----------------\n       15 total\n";
        let read = calls(told);
        assert_eq!(read.into_iter().collect::<Vec<_>>(), [("read".to_owned(), 12), ("sendto".to_owned(), 3)]);
        assert_eq!(collected("==7== \n==7== Collected : 123456\n"), Some(123_456));
        assert_eq!(collected("==7== nothing"), None);
    }
}

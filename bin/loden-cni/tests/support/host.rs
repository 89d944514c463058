//! A node with the programs of one variant of iptables.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Answer, Attachment, Node};

/// A node whose `PATH` has the programs of one variant first.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) node: Node,
    pub(crate) variant: &'static str,
}

impl Host {
    /// `nft` or `legacy`.
    pub(crate) fn new(variant: &'static str) -> Self {
        let node = Node::new();
        let multi = format!("/usr/sbin/xtables-{variant}-multi");
        assert!(Path::new(&multi).exists(), "apt-get install iptables: {multi} is missing");
        fs::create_dir(node.path("sbin")).unwrap();
        for program in ["iptables", "ip6tables"] {
            for suffix in ["", "-restore", "-save"] {
                symlink(&multi, node.path(&format!("sbin/{program}{suffix}"))).unwrap();
            }
        }
        Self { node, variant }
    }

    pub(crate) fn call(
        &self,
        path: &str,
        plugin: &str,
        command: &str,
        attachment: &Attachment<'_>,
        config: &Value,
    ) -> Answer {
        let programs = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.node.path("sbin"));
        let environment = [("PATH", programs.as_str())];
        self.node.call_with(path, plugin, command, attachment, &config.to_string(), &environment)
    }

    /// Runs a program of the variant in the node's namespace.
    pub(crate) fn program(&self, name: &str, args: &[&str], input: &str) -> String {
        let run = || {
            let mut child = Command::new(self.node.path(&format!("sbin/{name}")))
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{name} {args:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        self.node.home.ns.run(run).unwrap()
    }

    /// What an operator sees of a table in both families, without policies.
    pub(crate) fn rules(&self, table: &str) -> Vec<String> {
        let text = ["iptables", "ip6tables"].map(|name| self.program(name, &["-t", table, "-S"], ""));
        text.concat().lines().filter(|line| !line.starts_with("-P ")).map(str::to_owned).collect()
    }
}

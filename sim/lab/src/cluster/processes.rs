//! What is done to the production binaries: killed and started again, stopped, started, asked what they would do.

use std::process::Command;

use loden_netlink::netns::NetNs;

use super::{Cluster, control_instance};
use crate::control::{Applied, ProcessName};
use crate::error::{Context, Error, Result};
use crate::names::MEMBER_VARIABLE;
use crate::process::Supervised;
use crate::topology;

impl Cluster {
    /// Kills a controller and starts it again, with other route tables to serve if any are given.
    ///
    /// # Errors
    /// It is not there, or cannot be started.
    pub fn restart_controller(&self, at: usize, route_table_ids: Option<&[String]>) -> Result<Applied> {
        let kube = self.kube(at)?;
        let mut members = self.members();
        let controller = members
            .controllers
            .get_mut(&at)
            .ok_or_else(|| Error::Refused(format!("the controller of {} does not run", kube.name)))?;
        match route_table_ids {
            None => controller.restart()?,
            Some(ids) => {
                let namespace = NetNs::open_named(&self.lab.namespace(&control_instance(at)))
                    .during(|| format!("find the instance of the controller of {}", kube.name))?;
                controller.restart_as(topology::controller_recipe(self, kube, namespace, ids)?)?;
            }
        }
        Ok(Applied::new(format!("the controller of {} was killed and started again", kube.name), None))
    }

    /// Kills a node's flanneld and starts it again.
    ///
    /// # Errors
    /// It is not there, or cannot be started.
    pub fn restart_flanneld(&self, name: &str) -> Result<Applied> {
        self.require_node(name)?;
        let mut members = self.members();
        let flanneld =
            members.instances.get_mut(name).and_then(|member| member.node.as_mut()?.flanneld.as_mut());
        match flanneld {
            Some(flanneld) => flanneld.restart()?,
            None => return Err(Error::Refused(format!("flanneld does not run on {name}"))),
        }
        Ok(Applied::new(format!("flanneld of {name} was killed and started again"), Some(name.to_owned())))
    }

    /// Stops a process, which then stays down.
    ///
    /// # Errors
    /// There is none.
    pub fn stop(&self, process: &ProcessName) -> Result<Applied> {
        self.supervised(process, |supervised| {
            supervised.stop();
            Ok(())
        })?;
        Ok(Applied::new(format!("{} is stopped", self.describe(process)?), None))
    }

    /// Starts a stopped process again.
    ///
    /// # Errors
    /// There is none, or it cannot be started.
    pub fn start(&self, process: &ProcessName) -> Result<Applied> {
        self.supervised(process, Supervised::resume)?;
        Ok(Applied::new(format!("{} runs", self.describe(process)?), None))
    }

    /// Whether a cluster's controller is meant to run.
    pub(super) fn controller_wanted(&self, at: usize) -> bool {
        self.members().controllers.get(&at).is_some_and(Supervised::wanted)
    }

    /// Runs a second process of a cluster's controller, beside the first, that says what it would do.
    ///
    /// # Errors
    /// It cannot be started, or fails.
    pub fn dry_run(&self, at: usize) -> Result<Applied> {
        let kube = self.kube(at)?;
        let mut command = {
            let members = self.members();
            let controller = members
                .controllers
                .get(&at)
                .ok_or_else(|| Error::Refused(format!("there is no controller of {}", kube.name)))?;
            let recipe = controller.recipe();
            let mut command = Command::new(&recipe.program);
            command
                .args(&recipe.arguments)
                .arg("--dry-run")
                .envs(&recipe.environment)
                .env(MEMBER_VARIABLE, self.lab.as_str());
            command
        };
        let action = || format!("ask what the controller of {} would do", kube.name);
        let namespace = NetNs::open_named(&self.lab.namespace(&control_instance(at))).during(action)?;
        let output = namespace.run(|| command.output()).during(action)?.during(action)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::Refused(format!("{} failed: {}", action(), said.trim())));
        }
        Ok(Applied::new(String::from_utf8_lossy(&output.stdout).trim_end().to_owned(), None))
    }

    fn supervised(
        &self,
        process: &ProcessName,
        work: impl FnOnce(&mut Supervised) -> Result<()>,
    ) -> Result<()> {
        let mut members = self.members();
        let found = match process {
            ProcessName::Controller { cluster, .. } => members.controllers.get_mut(cluster),
            ProcessName::Flanneld(node) => {
                members.instances.get_mut(node).and_then(|member| member.node.as_mut()?.flanneld.as_mut())
            }
        };
        match found {
            Some(supervised) => work(supervised),
            None => Err(Error::Refused(format!("lab {} has no such process: {process:?}", self.lab))),
        }
    }

    fn describe(&self, process: &ProcessName) -> Result<String> {
        Ok(match process {
            ProcessName::Controller { cluster, .. } => {
                format!("the controller of {}", self.kube(*cluster)?.name)
            }
            ProcessName::Flanneld(node) => format!("flanneld of {node}"),
        })
    }
}

//! How `loden lab …` speaks to a lab's supervisor: one request per connection of a Unix socket, one JSON object per line.
//!
//! The supervisor answers with any number of progress lines and then exactly one `Done` or `Failed`. A connection that ends without one means that the
//! supervisor died; the client says so instead of waiting.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ipnet::Ipv4Net;
use loden_sim_cloud::{Fault, Settings};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::names::LabName;
use crate::topology::ProviderIdSpelling;

/// What a supervisor can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "do")]
pub enum Request {
    /// Build the lab: asked once, by `lab up`.
    Build,
    /// Answer a [`crate::status::Status`].
    Status,
    /// Add an instance that joins the cluster.
    NodeAdd {
        /// Its name; `node-<n>` when absent.
        name: Option<String>,
        /// Place of the cluster that it joins, from 0.
        #[serde(default)]
        cluster: usize,
        /// How its object names its instance.
        #[serde(default)]
        provider_id: ProviderIdSpelling,
    },
    /// Let another instance take the place of a node's; name, address, pods and pod CIDR stay.
    NodeReplace {
        /// Which.
        name: String,
    },
    /// Take a node out in order: pods, flanneld, node object, instance.
    NodeRemove {
        /// Which.
        name: String,
    },
    /// Stop an instance from one moment to the next; the node object stays, not ready.
    NodeCrash {
        /// Which.
        name: String,
    },
    /// Start a pod.
    PodAdd {
        /// On which node; the one with the fewest pods when absent.
        node: Option<String>,
        /// Its name; `pod-<n>` when absent.
        name: Option<String>,
    },
    /// Stop a pod.
    PodRemove {
        /// Which.
        name: String,
    },
    /// Run CNI CHECK for every pod.
    CniCheck,
    /// Change the quota of custom entries per route table.
    Quota {
        /// The new quota.
        entries: u32,
    },
    /// Put an entry into a table by hand, as somebody at the console would.
    RouteAdd {
        /// Destination.
        destination: Ipv4Net,
        /// Names of the instances that are its next hops.
        instances: Vec<String>,
        /// Lead to the instances' network interfaces instead of the instances.
        #[serde(default)]
        interface: bool,
        /// In place of the entry of that destination, where there is one.
        #[serde(default)]
        replace: bool,
        /// Into this table; the system table when absent.
        #[serde(default)]
        table: Option<String>,
    },
    /// Remove an entry of a table by hand.
    RouteRemove {
        /// Destination.
        destination: Ipv4Net,
        /// From this table; the system table when absent.
        #[serde(default)]
        table: Option<String>,
    },
    /// Make a custom route table that no vSwitch uses yet.
    TableAdd {
        /// Its ID; `vtb-<lab>-<n>` when absent.
        id: Option<String>,
        /// With the custom entries of this table.
        copy_of: Option<String>,
    },
    /// Let a vSwitch route by another table.
    TableUse {
        /// ID or range of the vSwitch.
        vswitch: String,
        /// The table.
        table: String,
    },
    /// Change the tables that a controller's cloud-config file names; it serves those from then on, without a restart.
    TableServe {
        /// Besides the system table; none: only that, `discover`: those in use.
        tables: Vec<String>,
        /// Place of the controller's cluster, from 0.
        #[serde(default)]
        cluster: usize,
    },
    /// Renew what the controllers sign with, and revoke what they signed with before.
    CredentialsRotate,
    /// Answer how often each action of the cloud's API was called: [`ActionCalls`] by action.
    Calls,
    /// Answer the emulated cloud's [`Behaviour`], after a change if there is one.
    Cloud {
        /// The keys to change, as a JSON object.
        change: Option<Value>,
        /// Begin with all keys as the lab began with them.
        #[serde(default)]
        reset: bool,
    },
    /// What a controller started now would do; nothing is written.
    DryRun {
        /// Place of its cluster, from 0.
        #[serde(default)]
        cluster: usize,
    },
    /// Stop a process of the lab; it stays down.
    Stop {
        /// Which.
        process: ProcessName,
    },
    /// Start a stopped process again.
    Start {
        /// Which.
        process: ProcessName,
    },
    /// Let calls of the cloud's API run into trouble from now on.
    FaultAdd {
        /// Which calls, how many, and what happens to them.
        fault: Fault,
    },
    /// Answer the list of [`Fault`]s that are still to come.
    FaultList,
    /// End all trouble.
    FaultClear,
    /// Kill a process of the lab and start it again.
    Restart {
        /// Which.
        process: ProcessName,
    },
    /// Events of the cluster, oldest first.
    Events,
}

/// A process that `Restart` can name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProcessName {
    /// A controller.
    Controller {
        /// Place of its cluster, from 0.
        #[serde(default)]
        cluster: usize,
        /// Route tables that it is to serve from now on, besides the system table; those before when absent.
        #[serde(default)]
        route_table_ids: Option<Vec<String>>,
    },
    /// The flanneld of a node.
    Flanneld(String),
}

/// What a changing request did.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// For people.
    pub text: String,
    /// Name of the node or pod it was done to.
    pub name: Option<String>,
    /// Milliseconds from the change of the node object until the route entry followed.
    pub entry_ms: Option<u64>,
    /// Milliseconds from the node object until the node could take pods.
    pub usable_ms: Option<u64>,
}

impl Applied {
    /// Without times.
    #[must_use]
    pub fn new(text: String, name: Option<String>) -> Self {
        Self { text, name, ..Self::default() }
    }
}

/// How often an action of the cloud's API was called.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActionCalls {
    /// In all.
    pub calls: u64,
    /// Refused by a rate limit, among them.
    pub refused: u64,
}

/// How the emulated cloud behaves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Behaviour {
    /// From now on.
    pub now: Settings,
    /// Until this request.
    pub before: Settings,
    /// When the lab began.
    pub at_start: Settings,
}

/// An event of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// `Normal` or `Warning`.
    pub kind: String,
    /// Kind and name of the object it is about.
    pub object: String,
    /// Word for machines.
    pub reason: String,
    /// Sentence for people.
    pub message: String,
    /// How often it happened.
    pub count: u64,
}

/// One line of an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// What is being done now.
    Progress(String),
    /// The request is done; the value depends on the request.
    Done(Value),
    /// The request failed, for this reason.
    Failed(String),
}

/// Sends `request` to the supervisor of `lab` and returns its answer.
///
/// # Errors
/// No lab of that name runs, its supervisor ended, or it refused.
pub fn ask<T: DeserializeOwned>(
    lab: &LabName,
    request: &Request,
    mut progress: impl FnMut(&str),
) -> Result<T> {
    let path = lab.control_socket();
    let mut stream = UnixStream::connect(&path).map_err(|error| {
        Error::Refused(if lab.directory().exists() {
            format!("lab {lab} has no running supervisor ({error}); `loden lab down --name {lab}` removes what is left of it")
        } else {
            format!("there is no lab {lab}; `loden lab up --name {lab}` starts one")
        })
    })?;
    // Long enough for any single request; a supervisor that is gone closes the socket at once.
    stream.set_read_timeout(Some(Duration::from_secs(600))).map_err(|e| Error::io("prepare", &path, e))?;
    let mut line = serde_json::to_string(request).during(|| "encode a request".to_owned())?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(|e| Error::io("write to", &path, e))?;
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(|e| Error::io("read from", &path, e))?;
        match serde_json::from_str(&line).during(|| format!("understand the supervisor of lab {lab}"))? {
            Reply::Progress(text) => progress(&text),
            Reply::Done(value) => {
                return serde_json::from_value(value)
                    .during(|| format!("understand the supervisor of lab {lab}"));
            }
            Reply::Failed(reason) => return Err(Error::Remote(reason)),
        }
    }
    Err(Error::Refused(format!(
        "the supervisor of lab {lab} ended before it answered; its log: {}",
        lab.supervisor_log().display()
    )))
}

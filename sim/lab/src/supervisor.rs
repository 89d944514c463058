//! The process behind a lab: it hosts the emulators, programs the vRouter, looks after the nodes' processes and answers `loden lab …`.
//!
//! Three threads besides the requests': the emulators' I/O, the vRouter's programmer, the keeper of processes. It owns nothing that
//! [`crate::teardown`] needs: killed at any moment, it leaves only what carries the lab's name.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use loden_netlink::netns::NetNs;
use serde_json::Value;

use crate::PLAIN_INSTANCE;
use crate::cluster::{Cluster, node_prefix};
use crate::control::{Applied, ProcessName, Reply, Request};
use crate::error::{Context, Error, Result};
use crate::fabric::{API_ADDRESS, Fabric, METADATA_ADDRESS};
use crate::kubernetes::Kubernetes;
use crate::names::LabName;
use crate::process::Programs;
use crate::spec::{Inputs, usable_addresses};
use crate::topology::{self, ProviderIdSpelling};
use crate::vrouter::VRouter;

/// How often the vRouter is looked at although nothing seems to have changed.
const AUDIT: Duration = Duration::from_secs(2);
/// How often processes are looked after.
const TEND: Duration = Duration::from_millis(200);

/// Name of the file with the lab's inputs, written before the supervisor starts.
pub const INPUTS_FILE: &str = "inputs.json";

struct Supervisor {
    lab: LabName,
    programs: Programs,
    runtime: tokio::runtime::Handle,
    cluster: OnceLock<Arc<Cluster>>,
    building: Mutex<()>,
}

/// Runs the supervisor of `lab` until it is killed.
///
/// # Errors
/// It could not begin: the lab's directory is not as `lab up` leaves it.
pub fn run(lab: &LabName, programs: Programs) -> Result<()> {
    // Away from the terminal that started it. Already a leader means that it is away.
    let _ = rustix::process::setsid();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .during(|| "start the supervisor".to_owned())?;
    let path = lab.control_socket();
    let listener = UnixListener::bind(&path).map_err(|e| Error::io("listen on", &path, e))?;
    let supervisor = Arc::new(Supervisor {
        lab: lab.clone(),
        programs,
        runtime: runtime.handle().clone(),
        cluster: OnceLock::new(),
        building: Mutex::default(),
    });
    std::thread::spawn(move || {
        for connection in listener.incoming().filter_map(std::io::Result::ok) {
            let supervisor = Arc::clone(&supervisor);
            std::thread::spawn(move || supervisor.answer(&connection));
        }
    });
    // The emulators' tasks run here; there is no other way out than being killed.
    runtime.block_on(std::future::pending::<()>());
    Ok(())
}

impl Supervisor {
    fn answer(&self, connection: &UnixStream) {
        let mut line = String::new();
        let request = BufReader::new(connection)
            .read_line(&mut line)
            .ok()
            .and_then(|_| serde_json::from_str::<Request>(&line).ok());
        let reply = match request {
            None => Reply::Failed("this is no request to a lab's supervisor".to_owned()),
            Some(request) => {
                tracing::info!(?request, "request");
                let progress = |text: &str| send(connection, &Reply::Progress(text.to_owned()));
                match self.carry_out(request, &progress) {
                    Ok(value) => Reply::Done(value),
                    Err(error) => {
                        tracing::warn!(%error, "a request failed");
                        Reply::Failed(error.to_string())
                    }
                }
            }
        };
        send(connection, &reply);
    }

    fn cluster(&self) -> Result<&Arc<Cluster>> {
        self.cluster.get().ok_or_else(|| Error::Refused(format!("lab {} is not built yet", self.lab)))
    }

    fn carry_out(&self, request: Request, progress: &dyn Fn(&str)) -> Result<Value> {
        if matches!(request, Request::Build) {
            let cluster = self.build(progress)?;
            return encode(&cluster.status());
        }
        let cluster = self.cluster()?;
        match request {
            Request::Status => encode(&cluster.status()),
            Request::Events => encode(&cluster.events()),
            Request::CniCheck => encode(&cluster.cni_check()?),
            // What only tells somebody else to change never waits for an operation that may be waiting for just that.
            Request::Quota { entries } => encode(&cluster.set_quota(entries)?),
            Request::RouteAdd { destination, instances, interface, replace, table } => {
                encode(&cluster.add_route(destination, &instances, interface, replace, table.as_deref())?)
            }
            Request::RouteRemove { destination, table } => {
                encode(&cluster.remove_route(destination, table.as_deref())?)
            }
            Request::TableAdd { id, copy_of } => encode(&cluster.add_table(id, copy_of.as_deref())?),
            Request::TableUse { vswitch, table } => encode(&cluster.use_table(&vswitch, &table)?),
            Request::TableServe { tables, cluster: at } => encode(&cluster.serve_tables(at, tables)?),
            Request::CredentialsRotate => encode(&cluster.rotate_credentials()?),
            Request::Calls => encode(&cluster.calls()),
            Request::Cloud { change, reset } => encode(&cluster.behave(change, reset)?),
            Request::DryRun { cluster: at } => encode(&cluster.dry_run(at)?),
            Request::Stop { process } => encode(&cluster.stop(&process)?),
            Request::Start { process } => encode(&cluster.start(&process)?),
            Request::FaultAdd { fault } => {
                cluster.cloud.inject(fault);
                encode(&Applied::new("calls of the cloud's API run into it from now on".to_owned(), None))
            }
            Request::FaultList => encode(&cluster.cloud.faults()),
            Request::FaultClear => {
                cluster.cloud.clear_faults();
                encode(&Applied::new("the cloud's API works as it should".to_owned(), None))
            }
            Request::Restart { process: ProcessName::Controller { cluster: at, route_table_ids } } => {
                encode(&cluster.restart_controller(at, route_table_ids.as_deref())?)
            }
            Request::Restart { process: ProcessName::Flanneld(node) } => {
                encode(&cluster.restart_flanneld(&node)?)
            }
            changing => encode(&cluster.operate(|| self.change(cluster, changing, progress))?),
        }
    }

    fn change(&self, cluster: &Cluster, request: Request, progress: &dyn Fn(&str)) -> Result<Applied> {
        match request {
            Request::NodeAdd { name, cluster: at, provider_id } => {
                let applied = cluster.add_node(at, name, provider_id, true, progress)?;
                cluster.install_services()?;
                Ok(applied)
            }
            Request::NodeReplace { name } => cluster.replace_node(&name, progress),
            Request::NodeRemove { name } => cluster.remove_node(&name, progress),
            Request::NodeCrash { name } => cluster.crash_node(&name),
            Request::PodAdd { node, name } => cluster.add_pod(node, name),
            Request::PodRemove { name } => cluster.remove_pod(&name),
            other => {
                Err(Error::Refused(format!("lab {} has no members that {other:?} would change", self.lab)))
            }
        }
    }

    fn build(&self, progress: &dyn Fn(&str)) -> Result<Arc<Cluster>> {
        let _turn = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        if self.cluster.get().is_some() {
            return Err(Error::Refused(format!("lab {} is built already", self.lab)));
        }
        let path = self.lab.directory().join(INPUTS_FILE);
        let text = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let inputs: Inputs =
            serde_json::from_slice(&text).during(|| format!("understand {}", path.display()))?;
        inputs.plan()?;

        progress("building the VPC: vRouter, NAT gateway, internet, services");
        let first = inputs.vswitches.first().copied().unwrap_or(inputs.vpc_cidr);
        let nat = usable_addresses(first).next().unwrap_or(Ipv4Addr::UNSPECIFIED);
        let fabric = Fabric::build(&self.lab, &inputs.vswitches, nat, inputs.backend.is_flat())?;
        let emulator =
            loden_sim_cloud::Emulator::new(&topology::cloud(&self.lab, &inputs), topology::settings(&inputs))
                .during(|| "set up the cloud emulator".to_owned())?;
        let cloud = emulator.handle();
        let kubes = (0_u16..)
            .zip(inputs.pod_cidrs())
            .map(|(at, pod_cidr)| Kubernetes::new(&self.lab, at, pod_cidr, inputs.backend))
            .collect::<Result<Vec<_>>>()?;
        self.serve_cloud(&fabric.services, &cloud)?;
        kubes.iter().try_for_each(|kube| self.serve_kube(&fabric.services, kube))?;
        let cluster = Arc::new(Cluster::new(
            self.lab.clone(),
            inputs.clone(),
            self.programs.clone(),
            cloud,
            kubes,
            fabric,
            nat,
        ));
        program_vrouter(&cluster, &self.runtime);
        keep_processes(&cluster);

        progress("starting the controller and the ECS instance");
        cluster.start_controllers()?;
        cluster.add_instance(PLAIN_INSTANCE)?;
        for at in 0..inputs.pod_cidrs().len() {
            progress(&format!("starting {} nodes", inputs.nodes));
            let each = |number: u32| {
                let name = format!("{}{number}", node_prefix(at));
                cluster.add_node(at, Some(name), ProviderIdSpelling::Plain, false, &|_| {}).map(|_| ())
            };
            (1..=inputs.nodes).try_for_each(each)?;
        }
        progress("waiting for subnets and route entries");
        cluster.wait_settled()?;
        self.start_pods(&cluster, progress)?;
        cluster.offer_service()?;
        let _ = self.cluster.set(Arc::clone(&cluster));
        Ok(cluster)
    }

    /// Pods of different nodes start at the same time, those of one node one after the other.
    fn start_pods(&self, cluster: &Cluster, progress: &dyn Fn(&str)) -> Result<()> {
        let nodes = cluster.usable_nodes();
        let per_node = cluster.inputs.pods;
        progress(&format!(
            "starting {} pods by the CNI protocol",
            nodes.len() * usize::try_from(per_node).unwrap_or(0)
        ));
        let failures: Vec<Error> = std::thread::scope(|scope| {
            let threads: Vec<_> = nodes
                .iter()
                .zip(0_u32..)
                .map(|(node, at)| {
                    scope.spawn(move || {
                        (0..per_node).try_for_each(|pod| {
                            let name = format!("pod-{}", at * per_node + pod + 1);
                            cluster.add_pod(Some(node.clone()), Some(name)).map(|_| ())
                        })
                    })
                })
                .collect();
            let died = || Error::Refused("a thread that starts pods died".to_owned());
            threads
                .into_iter()
                .filter_map(|thread| thread.join().unwrap_or_else(|_| Err(died())).err())
                .collect()
        });
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    fn serve_cloud(&self, services: &NetNs, cloud: &loden_sim_cloud::Handle) -> Result<()> {
        let api = self.listener(services, SocketAddrV4::new(API_ADDRESS, topology::CLOUD_API_PORT))?;
        let metadata =
            self.listener(services, SocketAddrV4::new(METADATA_ADDRESS, topology::METADATA_PORT))?;
        let (api_cloud, metadata_cloud) = (cloud.clone(), cloud.clone());
        self.runtime.spawn(async move { log_end("cloud API", api_cloud.serve_api(api).await) });
        self.runtime
            .spawn(async move { log_end("metadata service", metadata_cloud.serve_metadata(metadata).await) });
        Ok(())
    }

    /// For the cluster's members, and on loopback for whoever works with `kubectl` on this machine.
    fn serve_kube(&self, services: &NetNs, kube: &Kubernetes) -> Result<()> {
        let inside = self.listener(services, kube.address)?;
        let action = || format!("listen on loopback for clients of cluster {}", kube.name);
        let outside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).during(action)?;
        let path = self.lab.kubeconfig(&kube.name);
        let directory = path.parent().unwrap_or(&path);
        std::fs::create_dir_all(directory).map_err(|e| Error::io("create", directory, e))?;
        kube.write_kubeconfig(&path, outside.local_addr().during(action)?)?;
        for listener in [inside, self.adopt(outside).during(action)?] {
            let kube = kube.clone();
            self.runtime.spawn(async move { kube.serve(listener).await });
        }
        Ok(())
    }

    fn listener(&self, namespace: &NetNs, at: impl Into<SocketAddr>) -> Result<tokio::net::TcpListener> {
        let at = at.into();
        let action = || format!("listen on {at}");
        let listener = namespace.run(|| TcpListener::bind(at)).during(action)?.during(action)?;
        self.adopt(listener).during(action)
    }

    /// Lets the emulators' runtime accept on a listener.
    fn adopt(&self, listener: TcpListener) -> std::io::Result<tokio::net::TcpListener> {
        listener.set_nonblocking(true)?;
        let _context = self.runtime.enter();
        tokio::net::TcpListener::from_std(listener)
    }
}

fn log_end(what: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::error!(%error, "the {what} ended");
    }
}

/// Keeps the vRouter as the cloud says, after every change and regularly.
fn program_vrouter(cluster: &Arc<Cluster>, runtime: &tokio::runtime::Handle) {
    let mut changes = cluster.cloud.subscribe();
    let ringer = Arc::clone(cluster);
    runtime.spawn(async move {
        while changes.changed().await.is_ok() {
            ringer.ring();
        }
    });
    let cluster = Arc::clone(cluster);
    std::thread::spawn(move || {
        let mut vrouter = VRouter::new(cluster.fabric.vrouter.clone());
        let vpc = cluster.vpc();
        let mut heard = 0;
        loop {
            if let Err(error) = vrouter.reconcile(&cluster.cloud.snapshot(), &vpc, &cluster.ports()) {
                // An instance that is just being plugged in or out; the next round sees it whole.
                tracing::info!(%error, "the vRouter is not as it should be yet");
                std::thread::sleep(Duration::from_millis(20));
            }
            heard = cluster.listen(heard, AUDIT);
        }
    });
}

fn keep_processes(cluster: &Arc<Cluster>) {
    let cluster = Arc::clone(cluster);
    std::thread::spawn(move || {
        loop {
            cluster.tend();
            std::thread::sleep(TEND);
        }
    });
}

fn encode(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).during(|| "encode an answer".to_owned())
}

fn send(mut connection: &UnixStream, reply: &Reply) {
    if let Ok(mut line) = serde_json::to_string(reply) {
        line.push('\n');
        // A client that went away does not stop the work it asked for.
        let _ = connection.write_all(line.as_bytes());
    }
}

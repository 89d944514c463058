//! An emulator on a loopback port, and clients of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use loden_kube::{Access, Cluster, NodeView, NodeWatch, Nodes};
use loden_sim_kube::{Config, Emulator, Failure, Fault, Handle, Resource, Token, Verb, write_kubeconfig};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub(crate) const TOKEN: &str = "a token: with \"odd\" characters";
/// Far beyond what anything here takes, so that only a real hang fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    pub(crate) emulator: Emulator,
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(Config { tokens: vec![Token::admin(TOKEN)], ..Config::default() }).await
    }

    pub(crate) async fn start_with(config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let emulator = Emulator::new(config);
        let task = spawn(&emulator, listener);
        Self { emulator, address, task }
    }

    pub(crate) fn handle(&self) -> Handle {
        self.emulator.handle()
    }

    /// Cuts all connections and refuses new ones.
    pub(crate) async fn stop(&mut self) {
        self.task.abort();
        let _cancelled = (&mut self.task).await;
    }

    /// Listens again on the same port.
    pub(crate) async fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.task = spawn(&self.emulator, listener);
    }

    pub(crate) async fn client(&self) -> Cluster {
        client(self.address, TOKEN).await
    }

    /// Lets the next requests fail.
    pub(crate) fn fail(&self, verb: Verb, resource: Resource, failure: Failure, times: u32) {
        self.handle().add_fault(Fault { verb, resource, failure, times });
    }

    pub(crate) fn add_node(&self, name: &str) -> Value {
        self.handle().create(Resource::Nodes, "", json!({"metadata": {"name": name}})).unwrap()
    }

    pub(crate) fn node(&self, name: &str) -> Value {
        self.handle().get(Resource::Nodes, "", name).unwrap()
    }
}

fn spawn(emulator: &Emulator, listener: TcpListener) -> JoinHandle<()> {
    let emulator = emulator.clone();
    tokio::spawn(async move { emulator.serve(listener).await })
}

pub(crate) async fn client(address: SocketAddr, token: &str) -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    write_kubeconfig(&path, &format!("http://{address}"), token).unwrap();
    loden_kube::connect(&Access { kubeconfig: Some(path), server: None }).await.unwrap()
}

/// Waits until the watched nodes are as wished, looking whenever the watch says so.
pub(crate) async fn nodes_where(watch: &mut NodeWatch, wish: impl Fn(&Nodes) -> bool) -> Arc<Nodes> {
    let waiting = async {
        loop {
            if let Some(nodes) = watch.snapshot().filter(|nodes| wish(nodes)) {
                return nodes;
            }
            watch.changed().await;
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(nodes) => nodes,
        Err(_) => panic!("not as wished: {:?}, trouble {:?}", watch.snapshot(), watch.trouble()),
    }
}

/// Waits until the condition holds, looking again and again.
pub(crate) async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        panic!("never happened: {what}");
    }
}

pub(crate) async fn view(cluster: &Cluster, name: &str) -> NodeView {
    cluster.node(name).await.unwrap().unwrap()
}

//! An emulator on loopback, and clients of it.

use std::net::SocketAddr;
use std::time::Duration;

use loden_cloud::{
    AccessKey, CallCause, CallError, Client, Connection, Credentials, Endpoint, Endpoints, Environment,
    Metadata, Options, connect,
};
use loden_routes::model::{NewEntry, VpcRouteTableId};
use loden_sim_cloud::Handle;
use loden_sim_cloud::run::{Bound, bind};
use loden_sim_cloud::topology::{Config, RouteTableSpec, Settings, TableKind, Topology};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) const TABLE: &str = "vtb-loden";

/// An emulator on free ports, served for as long as the test's runtime lives.
pub(crate) struct Running {
    pub(crate) handle: Handle,
    pub(crate) api: SocketAddr,
    pub(crate) metadata: SocketAddr,
    pub(crate) control: SocketAddr,
}

pub(crate) async fn start(settings: Settings) -> Running {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut topology = Topology::example();
    topology.vpcs[0].route_tables = vec![
        RouteTableSpec::new(TABLE, TableKind::System),
        RouteTableSpec::new("vtb-custom", TableKind::Custom),
    ];
    let config = Config { api: free, metadata: free, control: free, settings, topology, ..Config::default() };
    serve(bind(config).await.unwrap())
}

pub(crate) fn serve(bound: Bound) -> Running {
    let endpoints = bound.endpoints().clone();
    let running = Running {
        handle: bound.handle(),
        api: endpoints.api,
        metadata: endpoints.metadata,
        control: endpoints.control,
    };
    tokio::spawn(bound.serve());
    running
}

pub(crate) fn quick() -> Settings {
    Settings { entry_delay_ms: 0, ..Settings::default() }
}

impl Running {
    pub(crate) fn client_with(&self, secret: &str) -> Client {
        let key = AccessKey { id: "testid".into(), secret: secret.into(), token: None };
        self.client_of(Credentials::fixed(key, "this test"))
    }

    pub(crate) fn client_of(&self, credentials: Credentials) -> Client {
        let endpoint = Endpoint { tls: false, authority: self.api.to_string() };
        Client::new("cn-hangzhou", Endpoints::all_at(endpoint), credentials).unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        self.client_with("testsecret")
    }

    pub(crate) fn metadata(&self) -> Metadata {
        Metadata::new(&self.metadata.to_string()).unwrap()
    }

    pub(crate) fn environment(&self) -> Environment {
        Environment {
            metadata_endpoint: Some(format!("http://{}", self.metadata)),
            vpc_endpoint: Some(self.api.to_string()),
            ecs_endpoint: Some(self.api.to_string()),
            quotas_endpoint: Some(self.api.to_string()),
            client_scheme: Some("HTTP".into()),
            sts_endpoint: Some(self.api.to_string()),
            ..Environment::default()
        }
    }

    pub(crate) async fn connect(&self) -> Connection {
        connect(&Options { environment: self.environment(), ..Options::default() }).await.unwrap()
    }
}

pub(crate) fn table() -> VpcRouteTableId {
    TABLE.into()
}

pub(crate) fn new_entry(destination: &str, instance: &str) -> NewEntry {
    NewEntry {
        table: table(),
        destination: destination.parse().unwrap(),
        instance: instance.into(),
        name: "loden".into(),
        description: "a + b & c = 100 % ~ ü".into(),
    }
}

pub(crate) fn api_code(error: &CallError) -> &str {
    match &*error.cause {
        CallCause::Api(api) => &api.code,
        other => panic!("not an answer of the API: {other}"),
    }
}

pub(crate) async fn raw(address: SocketAddr, request: &[u8]) -> String {
    exchange(TcpStream::connect(address).await.unwrap(), request).await
}

pub(crate) async fn exchange(mut stream: TcpStream, request: &[u8]) -> String {
    stream.write_all(request).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

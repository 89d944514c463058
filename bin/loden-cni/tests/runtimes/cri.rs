//! The kubelet's side of the Container Runtime Interface: gRPC over a Unix socket, with the few messages that these tests need.
//!
//! Names and numbers are those of `runtime.v1` in Kubernetes' `cri-api`. Bindings that cover all of it exist, but want `protoc` on every
//! machine that builds the workspace, and some forty crates.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client;
use http::Request;
use prost::Message;
use tokio::net::UnixStream;

/// The runtime at a socket.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    pub(crate) socket: String,
}

impl Runtime {
    pub(crate) fn version(&self) -> Result<Version, String> {
        self.call("Version", &VersionRequest { version: String::new() })
    }

    /// Starts a sandbox; its ID.
    pub(crate) fn run_pod_sandbox(&self, config: SandboxConfig) -> Result<String, String> {
        let sandbox: SandboxId = self.call("RunPodSandbox", &RunSandbox { config: Some(config) })?;
        Ok(sandbox.id)
    }

    /// What the runtime knows of a sandbox, its own notes included.
    pub(crate) fn pod_sandbox_status(&self, id: &str) -> Result<StatusAnswer, String> {
        self.call("PodSandboxStatus", &SandboxQuestion { id: id.to_owned(), verbose: true })
    }

    pub(crate) fn stop_pod_sandbox(&self, id: &str) -> Result<(), String> {
        self.call::<Empty>("StopPodSandbox", &SandboxId { id: id.to_owned() }).map(drop)
    }

    pub(crate) fn remove_pod_sandbox(&self, id: &str) -> Result<(), String> {
        self.call::<Empty>("RemovePodSandbox", &SandboxId { id: id.to_owned() }).map(drop)
    }

    /// The sandboxes' IDs.
    pub(crate) fn list_pod_sandbox(&self) -> Result<Vec<String>, String> {
        let list: SandboxList = self.call("ListPodSandbox", &Empty {})?;
        Ok(list.items.into_iter().map(|sandbox| sandbox.id).collect())
    }

    /// Whether the runtime says that it and its network are ready.
    pub(crate) fn ready(&self) -> Result<Vec<Condition>, String> {
        let answer: RuntimeAnswer = self.call("Status", &Empty {})?;
        Ok(answer.status.unwrap_or_default().conditions)
    }

    fn call<A: Message + Default>(&self, method: &str, question: &impl Message) -> Result<A, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(unary(&self.socket, method, question.encode_to_vec()))?;
        A::decode(answer).map_err(|error| format!("{method}: {error}"))
    }
}

/// One call on a connection of its own.
async fn unary(socket: &str, method: &str, question: Vec<u8>) -> Result<Bytes, String> {
    let lost = |error: &dyn std::fmt::Display| format!("{method}: {error}");
    let stream = UnixStream::connect(socket).await.map_err(|error| lost(&error))?;
    let (mut sender, connection) = client::handshake(stream).await.map_err(|error| lost(&error))?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    let request = Request::post(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (answer, mut body) = sender.send_request(request, false).map_err(|error| lost(&error))?;
    // A message is a flag for compression, its length, and itself.
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(question.len().try_into().unwrap());
    frame.put_slice(&question);
    body.send_data(frame.freeze(), true).map_err(|error| lost(&error))?;

    let mut answer = answer.await.map_err(|error| lost(&error))?;
    let mut received = BytesMut::new();
    while let Some(chunk) = answer.body_mut().data().await {
        let chunk = chunk.map_err(|error| lost(&error))?;
        answer.body_mut().flow_control().release_capacity(chunk.len()).map_err(|error| lost(&error))?;
        received.extend_from_slice(&chunk);
    }
    let trailers = answer.body_mut().trailers().await.map_err(|error| lost(&error))?;
    // A call that fails at once has its status among the headers.
    let status = trailers.as_ref().filter(|trailers| trailers.contains_key("grpc-status"));
    let status = status.unwrap_or_else(|| answer.headers());
    let word = |key: &str| status.get(key).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match word("grpc-status") {
        "0" => Ok(received.freeze().slice(5..)),
        code => Err(format!("{method}: code {code}: {}", word("grpc-message"))),
    }
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct VersionRequest {
    #[prost(string, tag = "1")]
    version: String,
}

/// Who the runtime is.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Version {
    #[prost(string, tag = "2")]
    pub(crate) runtime_name: String,
    #[prost(string, tag = "3")]
    pub(crate) runtime_version: String,
}

#[derive(Clone, PartialEq, Message)]
struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

/// What every message about one sandbox begins with.
#[derive(Clone, PartialEq, Message)]
struct SandboxId {
    #[prost(string, tag = "1")]
    id: String,
}

/// `PodSandboxConfig`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<Metadata>,
    #[prost(string, tag = "2")]
    pub(crate) hostname: String,
    #[prost(message, repeated, tag = "5")]
    pub(crate) port_mappings: Vec<PortMapping>,
    #[prost(map = "string, string", tag = "7")]
    pub(crate) annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub(crate) linux: Option<LinuxConfig>,
}

/// `PodSandboxMetadata`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Metadata {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    #[prost(string, tag = "3")]
    pub(crate) namespace: String,
}

/// `LinuxPodSandboxConfig`: nothing of it is wanted, but the runtime wants it there.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct LinuxConfig {}

/// `PortMapping`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PortMapping {
    /// 0 is TCP, 1 is UDP.
    #[prost(int32, tag = "1")]
    pub(crate) protocol: i32,
    #[prost(int32, tag = "2")]
    pub(crate) container_port: i32,
    #[prost(int32, tag = "3")]
    pub(crate) host_port: i32,
    #[prost(string, tag = "4")]
    pub(crate) host_ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxQuestion {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bool, tag = "2")]
    verbose: bool,
}

/// `PodSandboxStatusResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<SandboxStatus>,
    /// The runtime's notes; containerd's `info` is JSON.
    #[prost(map = "string, string", tag = "2")]
    pub(crate) info: HashMap<String, String>,
}

/// `PodSandboxStatus`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxStatus {
    /// 0 is ready, 1 is not.
    #[prost(int32, tag = "3")]
    pub(crate) state: i32,
    #[prost(message, optional, tag = "5")]
    pub(crate) network: Option<NetworkStatus>,
}

/// `PodSandboxNetworkStatus`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct NetworkStatus {
    #[prost(string, tag = "1")]
    pub(crate) ip: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) additional_ips: Vec<PodIp>,
}

/// `PodIP`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodIp {
    #[prost(string, tag = "1")]
    pub(crate) ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxList {
    #[prost(message, repeated, tag = "1")]
    items: Vec<SandboxId>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

/// `RuntimeCondition`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Condition {
    /// `RuntimeReady` or `NetworkReady`.
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(bool, tag = "2")]
    pub(crate) status: bool,
    #[prost(string, tag = "3")]
    pub(crate) reason: String,
    #[prost(string, tag = "4")]
    pub(crate) message: String,
}

//! The control path from another process.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use ipnet::IpNet;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Address, EntryId, Explanation, Mark, Quota, Revision, Status, TableName};
use crate::model::Fault;
use crate::snapshot::Snapshot;
use crate::topology::{
    AccessKeySpec, EntrySpec, Ingress, InstanceSpec, RouteTableSpec, Settings, VSwitchSpec, VpcSpec,
};

/// Why a request to the control path failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No connection, or no whole answer.
    #[error("{method} {url} failed: {cause}; is the emulator running there?")]
    Transport {
        /// HTTP method.
        method: String,
        /// Whole address.
        url: String,
        /// Why.
        cause: String,
    },
    /// The emulator refused.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The emulator's explanation.
        message: String,
    },
}

/// Talks to the control path of an emulator in another process.
#[derive(Debug, Clone)]
pub struct Client {
    base: String,
    http: HttpClient<HttpConnector, Full<axum::body::Bytes>>,
}

impl Client {
    /// A client for the emulator at `base`, e.g. `http://127.0.0.1:8792`.
    #[must_use]
    pub fn new(base: &str) -> Self {
        Self {
            base: base.trim_end_matches('/').to_owned(),
            http: HttpClient::builder(TokioExecutor::new()).build_http(),
        }
    }

    async fn send(&self, method: &str, path: &str, body: Option<Vec<u8>>) -> Result<Vec<u8>, ControlError> {
        let url = format!("{}{path}", self.base);
        let broken =
            |cause: String| ControlError::Transport { method: method.to_owned(), url: url.clone(), cause };
        let mut request = axum::http::Request::builder().method(method).uri(&url);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request =
            request.body(Full::from(body.unwrap_or_default())).map_err(|error| broken(error.to_string()))?;
        let response = self.http.request(request).await.map_err(|error| {
            let cause =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            broken(cause)
        })?;
        let status = response.status();
        let body =
            response.into_body().collect().await.map_err(|error| broken(error.to_string()))?.to_bytes();
        if status.is_success() {
            return Ok(body.to_vec());
        }
        let message = serde_json::from_slice::<Explanation>(&body)
            .map_or_else(|_| String::from_utf8_lossy(&body).into_owned(), |explanation| explanation.error);
        Err(ControlError::Refused { status: status.as_u16(), message })
    }

    async fn read<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, ControlError> {
        let answer = self.send(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(|error| ControlError::Transport {
            method: method.to_owned(),
            url: format!("{}{path}", self.base),
            cause: format!("the answer cannot be read: {error}"),
        })
    }

    async fn write(&self, method: &str, path: &str, body: &impl Serialize) -> Result<(), ControlError> {
        self.send(method, path, Some(encode(body))).await.map(drop)
    }

    /// The cloud as its data plane sees it.
    ///
    /// # Errors
    /// See [`ControlError`]; so do all methods here.
    pub async fn snapshot(&self) -> Result<Snapshot, ControlError> {
        self.read("GET", "/snapshot", None).await
    }

    /// Waits until the revision is no longer `after`, or for 30 s, and answers what it is.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn changed(&self, after: u64) -> Result<u64, ControlError> {
        let Revision { revision } = self.read("GET", &format!("/changes?after={after}"), None).await?;
        Ok(revision)
    }

    /// The behaviour as it is set.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn settings(&self) -> Result<Settings, ControlError> {
        self.read("GET", "/settings", None).await
    }

    /// Sets the behaviour.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn set_settings(&self, settings: &Settings) -> Result<(), ControlError> {
        self.write("PUT", "/settings", settings).await
    }

    /// Adds a VPC.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn add_vpc(&self, spec: &VpcSpec) -> Result<(), ControlError> {
        self.write("POST", "/vpcs", spec).await
    }

    /// Adds a vSwitch.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn add_vswitch(&self, vpc: &str, spec: &VSwitchSpec) -> Result<(), ControlError> {
        self.write("POST", &format!("/vpcs/{vpc}/vswitches"), spec).await
    }

    /// Adds a route table.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn add_table(&self, vpc: &str, spec: &RouteTableSpec) -> Result<(), ControlError> {
        self.write("POST", &format!("/vpcs/{vpc}/tables"), spec).await
    }

    /// Sets who may reach the members of a security group.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn set_security_group(
        &self,
        vpc: &str,
        group: &str,
        ingress: &[Ingress],
    ) -> Result<(), ControlError> {
        self.write("PUT", &format!("/vpcs/{vpc}/security-groups/{group}"), &ingress).await
    }

    /// An address of the vSwitch that no interface has.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn free_address(&self, vswitch: &str) -> Result<Ipv4Addr, ControlError> {
        let Address { address } =
            self.read("GET", &format!("/vswitches/{vswitch}/free-address"), None).await?;
        Ok(address)
    }

    /// Makes a vSwitch use a table.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn associate(&self, vswitch: &str, table: &str) -> Result<(), ControlError> {
        let body = TableName { table: table.to_owned() };
        self.write("PUT", &format!("/vswitches/{vswitch}/table"), &body).await
    }

    /// Sets the quota of custom entries of a table.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn set_quota(&self, table: &str, quota: u32) -> Result<(), ControlError> {
        self.write("PUT", &format!("/tables/{table}/quota"), &Quota { quota }).await
    }

    /// Puts an entry into a table past the API's checks, and answers its ID.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn insert_entry(&self, table: &str, spec: &EntrySpec) -> Result<String, ControlError> {
        let EntryId { id } =
            self.read("POST", &format!("/tables/{table}/entries"), Some(encode(spec))).await?;
        Ok(id)
    }

    /// Takes an entry out of a table at once.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn remove_entry(&self, table: &str, destination: IpNet) -> Result<(), ControlError> {
        let path = format!("/tables/{table}/entries?destination={destination}");
        self.send("DELETE", &path, None).await.map(drop)
    }

    /// Adds an instance.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn add_instance(&self, spec: &InstanceSpec) -> Result<(), ControlError> {
        self.write("POST", "/instances", spec).await
    }

    /// Takes an instance away.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn remove_instance(&self, id: &str) -> Result<(), ControlError> {
        self.send("DELETE", &format!("/instances/{id}"), None).await.map(drop)
    }

    /// Adds an access key.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn add_access_key(&self, key: &AccessKeySpec) -> Result<(), ControlError> {
        self.write("POST", "/access-keys", key).await
    }

    /// Revokes an access key.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn remove_access_key(&self, id: &str) -> Result<(), ControlError> {
        self.send("DELETE", &format!("/access-keys/{id}"), None).await.map(drop)
    }

    /// Ends the validity of all role credentials given out so far.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn expire_role_credentials(&self) -> Result<(), ControlError> {
        self.send("POST", "/role-credentials/expire", None).await.map(drop)
    }

    /// Gives an object a status, e.g. `Pending`; none ends it.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn set_status(&self, id: &str, status: Option<&str>) -> Result<(), ControlError> {
        let body = Status { status: status.map(str::to_owned) };
        self.write("PUT", &format!("/objects/{id}/status"), &body).await
    }

    /// Says that an entry is being modified, or that a cloud product keeps it.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn mark_entry(
        &self,
        table: &str,
        destination: IpNet,
        modifying: bool,
        managed: bool,
    ) -> Result<(), ControlError> {
        let path = format!("/tables/{table}/entries/mark?destination={destination}");
        self.write("PUT", &path, &Mark { modifying, managed }).await
    }

    /// Sets the destinations of a prefix list in a table; none takes the list away.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn set_prefix_list(
        &self,
        table: &str,
        list: &str,
        destinations: &[IpNet],
    ) -> Result<(), ControlError> {
        self.write("PUT", &format!("/tables/{table}/prefix-lists/{list}"), &destinations).await
    }

    /// The whole state, secrets included.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn state(&self) -> Result<serde_json::Value, ControlError> {
        self.read("GET", "/state", None).await
    }

    /// Puts a state in place of the present one.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn set_state(&self, state: &serde_json::Value) -> Result<(), ControlError> {
        self.write("PUT", "/state", state).await
    }

    /// What is left of the script of faults.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn faults(&self) -> Result<Vec<Fault>, ControlError> {
        self.read("GET", "/faults", None).await
    }

    /// Puts another script of faults in place of the present one.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn set_faults(&self, faults: &[Fault]) -> Result<(), ControlError> {
        self.write("PUT", "/faults", &faults).await
    }

    /// Makes the next matching calls run into trouble.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn inject(&self, fault: &Fault) -> Result<(), ControlError> {
        self.write("POST", "/faults", fault).await
    }

    /// Ends all injected trouble.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn clear_faults(&self) -> Result<(), ControlError> {
        self.send("DELETE", "/faults", None).await.map(drop)
    }

    /// How often each action was called.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn calls(&self) -> Result<BTreeMap<String, u64>, ControlError> {
        self.read("GET", "/calls", None).await
    }
}

/// The bodies sent here are texts, numbers and addresses, which can always be written.
fn encode(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).unwrap_or_default()
}

//! The control path: what a console would do to the cloud, for other processes. JSON over HTTP, not authenticated.
//!
//! | request | does |
//! |---|---|
//! | `GET /snapshot` | the cloud as its data plane sees it ([`Snapshot`](crate::Snapshot)) |
//! | `GET /changes?after=N` | answers when the revision is no longer N, or after 30 s: `{"revision": M}` |
//! | `GET /settings`, `PUT /settings` | [`Settings`](crate::Settings); absent keys keep their values |
//! | `POST /vpcs` | adds a [`VpcSpec`] |
//! | `POST /vpcs/{vpc}/vswitches` | adds a [`VSwitchSpec`] |
//! | `POST /vpcs/{vpc}/tables` | adds a [`RouteTableSpec`] |
//! | `PUT /vpcs/{vpc}/security-groups/{group}` | sets its list of [`Ingress`] |
//! | `GET /vswitches/{vswitch}/free-address` | `{"address": "…"}`, an address that no interface has |
//! | `PUT /vswitches/{vswitch}/table` | `{"table": "vtb-…"}`: makes the vSwitch use that table |
//! | `PUT /tables/{table}/quota` | `{"quota": N}` |
//! | `POST /tables/{table}/entries` | puts an [`EntrySpec`] in, past the API's checks: `{"id": "rte-…"}` |
//! | `DELETE /tables/{table}/entries?destination=…` | takes an entry out at once |
//! | `PUT /tables/{table}/entries/mark?destination=…` | `{"modifying": …, "managed": …}` of an entry |
//! | `PUT /tables/{table}/prefix-lists/{list}` | sets the destinations of a prefix list; none takes it away |
//! | `PUT /objects/{id}/status` | `{"status": "Pending"}` for a VPC, vSwitch, table, instance or gateway; `null` ends it |
//! | `POST /instances`, `DELETE /instances/{id}` | adds an [`InstanceSpec`], takes one away |
//! | `POST /access-keys`, `DELETE /access-keys/{id}` | adds an [`AccessKeySpec`], revokes one |
//! | `POST /role-credentials/expire` | ends the validity of all role credentials given out |
//! | `GET /faults`, `PUT /faults` | what is left of the script of [`Fault`]s; puts another in its place |
//! | `POST /faults`, `DELETE /faults` | adds a [`Fault`] to the script, ends all |
//! | `GET /state`, `PUT /state` | the whole state, secrets included; puts another in its place |
//! | `GET /calls` | how often each action was called |
//! | `GET /throttled` | how often each action was refused by a rate limit |
//!
//! Changes answer 204, or 200 with what the table says; refusals answer 409 (404 for something unknown) with `{"error": "…"}`.

mod client;

use std::net::Ipv4Addr;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::emulator::Handle;
use crate::model::{AdminError, Fault, StateError};
use crate::topology::{
    AccessKeySpec, EntrySpec, Ingress, InstanceSpec, RouteTableSpec, VSwitchSpec, VpcSpec,
};

pub use client::{Client, ControlError};

/// How long `GET /changes` waits for one.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize, Deserialize)]
struct Revision {
    revision: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    #[serde(default)]
    modifying: bool,
    #[serde(default)]
    managed: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Status {
    status: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct After {
    after: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Quota {
    quota: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TableName {
    table: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Destination {
    destination: IpNet,
}

#[derive(Debug, Serialize, Deserialize)]
struct Address {
    address: Ipv4Addr,
}

#[derive(Debug, Serialize, Deserialize)]
struct EntryId {
    id: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Explanation {
    error: String,
}

/// A refusal of the control path.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(Explanation { error: self.1 })).into_response()
    }
}

impl From<AdminError> for Refused {
    fn from(error: AdminError) -> Self {
        let status = match error {
            AdminError::Unknown { .. } => StatusCode::NOT_FOUND,
            _ => StatusCode::CONFLICT,
        };
        Self(status, error.to_string())
    }
}

impl From<StateError> for Refused {
    fn from(error: StateError) -> Self {
        Self(StatusCode::CONFLICT, error.to_string())
    }
}

impl From<JsonRejection> for Refused {
    fn from(rejection: JsonRejection) -> Self {
        Self(StatusCode::BAD_REQUEST, rejection.body_text())
    }
}

type Body<T> = Result<Json<T>, JsonRejection>;
type Done = Result<StatusCode, Refused>;

fn done(result: Result<(), AdminError>) -> Done {
    result.map(|()| StatusCode::NO_CONTENT).map_err(Refused::from)
}

pub(crate) fn router(handle: Handle) -> Router {
    Router::new()
        .route("/snapshot", get(async |State(handle): State<Handle>| Json(handle.snapshot())))
        .route("/calls", get(async |State(handle): State<Handle>| Json(handle.calls())))
        .route("/throttled", get(async |State(handle): State<Handle>| Json(handle.throttled())))
        .route("/changes", get(wait_for_change))
        .route(
            "/settings",
            get(async |State(handle): State<Handle>| Json(handle.settings())).put(put_settings),
        )
        .route("/vpcs", post(post_vpc))
        .route("/vpcs/{vpc}/vswitches", post(post_vswitch))
        .route("/vpcs/{vpc}/tables", post(post_table))
        .route("/vpcs/{vpc}/security-groups/{group}", put(put_security_group))
        .route("/vswitches/{vswitch}/free-address", get(get_free_address))
        .route("/vswitches/{vswitch}/table", put(put_vswitch_table))
        .route("/tables/{table}/quota", put(put_quota))
        .route("/tables/{table}/entries", post(post_entry).delete(delete_entry))
        .route("/instances", post(post_instance))
        .route("/instances/{id}", delete(delete_instance))
        .route("/access-keys", post(post_access_key))
        .route("/access-keys/{id}", delete(delete_access_key))
        .route("/role-credentials/expire", post(expire_role_credentials))
        .route("/tables/{table}/entries/mark", put(put_mark))
        .route("/tables/{table}/prefix-lists/{list}", put(put_prefix_list))
        .route("/objects/{id}/status", put(put_status))
        .route("/faults", get(get_faults).put(put_faults).post(post_fault).delete(delete_faults))
        .route("/state", get(get_state).put(put_state))
        // A state holds all there is, so no size of body is too large here.
        .layer(DefaultBodyLimit::disable())
        .with_state(handle)
}

async fn wait_for_change(
    State(handle): State<Handle>,
    Query(After { after }): Query<After>,
) -> Json<Revision> {
    let mut changes = handle.subscribe();
    // The sender lives as long as the handle, so waiting ends by a change or by the clock.
    let waited = tokio::time::timeout(LONGEST_WAIT, changes.wait_for(|revision| *revision != after)).await;
    let revision = match waited {
        Ok(Ok(revision)) => *revision,
        _ => after,
    };
    Json(Revision { revision })
}

async fn put_settings(State(handle): State<Handle>, body: Body<serde_json::Value>) -> Done {
    let Json(given) = body?;
    let settings = handle
        .settings()
        .with(given)
        .map_err(|error| Refused(StatusCode::BAD_REQUEST, format!("settings: {error}")))?;
    handle.change_settings(|current| *current = settings);
    Ok(StatusCode::NO_CONTENT)
}

async fn post_vpc(State(handle): State<Handle>, body: Body<VpcSpec>) -> Done {
    done(handle.add_vpc(&body?.0))
}

async fn post_vswitch(
    State(handle): State<Handle>,
    Path(vpc): Path<String>,
    body: Body<VSwitchSpec>,
) -> Done {
    done(handle.add_vswitch(&vpc, &body?.0))
}

async fn post_table(
    State(handle): State<Handle>,
    Path(vpc): Path<String>,
    body: Body<RouteTableSpec>,
) -> Done {
    done(handle.add_table(&vpc, &body?.0))
}

async fn put_security_group(
    State(handle): State<Handle>,
    Path((vpc, group)): Path<(String, String)>,
    body: Body<Vec<Ingress>>,
) -> Done {
    done(handle.set_security_group(&vpc, &group, body?.0))
}

async fn get_free_address(
    State(handle): State<Handle>,
    Path(vswitch): Path<String>,
) -> Result<Json<Address>, Refused> {
    let address = handle.free_address(&vswitch).ok_or_else(|| {
        Refused(StatusCode::NOT_FOUND, format!("there is no vSwitch {vswitch}, or no address of it is free"))
    })?;
    Ok(Json(Address { address }))
}

async fn put_vswitch_table(
    State(handle): State<Handle>,
    Path(vswitch): Path<String>,
    body: Body<TableName>,
) -> Done {
    done(handle.associate(&vswitch, &body?.0.table))
}

async fn put_quota(State(handle): State<Handle>, Path(table): Path<String>, body: Body<Quota>) -> Done {
    done(handle.set_quota(&table, body?.0.quota))
}

async fn post_entry(
    State(handle): State<Handle>,
    Path(table): Path<String>,
    body: Body<EntrySpec>,
) -> Result<Json<EntryId>, Refused> {
    Ok(Json(EntryId { id: handle.insert_entry(&table, &body?.0)? }))
}

async fn delete_entry(
    State(handle): State<Handle>,
    Path(table): Path<String>,
    Query(Destination { destination }): Query<Destination>,
) -> Done {
    done(handle.remove_entry(&table, destination))
}

async fn post_instance(State(handle): State<Handle>, body: Body<InstanceSpec>) -> Done {
    done(handle.add_instance(&body?.0))
}

async fn delete_instance(State(handle): State<Handle>, Path(id): Path<String>) -> Done {
    done(handle.remove_instance(&id))
}

async fn post_access_key(State(handle): State<Handle>, body: Body<AccessKeySpec>) -> Done {
    done(handle.add_access_key(body?.0))
}

async fn delete_access_key(State(handle): State<Handle>, Path(id): Path<String>) -> Done {
    done(handle.remove_access_key(&id))
}

async fn expire_role_credentials(State(handle): State<Handle>) -> StatusCode {
    handle.expire_role_credentials();
    StatusCode::NO_CONTENT
}

async fn put_mark(
    State(handle): State<Handle>,
    Path(table): Path<String>,
    Query(Destination { destination }): Query<Destination>,
    body: Body<Mark>,
) -> Done {
    let Mark { modifying, managed } = body?.0;
    done(handle.mark_entry(&table, destination, modifying, managed))
}

async fn put_prefix_list(
    State(handle): State<Handle>,
    Path((table, list)): Path<(String, String)>,
    body: Body<Vec<IpNet>>,
) -> Done {
    done(handle.set_prefix_list(&table, &list, body?.0))
}

async fn put_status(State(handle): State<Handle>, Path(id): Path<String>, body: Body<Status>) -> Done {
    done(handle.set_status(&id, body?.0.status))
}

async fn get_faults(State(handle): State<Handle>) -> Json<Vec<Fault>> {
    Json(handle.faults())
}

async fn put_faults(State(handle): State<Handle>, body: Body<Vec<Fault>>) -> Done {
    handle.set_faults(body?.0);
    Ok(StatusCode::NO_CONTENT)
}

async fn get_state(State(handle): State<Handle>) -> Result<Json<serde_json::Value>, Refused> {
    Ok(Json(handle.save()?))
}

async fn put_state(State(handle): State<Handle>, body: Body<serde_json::Value>) -> Done {
    handle.restore(body?.0)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn post_fault(State(handle): State<Handle>, body: Body<Fault>) -> Done {
    handle.inject(body?.0);
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_faults(State(handle): State<Handle>) -> StatusCode {
    handle.clear_faults();
    StatusCode::NO_CONTENT
}

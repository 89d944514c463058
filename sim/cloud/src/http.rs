//! HTTP for the model: the RPC endpoint of the API, and the metadata service.
//!
//! Nothing is decided here. Whatever arrives, the answer is well-formed: an error of the API is JSON with a request ID.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use loden_aliyun::{ApiError, Params};

use crate::emulator::Handle;
use crate::model::{Call, MetadataCall, SignedCall};

/// No call of the API comes near this size.
const LARGEST_BODY: usize = 1 << 20;

pub(crate) fn api(handle: Handle) -> Router {
    Router::new().fallback(answer_api).with_state(handle)
}

pub(crate) fn metadata(handle: Handle) -> Router {
    Router::new().fallback(answer_metadata).with_state(handle)
}

async fn answer_api(State(handle): State<Handle>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let request_id = handle.with(|cloud, _| cloud.draw_request_id());
    let headers = read_headers(&head.headers);
    let host = headers.get("host").cloned().unwrap_or_default();
    let refuse = |error: ApiError| {
        answer_error(ApiError { request_id: request_id.clone(), host_id: host.clone(), ..error })
    };
    let Ok(body) = to_bytes(body, LARGEST_BODY).await else {
        return refuse(ApiError::new(
            413,
            "RequestEntityTooLarge",
            "The request body is too large or was cut short.",
        ));
    };
    let mut query = Params::new();
    query.read_encoded(head.uri.query().unwrap_or_default());
    let mut params = query.clone();
    if is_form(&headers) {
        params.read_encoded(&String::from_utf8_lossy(&body));
    }
    let signed = SignedCall {
        method: head.method.as_str(),
        path: head.uri.path(),
        query: &query,
        params: &params,
        headers: &headers,
        body: &body,
    };
    let call = Call { signed, request_id: &request_id };
    let delay = handle.with(|cloud, _| cloud.take_delay(call.action()));
    if delay > 0 {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    if handle.with(|cloud, _| cloud.take_lost_call(call.action())) {
        return respond(StatusCode::OK, Body::new(CutShort));
    }
    let (answer, lost) = handle.with(|cloud, now| {
        let answer = cloud.answer(&call, now);
        let lost = answer.is_ok() && cloud.take_lost_answer(call.action());
        (answer, lost)
    });
    tracing::debug!(action = call.action(), request_id, ok = answer.is_ok(), "API call");
    match answer {
        Ok(_) if lost => respond(StatusCode::OK, Body::new(CutShort)),
        Ok(value) => respond(StatusCode::OK, Body::from(value.to_string())),
        Err(error) => refuse(error),
    }
}

fn is_form(headers: &BTreeMap<String, String>) -> bool {
    headers.get("content-type").is_some_and(|kind| {
        kind.trim_start().to_ascii_lowercase().starts_with("application/x-www-form-urlencoded")
    })
}

/// Headers with their values as text; repeated ones are joined by commas. Bytes that are not UTF-8 become replacement characters.
fn read_headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut read: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        read.entry(name.as_str().to_owned())
            .and_modify(|joined| {
                joined.push(',');
                joined.push_str(&value);
            })
            .or_insert(value);
    }
    read
}

fn respond(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json;charset=utf-8"));
    response
}

fn answer_error(error: ApiError) -> Response {
    let status = StatusCode::from_u16(error.http_status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    // Its fields are texts, which can always be written.
    let body = serde_json::to_string(&error).unwrap_or_default();
    let mut response = respond(status, Body::from(body));
    if let Some(after) = error.retry_after {
        response.headers_mut().insert("x-acs-retry-after", HeaderValue::from(after.as_secs()));
    }
    response
}

/// A body that breaks off, which makes the server close the connection.
struct CutShort;

impl hyper::body::Body for CutShort {
    type Data = axum::body::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        std::task::Poll::Ready(Some(Err(std::io::Error::other("the answer is lost on purpose"))))
    }
}

async fn answer_metadata(
    State(handle): State<Handle>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (head, _) = request.into_parts();
    let headers = read_headers(&head.headers);
    let call = MetadataCall {
        peer: peer.ip(),
        method: head.method.as_str(),
        path: head.uri.path(),
        headers: &headers,
    };
    let answer = handle.with(|cloud, now| cloud.answer_metadata(&call, now));
    tracing::debug!(%peer, path = call.path, status = answer.status, "metadata");
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

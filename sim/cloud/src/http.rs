//! HTTP for the model: the RPC endpoint of the API, and the metadata service.
//!
//! Nothing is decided here. Whatever arrives, the answer is well-formed: an error of the API has a code, a message and a request ID, in JSON or
//! in XML.

mod body;
mod wire;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use body::{ErrorBody, Form};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use loden_aliyun::{ApiError, Params, Product};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use wire::Wire;

use crate::emulator::Handle;
use crate::model::{Call, MetadataCall, SignedCall};

/// No call of the API comes near this size.
const LARGEST_BODY: usize = 1 << 20;
/// As much of a larger one is heard out.
const LARGEST_THROWN_AWAY: usize = 16 * LARGEST_BODY;
/// Who answers a request that names nobody.
const NOBODY: &str = "unknown";

/// How long a listener that cannot accept rests before it tries again.
const REST: Duration = Duration::from_secs(1);

pub(crate) fn metadata(handle: Handle) -> Router {
    Router::new().fallback(answer_metadata).with_state(handle)
}

/// Serves the API to whoever connects, for ever.
pub(crate) async fn serve_api(handle: Handle, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let handle = handle.clone();
                tokio::spawn(async move { serve_connection(handle, stream).await });
            }
            // Most of all: no file descriptor is left. One that closes makes room.
            Err(error) => {
                tracing::warn!(%error, "the API cannot accept a connection");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// Serves the API on one connection until it closes.
pub(crate) async fn serve_connection<IO>(handle: Handle, io: IO)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let body = {
        let handle = handle.clone();
        Box::new(move |status| {
            let form = Form::Json;
            let request_id = handle.with(|cloud, _| cloud.draw_request_id());
            let error = ApiError { request_id, host_id: NOBODY.to_owned(), ..unreadable(status) };
            (ErrorBody::new(&error, None).write(form), form.content_type())
        })
    };
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let handle = handle.clone();
        async move { Ok::<_, Infallible>(answer_api(handle, request.map(Body::new)).await) }
    });
    // Whoever says no more may still listen.
    let serving =
        http1::Builder::new().half_close(true).serve_connection(TokioIo::new(Wire::new(io, body)), service);
    // A connection that breaks is its client's affair.
    if let Err(error) = serving.await {
        tracing::debug!(%error, "a connection to the API broke");
    }
}

/// What a request that is no HTTP is told. The vendor documents no codes for these.
fn unreadable(status: u16) -> ApiError {
    let (code, message) = match status {
        414 => ("RequestURITooLong", "The request line is too long."),
        431 => ("RequestHeaderTooLarge", "The request has too many headers, or too large ones."),
        _ => ("MalformedRequest", "The request is not valid HTTP."),
    };
    ApiError::new(status, code, message)
}

/// Reads a body. One that is too large is read on for a while and thrown away: a client that is still sending would not hear the answer.
async fn read_body(mut body: Body) -> Result<Vec<u8>, ApiError> {
    let mut read = Vec::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err(ApiError::new(
                400,
                "IncompleteBody",
                "The request body was cut short or is malformed.",
            ));
        };
        let Some(data) = frame.data_ref() else { continue };
        size += data.len();
        if size <= LARGEST_BODY {
            read.extend_from_slice(data);
        } else if size > LARGEST_THROWN_AWAY {
            break;
        }
    }
    if size <= LARGEST_BODY {
        Ok(read)
    } else {
        Err(ApiError::new(413, "RequestEntityTooLarge", "The request body is too large."))
    }
}

async fn answer_api(handle: Handle, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let request_id = handle.with(|cloud, _| cloud.draw_request_id());
    let headers = read_headers(&head.headers);
    let host = headers.get("host").filter(|host| !host.is_empty()).map_or(NOBODY, String::as_str).to_owned();
    let mut query = Params::new();
    query.read_encoded(head.uri.query().unwrap_or_default());
    let mut params = query.clone();
    let body = read_body(body).await;
    if let (Ok(body), true) = (&body, is_form(&headers)) {
        params.read_encoded(&String::from_utf8_lossy(body));
    }
    let form = Form::asked(&params, &headers);
    let refuse = |error: ApiError, product| {
        answer_error(
            &ApiError { request_id: request_id.clone(), host_id: host.clone(), ..error },
            product,
            form,
        )
    };
    let body = match body {
        Ok(body) => body,
        Err(error) => return refuse(error, None),
    };
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
        return respond(StatusCode::OK, form, Body::new(CutShort));
    }
    let (answer, lost) = handle.with(|cloud, now| {
        let answer = cloud.answer(&call, now);
        let lost = answer.is_ok() && cloud.take_lost_answer(call.action());
        (answer, lost)
    });
    tracing::debug!(action = call.action(), request_id, ok = answer.is_ok(), "API call");
    match answer {
        Ok(_) if lost => respond(StatusCode::OK, form, Body::new(CutShort)),
        Ok(value) => {
            let text = form.write(&format!("{}Response", call.action()), &value);
            respond(StatusCode::OK, form, Body::from(text))
        }
        Err(error) => refuse(error, call.product()),
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

fn respond(status: StatusCode, form: Form, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(form.content_type());
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn answer_error(error: &ApiError, product: Option<Product>, form: Form) -> Response {
    let status = StatusCode::from_u16(error.http_status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = respond(status, form, Body::from(ErrorBody::new(error, product).write(form)));
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

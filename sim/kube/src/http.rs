//! The API over HTTP: connections, tokens, permissions, bodies and answers.
//!
//! Whatever comes in, an answer goes out: a `Status` object for everything that is refused.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::config::Token;
use crate::discovery;
use crate::failure::Failure;
use crate::listing::{self, ListOptions};
use crate::model::{self, DeleteOptions, Deleted, Part, Write};
use crate::openapi;
use crate::patch::PatchType;
use crate::protobuf;
use crate::representation::Representation;
use crate::request::{Place, Query, Target, Verb, place, verb};
use crate::resource::Resource;
use crate::selector::Selector;
use crate::shared::{Shared, stamp};
use crate::store::Key;
use crate::tls::Tls;
use crate::watch;

/// The API server's own limit for bodies.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// The media type of a server-side apply.
const APPLY: &str = "application/apply-patch+yaml";

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub(crate) async fn serve(shared: &Arc<Shared>, listener: TcpListener, tls: Option<&Tls>) {
    // Dropping the set with this future cuts all connections.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _peer)) => {
                    connections.spawn(welcome(Arc::clone(shared), stream, tls.cloned()));
                }
                Err(error) => {
                    // Out of descriptors, or a peer that was gone already: neither is cured by trying at once.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_finished) = connections.join_next() => {}
        }
    }
}

async fn welcome(shared: Arc<Shared>, stream: TcpStream, tls: Option<Tls>) {
    let _without_delay_is_only_faster = stream.set_nodelay(true);
    match tls {
        None => converse(shared, stream).await,
        Some(tls) => match tokio::time::timeout(Duration::from_secs(10), tls.accept(stream)).await {
            Ok(Ok(stream)) => converse(shared, stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_elapsed) => tracing::debug!("a TLS handshake was not finished in time"),
        },
    }
}

async fn converse(shared: Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(&shared, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30))
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended early");
    }
}

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let response = match respond(shared, request).await {
        Ok(response) => response,
        Err(failure) => json_response(failure.code, &failure.to_status()),
    };
    tracing::debug!(%method, %uri, status = response.status().as_u16(), "answered");
    response
}

async fn respond(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
    let query = Query::parse(request.uri().query().unwrap_or_default())?;
    let place = place(request.uri().path());
    let account = authenticate(&shared.config.tokens, request.headers())?;
    let target = match place? {
        Place::Object(target) => target,
        Place::Document(segments) => {
            if !matches!(*request.method(), Method::GET | Method::HEAD) {
                return Err(Failure::method());
            }
            let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
            let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
            return match discovery::document(&segments, accept.unwrap_or_default(), &shared.config.version) {
                Some(discovery::Document::Json(document)) => Ok(json_response(200, &document)),
                Some(discovery::Document::Text(text)) => Ok(plain_response(text)),
                Some(discovery::Document::Protobuf(bytes)) => {
                    Ok(response(200, openapi::PROTOBUF, full(bytes)))
                }
                None => Err(Failure::no_such_path()),
            };
        }
    };
    let verb = verb(request.method(), &target, &query)?;
    if let Some(account) = account {
        authorize(account, verb, &target)?;
    }
    shared.count(verb, target.resource);
    if let Some(failure) = shared.fault(verb, target.resource) {
        return Err(failure);
    }
    let representation = Representation::choose(request.headers(), target.resource, &query)?;
    if verb == Verb::Watch {
        return begin_watch(shared, &target, &query, representation);
    }
    let header = |name: header::HeaderName| {
        request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let content_type = header(header::CONTENT_TYPE);
    let mut write = Write {
        stamp: stamp(),
        dry_run: query.dry_run()?,
        manager: query.manager(&header(header::USER_AGENT))?,
        validation: query.validation()?,
        warnings: Vec::new(),
    };
    let body = read_body(request).await?;
    let namespace = target.namespace.clone().unwrap_or_default();
    let key = Key::new(target.resource, &namespace, target.name.as_deref().unwrap_or_default());
    let part = if target.status { Part::Status } else { Part::Main };
    let (code, document) = match verb {
        Verb::Get => (200, get(shared, &key, &query, representation)?),
        Verb::List => (200, list(shared, &target, &query, representation)?),
        Verb::Create => {
            let object = object_body(target.resource, &content_type, &body)?;
            let made = shared
                .change(|store| model::create(store, target.resource, &namespace, object, &mut write))?;
            (201, representation.object(&made))
        }
        Verb::Update => {
            let object = object_body(target.resource, &content_type, &body)?;
            let existed = shared.store().get(&key).is_some();
            let made = shared.change(|store| model::update(store, &key, part, object, &mut write))?;
            (if existed { 200 } else { 201 }, representation.object(&made))
        }
        Verb::Patch if media_type(&content_type) == APPLY => {
            let force = query.force()?;
            let wanted = apply_body(&body)?;
            let (made, created) =
                shared.change(|store| model::apply(store, &key, part, wanted, force, &write))?;
            (if created { 201 } else { 200 }, representation.object(&made))
        }
        Verb::Patch => {
            let kind = PatchType::from_media_type(&content_type)
                .ok_or_else(|| Failure::media_type(PatchType::ACCEPTED))?;
            if query.flag("force")? {
                return Err(Failure::bad_request("force may only be set for apply patch"));
            }
            let change = parse(&body)?;
            let made = shared.change(|store| model::patch(store, &key, part, kind, &change, &mut write))?;
            (200, representation.object(&made))
        }
        Verb::Delete => {
            let options = delete_options(&body)?;
            let outcome = shared.change(|store| model::delete(store, &key, &options, &write))?;
            (200, deletion(&key, &outcome, representation))
        }
        Verb::DeleteCollection => (200, delete_many(shared, &target, &query, representation, &write)?),
        Verb::Watch => return Err(Failure::method()),
    };
    let mut response = json_response(code, &document);
    for warning in &write.warnings {
        // A text that no header can carry is not worth failing the write for.
        if let Ok(value) = header::HeaderValue::from_str(&format!("299 - {warning:?}")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    Ok(response)
}

/// The account behind the request; `None` when the emulator asks for no tokens.
fn authenticate<'a>(tokens: &'a [Token], headers: &HeaderMap) -> Result<Option<&'a Token>, Failure> {
    if tokens.is_empty() {
        return Ok(None);
    }
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .and_then(|(_, secret)| tokens.iter().find(|token| token.token == secret.trim()))
        .map(Some)
        .ok_or_else(Failure::unauthorized)
}

fn authorize(account: &Token, verb: Verb, target: &Target) -> Result<(), Failure> {
    let Some(permissions) = &account.permissions else { return Ok(()) };
    let resource = if target.status {
        format!("{}/status", target.resource)
    } else {
        target.resource.plural().to_owned()
    };
    let granted = permissions.iter().any(|permission| {
        permission.resources.iter().any(|one| *one == resource || one == "*")
            && (permission.verbs.is_empty() || permission.verbs.contains(&verb))
    });
    if granted {
        return Ok(());
    }
    let name = target.name.as_deref().unwrap_or_default();
    let which = if name.is_empty() {
        target.resource.qualified()
    } else {
        format!("{} {name:?}", target.resource.qualified())
    };
    let scope = match &target.namespace {
        Some(namespace) => format!("in the namespace {namespace:?}"),
        None => "at the cluster scope".to_owned(),
    };
    let text = format!(
        "{which} is forbidden: User {:?} cannot {} resource {resource:?} in API group {:?} {scope}",
        account.user,
        verb.as_str(),
        target.resource.group(),
    );
    Err(Failure::forbidden(target.resource, name, text))
}

async fn read_body(request: Request<Incoming>) -> Result<Bytes, Failure> {
    match Limited::new(request.into_body(), BODY_LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Failure::too_large()),
        Err(error) => Err(Failure::bad_request(format!("cannot read the body: {error}"))),
    }
}

fn parse(body: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::bad_request(format!("the body is not valid JSON: {error}")))
}

fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// The media type says YAML; clients send the JSON that is YAML, too.
fn apply_body(body: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::bad_request(format!(
            "error decoding YAML: {error} (this server reads only YAML that is JSON)"
        ))
    })
}

fn object_body(resource: Resource, content_type: &str, body: &[u8]) -> Result<Value, Failure> {
    match media_type(content_type) {
        "" | "application/json" => parse(body),
        protobuf::MEDIA_TYPE if protobuf::reads(resource) => protobuf::decode(resource, body)
            .ok_or_else(|| Failure::bad_request(format!("the body is no {} in protobuf", resource.kind()))),
        _ => Err(Failure::media_type("application/json")),
    }
}

fn delete_options(body: &[u8]) -> Result<DeleteOptions, Failure> {
    if body.is_empty() {
        return Ok(DeleteOptions::default());
    }
    let options = parse(body)?;
    let text = |field: &str| options.pointer(field).and_then(Value::as_str).map(str::to_owned);
    Ok(DeleteOptions {
        uid: text("/preconditions/uid"),
        resource_version: text("/preconditions/resourceVersion"),
    })
}

fn get(shared: &Shared, key: &Key, query: &Query, representation: Representation) -> Result<Value, Failure> {
    let wanted = query.number("resourceVersion")?;
    let store = shared.store();
    if let Some(wanted) = wanted.filter(|wanted| *wanted > store.revision()) {
        return Err(Failure::version_too_large(wanted, store.revision()));
    }
    let object = Arc::clone(model::get(&store, key)?);
    drop(store);
    Ok(representation.object(&object))
}

fn list(
    shared: &Shared,
    target: &Target,
    query: &Query,
    representation: Representation,
) -> Result<Value, Failure> {
    let selector =
        Selector::parse(target.resource, query.text("labelSelector"), query.text("fieldSelector"))?;
    let options = query.list_options()?;
    let page = listing::list(
        &shared.store(),
        target.resource,
        target.namespace.as_deref(),
        |object| selector.matches(object),
        &options,
    )?;
    Ok(representation.list(&page))
}

fn delete_many(
    shared: &Shared,
    target: &Target,
    query: &Query,
    representation: Representation,
    write: &Write,
) -> Result<Value, Failure> {
    let selector =
        Selector::parse(target.resource, query.text("labelSelector"), query.text("fieldSelector"))?;
    let options = ListOptions { limit: None, ..query.list_options()? };
    shared.change(|store| {
        let namespace = target.namespace.as_deref();
        let page =
            listing::list(store, target.resource, namespace, |object| selector.matches(object), &options)?;
        for object in &page.items {
            let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let key = Key::new(target.resource, text("/metadata/namespace"), text("/metadata/name"));
            match model::delete(store, &key, &DeleteOptions::default(), write) {
                // Another one may have gone along with an earlier one of the list.
                Ok(_) | Err(Failure { code: 404, .. }) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(representation.list(&page))
    })
}

/// The API server answers a finished deletion with a Status, and one that is held back (or of a pod) with the object.
fn deletion(key: &Key, outcome: &Deleted, representation: Representation) -> Value {
    match outcome {
        Deleted::Held(object) => representation.object(object),
        Deleted::Gone(object) if key.resource == Resource::Pods => representation.object(object),
        Deleted::Gone(object) => {
            let mut details = json!({"name": key.name, "kind": key.resource.plural(),
                "uid": object.pointer("/metadata/uid").cloned().unwrap_or_default()});
            if let (Some(fields), false) = (details.as_object_mut(), key.resource.group().is_empty()) {
                fields.insert("group".to_owned(), key.resource.group().into());
            }
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
        }
    }
}

fn begin_watch(
    shared: &Arc<Shared>,
    target: &Target,
    query: &Query,
    representation: Representation,
) -> Result<Response<Body>, Failure> {
    let mut fields = query.text("fieldSelector").to_owned();
    if let Some(name) = &target.name {
        fields = format!("{fields},metadata.name={name}");
    }
    let selector = Selector::parse(target.resource, query.text("labelSelector"), &fields)?;
    let (after, mark_end) = query.watch_start()?;
    // Without a limit of its own the API server chooses between half an hour and an hour.
    let limit = query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0).unwrap_or(1800).min(86_400);
    let order = watch::Order {
        resource: target.resource,
        namespace: target.namespace.clone(),
        selector,
        after,
        mark_end,
        bookmarks: query.flag("allowWatchBookmarks")?,
        limit: Duration::from_secs(limit),
        representation,
    };
    let body = watch::stream(Arc::clone(shared), order)?;
    Ok(response(200, "application/json", body))
}

fn json_response(code: u16, document: &Value) -> Response<Body> {
    response(code, "application/json", full(document.to_string()))
}

fn plain_response(text: &'static str) -> Response<Body> {
    response(200, "text/plain; charset=utf-8", full(text))
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

fn response(code: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache, private"));
    response
}

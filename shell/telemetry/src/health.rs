//! `/healthz` and `/readyz`.
//!
//! Liveness only says that the process answers. Readiness follows what the process reports and can go back: a node whose
//! data plane was taken away is not ready until it stands again. If readiness erred towards true, pods would be sent to a
//! node that cannot carry their traffic.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections served at once; more wait. Probes are few, and a stranger must not be able to eat our memory.
const CONNECTIONS: usize = 64;
/// How long a client may take to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long open requests may finish after the end was asked for.
const GRACE: Duration = Duration::from_secs(3);

/// Whether the process is ready; clones share one state, which starts as not ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Not ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets it; returns whether that was a change.
    pub fn set(&self, ready: bool) -> bool {
        self.0.swap(ready, Ordering::AcqRel) != ready
    }

    /// Whether the process is ready now.
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The health address cannot be listened on.
#[derive(Debug, Error)]
#[error(
    "listen for health checks on {address}: {source}; choose a free port and a local address, or port 0 to do without"
)]
pub struct BindError {
    /// Where.
    pub address: SocketAddr,
    /// Why not.
    #[source]
    pub source: std::io::Error,
}

type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// One more page to serve, such as metrics.
#[derive(Clone)]
pub struct Page {
    /// The path, with its slash.
    pub path: &'static str,
    /// The content type.
    pub content_type: &'static str,
    /// Makes the body at each request.
    pub render: Render,
}

/// A server of `/healthz` (200 `<name> is running`) and `/readyz` (200 `<name> is ready`, or 503 `<name> is not ready
/// yet`), for any method; anything else is 404.
pub struct HealthServer {
    listener: TcpListener,
    site: Arc<Site>,
}

struct Site {
    name: String,
    readiness: Readiness,
    pages: Vec<Page>,
}

impl HealthServer {
    /// Listens; connections are answered once [`HealthServer::run`] is polled.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(address: SocketAddr, name: &str, readiness: Readiness) -> Result<Self, BindError> {
        let listener = TcpListener::bind(address).await.map_err(|source| BindError { address, source })?;
        Ok(Self { listener, site: Arc::new(Site { name: name.to_owned(), readiness, pages: Vec::new() }) })
    }

    /// Serves these pages as well.
    #[must_use]
    pub fn with_pages(self, pages: Vec<Page>) -> Self {
        let Site { name, readiness, .. } = &*self.site;
        let site = Site { name: name.clone(), readiness: readiness.clone(), pages };
        Self { site: Arc::new(site), ..self }
    }

    /// Where it listens; tells the port when 0 was asked for.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `end` resolves, then gives open requests three seconds.
    pub async fn run(self, end: impl Future<Output = ()>) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        let mut end = std::pin::pin!(end);
        loop {
            let accepted = tokio::select! {
                () = &mut end => break,
                Some(_finished) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = accept(&self.listener, &slots) => accepted,
            };
            match accepted {
                Ok((stream, slot)) => {
                    let site = Arc::clone(&self.site);
                    connections.spawn(async move {
                        let service = service_fn(move |request| answer(Arc::clone(&site), request));
                        let mut http = hyper::server::conn::http1::Builder::new();
                        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).keep_alive(false);
                        if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                            tracing::debug!(%error, "a health check broke off");
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Out of file descriptors or a connection reset before we took it; neither is the listener's end.
                    tracing::warn!(%error, "cannot accept a health check");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(self.listener);
        let finish = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, finish).await.is_err() {
            tracing::debug!("health checks were still open at the end");
        }
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _peer) = listener.accept().await?;
    Ok((stream, slot))
}

async fn answer(site: Arc<Site>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    let text = "text/plain; charset=utf-8";
    let (status, content_type, body) = match path {
        "/healthz" => (StatusCode::OK, text, format!("{} is running", site.name)),
        "/readyz" if site.readiness.get() => (StatusCode::OK, text, format!("{} is ready", site.name)),
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, text, format!("{} is not ready yet", site.name)),
        _ => match site.pages.iter().find(|page| page.path == path) {
            Some(page) => (StatusCode::OK, page.content_type, (page.render)()),
            None => (StatusCode::NOT_FOUND, text, "404 page not found\n".to_owned()),
        },
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::{HealthServer, Page, Readiness};
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn ask(address: std::net::SocketAddr, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test(flavor = "current_thread")]
    async fn readiness_goes_up_and_back_down() {
        let readiness = Readiness::new();
        let server =
            HealthServer::bind("127.0.0.1:0".parse().unwrap(), "flanneld", readiness.clone()).await.unwrap();
        let page =
            Page { path: "/metrics", content_type: "text/plain", render: Arc::new(|| "up 1\n".to_owned()) };
        let server = server.with_pages(vec![page]);
        let address = server.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));

        let healthy = ask(address, "POST", "/healthz").await;
        assert!(
            healthy.starts_with("HTTP/1.1 200 ") && healthy.ends_with("\r\n\r\nflanneld is running"),
            "{healthy}"
        );
        let early = ask(address, "GET", "/readyz").await;
        assert!(
            early.starts_with("HTTP/1.1 503 ") && early.ends_with("\r\n\r\nflanneld is not ready yet"),
            "{early}"
        );
        assert!(readiness.set(true) && !readiness.set(true));
        let ready = ask(address, "GET", "/readyz?verbose").await;
        assert!(
            ready.starts_with("HTTP/1.1 200 ") && ready.ends_with("\r\n\r\nflanneld is ready"),
            "{ready}"
        );
        readiness.set(false);
        assert!(ask(address, "GET", "/readyz").await.starts_with("HTTP/1.1 503 "));
        assert!(ask(address, "GET", "/metrics").await.ends_with("up 1\n"));
        assert!(ask(address, "GET", "/").await.starts_with("HTTP/1.1 404 "));

        drop(stop);
        running.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "the port is free again");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_taken_port_is_an_error_that_names_it() {
        let first =
            HealthServer::bind("127.0.0.1:0".parse().unwrap(), "flanneld", Readiness::new()).await.unwrap();
        let address = first.local_addr().unwrap();
        let Err(error) = HealthServer::bind(address, "flanneld", Readiness::new()).await else {
            panic!("bound twice")
        };
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}

//! The client's TLS against the emulator's: the handshake, the authority in the kubeconfig, and what a mismatch says.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use loden_kube::{Access, Cluster, Error};
use loden_sim_kube::{Config, Emulator, Tls, Token, run, tls_kubeconfig};
use tokio::net::TcpListener;

use crate::common::{PATIENCE, TOKEN};

async fn start(names: &[&str]) -> (SocketAddr, Tls) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let tls = Tls::new(&names).unwrap();
    let emulator = Emulator::new(Config { tokens: vec![Token::admin(TOKEN)], ..Config::default() });
    let serving = tls.clone();
    tokio::spawn(async move { emulator.serve_tls(listener, &serving).await });
    (address, tls)
}

async fn client(address: SocketAddr, tls: &Tls) -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, tls_kubeconfig(&format!("https://{address}"), TOKEN, tls)).unwrap();
    loden_kube::connect(&Access { kubeconfig: Some(path), server: None }).await.unwrap()
}

#[tokio::test]
async fn a_known_authority_is_trusted() {
    let (address, tls) = start(&["127.0.0.1"]).await;
    assert_eq!(client(address, &tls).await.version().await.unwrap(), "v1.34.1");
}

#[tokio::test]
async fn an_unknown_authority_and_a_foreign_name_are_refused() {
    let (address, tls) = start(&["127.0.0.1"]).await;
    let (elsewhere, named_otherwise) = start(&["api.example"]).await;
    for (cluster, address) in [
        (client(address, &named_otherwise).await, address),
        (client(elsewhere, &named_otherwise).await, elsewhere),
    ] {
        let error = cluster.version().await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Unreachable { .. }), "{text}");
        assert!(text.contains(&address.to_string()) && text.contains("certificate"), "{text}");
    }
    drop(tls);
}

#[tokio::test]
async fn a_run_with_a_token_speaks_tls_and_writes_a_kubeconfig_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let config = Config { tokens: vec![Token::admin(TOKEN)], ..Config::default() };
    let (tell, told) = tokio::sync::oneshot::channel();
    let written = path.clone();
    let serving = tokio::spawn(async move {
        run(config, "127.0.0.1:0".parse().unwrap(), Some(&written), |url| tell.send(url.to_owned()).unwrap())
            .await
    });
    let url = tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let cluster = loden_kube::connect(&Access { kubeconfig: Some(path), server: None }).await.unwrap();
    assert_eq!(cluster.server(), url);
    assert_eq!(cluster.version().await.unwrap(), "v1.34.1");
    serving.abort();
}

#[tokio::test]
async fn a_run_that_cannot_start_says_why() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = run(Config::default(), address, None, |_| panic!("not ready")).await.unwrap_err().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("in use"), "{error}");
    let nowhere = std::path::Path::new("/nonexistent/kubeconfig");
    let any = "127.0.0.1:0".parse().unwrap();
    let error =
        run(Config::default(), any, Some(nowhere), |_| panic!("not ready")).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/kubeconfig"), "{error}");
}

//! The metadata service, and credentials that come from it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use loden_cloud::{Credentials, Metadata};
use loden_routes::model::VpcId;
use loden_routes::port::{FailureClass, ReadRouteTables};
use loden_sim_cloud::Emulator;
use loden_sim_cloud::run::bind;
use loden_sim_cloud::topology::{Config, InstanceSpec, Settings, Topology, VSwitchSpec, VpcSpec};
use tokio::net::{TcpListener, TcpSocket};

use crate::surroundings::{exchange, quick, serve, start, table};

#[tokio::test]
async fn everything_comes_from_the_metadata_service() {
    let settings = Settings { hardened_metadata: true, ..quick() };
    let running = start(settings).await;
    let connection = running.connect().await;
    assert_eq!((connection.region.as_str(), connection.vpc_id.as_str()), ("cn-hangzhou", "vpc-loden"));
    assert_eq!(connection.metadata.vpc_cidr_block().await.unwrap().to_string(), "192.168.0.0/16");
    assert_eq!(connection.metadata.instance_id().await.unwrap(), "i-loden1");
    let vpc_id = VpcId::from("vpc-loden");
    connection.client.list_tables(&vpc_id).await.unwrap();
    // The API refuses the role's credentials: the call is repeated with new ones, unnoticed.
    running.handle.expire_role_credentials();
    connection.client.list_tables(&vpc_id).await.unwrap();
    assert_eq!(running.handle.calls().get("DescribeRouteTableList"), Some(&3));
    let text = format!("{connection:?}");
    let role = connection.metadata.role_credentials().await.unwrap();
    let session = &role.session;
    assert!(!text.contains(&session.access_key_secret) && !text.contains(&session.security_token));
    assert!(!format!("{role:?}").contains(&session.access_key_secret));
}

#[tokio::test]
async fn metadata_errors_say_what_is_missing() {
    let running = start(quick()).await;
    // By address, 127.0.0.1 is no instance.
    running.handle.change_settings(|settings| settings.metadata_instance = None);
    let error = running.metadata().vpc_id().await.unwrap_err();
    assert!(error.to_string().contains("HTTP 404") && error.to_string().contains("vpc-id"), "{error}");
    running.handle.change_settings(|settings| settings.metadata_instance = Some("i-loden1".into()));
    assert_eq!(running.metadata().vpc_id().await.unwrap(), "vpc-loden");
    let error = running.metadata().item("nothing").await.unwrap_err();
    assert!(error.is_absent(), "{error}");
    assert!(
        Metadata::new("ftp://x").is_err()
            && Metadata::new("http://h/path").is_err()
            && Metadata::new("").is_err()
    );
}

#[tokio::test]
async fn an_instance_is_known_by_its_address() {
    let mut topology = Topology::default();
    let net = "127.0.0.0/8".parse().unwrap();
    topology.vpcs =
        vec![VpcSpec { vswitches: vec![VSwitchSpec::new("vsw-1", "z", net)], ..VpcSpec::new("vpc-1", net) }];
    topology.instances = ["127.0.0.1", "127.0.0.2"]
        .map(|address| InstanceSpec::new(format!("i-{address}"), "vsw-1", address.parse().unwrap()))
        .to_vec();
    let emulator = Emulator::new(&topology, Settings::default()).unwrap();
    for address in ["127.0.0.1", "127.0.0.2"] {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let handle = emulator.handle();
        tokio::spawn(async move { handle.serve_metadata(listener).await });
        let connection = TcpSocket::new_v4().unwrap();
        connection.bind((address.parse::<IpAddr>().unwrap(), 0).into()).unwrap();
        let stream = connection.connect(at).await.unwrap();
        let request = b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
        let answer = exchange(stream, request).await;
        assert!(answer.ends_with(&format!("i-{address}")), "{answer}");
    }
}

#[tokio::test]
async fn role_credentials_are_renewed_before_they_expire() {
    let mut topology = Topology::example();
    topology.roles[0].lifetime_s = 2;
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let config =
        Config { api: free, metadata: free, control: free, settings: quick(), topology, ..Config::default() };
    let running = serve(bind(config).await.unwrap());
    let credentials = Credentials::role(running.metadata());
    let client = running.client_of(credentials.clone());
    let first = credentials.key().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    // Calls never fail meanwhile, and after a while they are made with another key.
    while credentials.key().await.unwrap() == first {
        client.list_entries(&table()).await.unwrap();
        assert!(Instant::now() < deadline, "the credentials were never renewed");
    }
    client.list_entries(&table()).await.unwrap();
    let before = credentials.key().await.unwrap();
    assert_ne!(before.token, first.token);
}

#[tokio::test]
async fn without_a_role_the_error_says_what_to_attach() {
    let running = start(quick()).await;
    let spec = InstanceSpec::new("i-plain", "vsw-loden", "192.168.0.99".parse().unwrap());
    running.handle.add_instance(&spec).unwrap();
    running.handle.change_settings(|settings| settings.metadata_instance = Some("i-plain".into()));
    let connection = running.connect().await;
    let failure = connection.client.list_tables(&VpcId::from("vpc-loden")).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Denied);
    assert!(failure.message.contains("no RAM role is attached"), "{failure}");
}

#[tokio::test]
async fn a_dead_metadata_service_is_given_up_in_seconds() {
    let dead = Metadata::new("127.0.0.1:1").unwrap();
    let started = Instant::now();
    let error = dead.region_id().await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1") && error.contains("METADATA_ENDPOINT"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(30));
}

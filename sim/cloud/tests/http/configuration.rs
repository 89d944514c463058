//! What the client and the emulator are told: files, environment, tokens, keys.

use std::time::Duration;

use loden_cloud::{ConfigWatch, Environment, Options, Reload, connect};
use loden_routes::port::ReadRouteTables;
use loden_sim_cloud::run::{RunError, bind};
use loden_sim_cloud::topology::{AccessKeySpec, Config, Topology};

use crate::surroundings::{quick, start, table};

#[tokio::test]
async fn configuration_comes_from_file_and_environment() {
    let running = start(quick()).await;
    let directory = std::env::temp_dir().join(format!("loden-cloud-config-{}", std::process::id()));
    std::fs::write(
        &directory,
        r#"{"Global":{"accessKeyID":"dGVzdGlk","accessKeySecret":"dGVzdHNlY3JldA==","region":"cn-hangzhou","vpcid":"vpc-loden","routeTableIDs":"vtb-loden,vtb-custom"}}"#,
    )
    .unwrap();
    let dead = Environment { metadata_endpoint: Some("127.0.0.1:1".into()), ..running.environment() };
    let options =
        Options { cloud_config: Some(directory.clone()), environment: dead.clone(), ..Options::default() };
    let connected = connect(&options).await;
    std::fs::remove_file(&directory).unwrap();
    let connection = connected.unwrap();
    assert_eq!(connection.route_table_ids, ["vtb-loden", "vtb-custom"]);
    connection.client.list_entries(&table()).await.unwrap();
    let from_environment = Environment {
        access_key_id: Some("testid".into()),
        access_key_secret: Some("testsecret".into()),
        ..dead.clone()
    };
    let known = Options {
        region: Some("cn-hangzhou".into()),
        vpc_id: Some("vpc-loden".into()),
        environment: from_environment.clone(),
        ..Options::default()
    };
    connect(&known).await.unwrap().client.list_entries(&table()).await.unwrap();
    let half = Options { environment: Environment { access_key_secret: None, ..from_environment }, ..known };
    assert!(connect(&half).await.unwrap_err().to_string().contains("ACCESS_KEY_SECRET is missing"));
    let missing = Options { cloud_config: Some(directory), environment: dead, ..Options::default() };
    assert!(connect(&missing).await.unwrap_err().to_string().contains("loden-cloud-config"));
}

/// An unsigned token as far as the emulator looks at it.
fn service_account_token(end: i64) -> String {
    use base64::Engine as _;
    let claims = format!("{{\"exp\":{end}}}");
    format!("e30.{}.c2ln", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims))
}

#[tokio::test]
async fn a_pods_service_account_becomes_a_role() {
    let running = start(quick()).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    std::fs::write(&file, service_account_token(now + 600)).unwrap();
    let environment = Environment {
        role_arn: Some("acs:ram::1:role/LodenNode".into()),
        oidc_provider_arn: Some("acs:ram::1:oidc-provider/ack".into()),
        oidc_token_file: Some(file.display().to_string()),
        ..running.environment()
    };
    let options = Options {
        region: Some("cn-hangzhou".into()),
        vpc_id: Some("vpc-loden".into()),
        environment: environment.clone(),
        ..Options::default()
    };
    let connection = connect(&options).await.unwrap();
    assert!(connection.credentials.origin().contains("role/LodenNode"));
    connection.client.list_entries(&table()).await.unwrap();
    let exchanges = || running.handle.calls().get("AssumeRoleWithOIDC").copied().unwrap_or_default();
    assert_eq!(exchanges(), 1, "what was fetched is kept");
    // The API refuses what ended before its time, and the call goes through with what is fetched anew.
    running.handle.expire_role_credentials();
    connection.client.list_entries(&table()).await.unwrap();
    assert_eq!(exchanges(), 2);

    std::fs::write(&file, service_account_token(now - 1)).unwrap();
    running.handle.expire_role_credentials();
    let error = connection.client.list_entries(&table()).await.unwrap_err().to_string();
    assert!(error.contains("InvalidSecurityToken.Expired"), "{error}");
    let error = connection.credentials.key().await.unwrap_err().to_string();
    assert!(error.contains("OIDCToken.Expired") && error.contains("role/LodenNode"), "{error}");
    // kubelet brought another token.
    std::fs::write(&file, service_account_token(now + 600)).unwrap();
    connection.client.list_entries(&table()).await.unwrap();

    let half = Environment { oidc_provider_arn: None, ..environment };
    let error = connect(&Options { environment: half, ..options }).await.unwrap_err().to_string();
    assert!(error.contains("ALIBABA_CLOUD_OIDC_PROVIDER_ARN is missing"), "{error}");
}

#[tokio::test]
async fn a_rotated_key_loses_no_call() {
    let running = start(quick()).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloud-config.conf");
    let write = |id: &str, secret: &str, tables: &str| {
        use base64::Engine as _;
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let text = format!(
            "Global:\n  region: cn-hangzhou\n  vpcid: vpc-loden\n  accessKeyID: {}\n  accessKeySecret: {}\n  routeTableIDs: {tables}\n",
            encode(id),
            encode(secret)
        );
        // As a mounted ConfigMap: another file takes the place of this one.
        let next = directory.path().join("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(&next, &file).unwrap();
    };
    write("testid", "testsecret", "vtb-loden");
    let options = Options {
        cloud_config: Some(file.clone()),
        environment: running.environment(),
        ..Options::default()
    };
    let connection = connect(&options).await.unwrap();
    let mut watch = ConfigWatch::new(&options, &connection).unwrap().unwrap();
    connection.client.list_entries(&table()).await.unwrap();

    running.handle.add_access_key(AccessKeySpec::new("second", "another")).unwrap();
    write("second", "another", "vtb-loden,vtb-custom");
    let calling = async {
        for _ in 0..200 {
            connection.client.list_entries(&table()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    };
    let (reload, ()) = tokio::join!(watch.next(), calling);
    let Reload::Taken { route_table_ids, credentials, after_restart, remarks } = reload else {
        panic!("{reload:?}")
    };
    assert_eq!(route_table_ids, ["vtb-loden", "vtb-custom"]);
    assert!(credentials && after_restart.is_empty() && remarks.is_empty());
    assert_eq!(connection.credentials.key().await.unwrap().id, "second");

    std::fs::write(&file, "Global: [").unwrap();
    let Reload::Broken(error) = watch.next().await else { panic!("a broken file was taken") };
    assert!(error.to_string().contains("cloud-config.conf"), "{error}");
    connection.client.list_entries(&table()).await.unwrap();
    assert_eq!(connection.credentials.key().await.unwrap().id, "second", "the old key stays");
}

#[tokio::test]
async fn a_stand_alone_emulator_that_cannot_run_says_why() {
    let running = start(quick()).await;
    let taken = Config { api: running.api, ..Config::default() };
    let error = bind(taken).await.unwrap_err().to_string();
    assert!(error.contains(&running.api.to_string()) && error.contains("cannot listen"), "{error}");
    let mut config = Config::default();
    config.settings.metadata_instance = Some("i-none".into());
    assert!(matches!(bind(config).await, Err(RunError::NoSuchInstance(id)) if id == "i-none"));
}

#[test]
fn the_configuration_is_json_with_known_keys() {
    let text = serde_json::to_string_pretty(&Config::default()).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), Config::default());
    let small: Config = serde_json::from_str(r#"{"settings":{"entryDelayMs":5}}"#).unwrap();
    assert_eq!((small.settings.entry_delay_ms, small.topology), (5, Topology::example()));
    let error = serde_json::from_str::<Config>(r#"{"setings":{}}"#).unwrap_err().to_string();
    assert!(error.contains("setings"), "{error}");
}

//! The emulator over loopback: our own client, the metadata service, the control path, and raw nonsense.

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};
    use std::time::{Duration, Instant};

    use ipnet::IpNet;
    use loden_aliyun::vpc::{self, EntryStatus};
    use loden_aliyun::{ErrorClass, codes, ecs};
    use loden_cloud::{
        AccessKey, CallCause, CallError, Client, ConfigWatch, Connection, Credentials, Endpoint, Endpoints,
        Environment, Metadata, Options, Reload, connect,
    };
    use loden_routes::model::{
        self as routes, EntryRef, InstanceId, NewEntry, NextHop, VpcId, VpcRouteTableId,
    };
    use loden_routes::port::{FailureClass, ReadRouteTables, WriteRouteTables};
    use loden_sim_cloud::control::{self, ControlError};
    use loden_sim_cloud::run::{Bound, RunError, bind};
    use loden_sim_cloud::topology::{
        AccessKeySpec, Config, EntryKind, EntrySpec, InstanceSpec, NextHop as Hop, RouteTableSpec, Settings,
        TableKind, Topology, VSwitchSpec, VpcSpec,
    };
    use loden_sim_cloud::{Emulator, Fault, FaultKind, Handle};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    const TABLE: &str = "vtb-loden";

    /// An emulator on free ports, served for as long as the test's runtime lives.
    struct Running {
        handle: Handle,
        api: SocketAddr,
        metadata: SocketAddr,
        control: SocketAddr,
    }

    async fn start(settings: Settings) -> Running {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut topology = Topology::example();
        topology.vpcs[0].route_tables = vec![
            RouteTableSpec::new(TABLE, TableKind::System),
            RouteTableSpec::new("vtb-custom", TableKind::Custom),
        ];
        let config =
            Config { api: free, metadata: free, control: free, settings, topology, ..Config::default() };
        serve(bind(config).await.unwrap())
    }

    fn serve(bound: Bound) -> Running {
        let endpoints = bound.endpoints().clone();
        let running = Running {
            handle: bound.handle(),
            api: endpoints.api,
            metadata: endpoints.metadata,
            control: endpoints.control,
        };
        tokio::spawn(bound.serve());
        running
    }

    fn quick() -> Settings {
        Settings { entry_delay_ms: 0, ..Settings::default() }
    }

    impl Running {
        fn client_with(&self, secret: &str) -> Client {
            let key = AccessKey { id: "testid".into(), secret: secret.into(), token: None };
            self.client_of(Credentials::fixed(key, "this test"))
        }

        fn client_of(&self, credentials: Credentials) -> Client {
            let endpoint = Endpoint { tls: false, authority: self.api.to_string() };
            Client::new("cn-hangzhou", Endpoints::all_at(endpoint), credentials).unwrap()
        }

        fn client(&self) -> Client {
            self.client_with("testsecret")
        }

        fn metadata(&self) -> Metadata {
            Metadata::new(&self.metadata.to_string()).unwrap()
        }

        fn environment(&self) -> Environment {
            Environment {
                metadata_endpoint: Some(format!("http://{}", self.metadata)),
                vpc_endpoint: Some(self.api.to_string()),
                ecs_endpoint: Some(self.api.to_string()),
                quotas_endpoint: Some(self.api.to_string()),
                client_scheme: Some("HTTP".into()),
                sts_endpoint: Some(self.api.to_string()),
                ..Environment::default()
            }
        }

        async fn connect(&self) -> Connection {
            connect(&Options { environment: self.environment(), ..Options::default() }).await.unwrap()
        }
    }

    fn table() -> VpcRouteTableId {
        TABLE.into()
    }

    fn new_entry(destination: &str, instance: &str) -> NewEntry {
        NewEntry {
            table: table(),
            destination: destination.parse().unwrap(),
            instance: instance.into(),
            name: "loden".into(),
            description: "a + b & c = 100 % ~ ü".into(),
        }
    }

    fn api_code(error: &CallError) -> &str {
        match &*error.cause {
            CallCause::Api(api) => &api.code,
            other => panic!("not an answer of the API: {other}"),
        }
    }

    #[tokio::test]
    async fn the_port_changes_an_entry_in_place_and_reads_the_quota() {
        let running = start(Settings { entry_delay_ms: 300, ..Settings::default() }).await;
        let client = running.client();
        let one = new_entry("172.20.1.0/24", "i-loden1");
        assert!(client.create_batch(std::slice::from_ref(&one)).await.unwrap().refused.is_empty());
        let only = async || client.read_back(&table(), &[one.destination]).await.unwrap().remove(0);
        let settled = async || {
            let begun = Instant::now();
            loop {
                let entry = only().await;
                if entry.status == routes::EntryStatus::Available {
                    return entry;
                }
                assert!(begun.elapsed() < Duration::from_secs(20), "{entry:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let entry = settled().await;
        let old = loden_routes::plan::entry_ref(&entry);
        let moved = new_entry("172.20.1.0/24", "i-loden2");
        client.repoint(&old, &moved).await.unwrap();
        let during = only().await;
        assert_eq!(during.status, routes::EntryStatus::Modifying);
        assert_eq!(during.instance(), Some("i-loden1".into()), "packets go the old way until it has settled");
        let refused = client.repoint(&old, &moved).await.unwrap_err();
        assert_eq!(refused.class, FailureClass::Busy, "{refused}");
        let after = settled().await;
        assert_eq!((&after.id, after.instance()), (&entry.id, Some("i-loden2".into())));

        let nobody = new_entry("172.20.1.0/24", "i-nobody");
        assert_eq!(client.repoint(&old, &nobody).await.unwrap_err().class, FailureClass::NotFound);
        assert_eq!(client.quota().await.unwrap(), Some(200));
        assert!(!client.has_ipv6(&VpcId::from("vpc-loden")).await.unwrap());
    }

    #[tokio::test]
    async fn the_port_lists_creates_reads_back_and_deletes() {
        let running = start(quick()).await;
        let client = running.client();
        let tables = client.list_tables(&VpcId::from("vpc-loden")).await.unwrap();
        assert_eq!(tables.len(), 2);
        let wanted = [new_entry("172.20.1.0/24", "i-loden1"), new_entry("172.20.2.0/24", "i-loden2")];
        assert!(client.create_batch(&wanted).await.unwrap().refused.is_empty());
        let one: IpNet = "172.20.2.0/24".parse().unwrap();
        let back = client.read_back(&table(), &[one]).await.unwrap();
        assert_eq!(back.len(), 1);
        assert_eq!(back[0].instance(), Some(InstanceId::from("i-loden2")));
        assert_eq!(back[0].description, "a + b & c = 100 % ~ ü");
        assert_eq!(client.read_back(&table(), &[]).await.unwrap(), []);
        let old = [
            EntryRef {
                table: table(),
                id: back[0].id.clone(),
                destination: one,
                next_hop: back[0].next_hops[0].clone(),
            },
            EntryRef {
                table: table(),
                id: String::new(),
                destination: "172.20.1.0/24".parse().unwrap(),
                next_hop: NextHop::instance(&"i-loden1".into()),
            },
        ];
        assert!(client.delete_batch(&old).await.unwrap().refused.is_empty());
        let left = client.list_entries(&table()).await.unwrap();
        assert!(left.iter().all(|entry| entry.instance().is_none()), "{left:?}");
        let again = client.delete_batch(&old).await.unwrap().refused;
        assert_eq!(again.len(), 2);
        assert!(again.iter().all(|refusal| refusal.failure.class == FailureClass::NotFound), "{again:?}");
        // A batch of nothing asks nobody.
        assert!(client.create_batch(&[]).await.unwrap().refused.is_empty());
    }

    #[tokio::test]
    async fn a_list_of_several_pages_is_whole() {
        let running = start(quick()).await;
        running.handle.set_quota(TABLE, 500).unwrap();
        let entries: Vec<NewEntry> =
            (0..250).map(|n| new_entry(&format!("172.20.{n}.0/24"), "i-loden1")).collect();
        let client = running.client();
        for batch in entries.chunks(50) {
            assert!(client.create_batch(batch).await.unwrap().refused.is_empty());
        }
        let listed = client.list_entries(&table()).await.unwrap();
        assert_eq!(listed.iter().filter(|entry| entry.instance().is_some()).count(), 250);
        assert_eq!(running.handle.calls().get("DescribeRouteEntryList"), Some(&3));
        // A page that fails makes the whole list fail.
        running.handle.inject(Fault {
            action: Some("DescribeRouteEntryList".into()),
            times: 1,
            kind: FaultKind::LoseAnswer,
        });
        let failure = client.list_entries(&table()).await.unwrap_err();
        assert_eq!(failure.class, FailureClass::Server, "{failure}");
    }

    #[tokio::test]
    async fn refused_items_come_back_with_code_and_class() {
        let running = start(quick()).await;
        running.handle.set_quota(TABLE, 2).unwrap();
        let client = running.client();
        client.create_batch(&[new_entry("172.20.1.0/24", "i-loden1")]).await.unwrap();
        let refused = client
            .create_batch(&[
                new_entry("172.20.1.0/24", "i-loden2"),
                new_entry("172.20.2.0/24", "i-loden2"),
                new_entry("172.20.3.0/24", "i-loden3"),
            ])
            .await
            .unwrap()
            .refused;
        let seen: Vec<_> =
            refused.iter().map(|item| (item.failure.class, item.destination.unwrap().to_string())).collect();
        assert_eq!(
            seen,
            [
                (FailureClass::Duplicate, "172.20.1.0/24".to_owned()),
                (FailureClass::Quota, "172.20.3.0/24".to_owned())
            ]
        );
    }

    #[tokio::test]
    async fn a_busy_vpc_is_told_and_settles_by_itself() {
        let settings = Settings { entry_delay_ms: 150, ..quick() };
        let running = start(settings).await;
        let client = running.client();
        let mut changes = running.handle.subscribe();
        client.create_batch(&[new_entry("172.20.1.0/24", "i-loden1")]).await.unwrap();
        let failure = client.create_batch(&[new_entry("172.20.2.0/24", "i-loden2")]).await.unwrap_err();
        assert_eq!((failure.class, failure.code.as_str()), (FailureClass::Busy, "TaskConflict"));
        // Nobody calls; the emulator's own clock settles the entry and tells subscribers.
        let settled = async {
            loop {
                changes.changed().await.unwrap();
                let view = running.handle.snapshot();
                let entries = &view.table(TABLE).unwrap().entries;
                if entries.iter().any(|entry| entry.name == "loden" && entry.status == EntryStatus::Available)
                {
                    break;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), settled).await.unwrap();
        client.create_batch(&[new_entry("172.20.2.0/24", "i-loden2")]).await.unwrap();
    }

    #[tokio::test]
    async fn errors_name_the_call_the_object_the_cause_and_the_remedy() {
        let running = start(quick()).await;
        let request = vpc::DescribeRouteEntryList { route_table_id: TABLE.into(), ..Default::default() };
        let error = running.client_with("hunter2").call(&request, TABLE).await.unwrap_err();
        assert_eq!(api_code(&error), codes::SIGNATURE_DOES_NOT_MATCH);
        let text = error.to_string();
        for part in [
            "DescribeRouteEntryList",
            TABLE,
            &running.api.to_string(),
            "SignatureDoesNotMatch",
            "HTTP 400",
            "secret is wrong",
            "this test",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("hunter2") && !format!("{error:?}").contains("hunter2"));
        assert!(!format!("{:?}", running.client_with("hunter2")).contains("hunter2"));

        let failure = running.client_with("hunter2").list_entries(&table()).await.unwrap_err();
        assert_eq!(failure.class, FailureClass::Denied);
        assert!(failure.to_string().contains("secret is wrong"), "{failure}");

        let nowhere = Endpoint { tls: false, authority: "127.0.0.1:1".into() };
        let key = AccessKey { id: "testid".into(), secret: "s".into(), token: None };
        let client =
            Client::new("cn-hangzhou", Endpoints::all_at(nowhere), Credentials::fixed(key, "x")).unwrap();
        let text = client.call(&request, TABLE).await.unwrap_err().to_string();
        assert!(text.contains("127.0.0.1:1") && text.contains("refused"), "{text}");
    }

    #[tokio::test]
    async fn throttling_says_when_to_come_back() {
        let running = start(quick()).await;
        running.handle.inject(Fault {
            action: None,
            times: 1,
            kind: FaultKind::Answer {
                status: 503,
                code: codes::THROTTLING_USER.into(),
                message: "Request was denied due to user flow control.".into(),
                retry_after_s: Some(7),
            },
        });
        let failure = running.client().list_tables(&VpcId::from("vpc-loden")).await.unwrap_err();
        assert_eq!(
            (failure.class, failure.retry_after),
            (FailureClass::Throttled, Some(Duration::from_secs(7)))
        );
        assert!(!failure.request_id.is_empty());
    }

    #[tokio::test]
    async fn a_lost_answer_leaves_the_change_made() {
        let running = start(quick()).await;
        running.handle.inject(Fault {
            action: Some("CreateRouteEntries".into()),
            times: 1,
            kind: FaultKind::LoseAnswer,
        });
        let client = running.client();
        let entry = [new_entry("172.20.1.0/24", "i-loden1")];
        assert_eq!(client.create_batch(&entry).await.unwrap_err().class, FailureClass::Server);
        let refused = client.create_batch(&entry).await.unwrap().refused;
        assert_eq!(refused[0].failure.class, FailureClass::Duplicate);
    }

    #[tokio::test]
    async fn instances_and_their_checks() {
        let running = start(quick()).await;
        let client = running.client();
        let ids: Vec<InstanceId> = ["i-loden1", "i-none", "i-loden3"].map(InstanceId::from).to_vec();
        let found = client.describe_instances(&ids).await.unwrap();
        assert_eq!(found.len(), 2);
        let enis: Vec<String> = found.iter().map(|instance| instance.primary_eni.clone()).collect();
        assert_eq!(enis, ["eni-loden1", "eni-loden3"]);
        client.source_dest_check_off("eni-loden1").await.unwrap();
        assert_eq!(client.source_dest_check_on(&enis).await.unwrap(), ["eni-loden3"]);
        let failure = client.source_dest_check_off("eni-none").await.unwrap_err();
        assert_eq!(failure.class, FailureClass::NotFound);
        let many = ecs::DescribeInstances { max_results: Some(1_000), ..Default::default() };
        let error = client.call(&many, "").await.unwrap_err();
        assert!(
            matches!(&*error.cause, CallCause::Api(api) if api.class() == ErrorClass::Invalid),
            "{error}"
        );
    }

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
        topology.vpcs = vec![VpcSpec {
            vswitches: vec![VSwitchSpec::new("vsw-1", "z", net)],
            ..VpcSpec::new("vpc-1", net)
        }];
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
            let request =
                b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
            let answer = exchange(stream, request).await;
            assert!(answer.ends_with(&format!("i-{address}")), "{answer}");
        }
    }

    #[tokio::test]
    async fn role_credentials_are_renewed_before_they_expire() {
        let mut topology = Topology::example();
        topology.roles[0].lifetime_s = 2;
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config {
            api: free,
            metadata: free,
            control: free,
            settings: quick(),
            topology,
            ..Config::default()
        };
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
        let options = Options {
            cloud_config: Some(directory.clone()),
            environment: dead.clone(),
            ..Options::default()
        };
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
        let half =
            Options { environment: Environment { access_key_secret: None, ..from_environment }, ..known };
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
    async fn the_control_path_does_what_the_handle_does() {
        let running = start(quick()).await;
        let control = control::Client::new(&format!("http://{}", running.control));
        let before = control.snapshot().await.unwrap();
        assert_eq!(before, running.handle.snapshot());
        let waiting = {
            let control = control.clone();
            tokio::spawn(async move { control.changed(before.revision).await })
        };
        control.set_quota(TABLE, 5).await.unwrap();
        assert!(waiting.await.unwrap().unwrap() > before.revision);
        let address = control.free_address("vsw-loden").await.unwrap();
        control.add_instance(&InstanceSpec::new("i-new", "vsw-loden", address)).await.unwrap();
        let entry = EntrySpec {
            destination: "172.20.7.0/24".parse().unwrap(),
            next_hops: vec![Hop::new("Instance", "i-new")],
            kind: EntryKind::Custom,
            name: "by hand".into(),
            description: String::new(),
        };
        assert!(control.insert_entry(TABLE, &entry).await.unwrap().starts_with("rte-"));
        control.associate("vsw-loden", "vtb-custom").await.unwrap();
        let view = control.snapshot().await.unwrap();
        assert_eq!((view.table(TABLE).unwrap().quota, view.table(TABLE).unwrap().used), (5, 1));
        assert_eq!(view.table("vtb-custom").unwrap().vswitches, ["vsw-loden"]);
        control.remove_entry(TABLE, entry.destination).await.unwrap();
        control.remove_instance("i-new").await.unwrap();
        let error = control.remove_instance("i-new").await.unwrap_err();
        assert!(matches!(&error, ControlError::Refused { status: 404, .. }), "{error}");
        assert_eq!(error.to_string(), "there is no instance i-new");
        let mut settings = control.settings().await.unwrap();
        settings.entry_delay_ms = 77;
        control.set_settings(&settings).await.unwrap();
        assert_eq!(running.handle.settings().entry_delay_ms, 77);
        control
            .inject(&Fault { action: None, times: 1, kind: FaultKind::Delay { milliseconds: 1 } })
            .await
            .unwrap();
        control.clear_faults().await.unwrap();
        control.expire_role_credentials().await.unwrap();
        assert!(control.calls().await.unwrap().is_empty());
        let nobody = control::Client::new("http://127.0.0.1:1").snapshot().await.unwrap_err().to_string();
        assert!(nobody.contains("is the emulator running there?"), "{nobody}");
    }

    async fn raw(address: SocketAddr, request: &[u8]) -> String {
        exchange(TcpStream::connect(address).await.unwrap(), request).await
    }

    async fn exchange(mut stream: TcpStream, request: &[u8]) -> String {
        stream.write_all(request).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
            .await
            .unwrap()
            .unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn raw_nonsense_gets_a_whole_error() {
        let running = start(quick()).await;
        for (request, status, code) in [
            ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", "400", "MissingAction"),
            ("GET /?Action=LaunchRocket HTTP/1.1\r\nHost: h\r\n\r\n", "404", "InvalidAction.NotFound"),
            (
                "POST /somewhere?Action=DescribeVpcs HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
                "404",
                "InvalidAction.NotFound",
            ),
            ("GET /?Action=DescribeVpcs HTTP/1.1\r\nHost: h\r\n\r\n", "400", "MissingVersion"),
            (
                "GET /?Action=DescribeVpcs&Version=2016-04-28 HTTP/1.1\r\nHost: h\r\n\r\n",
                "400",
                "MissingAccessKeyId",
            ),
            ("DELETE /?Action=%ff%00&&&=&= HTTP/1.1\r\nHost: h\r\n\r\n", "400", "UnsupportedHTTPMethod"),
            (
                "POST / HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 32\r\n\r\nAction=DescribeVpcs&Version=2000",
                "400",
                "InvalidVersion",
            ),
            (
                "GET /?Action=DescribeVpcs&Version=2016-04-28 HTTP/1.1\r\nHost: h\r\nAuthorization: \u{fffd}\u{1f980}\r\n\r\n",
                "400",
                "IncompleteSignature",
            ),
        ] {
            let answer = raw(running.api, request.as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {answer}");
            let body: serde_json::Value =
                serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
            assert_eq!(body["Code"], code, "{request:?}");
            assert_eq!((body["HostId"].as_str(), body["RequestId"].as_str().unwrap().len()), (Some("h"), 36));
            assert!(!body["Message"].as_str().unwrap().is_empty());
        }
        for noise in [&b"\x16\x03\x01\x02\x00\x01"[..], b"\0\0\0\0", b"GET", b"\r\n\r\n\r\n"] {
            for address in [running.api, running.metadata, running.control] {
                let answer = raw(address, noise).await;
                assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
            }
        }
        running.client().list_entries(&table()).await.unwrap();
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
}

//! A stand-alone emulator over loopback: its state kept in a file, its script of faults changed while it runs, and what only its owner may do.

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use loden_cloud::{AccessKey, Client, Credentials, Endpoint, Endpoints};
    use loden_routes::model::{EntryType, NewEntry, VpcId, VpcRouteTableId};
    use loden_routes::port::{Failure, FailureClass, ReadRouteTables, WriteRouteTables};
    use loden_sim_cloud::run::{Bound, RunError, bind};
    use loden_sim_cloud::topology::{Config, Settings, read_faults};
    use loden_sim_cloud::{Fault, FaultKind, KeepError, control};
    use tokio::task::JoinHandle;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn table() -> VpcRouteTableId {
        "vtb-loden".into()
    }

    fn config(state: Option<&Path>) -> Config {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Config {
            api: free,
            metadata: free,
            control: free,
            settings: Settings { entry_delay_ms: 0, ..Settings::default() },
            state: state.map(Path::to_owned),
            ..Config::default()
        }
    }

    struct Running {
        client: Client,
        control: control::Client,
        serving: JoinHandle<Result<(), RunError>>,
    }

    fn serve(bound: Bound) -> Running {
        let at = bound.endpoints().clone();
        let endpoint = || Endpoint { tls: false, authority: at.api.to_string() };
        let (id, secret) = at.access_key.clone().unwrap();
        let credentials = Credentials::fixed(AccessKey { id, secret, token: None }, "the test");
        let endpoints = Endpoints::all_at(endpoint());
        Running {
            client: Client::new(&at.region, endpoints, credentials).unwrap(),
            control: control::Client::new(&format!("http://{}", at.control)),
            serving: tokio::spawn(bound.serve()),
        }
    }

    impl Running {
        async fn stop(self) {
            self.serving.abort();
            assert!(self.serving.await.is_err_and(|error| error.is_cancelled()));
        }

        async fn create(&self, destination: &str) -> Result<usize, Failure> {
            let entry = NewEntry {
                table: table(),
                destination: destination.parse().unwrap(),
                instance: "i-loden1".into(),
                name: String::new(),
                description: String::new(),
            };
            self.client.create_batch(&[entry]).await.map(|answer| answer.refused.len())
        }

        async fn custom(&self) -> Vec<String> {
            let mut listed: Vec<String> = self
                .client
                .list_entries(&table())
                .await
                .unwrap()
                .into_iter()
                .filter(|entry| entry.kind == EntryType::Custom)
                .map(|entry| entry.destination.to_string())
                .collect();
            listed.sort();
            listed
        }
    }

    fn fault(action: &str, times: u32, kind: FaultKind) -> Fault {
        Fault { action: Some(action.to_owned()), times, kind }
    }

    #[tokio::test]
    async fn the_next_run_finds_what_the_last_one_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cloud.state");
        let running = serve(bind(config(Some(&path))).await.unwrap());
        running.create("172.20.1.0/24").await.unwrap();
        running.control.set_faults(&[fault("CreateRouteEntries", 1, FaultKind::LoseCall)]).await.unwrap();
        // A change is on the disk soon, also if the emulator is killed.
        let deadline = Instant::now() + DEADLINE;
        while !std::fs::read_to_string(&path).unwrap().contains("172.20.1.0/24") {
            assert!(Instant::now() < deadline, "the change is not kept");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        running.stop().await;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing lies beside it");

        let running = serve(bind(config(Some(&path))).await.unwrap());
        assert_eq!(running.custom().await, ["172.20.1.0/24"]);
        let lost = running.create("172.20.2.0/24").await.unwrap_err();
        assert_eq!(lost.class, FailureClass::Server, "what is left of the faults is kept too");
        assert_eq!(running.custom().await, ["172.20.1.0/24"], "a lost call changes nothing");
        assert_eq!(running.create("172.20.2.0/24").await.unwrap(), 0);
        running.stop().await;
    }

    #[tokio::test]
    async fn a_state_that_cannot_be_used_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cloud.state");
        for (text, expected) in [
            ("{\"form\":1,\"clo", "is not JSON"),
            ("{\"form\":9,\"cloud\":{}}", "is of form 9"),
            ("{}", "damaged"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = bind(config(Some(&path))).await.unwrap_err();
            assert!(matches!(error, RunError::State(_)), "{error}");
            let message = error.to_string();
            assert!(message.contains(expected) && message.contains("remove the file"), "{message}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let nowhere = folder.path().join("no/such/folder/cloud.state");
        let error = bind(config(Some(&nowhere))).await.unwrap_err();
        assert!(matches!(&error, RunError::State(KeepError::Write { .. })), "{error}");
        assert!(error.to_string().contains("no/such/folder"), "{error}");
    }

    #[tokio::test]
    async fn a_script_of_faults_comes_from_a_file_and_changes_while_it_runs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("faults.json");
        std::fs::write(
            &path,
            r#"[{"action": "CreateRouteEntries", "times": 1,
                 "kind": {"answer": {"status": 429, "code": "Throttling.User", "retryAfterS": 3}}},
                {"times": 1, "kind": {"delay": {"milliseconds": 1}}},
                {"action": "CreateRouteEntries", "times": 1, "kind": "loseCall"}]"#,
        )
        .unwrap();
        let faults = read_faults(&path).unwrap();
        let running = serve(bind(Config { faults, ..config(None) }).await.unwrap());
        let lost = running.create("172.20.1.0/24").await.unwrap_err();
        assert_eq!(lost.class, FailureClass::Server, "the connection is cut before anything is answered");
        let throttled = running.create("172.20.1.0/24").await.unwrap_err();
        assert_eq!(
            (throttled.class, throttled.retry_after),
            (FailureClass::Throttled, Some(Duration::from_secs(3)))
        );
        assert_eq!(running.control.faults().await.unwrap(), []);
        assert_eq!(running.create("172.20.1.0/24").await.unwrap(), 0);

        let stale = fault("DescribeRouteEntryList", u32::MAX, FaultKind::Stale);
        running.control.set_faults(std::slice::from_ref(&stale)).await.unwrap();
        running.create("172.20.2.0/24").await.unwrap();
        assert_eq!(running.custom().await, ["172.20.1.0/24"]);
        assert_eq!(running.control.faults().await.unwrap(), [stale]);
        running.control.clear_faults().await.unwrap();
        assert_eq!(running.custom().await, ["172.20.1.0/24", "172.20.2.0/24"]);

        std::fs::write(&path, r#"[{"times": 1, "kind": "explode"}]"#).unwrap();
        let error = read_faults(&path).unwrap_err().to_string();
        assert!(error.contains("script of faults") && error.contains("explode"), "{error}");
        running.stop().await;
    }

    #[tokio::test]
    async fn the_owner_sets_states_and_the_whole_cloud() {
        let running = serve(bind(config(None)).await.unwrap());
        let before = running.control.state().await.unwrap();
        let revision = running.control.snapshot().await.unwrap().revision;
        running.create("172.20.1.0/24").await.unwrap();
        let destination = "172.20.1.0/24".parse().unwrap();
        running.control.mark_entry("vtb-loden", destination, false, true).await.unwrap();
        running.control.set_status("vpc-loden", Some("Pending")).await.unwrap();
        assert_eq!(running.create("172.20.2.0/24").await.unwrap(), 1);
        running.control.set_status("vpc-loden", None).await.unwrap();
        running
            .control
            .set_prefix_list("vtb-loden", "pl-1", &["172.20.2.0/24".parse().unwrap()])
            .await
            .unwrap();
        assert_eq!(running.create("172.20.2.0/24").await.unwrap(), 1);
        assert!(running.control.set_status("vpc-none", None).await.is_err());

        running.control.set_state(&before).await.unwrap();
        assert!(running.custom().await.is_empty());
        assert!(running.control.snapshot().await.unwrap().revision > revision, "whoever waits sees a change");
        let refused =
            running.control.set_state(&serde_json::json!({"form": 1})).await.unwrap_err().to_string();
        assert!(refused.contains("damaged"), "{refused}");
        running.create("172.20.2.0/24").await.unwrap();
        running.stop().await;
    }

    #[tokio::test]
    async fn the_gauge_counts_custom_entries() {
        let running = serve(bind(config(None)).await.unwrap());
        let vpc = VpcId::from("vpc-loden");
        assert_eq!(running.client.custom_entries(&vpc, &table()).await.unwrap(), 0);
        running.create("172.20.1.0/24").await.unwrap();
        running.create("172.20.2.0/24").await.unwrap();
        assert_eq!(running.client.custom_entries(&vpc, &table()).await.unwrap(), 2);
        let missing = running.client.custom_entries(&vpc, &"vtb-none".into()).await.unwrap_err();
        assert!(missing.to_string().contains("vtb-none"), "{missing}");
        running.stop().await;
    }
}

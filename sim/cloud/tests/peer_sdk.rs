//! The vendor's own SDKs against the emulator: what they do with it, and every error code that the documentation of the emulated actions
//! names, provoked through each of them.
//!
//! `sdk/codes.json` has one row per code: the action, the HTTP status, the message as far as it is documented, what brings it about, and
//! for a code that cannot occur the reason. A few codes tell of trouble inside the vendor's servers; these come from the script of faults.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::process::Stdio;
    use std::time::Duration;

    use loden_sim_cloud::{Config, run};
    use serde::Deserialize;

    /// The three clients that the driver makes every call with.
    const SDKS: [&str; 3] = ["tea-v3", "tea-v1", "old-v1"];
    const DEADLINE: Duration = Duration::from_secs(300);

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk")
    }

    fn python() -> PathBuf {
        let tools = std::env::var_os("LODEN_TOOLS")
            .expect("LODEN_TOOLS is not set: run `cargo xtask test peers`, which brings the vendor's SDKs");
        PathBuf::from(tools).join("python/bin/python3")
    }

    /// Runs the driver against an emulator of its own; answers what it printed, line by line.
    async fn drive(what: &str) -> Vec<serde_json::Value> {
        let bound = run::bind(Config::read(&folder().join("cloud.json")).unwrap()).await.unwrap();
        let at = bound.endpoints().clone();
        let serving = tokio::spawn(bound.serve());
        let mut driver = tokio::process::Command::new(python());
        driver
            .arg(folder().join("driver.py"))
            .args([at.api.to_string(), at.metadata.to_string(), at.control.to_string()])
            .arg(what)
            // The old SDK would ask a proxy for loopback.
            .env_remove("http_proxy")
            .env_remove("HTTP_PROXY")
            .env("no_proxy", "127.0.0.1")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(DEADLINE, driver.output())
            .await
            .expect("the driver takes too long")
            .unwrap();
        serving.abort();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[tokio::test]
    async fn the_sdks_create_list_by_pages_and_delete() {
        let lines = drive("drive").await;
        let done: Vec<(&str, bool)> = lines
            .iter()
            .map(|line| (line["sdk"].as_str().unwrap(), line["role"].as_bool().unwrap()))
            .collect();
        // Each with an access key, and with the credentials of an instance's role.
        let expected: Vec<(&str, bool)> = SDKS.iter().flat_map(|sdk| [(*sdk, false), (*sdk, true)]).collect();
        assert_eq!(done, expected);
    }

    /// A row of `codes.json`, as far as it is judged here.
    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Documented {
        action: String,
        code: String,
        status: u16,
        #[serde(default)]
        message: String,
        cannot_occur: Option<String>,
        /// What comes before the call.
        #[serde(default)]
        given: Vec<serde_json::Value>,
        /// SDKs that show another code for it, with that code.
        #[serde(default)]
        seen_as: BTreeMap<String, String>,
    }

    #[derive(Debug, Deserialize)]
    struct Seen {
        row: usize,
        sdk: String,
        code: Option<String>,
        status: Option<u16>,
        message: Option<String>,
    }

    impl Documented {
        /// Whether the code comes from the script of faults and not from the state of the cloud.
        fn is_staged(&self) -> bool {
            self.given.iter().any(|step| step["control"][1] == "/faults")
        }

        fn is(&self, seen: &Seen) -> bool {
            if let Some(code) = self.seen_as.get(&seen.sdk) {
                return seen.code.as_ref() == Some(code) && seen.status == Some(self.status);
            }
            seen.code.as_deref() == Some(self.code.as_str())
                && seen.status == Some(self.status)
                && seen.message.as_deref().is_some_and(|message| message.contains(&self.message))
        }
    }

    #[tokio::test]
    async fn every_documented_code_comes_out_of_every_sdk() {
        let text = std::fs::read_to_string(folder().join("codes.json")).unwrap();
        let documented: Vec<Documented> = serde_json::from_str(&text).unwrap();
        let mut seen: BTreeMap<(usize, String), Seen> = BTreeMap::new();
        for line in drive("codes").await {
            let line: Seen = serde_json::from_value(line).unwrap();
            seen.insert((line.row, line.sdk.clone()), line);
        }
        let mut unprovoked = Vec::new();
        let mut impossible = Vec::new();
        for (number, row) in documented.iter().enumerate() {
            let name = format!("{} {} ({})", row.action, row.code, row.status);
            if let Some(reason) = &row.cannot_occur {
                assert!(reason.len() > 20, "{name}: the reason why it cannot occur is missing");
                impossible.push(format!("{name}: {reason}"));
                continue;
            }
            for sdk in SDKS {
                let got = seen.get(&(number, sdk.to_owned()));
                if !got.is_some_and(|got| row.is(got)) {
                    unprovoked.push(format!("{name} through {sdk}: got {got:?}"));
                }
            }
        }
        println!("documented codes: {}", documented.len());
        let staged = documented.iter().filter(|row| row.is_staged()).count();
        println!(
            "that the script of faults stands in for, as they tell of the vendor's own trouble: {staged}"
        );
        println!("that cannot occur: {}", impossible.len());
        impossible.iter().for_each(|line| println!("  {line}"));
        println!("unprovoked: {}", unprovoked.len());
        assert!(unprovoked.is_empty(), "unprovoked codes:\n{}", unprovoked.join("\n"));
    }
}

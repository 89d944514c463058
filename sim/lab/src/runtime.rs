//! A small container runtime's network half: it runs a CNI configuration list the way libcni does.
//!
//! One [`Runtime`] per node. Plugins are executed in the node's namespace with the environment of the CNI specification; each
//! one gets the list's `name` and `cniVersion`, the capability arguments it declares, and the result of the one before it as `prevResult`. The final
//! result is cached in libcni's own file format (`<cache>/results/<network>-<container>-<interface>`), so that CHECK and DEL see what ADD
//! returned even from another process. If the cache were wrong, a pod's addresses would leak or be released twice.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use loden_netlink::netns::NetNs;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Context, Error, Result};

/// The list that containerd carries built in and runs before the configured one, with interface `lo`.
const LOOPBACK: &str = r#"{"cniVersion":"0.3.1","name":"cni-loopback","plugins":[{"type":"loopback"}]}"#;

/// Name of the interface inside a pod, as every Kubernetes runtime gives it.
pub const POD_INTERFACE: &str = "eth0";

/// One pod's sandbox as the runtime knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sandbox {
    /// Pod name, for `CNI_ARGS` and messages.
    pub pod: String,
    /// Container ID: 64 hexadecimal digits.
    pub container_id: String,
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
}

/// A configuration list as libcni reads it.
#[derive(Clone, Debug)]
struct List {
    name: String,
    version: String,
    disable_check: bool,
    plugins: Vec<Map<String, Value>>,
    /// The file's bytes: the cache keeps them as they were.
    text: String,
}

/// Runs configuration lists for the pods of one node.
#[derive(Debug)]
pub struct Runtime {
    /// Directory with the plugin executables (`CNI_PATH`).
    pub plugins: PathBuf,
    /// Directory with configuration lists; the first by name is used, as kubelet's runtimes do.
    pub configuration: PathBuf,
    /// libcni's cache directory; results are in `results/` below it.
    pub cache: PathBuf,
    /// Namespace in which plugins run: the node's.
    pub namespace: NetNs,
}

impl Runtime {
    /// Attaches a pod: loopback, then the configured list. A failed ADD is followed by a DEL, as a runtime does before it tries again.
    ///
    /// Returns the pod's IPv4 addresses from the final result.
    ///
    /// # Errors
    /// The configuration cannot be read or a plugin refused.
    pub fn add(&self, sandbox: &Sandbox, capabilities: &BTreeMap<String, Value>) -> Result<Vec<Ipv4Addr>> {
        let list = self.configured()?;
        self.add_list(&parse_list(LOOPBACK, Path::new("built in"))?, sandbox, "lo", &BTreeMap::new())?;
        match self.add_list(&list, sandbox, POD_INTERFACE, capabilities) {
            Ok(result) => Ok(addresses(&result)),
            Err(failure) => match self.delete_list(&list, sandbox, POD_INTERFACE) {
                Ok(()) => Err(failure),
                Err(also) => {
                    Err(Error::Refused(format!("{failure}; and cleaning up after it failed too: {also}")))
                }
            },
        }
    }

    /// Asks every plugin whether the pod is still attached as its ADD left it.
    ///
    /// # Errors
    /// A plugin found a difference, or nothing is cached for the pod.
    pub fn check(&self, sandbox: &Sandbox) -> Result<()> {
        let list = self.configured()?;
        let cached = self
            .cached(&list, sandbox, POD_INTERFACE)?
            .ok_or_else(|| Error::Refused(format!("no cached CNI result for pod {}", sandbox.pod)))?;
        if list.disable_check {
            return Ok(());
        }
        for plugin in &list.plugins {
            self.invoke(
                "CHECK",
                &list,
                plugin,
                sandbox,
                POD_INTERFACE,
                Some(&cached.result),
                &cached.capability_args,
            )?;
        }
        Ok(())
    }

    /// Detaches a pod, plugins in reverse order, and forgets the cached result.
    ///
    /// # Errors
    /// A plugin refused; the cached result then stays, so that the DEL can be repeated.
    pub fn delete(&self, sandbox: &Sandbox) -> Result<()> {
        self.delete_list(&self.configured()?, sandbox, POD_INTERFACE)?;
        self.delete_list(&parse_list(LOOPBACK, Path::new("built in"))?, sandbox, "lo")
    }

    fn configured(&self) -> Result<List> {
        let entries =
            std::fs::read_dir(&self.configuration).map_err(|e| Error::io("read", &self.configuration, e))?;
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| Error::io("read", &self.configuration, e))?.path();
            if path.extension().is_some_and(|extension| extension == "conflist") {
                files.push(path);
            }
        }
        files.sort();
        let path = files.first().ok_or_else(|| {
            Error::Refused(format!(
                "no CNI configuration list (*.conflist) in {}",
                self.configuration.display()
            ))
        })?;
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        parse_list(&text, path)
    }

    fn add_list(
        &self,
        list: &List,
        sandbox: &Sandbox,
        interface: &str,
        capabilities: &BTreeMap<String, Value>,
    ) -> Result<Value> {
        let mut result = None;
        for plugin in &list.plugins {
            let mut next =
                self.invoke("ADD", list, plugin, sandbox, interface, result.as_ref(), capabilities)?;
            if let Value::Object(fields) = &mut next
                && fields.get("cniVersion").and_then(Value::as_str).unwrap_or_default().is_empty()
            {
                fields.insert("cniVersion".to_owned(), Value::String(list.version.clone()));
            }
            result = Some(next);
        }
        let result = result.unwrap_or(Value::Null);
        self.store(list, sandbox, interface, capabilities, &result)?;
        Ok(result)
    }

    fn delete_list(&self, list: &List, sandbox: &Sandbox, interface: &str) -> Result<()> {
        let cached = self.cached(list, sandbox, interface)?;
        let nothing = BTreeMap::new();
        let capabilities = cached.as_ref().map_or(&nothing, |cached| &cached.capability_args);
        // Before 0.4.0 a plugin does not expect a result on DEL.
        let previous = cached.as_ref().map(|cached| &cached.result).filter(|_| at_least_0_4(&list.version));
        for plugin in list.plugins.iter().rev() {
            self.invoke("DEL", list, plugin, sandbox, interface, previous, capabilities)?;
        }
        let path = self.cache_file(list, sandbox, interface);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", path, error))
            }
            _ => Ok(()),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "these are the arguments of a CNI call")]
    fn invoke(
        &self,
        command: &str,
        list: &List,
        plugin: &Map<String, Value>,
        sandbox: &Sandbox,
        interface: &str,
        previous: Option<&Value>,
        capabilities: &BTreeMap<String, Value>,
    ) -> Result<Value> {
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        let fail = |message: String| Error::Plugin {
            command: command.to_owned(),
            pod: sandbox.pod.clone(),
            plugin: kind.to_owned(),
            message,
        };
        let configuration = Value::Object(plugin_configuration(list, plugin, previous, capabilities));
        let executable = self.plugins.join(kind);
        let mut invocation = Command::new(&executable);
        invocation
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &sandbox.container_id)
            .env("CNI_NETNS", &sandbox.netns)
            .env("CNI_IFNAME", interface)
            .env("CNI_ARGS", kubernetes_arguments(sandbox))
            .env("CNI_PATH", &self.plugins)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // A child is born into the namespace of the thread that starts it.
        let mut child = self
            .namespace
            .run(|| invocation.spawn())
            .during(|| format!("enter the namespace of the node of pod {}", sandbox.pod))?
            .during(|| format!("start {}", executable.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that dies before it reads shows in its exit code and output.
            let _ = stdin.write_all(configuration.to_string().as_bytes());
        }
        let output = child.wait_with_output().during(|| format!("run {}", executable.display()))?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        if !stderr.trim().is_empty() {
            tracing::debug!(pod = sandbox.pod, plugin = kind, command, "{}", stderr.trim());
        }
        if !output.status.success() {
            return Err(fail(failure_text(&stdout, &stderr, &output.status.to_string())));
        }
        if command != "ADD" {
            return Ok(Value::Null);
        }
        serde_json::from_str(&stdout)
            .map_err(|error| fail(format!("its result is not JSON ({error}): {stdout}")))
    }

    fn cache_file(&self, list: &List, sandbox: &Sandbox, interface: &str) -> PathBuf {
        self.cache.join("results").join(format!("{}-{}-{interface}", list.name, sandbox.container_id))
    }

    fn store(
        &self,
        list: &List,
        sandbox: &Sandbox,
        interface: &str,
        capabilities: &BTreeMap<String, Value>,
        result: &Value,
    ) -> Result<()> {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        let path = self.cache_file(list, sandbox, interface);
        let directory = self.cache.join("results");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|e| Error::io("create", &directory, e))?;
        let entry = CacheEntry {
            kind: "cniCacheV1".to_owned(),
            container_id: sandbox.container_id.clone(),
            config: base64::engine::general_purpose::STANDARD.encode(&list.text),
            if_name: interface.to_owned(),
            network_name: list.name.clone(),
            netns: sandbox.netns.clone(),
            cni_args: kubernetes_arguments(sandbox)
                .split(';')
                .filter_map(|pair| {
                    pair.split_once('=').map(|(key, value)| [key.to_owned(), value.to_owned()])
                })
                .collect(),
            capability_args: capabilities.clone(),
            result: result.clone(),
        };
        let text =
            serde_json::to_vec(&entry).during(|| format!("encode the CNI result of pod {}", sandbox.pod))?;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| Error::io("create", &path, e))?;
        file.write_all(&text).map_err(|e| Error::io("write", &path, e))
    }

    fn cached(&self, list: &List, sandbox: &Sandbox, interface: &str) -> Result<Option<CacheEntry>> {
        let path = self.cache_file(list, sandbox, interface);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path, error)),
        };
        let entry: CacheEntry = serde_json::from_slice(&text)
            .during(|| format!("read the cached CNI result {}", path.display()))?;
        Ok(Some(entry))
    }
}

/// One file of libcni's result cache.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CacheEntry {
    kind: String,
    container_id: String,
    config: String,
    if_name: String,
    network_name: String,
    netns: PathBuf,
    #[serde(default)]
    cni_args: Vec<[String; 2]>,
    #[serde(default)]
    capability_args: BTreeMap<String, Value>,
    #[serde(default)]
    result: Value,
}

fn parse_list(text: &str, path: &Path) -> Result<List> {
    let bad = |why: &str| Error::Refused(format!("CNI configuration list {}: {why}", path.display()));
    let value: Value = serde_json::from_str(text).map_err(|error| bad(&format!("not JSON: {error}")))?;
    let name = value
        .get("name")
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| bad("it has no name"))?;
    let version = value.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
    let plugins =
        value.get("plugins").and_then(Value::as_array).ok_or_else(|| bad("it has no list of plugins"))?;
    let mut list = List {
        name: name.to_owned(),
        version: version.to_owned(),
        disable_check: value.get("disableCheck").and_then(Value::as_bool).unwrap_or(false),
        plugins: Vec::with_capacity(plugins.len()),
        text: text.to_owned(),
    };
    for plugin in plugins {
        let plugin = plugin.as_object().ok_or_else(|| bad("a plugin is not an object"))?;
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        if kind.is_empty() || kind.contains('/') {
            return Err(bad(&format!("{kind:?} is no plugin type")));
        }
        list.plugins.push(plugin.clone());
    }
    if list.plugins.is_empty() {
        return Err(bad("its list of plugins is empty"));
    }
    Ok(list)
}

/// What a plugin reads on stdin: its own object, the list's name and version, its capabilities' arguments, the previous result.
fn plugin_configuration(
    list: &List,
    plugin: &Map<String, Value>,
    previous: Option<&Value>,
    capabilities: &BTreeMap<String, Value>,
) -> Map<String, Value> {
    let mut configuration = plugin.clone();
    configuration.insert("name".to_owned(), json!(list.name));
    configuration.insert("cniVersion".to_owned(), json!(list.version));
    let declared = plugin.get("capabilities").and_then(Value::as_object);
    let wanted: Map<String, Value> = capabilities
        .iter()
        .filter(|(name, _)| declared.and_then(|d| d.get(*name)).and_then(Value::as_bool).unwrap_or(false))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !wanted.is_empty() {
        configuration.insert("runtimeConfig".to_owned(), Value::Object(wanted));
    }
    if let Some(previous) = previous.filter(|previous| !previous.is_null()) {
        configuration.insert("prevResult".to_owned(), previous.clone());
    }
    configuration
}

/// `CNI_ARGS` as containerd and CRI-O send it.
fn kubernetes_arguments(sandbox: &Sandbox) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        sandbox.pod,
        sandbox.container_id,
        sandbox.container_id.get(..32).unwrap_or_default()
    )
}

fn at_least_0_4(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let major = numbers.next().unwrap_or(0);
    let minor = numbers.next().unwrap_or(0);
    (major, minor) >= (0, 4)
}

/// IPv4 addresses of a result of version 0.3.0 or later (`ips`) or earlier (`ip4`).
fn addresses(result: &Value) -> Vec<Ipv4Addr> {
    let plain = |text: &str| text.split('/').next().and_then(|ip| ip.parse::<Ipv4Addr>().ok());
    let listed = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let mut found: Vec<Ipv4Addr> =
        listed.filter_map(|ip| ip.get("address").and_then(Value::as_str).and_then(plain)).collect();
    found.extend(result.get("ip4").and_then(|ip4| ip4.get("ip")).and_then(Value::as_str).and_then(plain));
    found
}

/// A failed plugin's own words: the CNI error object on stdout if there is one, whatever it said otherwise.
fn failure_text(stdout: &str, stderr: &str, status: &str) -> String {
    let Ok(error) = serde_json::from_str::<Value>(stdout) else {
        let said = if stdout.trim().is_empty() { stderr.trim() } else { stdout.trim() };
        return if said.is_empty() {
            format!("no error message ({status})")
        } else {
            format!("{said} ({status})")
        };
    };
    let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
    let code = error.get("code").and_then(Value::as_u64).unwrap_or_default();
    let details = text("details");
    if details.is_empty() {
        format!("{} (code {code})", text("msg"))
    } else {
        format!("{}; {details} (code {code})", text("msg"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLANNEL: &str = r#"{"name":"cbr0","cniVersion":"1.0.0","plugins":[
        {"type":"flannel","delegate":{"isDefaultGateway":true}},
        {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

    fn list() -> List {
        parse_list(FLANNEL, Path::new("10-flannel.conflist")).unwrap()
    }

    #[test]
    fn each_plugin_gets_name_version_previous_result_and_only_its_capabilities() {
        let capabilities = BTreeMap::from([
            ("portMappings".to_owned(), json!([{"hostPort": 80}])),
            ("mac".to_owned(), json!("x")),
        ]);
        let list = list();
        let previous = json!({"ips": []});
        let first = plugin_configuration(&list, &list.plugins[0], None, &capabilities);
        assert_eq!(first.get("name"), Some(&json!("cbr0")));
        assert_eq!(first.get("cniVersion"), Some(&json!("1.0.0")));
        assert!(!first.contains_key("runtimeConfig") && !first.contains_key("prevResult"));
        let second = plugin_configuration(&list, &list.plugins[1], Some(&previous), &capabilities);
        assert_eq!(second.get("runtimeConfig"), Some(&json!({"portMappings": [{"hostPort": 80}]})));
        assert_eq!(second.get("prevResult"), Some(&previous));
    }

    #[test]
    fn lists_that_cannot_run_are_refused_by_name() {
        for (text, why) in [
            ("{", "not JSON"),
            (r#"{"plugins":[{"type":"a"}]}"#, "no name"),
            (r#"{"name":"n"}"#, "no list of plugins"),
            (r#"{"name":"n","plugins":[]}"#, "empty"),
            (r#"{"name":"n","plugins":[{"type":"../sh"}]}"#, "no plugin type"),
        ] {
            let error = parse_list(text, Path::new("/etc/x.conflist")).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("/etc/x.conflist"), "{error}");
        }
    }

    #[test]
    fn both_families_of_results_name_their_addresses() {
        assert_eq!(addresses(&json!({"ips":[{"address":"172.20.0.2/26"}]})), [Ipv4Addr::new(172, 20, 0, 2)]);
        assert_eq!(addresses(&json!({"ip4":{"ip":"172.20.0.3/26"}})), [Ipv4Addr::new(172, 20, 0, 3)]);
    }

    #[test]
    fn a_plugins_own_words_reach_the_user() {
        let text =
            failure_text(r#"{"code":11,"msg":"not ready","details":"no subnet"}"#, "", "exit status: 1");
        assert_eq!(text, "not ready; no subnet (code 11)");
        assert_eq!(failure_text("", "boom\n", "exit status: 2"), "boom (exit status: 2)");
        assert_eq!(failure_text("", "", "signal: 9"), "no error message (signal: 9)");
    }

    #[test]
    fn delete_passes_the_result_from_0_4_on() {
        assert!(!at_least_0_4("0.3.1") && at_least_0_4("0.4.0") && at_least_0_4("1.1.0"));
    }
}

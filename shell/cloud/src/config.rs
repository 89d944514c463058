//! The cloud-config file: JSON or YAML with one object `Global`, as the vendor's cloud-controller-manager reads it.
//!
//! Keys are matched without regard to case. Those that concern load balancers, private zones and worker counts mean nothing here and are passed over, so that an
//! existing file works as it is; a key that the vendor does not know either is told of, as it is likely misspelt.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use loden_aliyun::sign::AccessKey;
use serde_json::Value;

/// The vendor's keys in lower case that nothing here depends on.
const PASSED_OVER: &[&str] = &[
    "disablepublicslb",
    "featuregates",
    "kubernetesclustertag",
    "nodeaddrsyncperiod",
    "nodemaxconcurrentreconciles",
    "nodemonitorperiod",
    "privatezoneid",
    "privatezonerecordttl",
    "resourcegroupid",
    "routemaxconcurrentreconciles",
    "servicebackendtype",
    "servicemaxconcurrentreconciles",
    "vswitchid",
    "zoneid",
];

/// The keys in lower case that are read.
const READ: &[&str] =
    &["accesskeyid", "accesskeysecret", "clusterid", "region", "routetableids", "uid", "vpcid"];

/// What the file says, as far as Loden uses it. Absent and empty values are `None`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct CloudConfig {
    /// `accessKeyID` and `accessKeySecret`, both base64 in the file.
    pub access_key: Option<AccessKey>,
    /// `region`.
    pub region: Option<String>,
    /// `vpcid`.
    pub vpc_id: Option<String>,
    /// `clusterID`.
    pub cluster_id: Option<String>,
    /// `routeTableIDs`: separated by commas, blanks around them dropped.
    pub route_table_ids: Vec<String>,
    /// What in the file has no effect, as sentences.
    pub remarks: Vec<String>,
}

impl fmt::Debug for CloudConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudConfig")
            .field("access_key", &self.access_key)
            .field("region", &self.region)
            .field("vpc_id", &self.vpc_id)
            .field("cluster_id", &self.cluster_id)
            .field("route_table_ids", &self.route_table_ids)
            .field("remarks", &self.remarks)
            .finish()
    }
}

/// Why a cloud-config file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CloudConfigError {
    /// Not readable.
    #[error(
        "cannot read the cloud config {path:?}: {source}; check --cloud-config and the file's permissions"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Neither JSON nor YAML. The text is not shown, as it may hold secrets.
    #[error(
        "the cloud config {path:?} is neither JSON nor YAML: line {line}, column {column} cannot be read"
    )]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, counted from 1; 0 where that is not known.
        line: u64,
        /// Where, counted from 1; 0 where that is not known.
        column: u64,
    },
    /// A value that cannot be used. It is not shown, as it may be a secret.
    #[error("the cloud config {path:?} has no usable {key}: {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, as it is documented.
        key: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
}

impl CloudConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// The file cannot be read, is not of this form, or holds only half an access key.
    pub fn read(path: &Path) -> Result<Self, CloudConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| CloudConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, CloudConfigError> {
        let wrong = |key, problem| CloudConfigError::Value { path: path.to_owned(), key, problem };
        let value = read_text(text).map_err(|(line, column)| CloudConfigError::Syntax {
            path: path.to_owned(),
            line,
            column,
        })?;
        let top = fold(&value);
        let global = top
            .as_ref()
            .and_then(|top| fold(top.get("global")?))
            .ok_or_else(|| wrong("Global", "there has to be an object of that name"))?;
        let mut remarks = Vec::new();
        for key in top.iter().flat_map(BTreeMap::keys).filter(|key| *key != "global") {
            remarks.push(format!("{key:?} beside Global is not known and has no effect"));
        }
        for key in global.keys().map(String::as_str) {
            if !READ.contains(&key) && !PASSED_OVER.contains(&key) {
                remarks.push(format!("Global has a key {key:?} that is not known and has no effect"));
            }
        }
        let read = |key: &'static str| match global.get(key.to_ascii_lowercase().as_str()) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
            Some(_) => Err(wrong(key, "it has to be a text")),
        };
        let decode = |key: &'static str| -> Result<Option<String>, CloudConfigError> {
            let Some(text) = read(key)? else { return Ok(None) };
            let decoded = STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let decoded = decoded.ok_or_else(|| wrong(key, "it has to be base64 of a text"))?;
            Ok(Some(decoded.trim().to_owned()))
        };
        let access_key = match (decode("accessKeyID")?, decode("accessKeySecret")?) {
            (Some(id), Some(secret)) => Some(AccessKey { id, secret, token: None }),
            (None, None) => None,
            (None, Some(_)) => return Err(wrong("accessKeyID", "accessKeySecret is there without it")),
            (Some(_), None) => return Err(wrong("accessKeySecret", "accessKeyID is there without it")),
        };
        if read("uid")?.is_some() && access_key.is_some() {
            remarks.push(
                "uid has no effect: no program is run for a service token, the access key is used as it is"
                    .to_owned(),
            );
        }
        let mut route_table_ids = Vec::new();
        if let Some(list) = read("routeTableIDs")? {
            for id in list.split(',').map(str::trim) {
                if id.is_empty() {
                    return Err(wrong("routeTableIDs", "it has an empty item; write vtb-a,vtb-b"));
                }
                route_table_ids.push(id.to_owned());
            }
        }
        Ok(Self {
            access_key,
            region: read("region")?,
            vpc_id: read("vpcid")?,
            cluster_id: read("clusterID")?,
            route_table_ids,
            remarks,
        })
    }
}

/// A document in JSON, else in YAML; otherwise the line and the column where reading ended. Not every JSON text is YAML to every reader (tabs are not), so both
/// are tried.
fn read_text(text: &str) -> Result<Value, (u64, u64)> {
    let json = match serde_json::from_str(text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    serde_saphyr::from_str(text).map_err(|yaml| match yaml.location() {
        Some(place) if !text.trim_start().starts_with('{') => (place.line(), place.column()),
        _ => {
            let place = |number: usize| u64::try_from(number).unwrap_or(0);
            (place(json.line()), place(json.column()))
        }
    })
}

/// An object with its keys in lower case.
fn fold(value: &Value) -> Option<BTreeMap<String, &Value>> {
    Some(value.as_object()?.iter().map(|(key, value)| (key.to_ascii_lowercase(), value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<CloudConfig, CloudConfigError> {
        CloudConfig::parse(text, Path::new("cloud-config.conf"))
    }

    #[test]
    fn keys_match_in_any_case_and_lists_are_trimmed() {
        let config = parse(
            r#"{"global":{"AccessKeyID":"dGVzdGlk","accessKeySecret":"dGVzdHNlY3JldA==","REGION":"cn-beijing",
                "vpcid":"vpc-1","routeTableIDs":" vtb-a, vtb-b ","kubernetesClusterTag":"x","clusterID":""}}"#,
        )
        .unwrap();
        assert_eq!(config.access_key.as_ref().unwrap().id, "testid");
        assert_eq!(config.access_key.as_ref().unwrap().secret, "testsecret");
        assert_eq!(config.route_table_ids, ["vtb-a", "vtb-b"]);
        assert_eq!((config.region.as_deref(), config.cluster_id), (Some("cn-beijing"), None));
    }

    #[test]
    fn what_is_wrong_is_named_and_no_secret_is_shown() {
        for (text, part) in [
            ("", "there has to be an object"),
            ("{\"Global\":{\"region\":\"hunter2", "neither JSON nor YAML: line 1"),
            ("Global:\n  region: a\n accessKeySecret: [hunter2", "neither JSON nor YAML: line 3"),
            ("{}", "Global"),
            (r#"{"Global":[]}"#, "Global"),
            (r#"{"Global":{"accessKeyID":"dGVzdGlk"}}"#, "accessKeySecret"),
            (r#"{"Global":{"accessKeyID":"dGVzdGlk","accessKeySecret":"hunter2!"}}"#, "base64"),
            (r#"{"Global":{"routeTableIDs":"vtb-a,,vtb-b"}}"#, "routeTableIDs"),
            (r#"{"Global":{"region":5}}"#, "region"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("cloud-config.conf"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let config =
            parse(r#"{"Global":{"accessKeyID":"dGVzdGlk","accessKeySecret":"dGVzdHNlY3JldA=="}}"#).unwrap();
        assert_eq!(config.remarks, [""; 0]);
        assert!(!format!("{config:?}").contains("testsecret"));
    }

    #[test]
    fn yaml_says_the_same_as_json() {
        let yaml = "Global:\n  accessKeyID: dGVzdGlk\n  accessKeySecret: dGVzdHNlY3JldA==\n  clusterID: c1\n  routeTableIDs: vtb-a,vtb-b\n";
        let json = r#"{"Global":{"accessKeyID":"dGVzdGlk","accessKeySecret":"dGVzdHNlY3JldA==","clusterID":"c1","routeTableIDs":"vtb-a,vtb-b"}}"#;
        assert_eq!(parse(yaml).unwrap(), parse(json).unwrap());
        assert_eq!(
            parse("{\n\t\"Global\": {\n\t\t\"region\": \"r\"\n\t}\n}").unwrap().region.as_deref(),
            Some("r")
        );
    }

    #[test]
    fn what_has_no_effect_is_told_unless_it_is_the_vendors() {
        let config = parse(
            r#"{"Global":{"uid":"1","accessKeyID":"dGVzdGlk","accessKeySecret":"dGVzdHNlY3JldA==","routeTableID":"vtb-a","zoneid":"z",
                "serviceMaxConcurrentReconciles":3,"featureGates":"IPv6DualStack=true"},"LoadBalancer":{}}"#,
        )
        .unwrap();
        assert_eq!(config.remarks.len(), 3, "{:?}", config.remarks);
        for part in ["\"loadbalancer\"", "\"routetableid\"", "uid"] {
            assert!(config.remarks.iter().any(|remark| remark.contains(part)), "{:?}", config.remarks);
        }
    }
}

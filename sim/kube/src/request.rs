//! What an HTTP request asks for, in the API's terms.

use std::collections::BTreeMap;

use http::Method;
use percent_encoding::percent_decode_str;

use crate::failure::Failure;
use crate::listing::{At, Continue, ListOptions};
use crate::model::Validation;
use crate::resource::Resource;

/// What is done to an object, as roles spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Read one.
    Get,
    /// Read many.
    List,
    /// Follow changes.
    Watch,
    /// Make one.
    Create,
    /// Replace one.
    Update,
    /// Change a part of one.
    Patch,
    /// Remove one.
    Delete,
    /// Remove many.
    DeleteCollection,
}

impl Verb {
    /// The word in roles and refusals.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// The object or collection that a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) resource: Resource,
    /// The namespace in the path; `None` for kinds without one and for lists over all namespaces.
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) status: bool,
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Into the objects.
    Object(Target),
    /// To a document about the API itself, by its decoded segments.
    Document(Vec<String>),
}

pub(crate) fn place(path: &str) -> Result<Place, Failure> {
    let segments = path
        .trim_start_matches('/')
        .trim_end_matches('/')
        .split('/')
        .map(|segment| percent_decode_str(segment).decode_utf8().map(String::from))
        .collect::<Result<Vec<String>, _>>()
        .map_err(|_| Failure::bad_request("the path is not valid UTF-8"))?;
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match words.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(Place::Document(segments)),
    };
    let find = |plural: &str| Resource::find(group, version, plural).ok_or_else(Failure::no_such_path);
    let (resource, namespace, rest) = match rest {
        ["namespaces", namespace, plural, rest @ ..] if find(plural).is_ok_and(Resource::namespaced) => {
            (find(plural)?, Some((*namespace).to_owned()), rest)
        }
        [plural, rest @ ..] => (find(plural)?, None, rest),
        [] => return Err(Failure::no_such_path()),
    };
    let (name, status) = match rest {
        [] => (None, false),
        [name] if !name.is_empty() => (Some((*name).to_owned()), false),
        [name, "status"] if resource.has_status() && !name.is_empty() => (Some((*name).to_owned()), true),
        _ => return Err(Failure::no_such_path()),
    };
    if resource.namespaced() && namespace.is_none() && name.is_some() {
        return Err(Failure::no_such_path());
    }
    Ok(Place::Object(Target { resource, namespace, name, status }))
}

/// The verb of a request on a target.
pub(crate) fn verb(method: &Method, target: &Target, query: &Query) -> Result<Verb, Failure> {
    let one = target.name.is_some();
    // A collection over all namespaces can be read and nothing else.
    let writable = target.namespace.is_some() || !target.resource.namespaced();
    match (method, one) {
        (&Method::GET | &Method::HEAD, _) if query.flag("watch")? && !target.status => Ok(Verb::Watch),
        (&Method::GET | &Method::HEAD, true) => Ok(Verb::Get),
        (&Method::GET | &Method::HEAD, false) => Ok(Verb::List),
        (&Method::POST, false) if writable => Ok(Verb::Create),
        (&Method::PUT, true) => Ok(Verb::Update),
        (&Method::PATCH, true) => Ok(Verb::Patch),
        (&Method::DELETE, true) if !target.status => Ok(Verb::Delete),
        (&Method::DELETE, false) if writable => Ok(Verb::DeleteCollection),
        _ => Err(Failure::method()),
    }
}

/// The query's parameters; of a repeated one the first counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(BTreeMap<String, String>);

impl Query {
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let decode = |part: &str| {
            let spaced = part.replace('+', " ");
            percent_decode_str(&spaced)
                .decode_utf8()
                .map(String::from)
                .map_err(|_| Failure::bad_request("the query is not valid UTF-8"))
        };
        let mut parameters = BTreeMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            parameters.entry(decode(name)?).or_insert(decode(value)?);
        }
        Ok(Self(parameters))
    }

    /// A parameter; the empty string when it is absent.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.text(name) {
            "" => Ok(self.0.contains_key(name)),
            "0" | "false" | "False" | "FALSE" | "f" | "F" => Ok(false),
            "1" | "true" | "True" | "TRUE" | "t" | "T" => Ok(true),
            other => Err(Failure::bad_request(format!(
                "invalid value {other:?} of parameter {name}: not a boolean"
            ))),
        }
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Failure::bad_request(format!(
                    "invalid value {text:?} of parameter {name}: not an unsigned integer"
                ))
            }),
        }
    }

    pub(crate) fn dry_run(&self) -> Result<bool, Failure> {
        match self.text("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => Err(invalid_option(
                "dryRun",
                &format!("Unsupported value: {other:?}: supported values: \"All\""),
            )),
        }
    }

    /// What becomes of unknown fields.
    pub(crate) fn validation(&self) -> Result<Validation, Failure> {
        match self.text("fieldValidation") {
            "" => Ok(Validation::default()),
            "Ignore" => Ok(Validation::Ignore),
            "Warn" => Ok(Validation::Warn),
            "Strict" => Ok(Validation::Strict),
            other => Err(invalid_option(
                "fieldValidation",
                &format!("Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""),
            )),
        }
    }

    /// In whose name a write is: the field manager, or else what the client calls itself.
    pub(crate) fn manager(&self, user_agent: &str) -> Result<String, Failure> {
        let given = self.text("fieldManager");
        if given.chars().count() > 128 || given.chars().any(char::is_control) {
            let rule = format!("Invalid value: {given:?}: may not be longer than 128 printable characters");
            return Err(invalid_option("fieldManager", &rule));
        }
        if !given.is_empty() {
            return Ok(given.to_owned());
        }
        let program = user_agent.split('/').next().unwrap_or_default();
        Ok(program.chars().take(128).collect())
    }

    /// The options of a server-side apply: who wants it, and whether fields may be taken from others.
    pub(crate) fn force(&self) -> Result<bool, Failure> {
        if self.text("fieldManager").is_empty() {
            return Err(invalid_option("fieldManager", "Required value: is required for apply patch"));
        }
        self.flag("force")
    }

    /// Version, limit and token of a list, by the rules of the API for each combination of `resourceVersion` and
    /// `resourceVersionMatch`.
    pub(crate) fn list_options(&self) -> Result<ListOptions, Failure> {
        let version = self.number("resourceVersion")?;
        let limit = self
            .number("limit")?
            .filter(|limit| *limit > 0)
            .map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let from = match self.text("continue") {
            "" => None,
            token => Some(Continue::decode(token)?),
        };
        if from.is_some() && version.is_some_and(|version| version != 0) {
            return Err(Failure::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let at = match (self.text("resourceVersionMatch"), version) {
            ("", None) => At::Latest,
            ("", Some(0)) => At::NotOlder(0),
            ("", Some(version)) if limit.is_some() => At::Exact(version),
            ("" | "NotOlderThan", Some(version)) => At::NotOlder(version),
            ("Exact", Some(0)) => {
                let rule = "Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"";
                return Err(invalid_option("resourceVersionMatch", rule));
            }
            ("Exact", Some(version)) => At::Exact(version),
            ("NotOlderThan" | "Exact", None) => {
                let rule = "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided";
                return Err(invalid_option("resourceVersionMatch", rule));
            }
            (other, _) => {
                let rule = format!(
                    "Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\""
                );
                return Err(invalid_option("resourceVersionMatch", &rule));
            }
        };
        Ok(ListOptions { at, limit, from })
    }

    /// Where a watch begins: `None` with the present objects, else after this version. The flag asks for a bookmark
    /// once the present objects were sent.
    pub(crate) fn watch_start(&self) -> Result<(Option<u64>, bool), Failure> {
        let version = self.number("resourceVersion")?.filter(|version| *version != 0);
        let matching = self.text("resourceVersionMatch");
        let wants_state = self.flag("sendInitialEvents")?;
        match (self.text("sendInitialEvents"), matching) {
            ("", "") => Ok((version, false)),
            ("", _) => Err(invalid_option(
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            )),
            (_, "NotOlderThan") if wants_state => Ok((None, true)),
            (_, "NotOlderThan") => Ok((version, false)),
            _ => Err(invalid_option(
                "resourceVersionMatch",
                "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )),
        }
    }
}

fn invalid_option(field: &str, rule: &str) -> Failure {
    Failure::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: {rule}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str) -> Target {
        match place(path).unwrap() {
            Place::Object(target) => target,
            Place::Document(segments) => panic!("{path} is the document {segments:?}"),
        }
    }

    #[test]
    fn paths_name_objects() {
        let nodes = target("/api/v1/nodes");
        assert_eq!((nodes.resource, nodes.name, nodes.status), (Resource::Nodes, None, false));
        let status = target("/api/v1/nodes/cn-hangzhou.192.168.0.1/status");
        assert_eq!((status.name.as_deref(), status.status), (Some("cn-hangzhou.192.168.0.1"), true));
        let lease = target("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/ccm");
        assert_eq!((lease.resource, lease.namespace.as_deref()), (Resource::Leases, Some("kube-system")));
        assert_eq!(target("/api/v1/pods").namespace, None);
        assert_eq!(target("/api/v1/namespaces/a/status").resource, Resource::Namespaces);
        assert_eq!(target("/api/v1/namespaces/a").name.as_deref(), Some("a"));
    }

    #[test]
    fn other_paths_are_documents_or_404() {
        assert!(matches!(place("/version"), Ok(Place::Document(_))));
        assert!(matches!(place("/apis/coordination.k8s.io/v1"), Ok(Place::Document(_))));
        for path in [
            "/api/v1/services",
            "/api/v2/nodes",
            "/api/v1/pods/p",
            "/api/v1/nodes/n/log",
            "/apis/apps/v1/statefulsets",
            "/apis/apps/v1beta1/deployments",
            "/apis/apps/v1/nodes",
            "/api/v1/namespaces/a/nodes/n",
            "/api/v1/nodes//status",
        ] {
            assert_eq!(place(path).unwrap_err().code, 404, "{path}");
        }
        assert_eq!(place("/api/v1/nodes/%ff").unwrap_err().code, 400);
    }

    #[test]
    fn versions_of_lists_follow_the_table_of_the_api() {
        let at = |query: &str| Query::parse(query).unwrap().list_options().map(|options| options.at);
        assert_eq!(at(""), Ok(At::Latest));
        assert_eq!(at("resourceVersion=0"), Ok(At::NotOlder(0)));
        assert_eq!(at("resourceVersion=5"), Ok(At::NotOlder(5)));
        assert_eq!(at("resourceVersion=5&limit=3"), Ok(At::Exact(5)));
        assert_eq!(at("resourceVersion=5&resourceVersionMatch=Exact"), Ok(At::Exact(5)));
        for bad in [
            "resourceVersionMatch=Exact",
            "resourceVersion=0&resourceVersionMatch=Exact",
            "resourceVersion=x",
            "resourceVersion=5&resourceVersionMatch=Maybe",
            "limit=-1",
            "limit=x",
            "continue=%00",
        ] {
            assert!(at(bad).is_err(), "{bad}");
        }
    }
}

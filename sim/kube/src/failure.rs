//! Refusals, as the `Status` object that the API server sends with every one.

use serde_json::{Value, json};

use crate::resource::Resource;

/// A refused request: an HTTP status and the `Status` object that explains it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code} {reason}: {message}")]
pub struct Failure {
    /// The HTTP status.
    pub code: u16,
    /// The machine-readable reason, such as `NotFound`.
    pub reason: String,
    /// The sentence for people, worded as the API server words it.
    pub message: String,
    /// `details` of the Status object: name, group, kind, uid, causes, retryAfterSeconds.
    pub details: Option<Value>,
}

impl Failure {
    /// A refusal without details.
    #[must_use]
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.to_owned(), message: message.into(), details: None }
    }

    fn about(mut self, resource: Resource, name: &str) -> Self {
        let mut details = json!({"kind": resource.plural()});
        if let Some(fields) = details.as_object_mut() {
            if !name.is_empty() {
                fields.insert("name".to_owned(), name.into());
            }
            if !resource.group().is_empty() {
                fields.insert("group".to_owned(), resource.group().into());
            }
        }
        self.details = Some(details);
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn no_such_path() -> Self {
        let mut failure = Self::new(404, "NotFound", "the server could not find the requested resource");
        failure.details = Some(json!({}));
        failure
    }

    pub(crate) fn not_found(resource: Resource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {name:?} not found", resource.qualified()))
            .about(resource, name)
    }

    pub(crate) fn method() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    pub(crate) fn not_acceptable() -> Self {
        Self::new(406, "NotAcceptable", "only the following media types are accepted: application/json")
    }

    pub(crate) fn already_exists(resource: Resource, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} {name:?} already exists", resource.qualified()))
            .about(resource, name)
    }

    /// 409 for a write that names another version or UID than the present one.
    #[must_use]
    pub fn conflict(resource: Resource, name: &str, why: &str) -> Self {
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", resource.qualified()),
        )
        .about(resource, name)
    }

    pub(crate) fn modified(resource: Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub(crate) fn uid_precondition(resource: Resource, name: &str, wanted: &str, actual: &str) -> Self {
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {actual}");
        Self::conflict(resource, name, &why)
    }

    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub(crate) fn too_large() -> Self {
        Self::new(413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728")
    }

    pub(crate) fn media_type(accepted: &str) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {accepted}"
            ),
        )
    }

    /// 422 with one cause per broken field: (field, reason, message).
    pub(crate) fn invalid(resource: Resource, name: &str, broken: &[Broken]) -> Self {
        let texts: Vec<String> = broken.iter().map(|one| format!("{}: {}", one.field, one.message)).collect();
        let list = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut failure =
            Self::new(422, "Invalid", format!("{} {name:?} is invalid: {list}", resource.qualified_kind()))
                .about(resource, name);
        if let Some(details) = failure.details.as_mut().and_then(Value::as_object_mut) {
            details.insert("kind".to_owned(), resource.kind().into());
            let causes = broken
                .iter()
                .map(|one| json!({"reason": one.reason, "message": one.message, "field": one.field}))
                .collect();
            details.insert("causes".to_owned(), Value::Array(causes));
        }
        failure
    }

    pub(crate) fn version_too_large(wanted: u64, current: u64) -> Self {
        let mut failure =
            Self::new(504, "Timeout", format!("Too large resource version: {wanted}, current: {current}"));
        failure.details = Some(json!({"retryAfterSeconds": 1,
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]}));
        failure
    }

    pub(crate) fn forbidden(resource: Resource, name: &str, message: impl Into<String>) -> Self {
        Self::new(403, "Forbidden", message).about(resource, name)
    }

    /// The Status object.
    #[must_use]
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let (Some(fields), Some(details)) = (status.as_object_mut(), &self.details) {
            fields.insert("details".to_owned(), details.clone());
        }
        status
    }
}

/// One field that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    field: String,
    reason: &'static str,
    message: String,
}

impl Broken {
    pub(crate) fn value(field: &str, value: &Value, message: &str) -> Self {
        Self {
            field: field.to_owned(),
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {value}: {message}"),
        }
    }

    pub(crate) fn forbidden(field: &str, message: &str) -> Self {
        Self {
            field: field.to_owned(),
            reason: "FieldValueForbidden",
            message: format!("Forbidden: {message}"),
        }
    }

    pub(crate) fn required(field: &str, message: &str) -> Self {
        Self {
            field: field.to_owned(),
            reason: "FieldValueRequired",
            message: format!("Required value: {message}"),
        }
    }
}

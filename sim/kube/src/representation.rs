//! How objects are shown: whole, as metadata only, or as a table for people, as the client's `Accept` header wishes.

use http::{HeaderMap, header};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::listing::Page;
use crate::request::Query;
use crate::resource::Resource;
use crate::table::{self, Include, metadata_only};

/// The shape of answers to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Representation {
    resource: Resource,
    shape: Shape,
    include: Include,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Whole,
    Metadata,
    Table,
}

impl Representation {
    /// The first of the accepted media types that can be served.
    pub(crate) fn choose(headers: &HeaderMap, resource: Resource, query: &Query) -> Result<Self, Failure> {
        let include = match query.text("includeObject") {
            "" | "Metadata" => Include::Metadata,
            "None" => Include::Nothing,
            "Object" => Include::Whole,
            other => {
                return Err(Failure::bad_request(format!("unrecognized includeObject value: {other:?}")));
            }
        };
        let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut asked = false;
        for clause in
            accept.flat_map(|text| text.split(',')).map(str::trim).filter(|clause| !clause.is_empty())
        {
            asked = true;
            let mut parts = clause.split(';').map(str::trim);
            if !matches!(parts.next(), Some("application/json" | "application/*" | "*/*")) {
                continue;
            }
            let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
            let find = |name: &str| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
            let shape = match (find("as"), find("g"), find("v")) {
                (None, ..) => Shape::Whole,
                (Some("Table"), Some("meta.k8s.io"), Some("v1")) => Shape::Table,
                (
                    Some("PartialObjectMetadata" | "PartialObjectMetadataList"),
                    Some("meta.k8s.io"),
                    Some("v1"),
                ) => Shape::Metadata,
                _ => continue,
            };
            return Ok(Self { resource, shape, include });
        }
        if asked {
            Err(Failure::not_acceptable())
        } else {
            Ok(Self { resource, shape: Shape::Whole, include })
        }
    }

    pub(crate) fn object(self, object: &Value) -> Value {
        match self.shape {
            Shape::Whole => object.clone(),
            Shape::Metadata => metadata_only(object),
            Shape::Table => table::table(
                self.resource,
                [object].into_iter(),
                self.include,
                true,
                &object_metadata(object),
            ),
        }
    }

    /// An object inside a watch: only the first table of a stream tells the columns.
    pub(crate) fn event(self, object: &Value, first: bool) -> Value {
        match self.shape {
            Shape::Table => table::table(
                self.resource,
                [object].into_iter(),
                self.include,
                first,
                &object_metadata(object),
            ),
            _ => self.object(object),
        }
    }

    pub(crate) fn list(self, page: &Page) -> Value {
        let mut metadata = json!({"resourceVersion": page.revision.to_string()});
        if let (Some(fields), Some(next)) = (metadata.as_object_mut(), &page.next) {
            fields.insert("continue".to_owned(), next.encode().into());
            fields.insert("remainingItemCount".to_owned(), page.remaining.into());
        }
        let whole = |kind: String, version: &str, items: Vec<Value>| json!({"kind": kind, "apiVersion": version, "metadata": metadata.clone(), "items": items});
        match self.shape {
            Shape::Whole => {
                let kind = format!("{}List", self.resource.kind());
                whole(
                    kind,
                    self.resource.api_version(),
                    page.items.iter().map(|item| Value::clone(item)).collect(),
                )
            }
            Shape::Metadata => whole(
                "PartialObjectMetadataList".to_owned(),
                "meta.k8s.io/v1",
                page.items.iter().map(|item| metadata_only(item)).collect(),
            ),
            Shape::Table => table::table(
                self.resource,
                page.items.iter().map(AsRef::as_ref),
                self.include,
                true,
                &metadata,
            ),
        }
    }

    /// A bookmark's object: kind and version of the data, nothing else.
    pub(crate) fn bookmark(self, revision: u64, end_of_state: bool) -> Value {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if let (Some(fields), true) = (metadata.as_object_mut(), end_of_state) {
            fields.insert("annotations".to_owned(), json!({"k8s.io/initial-events-end": "true"}));
        }
        let (kind, version) = match self.shape {
            Shape::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1"),
            Shape::Table => ("Table", "meta.k8s.io/v1"),
            Shape::Whole => (self.resource.kind(), self.resource.api_version()),
        };
        json!({"kind": kind, "apiVersion": version, "metadata": metadata})
    }
}

/// A table of one object is of that object's version.
fn object_metadata(object: &Value) -> Value {
    json!({"resourceVersion": object.pointer("/metadata/resourceVersion").cloned().unwrap_or_default()})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(accept: &str) -> Option<Shape> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        Representation::choose(&headers, Resource::Nodes, &Query::default()).ok().map(|chosen| chosen.shape)
    }

    #[test]
    fn the_first_acceptable_clause_wins() {
        assert_eq!(shape("application/json"), Some(Shape::Whole));
        assert_eq!(shape("*/*"), Some(Shape::Whole));
        assert_eq!(
            shape("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
            Some(Shape::Table)
        );
        assert_eq!(
            shape("application/json;as=Table;v=v9;g=meta.k8s.io, application/json"),
            Some(Shape::Whole)
        );
        assert_eq!(
            shape(
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
            ),
            Some(Shape::Metadata)
        );
        assert_eq!(shape("application/vnd.kubernetes.protobuf"), None);
        assert_eq!(
            Representation::choose(&HeaderMap::new(), Resource::Nodes, &Query::default()).unwrap().shape,
            Shape::Whole
        );
    }
}

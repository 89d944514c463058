//! Objects in protobuf, as Go clients send them: newer kubectl when it creates, controllers for leases and events.
//!
//! Answers are JSON; every such client takes it. Read are the kinds whose types have numbers below; of a kind without,
//! the client is told 415, as a server without protobuf would. A wrong number here would put a value into another field.

use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::resource::Resource;
use crate::schema::{self, Type};

/// The media type.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What stands before every object: then follows the message `Unknown`, which says what the object is.
const MAGIC: &[u8] = b"k8s\0";

/// Deeper than any object of these kinds.
const DEPTH: usize = 16;

/// The field numbers of `generated.proto` in `k8s.io/api` and `k8s.io/apimachinery`.
fn numbers(record: &str) -> Option<&'static [(u64, &'static str)]> {
    Some(match record {
        "ObjectMeta" => &[
            (1, "name"),
            (2, "generateName"),
            (3, "namespace"),
            (4, "selfLink"),
            (5, "uid"),
            (6, "resourceVersion"),
            (7, "generation"),
            (8, "creationTimestamp"),
            (9, "deletionTimestamp"),
            (10, "deletionGracePeriodSeconds"),
            (11, "labels"),
            (12, "annotations"),
            (13, "ownerReferences"),
            (14, "finalizers"),
        ],
        "OwnerReference" => &[
            (1, "kind"),
            (3, "name"),
            (4, "uid"),
            (5, "apiVersion"),
            (6, "controller"),
            (7, "blockOwnerDeletion"),
        ],
        "ConfigMap" => &[(1, "metadata"), (2, "data"), (3, "binaryData"), (4, "immutable")],
        "Secret" => &[(1, "metadata"), (2, "data"), (3, "type"), (4, "stringData"), (5, "immutable")],
        "Namespace" => &[(1, "metadata"), (2, "spec"), (3, "status")],
        "NamespaceSpec" => &[(1, "finalizers")],
        "NamespaceStatus" => &[(1, "phase")],
        "ServiceAccount" => {
            &[(1, "metadata"), (2, "secrets"), (3, "imagePullSecrets"), (4, "automountServiceAccountToken")]
        }
        "LocalObjectReference" => &[(1, "name")],
        "ObjectReference" => &[
            (1, "kind"),
            (2, "namespace"),
            (3, "name"),
            (4, "uid"),
            (5, "apiVersion"),
            (6, "resourceVersion"),
            (7, "fieldPath"),
        ],
        "Event" => &[
            (1, "metadata"),
            (2, "involvedObject"),
            (3, "reason"),
            (4, "message"),
            (5, "source"),
            (6, "firstTimestamp"),
            (7, "lastTimestamp"),
            (8, "count"),
            (9, "type"),
            (10, "eventTime"),
            (11, "series"),
            (12, "action"),
            (13, "related"),
            (14, "reportingComponent"),
            (15, "reportingInstance"),
        ],
        "EventSource" => &[(1, "component"), (2, "host")],
        "EventSeries" => &[(1, "count"), (2, "lastObservedTime")],
        "Lease" => &[(1, "metadata"), (2, "spec")],
        "LeaseSpec" => &[
            (1, "holderIdentity"),
            (2, "leaseDurationSeconds"),
            (3, "acquireTime"),
            (4, "renewTime"),
            (5, "leaseTransitions"),
            (6, "strategy"),
            (7, "preferredHolder"),
        ],
        "Role" => &[(1, "metadata"), (2, "rules")],
        "ClusterRole" => &[(1, "metadata"), (2, "rules"), (3, "aggregationRule")],
        "AggregationRule" => &[(1, "clusterRoleSelectors")],
        "LabelSelector" => &[(1, "matchLabels"), (2, "matchExpressions")],
        "LabelSelectorRequirement" => &[(1, "key"), (2, "operator"), (3, "values")],
        "PolicyRule" => {
            &[(1, "verbs"), (2, "apiGroups"), (3, "resources"), (4, "resourceNames"), (5, "nonResourceURLs")]
        }
        "RoleBinding" | "ClusterRoleBinding" => &[(1, "metadata"), (2, "subjects"), (3, "roleRef")],
        "Subject" => &[(1, "kind"), (2, "apiGroup"), (3, "name"), (4, "namespace")],
        "RoleRef" => &[(1, "apiGroup"), (2, "kind"), (3, "name")],
        _ => return None,
    })
}

/// Whether objects of this kind can be read.
pub(crate) fn reads(resource: Resource) -> bool {
    numbers(resource.kind()).is_some()
}

/// The object in a body. `None` when the body is malformed.
pub(crate) fn decode(resource: Resource, body: &[u8]) -> Option<Value> {
    let mut raw: &[u8] = &[];
    let mut described = Map::new();
    for (number, wire) in fields(body.strip_prefix(MAGIC)?)? {
        match (number, wire) {
            (1, Wire::Bytes(type_meta)) => {
                for (number, wire) in fields(type_meta)? {
                    let name = match number {
                        1 => "apiVersion",
                        2 => "kind",
                        _ => continue,
                    };
                    described.insert(name.to_owned(), wire.text()?.into());
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let mut object = record(resource.kind(), raw, DEPTH)?;
    object.append(&mut described);
    Some(Value::Object(object))
}

/// A value on the wire.
#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Number(_) => None,
        }
    }

    fn text(self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    /// A signed number, which the wire has in two's complement.
    fn number(self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(i64::from_ne_bytes(number.to_ne_bytes())),
            Self::Bytes(_) => None,
        }
    }
}

fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Wire<'_>)>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (tag, rest) = varint(bytes)?;
        let (wire, rest) = match tag & 7 {
            0 => {
                let (number, rest) = varint(rest)?;
                (Wire::Number(number), rest)
            }
            2 => {
                let (length, rest) = varint(rest)?;
                let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                (Wire::Bytes(value), rest)
            }
            // The fixed-width forms occur in no type of the table.
            _ => return None,
        };
        found.push((tag >> 3, wire));
        bytes = rest;
    }
    Some(found)
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f).checked_shl(u32::try_from(index * 7).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((number, bytes.get(index + 1..)?));
        }
    }
    None
}

fn record(name: &str, bytes: &[u8], depth: usize) -> Option<Map<String, Value>> {
    let depth = depth.checked_sub(1)?;
    let (names, form) = (numbers(name)?, schema::record(name)?);
    let mut object = Map::new();
    for (number, wire) in fields(bytes)? {
        let Some((_, name)) = names.iter().find(|(known, _)| *known == number) else { continue };
        let Some(field) = form.fields.get(name) else { continue };
        match &field.of {
            Type::List { of, .. } => {
                let item = value(of, wire, depth)?;
                let list = object.entry(*name).or_insert_with(|| Vec::<Value>::new().into());
                list.as_array_mut()?.push(item);
            }
            Type::Map { of, .. } => {
                let (mut key, mut content) = ("", None);
                for (number, wire) in fields(wire.bytes()?)? {
                    match number {
                        1 => key = wire.text()?,
                        2 => content = Some(value(of, wire, depth)?),
                        _ => {}
                    }
                }
                let map = object.entry(*name).or_insert_with(|| Map::new().into());
                map.as_object_mut()?.insert(key.to_owned(), content.unwrap_or_else(|| "".into()));
            }
            of => {
                // Go writes empty texts and absent times, too; in JSON they are left out.
                let value = value(of, wire, depth)?;
                if !value.is_null() && value != "" {
                    object.insert((*name).to_owned(), value);
                }
            }
        }
    }
    Some(object)
}

fn value(of: &Type, wire: Wire<'_>, depth: usize) -> Option<Value> {
    Some(match of {
        Type::Text => wire.text()?.into(),
        Type::Int32 | Type::Int64 => wire.number()?.into(),
        Type::Bool => (wire.number()? != 0).into(),
        Type::Bytes => {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.encode(wire.bytes()?).into()
        }
        Type::Time | Type::MicroTime => time(of, wire.bytes()?)?,
        Type::Record(name) => record(name, wire.bytes()?, depth)?.into(),
        _ => return None,
    })
}

/// Seconds and nanoseconds since 1970; nothing at all for no time.
fn time(of: &Type, bytes: &[u8]) -> Option<Value> {
    let (mut seconds, mut nanos) = (0, 0);
    for (number, wire) in fields(bytes)? {
        match number {
            1 => seconds = wire.number()?,
            2 => nanos = wire.number()?,
            _ => {}
        }
    }
    if (seconds, nanos) == (0, 0) {
        return Some(Value::Null);
    }
    let moment = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    let mut text = crate::shared::rfc3339(moment);
    if *of == Type::MicroTime {
        let micros = nanos.clamp(0, 999_999_999) / 1000;
        text = format!("{}.{micros:06}Z", text.trim_end_matches('Z'));
    }
    Some(text.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        bytes.extend_from_slice(content);
        bytes
    }

    fn wrapped(kind: &str, version: &str, raw: &[u8]) -> Vec<u8> {
        let type_meta = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &type_meta), field(2, raw), field(3, b""), field(4, b"")].concat()
    }

    #[test]
    fn a_config_map_is_read() {
        let metadata = [
            field(1, b"c"),
            field(2, b""),
            field(8, b""),
            field(11, &[field(1, b"k"), field(2, b"")].concat()),
        ];
        let raw = [
            field(1, &metadata.concat()),
            field(2, &[field(1, b"a"), field(2, b"b")].concat()),
            field(3, &[field(1, b"x"), field(2, b"\x00\xff")].concat()),
            vec![4 << 3, 0],
        ];
        let body = wrapped("ConfigMap", "v1", &raw.concat());
        let wanted = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": {"k": ""}},
            "data": {"a": "b"}, "binaryData": {"x": "AP8="}, "immutable": false});
        assert_eq!(decode(Resource::ConfigMaps, &body), Some(wanted));
    }

    #[test]
    fn a_lease_keeps_its_microseconds() {
        let spec = [
            field(1, b"me"),
            vec![2 << 3, 15],
            field(4, &[vec![1 << 3, 0x80, 0x01], vec![2 << 3, 0xe8, 0x07]].concat()),
        ];
        let body = wrapped("Lease", "coordination.k8s.io/v1", &field(2, &spec.concat()));
        let lease = decode(Resource::Leases, &body).unwrap();
        let wanted = json!({"holderIdentity": "me", "leaseDurationSeconds": 15, "renewTime": "1970-01-01T00:02:08.000001Z"});
        assert_eq!(lease["spec"], wanted);
    }

    #[test]
    fn every_number_names_a_field_of_a_type_that_can_be_read() {
        for record in schema::records().values() {
            for (_, name) in numbers(record.name).unwrap_or_default() {
                let mut of = &record.fields.get(name).unwrap_or_else(|| panic!("{}.{name}", record.name)).of;
                while let Type::List { of: inner, .. } | Type::Map { of: inner, .. } = of {
                    of = inner;
                }
                if let Type::Record(inner) = of {
                    assert!(numbers(inner).is_some(), "{}.{name}", record.name);
                }
            }
        }
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let body = wrapped("Lease", "coordination.k8s.io/v1", &field(1, &field(1, b"name")));
        assert!(decode(Resource::Leases, &body).is_some());
        assert!(decode(Resource::Leases, &body[4..]).is_none(), "without the magic");
        assert!(decode(Resource::Leases, &body[..body.len() - 1]).is_none());
        assert!(!reads(Resource::Pods) && reads(Resource::Events));
    }

    proptest! {
        #[test]
        fn no_body_panics(noise in prop::collection::vec(any::<u8>(), 0..60), which in 0usize..14) {
            let resource = Resource::ALL[which];
            let _any = decode(resource, &[MAGIC, &noise].concat());
            let _any = decode(resource, &wrapped("x", "y", &noise));
        }
    }
}

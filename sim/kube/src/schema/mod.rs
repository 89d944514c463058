//! The shapes of the API's types: which fields there are, of what type, and how their lists merge.
//!
//! One small table (`types.txt`) says it all, and everything that has to know about fields reads it: decoding, both
//! merging patches, the ownership of fields, and the OpenAPI documents. If it were wrong, a valid manifest would be
//! refused, or a misspelt field kept as if it meant something.

mod decode;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::resource::Resource;

pub(crate) use decode::decode;

/// The type of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Type {
    Text,
    Int32,
    Int64,
    Double,
    Bool,
    /// Base64.
    Bytes,
    /// RFC 3339 with whole seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// A number with a unit, such as `100m` or `2Gi`.
    Quantity,
    IntOrText,
    /// Whatever comes.
    Any,
    /// A record of the table, by its name.
    Record(&'static str),
    /// A map from strings.
    Map {
        of: Box<Type>,
        atomic: bool,
    },
    List {
        of: Box<Type>,
        merge: Merge,
    },
}

/// How a list merges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Merge {
    /// The new list takes the place of the old one.
    Atomic,
    /// A set of plain values.
    Set,
    /// Records that are the same when these fields are the same.
    Keyed(Vec<&'static str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) required: bool,
    pub(crate) of: Type,
}

/// A type with named fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) package: &'static str,
    pub(crate) name: &'static str,
    /// Server-side apply owns it whole.
    pub(crate) atomic: bool,
    pub(crate) fields: BTreeMap<&'static str, Field>,
}

impl Record {
    /// The name in OpenAPI documents, such as `io.k8s.api.core.v1.Node`.
    pub(crate) fn full_name(&self) -> String {
        format!("{}.{}", self.package, self.name)
    }
}

static RECORDS: LazyLock<BTreeMap<&'static str, Record>> = LazyLock::new(|| read(include_str!("types.txt")));

#[cfg(test)]
pub(crate) fn records() -> &'static BTreeMap<&'static str, Record> {
    &RECORDS
}

/// The record of a name that occurs in the table.
pub(crate) fn record(name: &str) -> Option<&'static Record> {
    RECORDS.get(name)
}

/// The type of a kind's objects.
pub(crate) fn of(resource: Resource) -> Type {
    Type::Record(resource.kind())
}

impl Type {
    /// The type of one field of an object, or of the values of a map. `None` where there is no such field, or nothing
    /// is known about it.
    pub(crate) fn field(&self, name: &str) -> Option<&Type> {
        match self {
            Self::Record(record_name) => record(record_name)?.fields.get(name).map(|field| &field.of),
            Self::Map { of, .. } => Some(of),
            _ => None,
        }
    }

    /// Whether server-side apply owns a value of this type whole.
    pub(crate) fn is_leaf(&self) -> bool {
        match self {
            Self::Record(name) => record(name).is_none_or(|record| record.atomic),
            Self::Map { atomic, .. } => *atomic,
            Self::List { merge, .. } => *merge == Merge::Atomic,
            _ => true,
        }
    }
}

/// Reads the table. A line that says nothing is left out; a test holds the table to having none.
fn read(text: &'static str) -> BTreeMap<&'static str, Record> {
    let mut records = BTreeMap::new();
    let mut package = "";
    let mut open: Option<Record> = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("@ ") {
            package = name;
            continue;
        }
        let fields = match line.split_once(':').filter(|_| !line.starts_with(' ')) {
            None => line,
            Some((head, fields)) => {
                records.extend(open.take().map(|record| (record.name, record)));
                let (name, atomic) = head.strip_suffix('=').map_or((head, false), |name| (name, true));
                let mut record = Record { package, name, atomic, fields: BTreeMap::new() };
                if Resource::ALL.iter().any(|resource| resource.kind() == name) {
                    for own in ["apiVersion", "kind"] {
                        record.fields.insert(own, Field { required: false, of: Type::Text });
                    }
                }
                open = Some(record);
                fields
            }
        };
        let Some(record) = &mut open else { continue };
        for (name, required, of) in fields.split(';').filter_map(read_field) {
            record.fields.insert(name, Field { required, of });
        }
    }
    records.extend(open.take().map(|record| (record.name, record)));
    records
}

fn read_field(text: &'static str) -> Option<(&'static str, bool, Type)> {
    let (name, of) = text.trim().split_once(' ')?;
    let (name, required) = name.strip_suffix('!').map_or((name, false), |name| (name, true));
    Some((name, required, read_type(of)?))
}

fn read_type(text: &'static str) -> Option<Type> {
    if let Some(inner) = text.strip_prefix('{') {
        let (inner, atomic) = match inner.strip_suffix("}=") {
            Some(inner) => (inner, true),
            None => (inner.strip_suffix('}')?, false),
        };
        return Some(Type::Map { of: Box::new(read_type(inner)?), atomic });
    }
    if let Some(inner) = text.strip_prefix('[') {
        let inner = inner.strip_suffix(']')?;
        let (of, merge) = if let Some((of, keys)) = inner.split_once(" by ") {
            (of, Merge::Keyed(keys.split(',').collect()))
        } else if let Some(of) = inner.strip_suffix(" set") {
            (of, Merge::Set)
        } else {
            (inner, Merge::Atomic)
        };
        return Some(Type::List { of: Box::new(read_type(of)?), merge });
    }
    Some(match text {
        "string" => Type::Text,
        "int32" => Type::Int32,
        "int64" => Type::Int64,
        "double" => Type::Double,
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "time" => Type::Time,
        "microtime" => Type::MicroTime,
        "quantity" => Type::Quantity,
        "intorstring" => Type::IntOrText,
        "any" => Type::Any,
        name if name.starts_with(|letter: char| letter.is_ascii_uppercase()) => Type::Record(name),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(of: &Type, found: &mut Vec<&'static str>) {
        match of {
            Type::Record(name) => found.push(name),
            Type::Map { of, .. } | Type::List { of, .. } => references(of, found),
            _ => {}
        }
    }

    #[test]
    fn the_table_says_something_on_every_line_and_refers_to_nothing_absent() {
        let text = include_str!("types.txt");
        let mut fields = 0;
        // What a line break split belongs together again.
        let joined = text.replace("\n  ", " ");
        for line in joined.lines().filter(|line| !line.starts_with(['#', '@'])) {
            let (_, list) = line.split_once(':').unwrap_or_else(|| panic!("{line}"));
            fields += list.split(';').filter(|field| !field.trim().is_empty()).count();
        }
        let kinds = Resource::ALL.len() * 2;
        let known: usize = records().values().map(|record| record.fields.len()).sum();
        assert_eq!(known, fields + kinds);
        for record in records().values() {
            let mut found = Vec::new();
            record.fields.values().for_each(|field| references(&field.of, &mut found));
            for name in found {
                assert!(super::record(name).is_some(), "{} refers to {name}", record.name);
            }
        }
    }

    #[test]
    fn every_kind_has_a_type_and_keys_are_fields() {
        for resource in Resource::ALL {
            let of = of(resource);
            assert!(of.field("metadata").is_some() && of.field("kind").is_some(), "{resource}");
            assert_eq!(of.field("status").is_some(), resource.has_status(), "{resource}");
        }
        for record in records().values() {
            for (name, field) in &record.fields {
                let Type::List { of, merge: Merge::Keyed(keys) } = &field.of else { continue };
                assert!(keys.iter().all(|key| of.field(key).is_some()), "{}.{name}", record.name);
            }
        }
    }

    #[test]
    fn the_notation_is_read() {
        assert_eq!(
            read_field("ports! [ContainerPort by containerPort,protocol]").unwrap(),
            (
                "ports",
                true,
                Type::List {
                    of: Box::new(Type::Record("ContainerPort")),
                    merge: Merge::Keyed(vec!["containerPort", "protocol"]),
                },
            )
        );
        assert_eq!(read_type("{string}="), Some(Type::Map { of: Box::new(Type::Text), atomic: true }));
        for broken in ["", "[string", "{string", "strings"] {
            assert_eq!(read_type(broken), None, "{broken}");
        }
    }
}

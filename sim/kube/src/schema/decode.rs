//! Reading an object as the API's Go types would: fields that no type has are dropped and named, values of a wrong type
//! are refused, null is the same as absence.

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Merge, Record, Type, record};

/// A value whose type does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// Where, with dots, below the object.
    pub(crate) path: String,
    /// As Go's JSON decoder says it.
    pub(crate) message: String,
}

/// Brings a value into the form of its type. Returns the paths of unknown fields, which are gone afterwards.
pub(crate) fn decode(of: &Type, value: &mut Value) -> Result<Vec<String>, Misfit> {
    let mut walk = Walk { path: Vec::new(), unknown: Vec::new() };
    walk.value(of, value)?;
    Ok(walk.unknown)
}

struct Walk {
    path: Vec<String>,
    unknown: Vec<String>,
}

impl Walk {
    fn value(&mut self, of: &Type, value: &mut Value) -> Result<(), Misfit> {
        match of {
            Type::Any => Ok(()),
            Type::Record(name) => match record(name) {
                Some(record) => self.record(record, value),
                None => Ok(()),
            },
            Type::Map { of, .. } => {
                let Value::Object(fields) = value else { return Err(self.misfit(value, "map[string]")) };
                for (name, value) in fields.iter_mut() {
                    self.path.push(name.clone());
                    self.element(of, value)?;
                    self.path.pop();
                }
                Ok(())
            }
            Type::List { of, merge } => {
                let Value::Array(items) = value else { return Err(self.misfit(value, "[]")) };
                for (index, item) in items.iter_mut().enumerate() {
                    self.path.push(format!("[{index}]"));
                    self.element(of, item)?;
                    self.path.pop();
                }
                // A set of plain values holds each once, whoever wrote it.
                if *merge == Merge::Set {
                    let mut seen: Vec<Value> = Vec::new();
                    items.retain(|item| {
                        !seen.contains(item) && {
                            seen.push(item.clone());
                            true
                        }
                    });
                }
                Ok(())
            }
            scalar => self.scalar(scalar, value),
        }
    }

    /// A value in a list or a map, where Go reads null as the zero value.
    fn element(&mut self, of: &Type, value: &mut Value) -> Result<(), Misfit> {
        if value.is_null() {
            *value = match of {
                Type::Text | Type::Bytes => "".into(),
                Type::Int32 | Type::Int64 | Type::Double | Type::IntOrText => 0.into(),
                Type::Bool => false.into(),
                Type::Quantity => "0".into(),
                Type::Record(_) | Type::Map { .. } => Map::new().into(),
                Type::List { .. } => Vec::<Value>::new().into(),
                Type::Time | Type::MicroTime | Type::Any => return Ok(()),
            };
            return Ok(());
        }
        self.value(of, value)
    }

    fn record(&mut self, record: &Record, value: &mut Value) -> Result<(), Misfit> {
        let Value::Object(fields) = value else { return Err(self.misfit(value, record.name)) };
        let mut names: Vec<&String> =
            fields.keys().filter(|name| !record.fields.contains_key(name.as_str())).collect();
        names.sort();
        for name in names {
            self.unknown.push(self.at(name));
        }
        fields.retain(|name, value| !value.is_null() && record.fields.contains_key(name.as_str()));
        for (name, value) in fields.iter_mut() {
            let Some(field) = record.fields.get(name.as_str()) else { continue };
            self.path.push(name.clone());
            self.value(&field.of, value)?;
            self.path.pop();
        }
        Ok(())
    }

    fn scalar(&self, of: &Type, value: &mut Value) -> Result<(), Misfit> {
        let wanted = match of {
            Type::Text if value.is_string() => return Ok(()),
            Type::Text => "string",
            Type::Int32 if value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) => {
                return Ok(());
            }
            Type::Int32 => "int32",
            Type::Int64 if value.is_i64() => return Ok(()),
            Type::Int64 => "int64",
            Type::Double if value.is_number() => return Ok(()),
            Type::Double => "float64",
            Type::Bool if value.is_boolean() => return Ok(()),
            Type::Bool => "bool",
            Type::IntOrText if value.is_string() => return Ok(()),
            Type::IntOrText if value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) => {
                return Ok(());
            }
            Type::IntOrText => "intstr.IntOrString",
            Type::Quantity => return self.quantity(value),
            Type::Bytes => {
                let decoded = value.as_str().is_some_and(|text| {
                    use base64::Engine;
                    base64::engine::general_purpose::STANDARD.decode(text).is_ok()
                });
                if decoded {
                    return Ok(());
                }
                if value.is_string() {
                    return Err(self.because("illegal base64 data".to_owned()));
                }
                "[]uint8"
            }
            Type::Time | Type::MicroTime => {
                let Some(text) = value.as_str() else { return Err(self.misfit(value, "time.Time")) };
                if OffsetDateTime::parse(text, &Rfc3339).is_ok() {
                    return Ok(());
                }
                return Err(self.because(format!(
                    "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?}"
                )));
            }
            Type::Any | Type::Record(_) | Type::Map { .. } | Type::List { .. } => return Ok(()),
        };
        Err(self.misfit(value, wanted))
    }

    /// A bare number is a quantity, too; it is kept as text.
    fn quantity(&self, value: &mut Value) -> Result<(), Misfit> {
        if value.is_number() {
            *value = value.to_string().into();
        }
        let Some(text) = value.as_str() else { return Err(self.misfit(value, "resource.Quantity")) };
        if is_quantity(text) {
            return Ok(());
        }
        Err(self.because(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                .to_owned(),
        ))
    }

    fn at(&self, name: &str) -> String {
        let mut text = String::new();
        for step in self.path.iter().map(String::as_str).chain([name]) {
            if !text.is_empty() && !step.starts_with('[') && !step.is_empty() {
                text.push('.');
            }
            text.push_str(step);
        }
        text
    }

    fn misfit(&self, value: &Value, wanted: &str) -> Misfit {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let path = self.at("");
        let message = format!("json: cannot unmarshal {found} into Go struct field .{path} of type {wanted}");
        Misfit { path, message }
    }

    fn because(&self, message: String) -> Misfit {
        Misfit { path: self.at(""), message }
    }
}

/// A sign, digits with at most one point, and a suffix: a binary or decimal unit or an exponent.
fn is_quantity(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end =
        unsigned.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(unsigned.len());
    let Some((number, suffix)) = unsigned.split_at_checked(end) else { return false };
    let digits = number.chars().any(|letter| letter.is_ascii_digit()) && number.matches('.').count() <= 1;
    let exponent = suffix.strip_prefix(['e', 'E']).is_some_and(|rest| {
        let rest = rest.strip_prefix(['+', '-']).unwrap_or(rest);
        !rest.is_empty() && rest.chars().all(|letter| letter.is_ascii_digit())
    });
    let unit = matches!(
        suffix,
        "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" | "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei"
    );
    digits && (unit || exponent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::resource::Resource;

    fn decoded(resource: Resource, mut value: Value) -> Result<(Value, Vec<String>), Misfit> {
        let unknown = decode(&super::super::of(resource), &mut value)?;
        Ok((value, unknown))
    }

    #[test]
    fn unknown_fields_are_dropped_and_named() {
        let pod =
            json!({"spec": {"hostnetwork": true, "containers": [{"name": "a", "imagee": "b"}]}, "x": 1});
        let (object, unknown) = decoded(Resource::Pods, pod).unwrap();
        assert_eq!(object, json!({"spec": {"containers": [{"name": "a"}]}}));
        assert_eq!(unknown, ["x", "spec.hostnetwork", "spec.containers[0].imagee"]);
    }

    #[test]
    fn null_is_absence_in_a_record_and_the_zero_value_elsewhere() {
        let map = json!({"metadata": {"labels": null, "annotations": {"a": null}}, "data": null});
        let (object, _) = decoded(Resource::ConfigMaps, map).unwrap();
        assert_eq!(object, json!({"metadata": {"annotations": {"a": ""}}}));
    }

    #[test]
    fn misfits_name_the_field_and_both_types() {
        for (resource, value, path, words) in [
            (Resource::Nodes, json!([]), "", "array"),
            (
                Resource::Nodes,
                json!({"spec": {"podCIDR": 1}}),
                "spec.podCIDR",
                "number into Go struct field .spec.podCIDR of type string",
            ),
            (
                Resource::Leases,
                json!({"spec": {"leaseDurationSeconds": 1u64 << 40}}),
                "spec.leaseDurationSeconds",
                "int32",
            ),
            (Resource::Leases, json!({"spec": {"renewTime": "now"}}), "spec.renewTime", "parsing time"),
            (Resource::ConfigMaps, json!({"binaryData": {"a": "%"}}), "binaryData.a", "base64"),
            (
                Resource::Nodes,
                json!({"status": {"capacity": {"cpu": "much"}}}),
                "status.capacity.cpu",
                "quantities",
            ),
            (
                Resource::Pods,
                json!({"spec": {"containers": [{"ports": {}}]}}),
                "spec.containers[0].ports",
                "object",
            ),
        ] {
            let misfit = decoded(resource, value).unwrap_err();
            assert_eq!(misfit.path, path);
            assert!(misfit.message.contains(words), "{}", misfit.message);
        }
    }

    #[test]
    fn quantities_are_numbers_with_units() {
        for text in ["1", "0.5", "100m", "-2Gi", "1e3", "1E-3", ".5"] {
            assert!(is_quantity(text), "{text}");
        }
        for text in ["", "m", "1x", "1.2.3", "1e", "1 Gi", "+"] {
            assert!(!is_quantity(text), "{text}");
        }
        let (object, _) = decoded(Resource::Nodes, json!({"status": {"capacity": {"cpu": 2}}})).unwrap();
        assert_eq!(object, json!({"status": {"capacity": {"cpu": "2"}}}));
    }

    proptest! {
        /// What was decoded decodes to itself, without unknown fields.
        #[test]
        fn decoding_is_idempotent(text in "[a-z]{0,3}", number in any::<i64>(), which in 0usize..14) {
            let noise = json!({"metadata": {"name": text, "labels": {"a": null}, "generation": number, "finalizers": [text, text]},
                "spec": {text.clone(): number, "podCIDRs": [text, null], "replicas": null}, "data": {"k": text}});
            if let Ok((once, _)) = decoded(Resource::ALL[which], noise) {
                let (twice, unknown) = decoded(Resource::ALL[which], once.clone()).unwrap();
                prop_assert_eq!(&twice, &once);
                prop_assert_eq!(unknown, Vec::<String>::new());
            }
        }
    }
}

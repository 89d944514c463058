//! JSON as configurations written for the Go plugins use it.
//!
//! Go's decoder matches object keys without regard to case, lets the last of several keys win, and leaves the default where it finds
//! `null`. Configurations in the field rely on that (`{"SUBNET": …}`), so a plain derive of `serde` would silently ignore keys that
//! upstream obeys. [`Json`] keeps every key in its order, and [`Fields`] looks keys up by Go's rules. Unknown keys are ignored, a key of the
//! wrong type is an error that names it.

use std::fmt::{self, Write as _};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
pub use serde_json::Number;

/// A JSON value whose objects keep the order and the duplicates of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number; integers keep all their digits.
    Number(Number),
    /// A string
    String(String),
    /// A list
    Array(Vec<Json>),
    /// An object, keys in the order in which they were written
    Object(Vec<(String, Json)>),
}

/// The text is not JSON.
#[derive(Debug, thiserror::Error)]
#[error("not valid JSON: {0}")]
pub struct SyntaxError(#[from] serde_json::Error);

/// A key holds a value of the wrong type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{path}`: expected {expected}, found {found}")]
pub struct Mismatch {
    /// The key with the keys above it, dotted.
    pub path: String,
    /// What the key takes.
    pub expected: &'static str,
    /// What is there.
    pub found: String,
}

impl Mismatch {
    /// A mismatch at `path`; long values are cut in the message.
    pub fn new(path: impl Into<String>, expected: &'static str, found: &Json) -> Self {
        let mut text = found.compact();
        if text.len() > 60 {
            let cut = (0..=57).rev().find(|&at| text.is_char_boundary(at)).unwrap_or_default();
            text.truncate(cut);
            text.push_str("...");
        }
        Self { path: path.into(), expected, found: text }
    }
}

impl Json {
    /// Reads one JSON text; anything after it but white space is an error.
    pub fn parse(text: &[u8]) -> Result<Self, SyntaxError> {
        Ok(serde_json::from_slice(text)?)
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The entries of an object.
    pub fn entries(&self) -> Option<&[(String, Json)]> {
        match self {
            Self::Object(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value of exactly `key` (the last one), for objects that are maps rather than structures.
    pub fn get_exact(&self, key: &str) -> Option<&Json> {
        self.entries()?.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Sets exactly `key`, dropping duplicates. Does nothing to a value that is not an object.
    pub fn set(&mut self, key: &str, value: Json) {
        if let Self::Object(entries) = self {
            entries.retain(|(name, _)| name != key);
            entries.push((key.to_owned(), value));
        }
    }

    /// The same value with every object's keys sorted and the last of duplicates kept, as Go prints a map.
    #[must_use]
    pub fn sorted(&self) -> Self {
        match self {
            Self::Array(items) => Self::Array(items.iter().map(Self::sorted).collect()),
            Self::Object(entries) => {
                let sorted: std::collections::BTreeMap<&str, &Json> =
                    entries.iter().map(|(key, value)| (key.as_str(), value)).collect();
                Self::Object(
                    sorted.into_iter().map(|(key, value)| (key.to_owned(), value.sorted())).collect(),
                )
            }
            other => other.clone(),
        }
    }

    /// One line without spaces, escaped as Go's encoder escapes.
    pub fn compact(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, None, 0);
        out
    }

    /// Indented by four spaces, no newline at the end.
    pub fn pretty(&self) -> String {
        self.indented("    ")
    }

    /// Indented by `indent`, no newline at the end.
    pub fn indented(&self, indent: &str) -> String {
        let mut out = String::new();
        self.write(&mut out, Some(indent), 0);
        out
    }

    fn write(&self, out: &mut String, indent: Option<&str>, depth: usize) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(number) => write_number(out, number),
            Self::String(text) => write_string(out, text),
            Self::Array(items) => {
                write_list(out, indent, depth, ('[', ']'), items, |out, item| {
                    item.write(out, indent, depth + 1)
                });
            }
            Self::Object(entries) => {
                write_list(out, indent, depth, ('{', '}'), entries, |out, (key, value)| {
                    write_string(out, key);
                    out.push_str(if indent.is_some() { ": " } else { ":" });
                    value.write(out, indent, depth + 1);
                });
            }
        }
    }
}

fn write_list<T>(
    out: &mut String,
    indent: Option<&str>,
    depth: usize,
    (open, close): (char, char),
    items: &[T],
    write: impl Fn(&mut String, &T),
) {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent, depth));
        }
    };
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        new_line(out, depth + 1);
        write(out, item);
    }
    if !items.is_empty() {
        new_line(out, depth);
    }
    out.push(close);
}

/// Go decodes numbers of free-form objects as floats and prints whole ones without a fraction; integers here keep all their digits.
fn write_number(out: &mut String, number: &Number) {
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e15 => {
            let _ = write!(out, "{float:.0}");
        }
        _ => {
            let _ = write!(out, "{number}");
        }
    }
}

/// Go escapes `<`, `>`, `&` and the two Unicode line separators besides what JSON demands.
fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u64> for Json {
    fn from(value: u64) -> Self {
        Self::Number(value.into())
    }
}

impl From<i64> for Json {
    fn from(value: i64) -> Self {
        Self::Number(value.into())
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Json::Object(entries))
    }
}

/// Go's folding of keys: ASCII letters, and the two letters outside ASCII that fold into it (Kelvin sign and long s).
fn folds_to(key: &str, name: &str) -> bool {
    let fold = |character: char| match character {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(name.chars().map(fold))
}

/// An object seen as a structure: its keys are looked up without regard to case, the last one that is not `null` counts.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    entries: &'a [(String, Json)],
    path: String,
}

impl<'a> Fields<'a> {
    /// The fields of `value`, which `path` names in errors (empty for the top). `null` counts as an empty object.
    pub fn of(value: &'a Json, path: &str) -> Result<Self, Mismatch> {
        match value {
            Json::Object(entries) => Ok(Self { entries, path: path.to_owned() }),
            Json::Null => Ok(Self { entries: &[], path: path.to_owned() }),
            other => {
                Err(Mismatch::new(if path.is_empty() { "(top level)" } else { path }, "an object", other))
            }
        }
    }

    /// The dotted path of `name` below this object, for errors.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&'a Json> {
        self.entries
            .iter()
            .rev()
            .find(|(key, value)| !value.is_null() && folds_to(key, name))
            .map(|(_, value)| value)
    }

    /// A string.
    pub fn string(&self, name: &str) -> Result<Option<&'a str>, Mismatch> {
        match self.get(name) {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(text)),
            Some(other) => Err(Mismatch::new(self.path_of(name), "a string", other)),
        }
    }

    /// `true` or `false`; the strings `"true"` and `"false"` are refused as Go refuses them.
    pub fn bool(&self, name: &str) -> Result<Option<bool>, Mismatch> {
        match self.get(name) {
            None => Ok(None),
            Some(Json::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(Mismatch::new(self.path_of(name), "true or false", other)),
        }
    }

    /// A whole number; `1.5` and strings are refused as Go refuses them.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, Mismatch> {
        match self.get(name) {
            None => Ok(None),
            Some(value @ Json::Number(number)) => match number.as_i64() {
                Some(integer) => Ok(Some(integer)),
                None => Err(Mismatch::new(self.path_of(name), "a whole number", value)),
            },
            Some(other) => Err(Mismatch::new(self.path_of(name), "a whole number", other)),
        }
    }

    /// A whole number of up to 64 bits that is not negative.
    pub fn unsigned(&self, name: &str) -> Result<Option<u64>, Mismatch> {
        const EXPECTED: &str = "a whole number that is not negative";
        match self.get(name) {
            None => Ok(None),
            Some(value @ Json::Number(number)) => match number.as_u64() {
                Some(integer) => Ok(Some(integer)),
                None => Err(Mismatch::new(self.path_of(name), EXPECTED, value)),
            },
            Some(other) => Err(Mismatch::new(self.path_of(name), EXPECTED, other)),
        }
    }

    /// An object as a structure; an absent one is `None`.
    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>, Mismatch> {
        self.get(name).map(|value| Fields::of(value, &self.path_of(name))).transpose()
    }

    /// A list; an absent one is empty.
    pub fn array(&self, name: &str) -> Result<&'a [Json], Mismatch> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Json::Array(items)) => Ok(items),
            Some(other) => Err(Mismatch::new(self.path_of(name), "a list", other)),
        }
    }

    /// A list of strings; an absent one is empty.
    pub fn strings(&self, name: &str) -> Result<Vec<String>, Mismatch> {
        self.array(name)?
            .iter()
            .enumerate()
            .map(|(index, item)| match item {
                Json::String(text) => Ok(text.clone()),
                other => Err(Mismatch::new(format!("{}[{index}]", self.path_of(name)), "a string", other)),
            })
            .collect()
    }

    /// A list of objects as structures; an absent one is empty.
    pub fn objects(&self, name: &str) -> Result<Vec<Fields<'a>>, Mismatch> {
        self.array(name)?
            .iter()
            .enumerate()
            .map(|(index, item)| Fields::of(item, &format!("{}[{index}]", self.path_of(name))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Json {
        Json::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn keys_fold_last_wins_null_leaves_the_default() {
        let json = parse(r#"{"SUBNET":"a","subnet":"b","Subnet":null,"mtu":1,"other":{}}"#);
        let fields = Fields::of(&json, "").unwrap();
        assert_eq!(fields.string("subnet").unwrap(), Some("b"));
        assert_eq!(fields.integer("MTU").unwrap(), Some(1));
        assert_eq!(fields.string("absent").unwrap(), None);
    }

    #[test]
    fn wrong_types_name_the_key() {
        let json = parse(r#"{"ipam":{"mtu":1.5,"flag":"true","list":[1]}}"#);
        let ipam = Fields::of(&json, "").unwrap().object("IPAM").unwrap().unwrap();
        assert_eq!(
            ipam.integer("mtu").unwrap_err().to_string(),
            "`IPAM.mtu`: expected a whole number, found 1.5"
        );
        assert!(ipam.bool("flag").is_err());
        assert_eq!(ipam.strings("list").unwrap_err().path, "IPAM.list[0]");
        assert!(Fields::of(&parse("[]"), "").is_err());
    }

    #[test]
    fn prints_as_go_does() {
        let json = parse(r#"{"b":1.0,"a":{"d":[],"c":{}},"b":"<&>"}"#);
        assert_eq!(json.sorted().compact(), r#"{"a":{"c":{},"d":[]},"b":"\u003c\u0026\u003e"}"#);
        assert_eq!(parse("[1450.0, -2, 1.5]").compact(), "[1450,-2,1.5]");
        assert_eq!(parse(r#"{"a":[1,{}]}"#).pretty(), "{\n    \"a\": [\n        1,\n        {}\n    ]\n}");
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = "[".repeat(100_000);
        assert!(Json::parse(deep.as_bytes()).is_err());
    }

    fn any_json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::Bool),
            any::<i64>().prop_map(Json::from),
            ".{0,8}".prop_map(Json::String),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Json::Array),
                prop::collection::vec(("[a-cA-C]{1,2}", inner), 0..4).prop_map(Json::Object),
            ]
        })
    }

    proptest! {
        #[test]
        fn text_and_back(json in any_json()) {
            prop_assert_eq!(&Json::parse(json.compact().as_bytes()).unwrap(), &json);
            prop_assert_eq!(&Json::parse(json.pretty().as_bytes()).unwrap(), &json);
        }

        #[test]
        fn lookup_is_the_last_non_null_folded_key(
            entries in prop::collection::vec(("[aAbB]{1,2}", prop::option::of(any::<bool>())), 0..8),
            name in "[aAbB]{1,2}",
        ) {
            let json = Json::Object(
                entries.iter().map(|(key, value)| (key.clone(), value.map_or(Json::Null, Json::Bool))).collect(),
            );
            let model = entries
                .iter()
                .rfind(|(key, value)| value.is_some() && key.eq_ignore_ascii_case(&name))
                .and_then(|(_, value)| *value);
            prop_assert_eq!(Fields::of(&json, "").unwrap().bool(&name).unwrap(), model);
        }

        #[test]
        fn never_panics(text in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(json) = Json::parse(&text) {
                let _ = Fields::of(&json, "").map(|fields| fields.string("a").is_ok());
            }
        }
    }
}

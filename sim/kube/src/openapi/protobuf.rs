//! OpenAPI version 2 in protobuf, as kubectl asks for it: the messages of `openapiv2/OpenAPIv2.proto` of gnostic, whose
//! field numbers stand below, made from the JSON document. What the document cannot contain is not encoded.

use serde_json::{Map, Value};

/// A protobuf message under construction.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(u8::try_from(number & 0x7f).unwrap_or_default() | 0x80);
            number >>= 7;
        }
        self.0.push(u8::try_from(number).unwrap_or_default());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u64, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn flag(&mut self, field: u64, value: Option<&Value>) {
        if value == Some(&Value::Bool(true)) {
            self.varint(field << 3);
            self.varint(1);
        }
    }

    fn message(&mut self, field: u64, message: &Message) {
        self.bytes(field, &message.0);
    }

    /// A map as a list of pairs: name 1, value 2.
    fn pair(&mut self, field: u64, name: &str, value: &Message) {
        let mut pair = Message::default();
        pair.bytes(1, name.as_bytes());
        pair.message(2, value);
        self.message(field, &pair);
    }

    /// The `x-…` fields, each as YAML, which JSON is.
    fn extensions(&mut self, field: u64, of: &Value) {
        for (name, value) in members(Some(of)).filter(|(name, _)| name.starts_with("x-")) {
            let mut any = Message::default();
            any.bytes(2, value.to_string().as_bytes());
            self.pair(field, name, &any);
        }
    }
}

fn members(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

fn items(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

/// `Document`.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut message = Message::default();
    message.text(1, document.get("swagger"));
    let mut info = Message::default();
    info.text(1, document.pointer("/info/title"));
    info.text(2, document.pointer("/info/version"));
    message.message(2, &info);
    let mut paths = Message::default();
    for (path, operations) in members(document.get("paths")) {
        paths.pair(2, path, &path_item(operations));
    }
    message.message(8, &paths);
    let mut definitions = Message::default();
    for (name, form) in members(document.get("definitions")) {
        definitions.pair(1, name, &schema(form));
    }
    message.message(9, &definitions);
    message.0
}

/// `PathItem`.
fn path_item(operations: &Value) -> Message {
    let mut message = Message::default();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(one) = operations.get(method) {
            message.message(field, &operation(one));
        }
    }
    message
}

/// `Operation`.
fn operation(of: &Value) -> Message {
    let mut message = Message::default();
    for parameter in items(of.get("parameters")) {
        // QueryParameterSubSchema in NonBodyParameter in Parameter in ParametersItem.
        let mut inner = Message::default();
        inner.text(2, parameter.get("in"));
        inner.text(4, parameter.get("name"));
        inner.text(6, parameter.get("type"));
        inner.flag(20, parameter.get("uniqueItems"));
        for field in [3, 2, 1] {
            let mut outer = Message::default();
            outer.message(field, &inner);
            inner = outer;
        }
        message.message(8, &inner);
    }
    let mut responses = Message::default();
    for (code, response) in members(of.get("responses")) {
        let mut shown = Message::default();
        shown.text(1, response.get("description"));
        if let Some(form) = response.get("schema") {
            let mut item = Message::default();
            item.message(1, &schema(form));
            shown.message(2, &item);
        }
        let mut value = Message::default();
        value.message(1, &shown);
        responses.pair(1, code, &value);
    }
    message.message(9, &responses);
    message.extensions(13, of);
    message
}

/// `Schema`.
fn schema(form: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, form.get("$ref"));
    message.text(2, form.get("format"));
    message.text(4, form.get("description"));
    for name in items(form.get("required")) {
        message.text(19, Some(name));
    }
    if let Some(values) = form.get("additionalProperties") {
        let mut item = Message::default();
        item.message(1, &schema(values));
        message.message(21, &item);
    }
    if let Some(kind) = form.get("type") {
        let mut item = Message::default();
        item.text(1, Some(kind));
        message.message(22, &item);
    }
    if let Some(of) = form.get("items") {
        let mut item = Message::default();
        item.message(1, &schema(of));
        message.message(23, &item);
    }
    if form.get("properties").is_some() {
        let mut properties = Message::default();
        for (name, property) in members(form.get("properties")) {
            properties.pair(1, name, &schema(property));
        }
        message.message(25, &properties);
    }
    message.extensions(31, form);
    message
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_are_tagged_and_measured() {
        let form = json!({"type": "string", "format": "byte", "required": ["a"], "x-k": 1});
        let bytes = schema(&form).0;
        let wanted: Vec<u8> = [
            &b"\x12\x04byte"[..],
            b"\x9a\x01\x01a",
            b"\xb2\x01\x08\x0a\x06string",
            b"\xfa\x01\x0a\x0a\x03x-k\x12\x03\x12\x011",
        ]
        .concat();
        assert_eq!(bytes, wanted);
    }

    #[test]
    fn long_lengths_take_several_bytes() {
        let mut message = Message::default();
        message.bytes(1, &[b'x'; 300]);
        assert_eq!((message.0[..3].to_vec(), message.0.len()), (vec![0x0a, 0xac, 0x02], 303));
    }
}

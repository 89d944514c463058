//! How answers are written: JSON, or the XML that the vendor's API speaks to whoever does not say otherwise.

use std::collections::BTreeMap;

use loden_aliyun::{ApiError, Params, Product};
use serde::Serialize;
use serde_json::Value;

/// Form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Xml,
}

impl Form {
    /// What the caller reads: the parameter `Format` says it, or the header `accept`. Calls whose action is a header are answered in JSON;
    /// those whose action is a parameter in XML, as the vendor documents it.
    pub(super) fn asked(params: &Params, headers: &BTreeMap<String, String>) -> Self {
        let accepts = |kind: &str| headers.get("accept").is_some_and(|accept| accept.contains(kind));
        match params.get("Format") {
            Some(format) if format.eq_ignore_ascii_case("JSON") => Self::Json,
            Some(format) if format.eq_ignore_ascii_case("XML") => Self::Xml,
            _ if accepts("json") => Self::Json,
            _ if accepts("xml") => Self::Xml,
            _ if headers.contains_key("x-acs-action") => Self::Json,
            _ => Self::Xml,
        }
    }

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json;charset=utf-8",
            Self::Xml => "text/xml;charset=utf-8",
        }
    }

    /// The text of an answer whose outermost element, where there is one, has the name `root`.
    pub(super) fn write(self, root: &str, value: &Value) -> String {
        match self {
            Self::Json => value.to_string(),
            Self::Xml => {
                let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>".to_owned();
                element(&mut text, root, value);
                text
            }
        }
    }
}

/// A value under a name; a list is the element repeated. Names are those of our own fields and need no escape.
fn element(text: &mut String, name: &str, value: &Value) {
    if let Value::Array(items) = value {
        items.iter().for_each(|item| element(text, name, item));
        return;
    }
    text.extend(["<", name, ">"]);
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| element(text, name, value)),
        Value::String(content) => content.chars().for_each(|c| escape(text, c)),
        Value::Null => {}
        other => text.push_str(&other.to_string()),
    }
    text.extend(["</", name, ">"]);
}

fn escape(text: &mut String, c: char) {
    match c {
        '&' => text.push_str("&amp;"),
        '<' => text.push_str("&lt;"),
        '>' => text.push_str("&gt;"),
        '\r' => text.push_str("&#13;"),
        // No XML can hold these, escaped or not.
        '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        _ => text.push(c),
    }
}

/// What is answered instead of a result.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ErrorBody {
    request_id: String,
    host_id: String,
    code: String,
    message: String,
    /// Where the vendor explains the code.
    recommend: String,
}

impl ErrorBody {
    pub(super) fn new(error: &ApiError, product: Option<Product>) -> Self {
        let mut query = Params::new();
        query.set("q", error.code.as_str());
        query.set("requestId", error.request_id.as_str());
        if let Some(product) = product {
            query.set("product", product_name(product));
        }
        Self {
            request_id: error.request_id.clone(),
            host_id: error.host_id.clone(),
            code: error.code.clone(),
            message: error.message.clone(),
            recommend: format!("https://api.aliyun.com/troubleshoot?{}", query.encoded()),
        }
    }

    pub(super) fn write(&self, form: Form) -> String {
        // Its fields are texts, which can always be written.
        form.write("Error", &serde_json::to_value(self).unwrap_or_default())
    }
}

const fn product_name(product: Product) -> &'static str {
    match product {
        Product::Vpc => "Vpc",
        Product::Ecs => "Ecs",
        Product::Quotas => "quotas",
        Product::Sts => "Sts",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn xml_repeats_lists_and_escapes_texts() {
        let value = json!({
            "RequestId": "R",
            "Vpcs": {"Vpc": [{"Name": "a<b>&\u{1}\r"}, {"IsDefault": false, "Number": 7, "Nothing": null}]},
            "None": {"Item": []},
        });
        let text = Form::Xml.write("DescribeVpcsResponse", &value);
        let body = text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>").unwrap();
        let expected = "<DescribeVpcsResponse><None></None><RequestId>R</RequestId><Vpcs><Vpc><Name>a&lt;b&gt;&amp;\u{fffd}&#13;</Name></Vpc><Vpc><IsDefault>false</IsDefault><Nothing></Nothing><Number>7</Number></Vpc></Vpcs></DescribeVpcsResponse>";
        let sorted = |text: &str| {
            let mut parts: Vec<String> = text.split('<').map(str::to_owned).collect();
            parts.sort();
            parts
        };
        assert_eq!(sorted(body), sorted(expected), "{body}");
        assert!(body.contains("<Vpcs><Vpc><Name>a&lt;b&gt;&amp;\u{fffd}&#13;</Name></Vpc><Vpc>"), "{body}");
    }

    #[test]
    fn the_form_is_what_the_caller_reads() {
        let form = |format: &str, headers: &[(&str, &str)]| {
            let params = [("Format", format)].into_iter().collect();
            let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Form::asked(&params, &headers)
        };
        assert_eq!(form("json", &[]), Form::Json);
        assert_eq!(form("xml", &[("x-acs-action", "A"), ("accept", "application/json")]), Form::Xml);
        assert_eq!(form("", &[("accept", "application/json")]), Form::Json);
        assert_eq!(form("", &[("x-acs-action", "A")]), Form::Json);
        assert_eq!(form("", &[("accept", "*/*")]), Form::Xml);
        assert_eq!(form("yaml", &[]), Form::Xml);
    }
}

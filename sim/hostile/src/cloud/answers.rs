//! What came back over a connection: answers of HTTP, each with a whole error or a result in it.

use serde_json::Value;

use super::is_code;
use crate::{Verdict, promise};

/// Judges everything that was answered to `raw`; says how many answers there are.
///
/// Nothing at all is a right answer to a request that never ended.
///
/// # Errors
/// An answer that is not whole.
pub fn judge(raw: &[u8], answers: &[u8]) -> Result<usize, String> {
    let broken = |what: &str| format!("{what}: {}", String::from_utf8_lossy(answers));
    let (mut rest, mut count) = (answers, 0);
    while !rest.is_empty() {
        let end = find(rest, b"\r\n\r\n").ok_or_else(|| broken("an answer without an end of its head"))?;
        let (head, after) = rest.split_at(end);
        rest = after.get(4..).unwrap_or_default();
        let head = std::str::from_utf8(head).map_err(|_| broken("a head that is no text"))?;
        let status: u16 = head
            .strip_prefix("HTTP/1.")
            .and_then(|line| line.get(2..5))
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| broken("an answer without a status"))?;
        if status < 200 {
            continue;
        }
        count += 1;
        let length = field(head, "content-length").and_then(|length| length.parse::<usize>().ok());
        let length = length.ok_or_else(|| broken("an answer whose length is not told"))?;
        // Whoever asks for a head gets no body.
        if find(raw, b"HEAD").is_some() && (rest.is_empty() || rest.starts_with(b"HTTP/1.")) {
            continue;
        }
        let body = rest.get(..length).ok_or_else(|| broken("an answer that is cut short"))?;
        rest = rest.get(length..).unwrap_or_default();
        let body = std::str::from_utf8(body).map_err(|_| broken("a body that is no text"))?;
        is_whole(status, field(head, "content-type").unwrap_or_default(), body)?;
    }
    Ok(count)
}

/// Whether a body of that status and type is a whole error, or a whole result.
///
/// # Errors
/// What is missing.
pub fn is_whole(status: u16, kind: &str, body: &str) -> Verdict {
    let broken = |what: &str| format!("{what}: HTTP {status}, {kind}: {body}");
    let fields = if kind.starts_with("text/xml") {
        xml(body).ok_or_else(|| broken("XML that is none"))?
    } else {
        match serde_json::from_str(body) {
            Ok(Value::Object(fields)) => fields
                .into_iter()
                .map(|(name, value)| (name, value.as_str().unwrap_or_default().to_owned()))
                .collect(),
            _ => return Err(broken("no JSON object")),
        }
    };
    let text = |name: &str| {
        fields.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value.as_str()).trim()
    };
    promise(text("RequestId").len() == 36, || broken("no RequestId"))?;
    if status == 200 {
        return Ok(());
    }
    promise((400..600).contains(&status), || broken("a status that is no error's"))?;
    promise(is_code(text("Code")), || broken("no Code"))?;
    for name in ["Message", "HostId", "Recommend"] {
        promise(!text(name).is_empty(), || broken(&format!("no {name}")))?;
    }
    Ok(())
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.into_iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// Names and texts of the elements right below the outermost one, if every element ends where it must.
fn xml(text: &str) -> Option<Vec<(String, String)>> {
    let mut rest = text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>")?;
    let (mut open, mut fields): (Vec<&str>, Vec<(String, String)>) = (Vec::new(), Vec::new());
    while !rest.is_empty() {
        let (name, after) = rest.strip_prefix('<')?.split_once('>')?;
        let (content, next) = after.find('<').map_or((after, ""), |at| after.split_at(at));
        rest = next;
        if let Some(name) = name.strip_prefix('/') {
            if open.pop() != Some(name) || !content.is_empty() {
                return None;
            }
        } else {
            let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
            if !plain || (open.is_empty() && !fields.is_empty()) {
                return None;
            }
            if open.len() == 1 {
                fields.push((name.to_owned(), content.to_owned()));
            }
            open.push(name);
        }
    }
    open.is_empty().then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00000000-0000-0000-0000-000000000000";

    #[test]
    fn whole_errors_are_told_from_others() {
        let json = |code: &str| {
            format!(r#"{{"RequestId":"{ID}","HostId":"h","Code":"{code}","Message":"m","Recommend":"r"}}"#)
        };
        assert_eq!(is_whole(400, "application/json", &json("A.B")), Ok(()));
        assert!(is_whole(400, "application/json", &json("")).is_err());
        assert!(is_whole(302, "application/json", &json("A")).is_err());
        assert!(is_whole(400, "application/json", "").is_err());
        let xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><RequestId>{ID}</RequestId><HostId>h</HostId><Code>A</Code><Message>a &lt;</Message><Recommend>r</Recommend></Error>"
        );
        assert_eq!(is_whole(404, "text/xml", &xml), Ok(()));
        assert!(is_whole(404, "text/xml", &xml.replace("</Code>", "")).is_err());
        assert!(is_whole(404, "text/xml", &xml.replace("<Code>A</Code>", "")).is_err());
    }

    #[test]
    fn every_answer_of_a_connection_is_looked_at() {
        let body = format!(r#"{{"RequestId":"{ID}","HostId":"h","Code":"A","Message":"m","Recommend":"r"}}"#);
        let answer = format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let bare = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(judge(b"", b""), Ok(0));
        assert_eq!(judge(b"", format!("{answer}{answer}").as_bytes()), Ok(2));
        assert!(judge(b"", format!("{answer}{bare}").as_bytes()).is_err());
        assert!(judge(b"", &answer.as_bytes()[..answer.len() - 1]).is_err());
        assert_eq!(judge(b"HEAD / HTTP/1.1", bare.as_bytes()), Ok(1));
    }
}

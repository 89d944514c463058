//! Whether what came is what was expected; a mismatch is told in words.

use serde_json::Value;

use crate::case::PrintRules;

/// Whether `text` is `pattern`, in which `*` stands for anything.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// What is different between two JSON values, by path.
pub(crate) fn json(expected: &Value, found: &Value, path: &str, told: &mut Vec<String>) {
    let here = if path.is_empty() { "the whole" } else { path };
    match (expected, found) {
        (Value::Object(wanted), Value::Object(map)) => {
            for (key, value) in wanted {
                match map.get(key) {
                    Some(other) => json(value, other, &format!("{path}.{key}"), told),
                    None => told.push(format!("{here}: {key} is missing, expected {value}")),
                }
            }
            for (key, value) in map.iter().filter(|(key, _)| !wanted.contains_key(*key)) {
                told.push(format!("{here}: {key} = {value} is not expected"));
            }
        }
        (Value::Array(wanted), Value::Array(list)) => {
            if wanted.len() != list.len() {
                told.push(format!("{here}: {} entries expected, found {found}", wanted.len()));
            }
            for (n, (value, other)) in wanted.iter().zip(list).enumerate() {
                json(value, other, &format!("{path}[{n}]"), told);
            }
        }
        (Value::String(pattern), Value::String(text)) if glob(pattern, text) => {}
        (Value::String(anything), _) if anything == "*" => {}
        _ if expected == found => {}
        _ => told.push(format!("{here}: expected {expected}, found {found}")),
    }
}

/// What is wrong with what a command printed.
pub(crate) fn print(rules: &PrintRules, text: &str) -> Vec<String> {
    let text = squeeze(text);
    let mut told = Vec::new();
    if let Some(whole) = &rules.is
        && !same_lines(&squeeze(whole), &text)
    {
        told.push(format!("expected exactly:\n{whole}"));
    }
    for wanted in &rules.has {
        if count(wanted, &text) == 0 {
            told.push(format!("{wanted:?} is missing"));
        }
    }
    for unwanted in &rules.lacks {
        if count(unwanted, &text) > 0 {
            told.push(format!("{unwanted:?} must not be there"));
        }
    }
    for (wanted, times) in &rules.times {
        let found = count(wanted, &text);
        if found != *times {
            told.push(format!("{wanted:?} is there {found} times, expected {times}"));
        }
    }
    let mut lines = text.lines();
    for wanted in &rules.order {
        let wanted = squeeze(wanted);
        if !lines.by_ref().any(|line| inside(&wanted, line)) {
            told.push(format!("{wanted:?} is missing, or not in this place of the order"));
        }
    }
    told
}

fn same_lines(wanted: &str, text: &str) -> bool {
    wanted.lines().count() == text.lines().count()
        && wanted.lines().zip(text.lines()).all(|(pattern, line)| glob(pattern, line))
}

/// How many lines have `wanted` in them.
fn count(wanted: &str, text: &str) -> usize {
    let wanted = squeeze(wanted);
    text.lines().filter(|line| inside(&wanted, line)).count()
}

fn inside(wanted: &str, line: &str) -> bool {
    glob(&format!("*{wanted}*"), line)
}

/// Every run of spaces as one; no empty lines.
fn squeeze(text: &str) -> String {
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json as value;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text, yes) in [
            ("a*c", "abc", true),
            ("a*c", "abcd", false),
            ("*", "", true),
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("*b*", "abc", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(glob(pattern, text), yes, "{pattern} {text}");
        }
    }

    #[test]
    fn every_difference_is_told() {
        let mut told = Vec::new();
        json(
            &value!({"a": 1, "b": "veth*", "c": [1, 2]}),
            &value!({"b": "veth1", "c": [1], "d": null}),
            "",
            &mut told,
        );
        assert_eq!(
            told,
            [
                "the whole: a is missing, expected 1",
                ".c: 2 entries expected, found [1]",
                "the whole: d = null is not expected"
            ]
        );
    }

    #[test]
    fn printed_lines_are_looked_for() {
        let rules = PrintRules {
            is: None,
            has: vec!["one  two".to_owned()],
            lacks: vec!["six".to_owned()],
            order: vec!["three".to_owned(), "one".to_owned()],
            times: [("o".to_owned(), 2)].into(),
        };
        assert_eq!(
            print(&rules, " one   two\n\nfour"),
            [
                "\"three\" is missing, or not in this place of the order",
                "\"one\" is missing, or not in this place of the order"
            ]
        );
    }
}

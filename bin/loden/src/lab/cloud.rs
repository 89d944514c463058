//! `loden lab cloud`: settings of the emulated cloud, from words, and as people read them.

use anyhow::{Context, bail};
use loden_lab::control::Behaviour;
use loden_sim_cloud::Settings;
use loden_sim_cloud::settings::{KEYS, Key};
use serde_json::{Map, Value};

use crate::render;

/// What the words ask for, as one JSON object; none without words.
pub(super) fn change(words: &[String]) -> anyhow::Result<Option<Value>> {
    let mut change = Map::new();
    for word in words {
        for (key, value) in settings(word)? {
            if change.contains_key(&key) {
                bail!("{key} is given twice; nothing was changed");
            }
            change.insert(key, value);
        }
    }
    Ok((!words.is_empty()).then_some(Value::Object(change)))
}

/// One word: `setting=value`, or a JSON object.
fn settings(word: &str) -> anyhow::Result<Map<String, Value>> {
    if word.trim_start().starts_with('{') {
        return serde_json::from_str(word).with_context(|| format!("{word} is no JSON object"));
    }
    let Some((key, value)) = word.split_once('=') else {
        bail!("{word} sets nothing; write {word}=VALUE, or --help for examples");
    };
    let value = match serde_json::from_str(value) {
        Ok(value) => value,
        // Broken JSON, which the emulator would refuse as text in its place; here is known where it breaks.
        Err(error) if value.starts_with(['[', '{', '"']) => {
            return Err(error).with_context(|| format!("the value of {key} is no JSON: {value}"));
        }
        Err(_) => Value::from(value),
    };
    Ok(std::iter::once((key.to_owned(), value)).collect())
}

/// All settings, and which were changed since the lab began.
pub(super) fn all(behaviour: &Behaviour) -> anyhow::Result<()> {
    let (now, at_start) = (values(&behaviour.now)?, values(&behaviour.at_start)?);
    let rows: Vec<Vec<String>> = now
        .iter()
        .map(|(key, value)| vec![key.name.to_owned(), value.clone(), key.meaning.to_owned()])
        .collect();
    render::table(&["SETTING", "VALUE", "MEANING"], &rows);
    let changed: Vec<String> =
        differences(&at_start, &now).map(|(key, was, _)| format!("{} (was {was})", key.name)).collect();
    if !changed.is_empty() {
        render::print("");
        render::print(&format!("changed since the lab began: {}; --reset puts it back", changed.join(", ")));
    }
    Ok(())
}

/// What a request changed.
pub(super) fn changed(behaviour: &Behaviour) -> anyhow::Result<()> {
    let (before, now) = (values(&behaviour.before)?, values(&behaviour.now)?);
    let mut lines =
        differences(&before, &now).map(|(key, was, is)| format!("{}: {was} -> {is}", key.name)).peekable();
    if lines.peek().is_none() {
        render::print("everything was like that already");
    }
    lines.for_each(|line| render::print(&line));
    Ok(())
}

/// Every key with its value as JSON, in the order of [`KEYS`].
fn values(settings: &Settings) -> anyhow::Result<Vec<(&'static Key, String)>> {
    let settings = serde_json::to_value(settings)?;
    Ok(KEYS.iter().map(|key| (key, settings.get(key.name).unwrap_or(&Value::Null).to_string())).collect())
}

fn differences<'a>(
    old: &'a [(&'static Key, String)],
    new: &'a [(&'static Key, String)],
) -> impl Iterator<Item = (&'static Key, &'a str, &'a str)> {
    let pairs = old.iter().zip(new);
    pairs
        .filter(|((_, was), (_, is))| was != is)
        .map(|((key, was), (_, is))| (*key, was.as_str(), is.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> anyhow::Result<Option<Value>> {
        change(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn words_and_objects_are_put_together() {
        let expected =
            serde_json::json!({"readLagMs": 2000, "batchQuotaCode": "Full", "rateLimits": [], "vpnQuota": 1});
        let words = ["readLagMs=2000", "batchQuotaCode=Full", r#"{"rateLimits": [], "vpnQuota": 1}"#];
        assert_eq!(of(&words).unwrap(), Some(expected));
        assert_eq!(of(&[]).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_understood_is_quoted() {
        for (words, said) in [
            (&["readLagMs"][..], "readLagMs sets nothing; write readLagMs=VALUE"),
            (&["rateLimits=[{burst: 1}]"], "the value of rateLimits is no JSON: [{burst: 1}]"),
            (&["{readLagMs: 1}"], "{readLagMs: 1} is no JSON object"),
            (&["readLagMs=1", r#"{"readLagMs": 2}"#], "readLagMs is given twice"),
        ] {
            let error = format!("{:#}", of(words).unwrap_err());
            assert!(error.contains(said), "{words:?}: {error}");
        }
    }
}

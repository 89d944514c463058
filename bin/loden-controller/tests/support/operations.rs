//! What operators are given, as tests read it.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A file of the repository.
pub(crate) fn repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

/// The object in `deploy/alerts.yaml`.
pub(crate) fn alert_file() -> Value {
    serde_saphyr::from_str(&std::fs::read_to_string(repository("deploy/alerts.yaml")).unwrap()).unwrap()
}

/// All alert rules.
pub(crate) fn alerts() -> Vec<Value> {
    let file = alert_file();
    let groups = file["spec"]["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).cloned().collect()
}

/// The Rust files at a path, without their tests and without what is there for tests only; `(path, text)`.
pub(crate) fn rust_sources(place: &str) -> Vec<(String, String)> {
    let (mut found, mut open) = (Vec::new(), vec![repository(place)]);
    while let Some(path) = open.pop() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "simulation" | "tests") {
                open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        } else if name.ends_with(".rs")
            && !matches!(name.as_str(), "tests.rs" | "testing.rs" | "fake.rs" | "properties.rs")
        {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            // A quote as a character would turn inside out what is in quotes after it.
            let code = lines.collect::<Vec<_>>().join("\n").replace("'\"'", "").replace("\\\"", "");
            found.push((path.display().to_string(), code));
        }
    }
    assert!(!found.is_empty(), "there is no code at {place}");
    found
}

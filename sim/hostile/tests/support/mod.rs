//! Seeds of the fuzz targets, and edits of them that a person with bad intentions would try.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

/// Words that something may stumble over, wherever they end up.
const WORDS: [&str; 41] = [
    "..",
    ".",
    "../../etc/x",
    "/",
    "a/../../b",
    "/state/../etc/passwd",
    "/proc/self/root",
    "",
    " ",
    "\\u0000",
    "\\u2028",
    "é",
    "\"",
    "{",
    "[",
    "]}",
    "\n",
    "\r\n",
    "=",
    ";",
    ",",
    "null",
    "true",
    "-1",
    "0",
    "1.5",
    "1e400",
    "4294967296",
    "9223372036854775808",
    "10.0.0.0/0",
    "0.0.0.0",
    "255.255.255.255/32",
    "::",
    "fd00::1/128",
    "ff02::1",
    "ADD",
    "DEL",
    "GC",
    "CHECK",
    "STATUS",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
];

/// The seeds in these folders of the corpus.
pub(crate) fn seeds(folders: &[&str]) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let mut seeds = Vec::new();
    for folder in folders.iter().map(|folder| corpus.join(folder)) {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "no seeds in {}", folder.display());
        seeds.extend(paths.iter().map(|path| fs::read(path).unwrap()));
    }
    seeds
}

/// A seed with a few of its words replaced, removed or repeated.
pub(crate) fn edited(folders: &[&str]) -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<prop::sample::Index>(), prop::sample::select(WORDS.to_vec()), 0..4_u8);
    (prop::sample::select(seeds(folders)), prop::collection::vec(edit, 0..5)).prop_map(|(mut text, edits)| {
        for (place, word, how) in edits {
            let spans = words(&text);
            if spans.is_empty() {
                continue;
            }
            let (start, end) = spans[place.index(spans.len())];
            let replacement = match how {
                0 => [&text[start..end], word.as_bytes()].concat(),
                1 => [word.as_bytes(), &text[start..end]].concat(),
                _ => word.as_bytes().to_vec(),
            };
            text.splice(start..end, replacement);
        }
        text
    })
}

/// Where the words are: runs of characters that occur in names, numbers, paths and addresses.
fn words(text: &[u8]) -> Vec<(usize, usize)> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:".contains(&byte);
    let mut spans = Vec::new();
    let mut start = None;
    for (index, byte) in text.iter().chain([&b'\n']).enumerate() {
        match start {
            None if is_word(*byte) => start = Some(index),
            Some(from) if !is_word(*byte) => {
                spans.push((from, index));
                start = None;
            }
            _ => {}
        }
    }
    spans
}

//! A node's labels or annotations, kept small.
//!
//! Most nodes of a cluster say the same (region, zone, instance type), and a large cluster has thousands of nodes: each text, and each set of labels,
//! is held once for all of them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Labels or annotations in the order of their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| &**value)
    }

    /// Whether there is such a key.
    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Whether there is none at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keys and values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }
}

/// Texts and sets of labels that are held once.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    texts: BTreeSet<Arc<str>>,
    sets: BTreeSet<Labels>,
    /// With so many of both it is time to look which of them nobody holds any more.
    sweep_at: usize,
}

/// Fewer are never looked through.
const FEW: usize = 256;

impl Texts {
    /// Labels of these keys and values, which come in the order of the keys.
    pub(crate) fn labels(&self, sorted: impl Iterator<Item = (String, String)>) -> Labels {
        // A panic cannot leave the sets half-changed.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = Labels(sorted.map(|(key, value)| (known.text(&key), known.text(&value))).collect());
        if let Some(same) = known.sets.get(&labels) {
            return same.clone();
        }
        known.sweep();
        known.sets.insert(labels.clone());
        labels
    }
}

impl Known {
    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        self.sweep();
        let text: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&text));
        text
    }

    fn sweep(&mut self) {
        if self.texts.len() + self.sets.len() < self.sweep_at {
            return;
        }
        // The sets hold texts.
        self.sets.retain(|labels| Arc::strong_count(&labels.0) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.sweep_at = FEW.max(2 * (self.texts.len() + self.sets.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &Texts, labels: &[(&str, &str)]) -> Labels {
        texts.labels(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn labels_are_found_by_key() {
        let labels = of(&Texts::default(), &[("a", "1"), ("b/c", ""), ("d", "2")]);
        assert_eq!((labels.get("a"), labels.get("b/c"), labels.get("d")), (Some("1"), Some(""), Some("2")));
        assert!(!labels.contains_key("b") && !labels.contains_key("e") && !labels.is_empty());
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("a", "1"), ("b/c", ""), ("d", "2")]);
        assert!(Labels::default().is_empty());
    }

    #[test]
    fn what_many_say_is_held_once_and_what_nobody_says_any_more_not_at_all() {
        let texts = Texts::default();
        let (one, other) = (of(&texts, &[("zone", "h")]), of(&texts, &[("zone", "h")]));
        assert_eq!(one, other);
        assert!(Arc::ptr_eq(&one.0, &other.0));
        let more = of(&texts, &[("app", "x"), ("zone", "h")]);
        assert!(Arc::ptr_eq(&one.0[0].1, &more.0[1].1));
        for number in 0..10_000 {
            of(&texts, &[("name", &format!("n{number}"))]);
        }
        let known = texts.known.lock().unwrap();
        assert!(known.texts.len() + known.sets.len() <= FEW);
        assert_eq!(one.get("zone"), Some("h"));
    }
}

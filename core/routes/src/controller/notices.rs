//! What people are told, once each.

use std::collections::{BTreeMap, VecDeque};

/// Something to tell people: a Kubernetes Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What it is about.
    pub about: About,
    /// Whether somebody should look.
    pub severity: Severity,
    /// One word in CamelCase.
    pub reason: &'static str,
    /// What happened, and what to do.
    pub message: String,
}

/// What a notice is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// The controller as a whole.
    Controller,
    /// A node, by name.
    Node(String),
}

/// Whether somebody should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// It is worth knowing.
    Normal,
    /// Somebody should look.
    Warning,
}

/// Notices that wait to be told, and states that were told of and still stand.
#[derive(Debug, Default)]
pub(super) struct Notices {
    queue: VecDeque<Notice>,
    standing: BTreeMap<(About, &'static str, String), ()>,
}

impl Notices {
    /// Tells of something that happened.
    pub(super) fn tell(&mut self, about: About, severity: Severity, reason: &'static str, message: String) {
        self.queue.push_back(Notice { about, severity, reason, message });
    }

    /// Tells of a state once, until [`Notices::over`] or [`Notices::keep`] says that it is over. `key` tells states of one reason apart.
    pub(super) fn stand(
        &mut self,
        about: About,
        reason: &'static str,
        key: &str,
        message: impl FnOnce() -> String,
    ) {
        if self.standing.insert((about.clone(), reason, key.to_owned()), ()).is_none() {
            self.tell(about, Severity::Warning, reason, message());
        }
    }

    /// A state is over.
    pub(super) fn over(&mut self, about: &About, reason: &'static str, key: &str) {
        self.standing.remove(&(about.clone(), reason, key.to_owned()));
    }

    /// Of all states of a reason only these still stand.
    pub(super) fn keep(&mut self, reason: &'static str, still: impl Fn(&About, &str) -> bool) {
        self.standing.retain(|(about, word, key), ()| *word != reason || still(about, key));
    }

    /// A node is gone, and what was told of it with it.
    pub(super) fn forget_node(&mut self, name: &str) {
        self.standing.retain(|(about, _, _), ()| !matches!(about, About::Node(node) if node == name));
    }

    pub(super) fn next(&mut self) -> Option<Notice> {
        self.queue.pop_front()
    }
}

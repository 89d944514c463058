//! A plan: steps in the order they are to be applied, and what could not be planned and why.

use std::fmt;

use crate::{Key, Object};

/// One change to the kernel, complete in itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Create an object that is not there. It must fail if somebody else created it meanwhile (links, addresses,
    /// routes); neighbour and FDB entries overwrite what the kernel learnt by itself.
    Add(Object),
    /// Turn an existing object into another of the same key, in place.
    Change {
        /// As observed.
        from: Object,
        /// As desired.
        to: Object,
    },
    /// Remove an object. One that is already gone is as good as removed.
    Delete(Object),
}

impl Step {
    /// The key of the object it is about.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Add(object) | Self::Delete(object) | Self::Change { to: object, .. } => object.key(),
        }
    }
}

/// A desired object that cannot be had for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// What was wanted.
    pub wanted: Object,
    /// Why it cannot be.
    pub reason: Reason,
}

/// Why a desired object is blocked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Somebody else's object has its name; it is left alone.
    Foreign(Object),
    /// The link it lives on is not there.
    NoLink(String),
    /// The link it lives on is down.
    LinkDown(String),
    /// The links' dependence on one another does not allow it.
    Refused(crate::Refused),
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = Step::Add(self.wanted.clone()).to_string();
        let wanted = wanted.lines().next().unwrap_or_default();
        match &self.reason {
            Reason::Foreign(other) => {
                let other = Step::Add(other.clone()).to_string();
                let other = other.lines().next().unwrap_or_default();
                write!(
                    f,
                    "`{wanted}` is blocked by somebody else's object (`{other}`), which is left alone; remove it by hand if it is stale"
                )
            }
            Reason::NoLink(link) => write!(f, "`{wanted}` waits for link {link}, which does not exist"),
            Reason::LinkDown(link) => write!(f, "`{wanted}` waits for link {link}, which is down"),
            Reason::Refused(why) => write!(f, "`{wanted}` is not possible: {why}"),
        }
    }
}

/// What to do, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Steps in the order of application.
    pub steps: Vec<Step>,
    /// Desired objects no step can bring about now.
    pub blocked: Vec<Blocked>,
}

impl Plan {
    /// Whether the kernel shows everything desired and nothing stale.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.blocked.is_empty()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        for blocked in &self.blocked {
            writeln!(f, "# {blocked}")?;
        }
        Ok(())
    }
}

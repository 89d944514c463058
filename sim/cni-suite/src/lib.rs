//! What CNI plugins must do, as data, and a runner that holds any directory of plugins against it.
//!
//! A case is a plugin, a configuration, an environment and a starting state, and what must come of it: standard output, exit code, error
//! object, kernel state as the kernel's own tools tell it, files. The cases lie in `cases/<plugin>/*.yaml` ([`case`] says what may stand in
//! one); their expectations come from the description of the reference plugins, never from the code under test. Each says since which
//! release of the reference plugins it holds, so the same cases run against Debian's Go plugins as well: an expectation that fails
//! there is a wrong expectation.
//!
//! Every case has a network namespace of its own, and a mount namespace in which `/run`, `/var/lib` and `/etc/cni` are its own and empty
//! ([`room`]), so cases use the plugins' default paths and run side by side.
//!
//! What must hold: a case that does not apply to the plugins at hand is counted and told, never passed over in silence.

pub mod case;
pub mod coverage;
mod matching;
mod play;
pub mod room;
pub mod suite;

use thiserror::Error;

/// Something is wrong, in words that name the operation and the object.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Failure(pub String);

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Where this package's own cases lie.
#[must_use]
pub fn cases() -> &'static std::path::Path {
    std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/cases"))
}

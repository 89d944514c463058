//! What the CNI plugins and the cloud emulator promise about input that nobody should send.
//!
//! Each function takes bytes from anywhere and checks one set of promises; `Err` says which one was broken, and for what. They are the
//! bodies of the fuzz targets in `fuzz/`, and property tests run them with edited seeds of the same corpus.
//!
//! - [`configuration()`]: what plugins read from standard input and the environment, up to the point where something would be done.
//! - [`files()`]: what plugins read from disk: `subnet.env`, kept configurations, reservations, `resolv.conf`, link aliases.
//! - [`cloud()`]: calls of the emulated cloud's API, signed or not, and bytes that are no calls.
//! - [`plugin()`]: whole plugins with all of it, in a [`sandbox`] where what they do harms nobody and every file they touch shows.
//!
//! A panic anywhere is a broken promise too; so is an input that takes for ever, which the caller's time limit finds.

pub mod case;
pub mod cloud;
mod configuration;
mod files;
mod plugin;
pub mod sandbox;

pub use cloud::cloud;
pub use configuration::configuration;
pub use files::files;
pub use plugin::plugin;

/// A promise that was broken, or why there was nothing to check it with.
pub type Verdict = Result<(), String>;

/// `Err` with what `broken` says unless the promise holds.
fn promise(holds: bool, broken: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(broken()) }
}

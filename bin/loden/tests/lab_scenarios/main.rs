//! Whole clusters in namespaces, with the production binaries, through the command line a person uses.

// Always true here; it tells clippy that helpers outside of #[test] functions may unwrap, too.
#![cfg(test)]

mod backends;
mod cloud;
mod conflicts;
mod credentials;
mod disorder;
mod faults;
mod handover;
mod membership;
mod neighbours;
mod pings;
mod quota;
mod replacement;
mod support;
mod tables;
mod whole;

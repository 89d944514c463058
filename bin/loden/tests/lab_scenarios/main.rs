//! Whole clusters in namespaces, with the production binaries, through the command line a person uses.

// Always true here; it tells clippy that helpers outside of #[test] functions may unwrap, too.
#![cfg(test)]

mod backends;
mod disorder;
mod faults;
mod membership;
mod neighbours;
mod quota;
mod support;
mod whole;

//! Loden's Kubernetes client and other clients against the emulator, over loopback.

// Always true here; it tells clippy that helpers outside of #[test] functions may unwrap, too.
#![cfg(test)]

mod common;
mod events;
mod http;
mod leader;
mod tls;
mod watch;
mod writes;

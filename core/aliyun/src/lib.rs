//! The Alibaba Cloud API on the wire, without any I/O.
//!
//! Owns: request signing and its verification ([`sign`]), the flattened RPC parameters ([`Params`]), the typed requests and
//! answers that Loden exchanges ([`vpc`], [`ecs`], [`quotas`], [`sts`], [`metadata`]), the token file of a managed cluster ([`addon`]), error answers and what each error code means for a caller
//! ([`ApiError`], [`ErrorClass`]), and Kubernetes provider IDs ([`ProviderId`]).
//!
//! Both ends use these types: a client writes requests and reads answers, an emulator the other way round. The invariant is that
//! `R::from_params(&r.to_params()) == r` for every request. If it breaks, client and emulator agree with each other and disagree
//! with the vendor, so field names are spelled here once, as the vendor spells them.
//!
//! Nothing here reads a clock or draws random numbers: dates and nonces are arguments.

mod error;
mod params;
mod provider_id;
mod request;
pub mod sign;

pub mod addon;
pub mod ecs;
pub mod metadata;
pub mod quotas;
pub mod session;
pub mod sts;
pub mod vpc;

pub use error::{ApiError, ErrorClass, classify, codes};
pub use params::Params;
pub use provider_id::{ProviderId, ProviderIdError};
pub use request::{Field, Item, Product, Request};

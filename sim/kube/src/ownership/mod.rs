//! Who owns which field (`metadata.managedFields`), and server-side apply, which is decided by it.
//!
//! Every write records its author with the fields it set. An apply says what one author wants to own: it may not change
//! what others own unless it is forced to, and what it no longer mentions goes when nobody else owns it. If ownership
//! were lost, an apply would delete or overwrite what another controller wrote.

mod apply;
mod entries;
mod fields;

pub(crate) use apply::applied;
pub(crate) use entries::{Author, Owners, blank};

#[cfg(test)]
mod tests;

//! The reconcile queue: what to look at next, and when.

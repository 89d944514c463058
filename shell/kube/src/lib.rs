//! Kubernetes as Loden needs it: nodes, conditions, events, leases and leadership.

//! The VPC route-table plan: desired entries, conflicts, quota, batches, and the controller's state machine.

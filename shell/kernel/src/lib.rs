//! The node's network in the kernel: observe it, apply a plan to it, hear when it changes.

//! A node's desired network, its diff against what the kernel shows, and the plan between them.

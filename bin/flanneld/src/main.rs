//! The node daemon, a drop-in for flannel-io/flannel's flanneld.

fn main() {}

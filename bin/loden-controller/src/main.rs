//! The route, node and node-IPAM controller.

fn main() {}

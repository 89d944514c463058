//! The command line for people: plan, lab and emulators.

fn main() {}

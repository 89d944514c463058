//! The repository's own commands: demo, test, and the checks CI runs.

fn main() {}

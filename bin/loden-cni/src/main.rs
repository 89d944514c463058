//! The CNI plugins in one binary, chosen by the name it is called by.

fn main() {}

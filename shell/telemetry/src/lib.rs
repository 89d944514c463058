//! Logs and health: what a process tells the people who run it.

//! The CNI protocol: configurations, results of every spec version, errors, and the pure half of each plugin.

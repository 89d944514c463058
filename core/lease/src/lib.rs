//! Leases and their codecs: net-conf.json, subnet.env, node annotations and backend data.

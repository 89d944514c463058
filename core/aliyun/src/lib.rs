//! The Alibaba Cloud API on the wire: request signing, and the requests and answers that Loden exchanges.

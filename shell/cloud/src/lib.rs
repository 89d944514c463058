//! The Alibaba Cloud API over HTTP: transport, credentials, metadata service, and the route-table port.

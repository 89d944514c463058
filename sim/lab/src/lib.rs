//! A VPC out of network namespaces: routers, nodes, pods, and the checks that packets arrive.

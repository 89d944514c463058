//! Address planning: how a pod CIDR is cut into node subnets, and which cluster plans can work.

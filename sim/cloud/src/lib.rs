//! An emulator of the Alibaba Cloud API: VPC routes, ECS and the instance metadata service.

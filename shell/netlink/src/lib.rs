//! Netlink sockets and network namespaces: rtnetlink, nf_tables and the kernel's change notices.

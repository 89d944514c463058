//! Container runtimes from Debian call the plugins: podman through its CNI backend, containerd by `ctr` and by the kubelet's own interface.
//!
//! Every test is alone on a machine of its own ([`machine`]), so the runtimes use their own defaults: `/opt/cni/bin`, `/etc/cni/net.d`,
//! `/var/lib/cni`, `/run/netns`. The image is made here, of one static busybox; nothing is fetched. What must hold for each: pods answer as
//! they should, and after many cycles the machine holds what it held after the first.
//!
//! Needs root and Debian's `podman`, `containerd`, `runc` and `busybox-static` besides what the kernel tests need; a test that lacks them
//! fails and says so.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test bed that does not work is a failed test"
)]

mod containerd;
mod cri;
mod ctr;
mod image;
mod machine;
mod network;
mod podman;
mod pods;
mod probe;
mod trouble;

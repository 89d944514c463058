//! What the kernels of build machines often lack, in the virtual machine of `cargo xtask vm-test`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use loden_netlink::*;

fn namespace() -> NetNs {
    assert!(
        std::env::var_os("LODEN_VM").is_some(),
        "this needs a kernel with every module, in a machine of its own: run `cargo xtask vm-test`"
    );
    NetNs::anonymous().expect("the virtual machine's tests run as root")
}

#[test]
fn links_of_every_kind_are_made_and_deleted() {
    let mut rt = RouteSocket::open_in(&namespace()).unwrap();
    for kind in ["dummy", "wireguard"] {
        let made = rt.create_link(&NewLink::new("x", NewLinkKind::Other(kind.to_owned()))).unwrap();
        assert_eq!(made.kind, LinkKind::Other(kind.to_owned()));
        rt.delete_link(made.index).unwrap();
        assert_eq!(rt.link_by_name("x").unwrap(), None);
    }
}

//! A kernel that lacks what flanneld cannot do without.

#![expect(clippy::unwrap_used, reason = "a test that cannot look must fail where it looked")]

mod common;

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use common::{NODE, World};

/// A program for the kernel's filter of system calls, in which `socket(AF_NETLINK, _, NETLINK_NETFILTER)` fails as it
/// does on a kernel without nfnetlink.
fn no_nfnetlink() -> Vec<libc::sock_filter> {
    let statement =
        |code: u32, k: u32| libc::sock_filter { code: u16::try_from(code).unwrap(), jt: 0, jf: 0, k };
    // Leads to the end of the program, which allows the call, unless the loaded word is `k`.
    let only = |k: u32, to_the_end: u8| libc::sock_filter {
        code: u16::try_from(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K).unwrap(),
        jt: 0,
        jf: to_the_end,
        k,
    };
    // Offsets in `struct seccomp_data`: the call's number, then from 16 on its arguments, 8 bytes each, of which the
    // lower half comes first on every machine these tests run on.
    let load = |offset: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let argument = |n: u32| load(16 + 8 * n);
    let end = |action: u32| statement(libc::BPF_RET | libc::BPF_K, action);
    let number = |n: i64| u32::try_from(n).unwrap();
    vec![
        load(0),
        only(number(libc::SYS_socket), 5),
        argument(0),
        only(number(libc::AF_NETLINK.into()), 3),
        argument(2),
        only(number(libc::NETLINK_NETFILTER.into()), 1),
        end(libc::SECCOMP_RET_ERRNO | number(libc::EPROTONOSUPPORT.into())),
        end(libc::SECCOMP_RET_ALLOW),
    ]
}

/// Gives the process that `command` starts, and all it starts, a kernel without nfnetlink.
#[expect(unsafe_code, reason = "a filter of system calls can only be set between fork and exec")]
fn without_nfnetlink(command: &mut Command) {
    const { assert!(cfg!(target_endian = "little")) };
    let filter = no_nfnetlink();
    let install = move || {
        let program = libc::sock_fprog {
            len: u16::try_from(filter.len()).unwrap_or_default(),
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: the program and the row it points to live until after the calls, and the kernel copies and never
        // writes them.
        let refused = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
        };
        if refused { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec this makes two system calls; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(install) };
}

#[test]
fn without_nfnetlink_it_names_the_feature_and_the_remedy() {
    let world = World::with_pod_cidr();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
    command.args(world.args());
    without_nfnetlink(&mut command);
    let (code, said) = world.start_command(command, &[("NODE_NAME", NODE)]).ended();
    assert_eq!(code, Some(1), "{said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.contains("ERROR")).collect();
    let [error] = errors.as_slice() else { panic!("one error, not: {said}") };
    for words in [
        "this kernel has no nfnetlink, through which nf_tables is reached",
        "Protocol not supported",
        "modprobe nf_tables",
        "CONFIG_NF_TABLES",
    ] {
        assert!(error.contains(words), "{words:?} is not in: {error}");
    }
    assert!(!world.subnet_file().exists());
    assert_eq!(world.nft("list ruleset"), "");
    assert!(world.node().pointer("/metadata/annotations").is_none());
}

//! Chosen tests inside a Debian kernel of its own, under qemu: what the machine at hand has no modules for is tested all the same.
//!
//! The kernel comes from Debian's archive and is unpacked beside the build, never installed. It starts with an initial file system of our
//! making that holds the modules, the test programs, and the tools these hold Loden against; `vm-init` (`src/bin/vm-init.rs`) is its first and
//! only service. Instructions are emulated (KVM is not asked for), so this says whether something works, never how fast.

mod archive;
mod machine;
mod modules;
mod programs;

use crate::command::{Cargo, step};
use crate::{debian, layers, tools};
use anyhow::{Context, Result, bail};
use archive::Archive;
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

/// Debian's name for its newest kernel for virtual machines; what it depends on is the kernel itself.
const KERNEL: &str = "linux-image-cloud-amd64";

/// What the tests need and the kernel image does not have built in. What these depend on is found and loaded first.
const MODULES: &[&str] = &[
    // What the machines at hand may lack, and this is for.
    "wireguard",
    "ipip",
    "esp4",
    "esp6",
    "xfrm_user",
    "dummy",
    "8021q",
    "nft_flow_offload",
    "nf_flow_table_inet",
    // The cryptography of ESP; drbg gives its random numbers.
    "authenc",
    "echainiv",
    "cbc",
    "sha512_generic",
    "drbg",
    // What every node has.
    "bridge",
    "veth",
    "vxlan",
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_limit",
    "nft_log",
    "nf_log_syslog",
    "nft_masq",
    "nft_nat",
    "nft_redir",
    "nft_reject_inet",
    "nft_meta_bridge",
    "nft_reject_bridge",
    "nft_fib_inet",
    "xt_comment",
];

/// The tests that run inside: a target, the arguments it gets, and how long it may take.
const TESTS: &[(&str, &[&str], Duration)] = &[
    ("vm_features", &[], Duration::from_secs(60)),
    ("vm_neighbours", &[], Duration::from_secs(60)),
    ("vm_vlans", &[], Duration::from_secs(150)),
    ("kernel_route", &[], Duration::from_secs(60)),
    ("kernel_nft", &[], Duration::from_secs(90)),
    ("kernel_monitor", &[], Duration::from_secs(60)),
    ("kernel_agreement", &[], Duration::from_secs(120)),
    ("kernel_watch", &[], Duration::from_secs(90)),
];

/// What the tests are told by their environment: that they are inside, and to be content with less than on a machine of usual speed.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("LODEN_VM", "1"),
    ("LODEN_CNI", "/vm/loden-cni"),
    ("LODEN_AGREEMENT_PLANS", "60"),
    ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
];

/// The programs of the machine at hand that the tests call.
const PROGRAMS: &[&str] = &[
    "/bin/sh",
    "/usr/bin/cp",
    "/usr/bin/ping",
    "/usr/bin/grep",
    "/usr/lib/cni/bridge",
    "/usr/lib/cni/host-local",
    "/usr/sbin/bridge",
    "/usr/sbin/ip",
    "/usr/sbin/nft",
    "/usr/sbin/sysctl",
];

/// From power-on to power-off. A kernel under emulation takes seconds to come up, and then works several times slower than the machine.
const LIMIT: Duration = Duration::from_secs(330);

/// Runs the chosen tests in the virtual machine.
///
/// # Errors
/// Something needed cannot be had or built, a test fails inside, or the machine does not come to an end in time.
pub(crate) fn run() -> Result<()> {
    debian::install(debian::VM)?;
    let kernel = Kernel::fetched()?;
    step("vm tests: building");
    let init =
        programs::built(Cargo::new("build").args(["--package", "xtask", "--bin", "vm-init", "--locked"]))?;
    let mut build = Cargo::new("test").args(["--workspace", "--locked", "--no-run"]);
    for (name, ..) in TESTS {
        build = build.args(["--test", name]);
    }
    let tests = programs::built(build)?;

    let directory = layers::target_directory()?.join("vm");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {directory}"))?;
    let initial = directory.join("initramfs");
    let archive = filled(&kernel, &init, &tests)?;
    fs::write(&initial, archive.finish()).with_context(|| format!("cannot write {initial}"))?;

    step(&format!("vm tests: {} under qemu, at most {} s", kernel.release, LIMIT.as_secs()));
    let started = Instant::now();
    let report = machine::run(&kernel.image, &initial, &directory.join("console.log"), LIMIT)?;
    let names: Vec<_> = TESTS.iter().map(|(name, ..)| *name).collect();
    let passed = report.verdict(&names)?;
    println!(
        "vm tests: {passed} passed in {:.0} s, kernel {}",
        started.elapsed().as_secs_f64(),
        kernel.release
    );
    Ok(())
}

/// The initial file system: `/init`, the plan it follows, and everything the plan names.
fn filled(kernel: &Kernel, init: &[programs::Program], tests: &[programs::Program]) -> Result<Archive> {
    let (mut archive, mut plan) = (Archive::default(), String::new());
    for directory in ["dev", "proc", "sys", "run", "tmp", "vm"] {
        archive.directory(directory);
    }
    let find = |programs: &[programs::Program], name: &str| {
        let found = programs.iter().find(|program| program.name == name).map(|program| program.path.clone());
        found.with_context(|| format!("cargo built no {name}"))
    };
    programs::add(&mut archive, "init", &find(init, "vm-init")?)?;
    for program in PROGRAMS {
        programs::add(&mut archive, program, Utf8Path::new(program))?;
    }
    // cargo builds it for the tests that start it.
    programs::add(&mut archive, "vm/loden-cni", &find(tests, "loden-cni")?)?;
    for module in modules::in_order(&kernel.modules, MODULES)? {
        let path = format!("vm/{}.ko", module.name);
        writeln!(plan, "module /{path}")?;
        archive.file(&path, 0o644, module.content);
    }
    for (name, value) in ENVIRONMENT {
        writeln!(plan, "set {name} {value}")?;
    }
    for (name, arguments, limit) in TESTS {
        programs::add(&mut archive, &format!("vm/{name}"), &find(tests, name)?)?;
        writeln!(plan, "run {name} {} {}", limit.as_secs(), arguments.join(" "))?;
    }
    archive.file("vm/plan", 0o644, plan.into_bytes());
    Ok(archive)
}

/// An unpacked kernel package.
struct Kernel {
    release: String,
    image: Utf8PathBuf,
    modules: Utf8PathBuf,
}

impl Kernel {
    /// The kernel that lies beside the build; fetched when there is none.
    fn fetched() -> Result<Self> {
        let folder = tools::directory()?.join("vm");
        if !folder.exists() {
            let package = debian::dependency(KERNEL, "linux-image-")?;
            step(&format!("unpacking {package} into {folder}"));
            fs::create_dir_all(folder.parent().unwrap_or(&folder))
                .with_context(|| format!("cannot make a place for {folder}"))?;
            debian::unpack(&package, &folder)?;
        }
        let boot = folder.join("boot");
        let image = boot
            .read_dir_utf8()
            .with_context(|| format!("cannot list {boot}"))?
            .filter_map(|entry| Some(entry.ok()?.into_path()))
            .find(|path| path.file_name().is_some_and(|name| name.starts_with("vmlinuz-")));
        let Some(image) = image else {
            bail!("there is no kernel in {boot}; remove {folder} and run this again");
        };
        let release =
            image.file_name().and_then(|name| name.strip_prefix("vmlinuz-")).unwrap_or_default().to_owned();
        let modules = folder.join("lib/modules").join(&release);
        Ok(Self { release, image, modules })
    }
}

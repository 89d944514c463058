//! Real clients that tests hold against the emulators: put beside the build, never installed into the system.

use crate::command::{run, step};
use crate::{debian, layers};
use anyhow::{Context, Result, bail};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use std::process::Command;

/// The vendor's SDKs, with the versions that the tests were written for.
const SDK_REQUIREMENTS: &str = "sim/cloud/tests/sdk/requirements.txt";

/// The folder of everything this module brings: `<target>/tools`, in the environment of peer tests as `LODEN_TOOLS`.
///
/// # Errors
/// `cargo metadata` fails.
pub(crate) fn directory() -> Result<Utf8PathBuf> {
    Ok(layers::target_directory()?.join("tools"))
}

/// Brings the vendor's Python SDKs and Debian's kubectl, where they are not there yet; answers their folder.
///
/// # Errors
/// A download or an installation fails.
pub(crate) fn peers() -> Result<Utf8PathBuf> {
    let tools = directory()?;
    std::fs::create_dir_all(&tools).with_context(|| format!("cannot make {tools}"))?;
    python_sdks(&tools)?;
    kubectl(&tools)?;
    Ok(tools)
}

/// A virtual environment with the SDKs; made anew when the requirements change.
fn python_sdks(tools: &Utf8Path) -> Result<()> {
    let root = layers::workspace_root()?;
    let wanted = std::fs::read_to_string(root.join(SDK_REQUIREMENTS))
        .with_context(|| format!("cannot read {SDK_REQUIREMENTS}"))?;
    let environment = tools.join("python");
    let installed = environment.join("requirements.txt");
    if std::fs::read_to_string(&installed).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    step("installing the vendor's SDKs, beside the build");
    if !has_venv() {
        debian::install(debian::PYTHON)?;
    }
    run("python3", &["-m", "venv", "--clear", environment.as_str()])?;
    let pip = environment.join("bin/pip");
    let requirements = root.join(SDK_REQUIREMENTS);
    run(pip.as_str(), &["install", "--quiet", "--disable-pip-version-check", "-r", requirements.as_str()])?;
    // Written last: an interrupted installation is not taken for a finished one.
    std::fs::write(&installed, wanted).with_context(|| format!("cannot write {installed}"))
}

fn has_venv() -> bool {
    Command::new("python3").args(["-c", "import ensurepip, venv"]).output().is_ok_and(|o| o.status.success())
}

/// Debian's kubectl, unpacked: its package collides with others when it is installed.
fn kubectl(tools: &Utf8Path) -> Result<()> {
    let program = tools.join("kubectl/usr/bin/kubectl");
    if program.exists() {
        return Ok(());
    }
    step("unpacking Debian's kubectl, beside the build");
    debian::unpack("kubernetes-client", &tools.join("kubectl"))?;
    if !program.exists() {
        bail!("Debian's kubernetes-client was unpacked, but {program} is not there");
    }
    Ok(())
}

//! Starting a lab from the outside: judge the inputs, start the supervisor, have it build; on failure leave nothing.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::control::{Request, ask};
use crate::error::{Context, Error, Result};
use crate::names::{LABS_DIR, LabName, MEMBER_VARIABLE};
use crate::process::{Programs, last_lines};
use crate::spec::Inputs;
use crate::status::Status;
use crate::supervisor::INPUTS_FILE;
use crate::teardown::{namespace_names, teardown};

/// How long the supervisor may take to answer its socket.
const PATIENCE: Duration = Duration::from_secs(20);

/// Builds a reserved lab and leaves it running.
///
/// # Errors
/// Building it failed; then nothing of it is left.
pub fn up(
    lab: &LabName,
    inputs: &Inputs,
    programs: &Programs,
    mut progress: impl FnMut(&str),
) -> Result<Status> {
    match build(lab, inputs, programs, &mut progress) {
        Ok(status) => Ok(status),
        Err(failure) => {
            let log = last_lines(&lab.supervisor_log(), 3);
            progress("removing what was built");
            match teardown(lab) {
                Ok(_) => Err(Error::Refused(format!("{failure}\n(nothing of lab {lab} is left; {log})"))),
                Err(also) => {
                    Err(Error::Refused(format!("{failure}\nand removing lab {lab} failed too: {also}")))
                }
            }
        }
    }
}

/// Takes the name for a lab with these inputs. The directory is the reservation: making it succeeds for one only.
///
/// # Errors
/// The planner refuses the inputs, or a lab of that name is there; nothing was changed then.
pub fn reserve(lab: &LabName, inputs: &Inputs) -> Result<()> {
    inputs.plan()?;
    std::fs::create_dir_all(LABS_DIR).map_err(|e| Error::io("create", LABS_DIR, e))?;
    let directory = lab.directory();
    let exists =
        || Error::Refused(format!("there is a lab {lab} already; `loden lab down --name {lab}` removes it"));
    if !namespace_names(lab)?.is_empty() {
        return Err(exists());
    }
    match DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(exists()),
        created => created.map_err(|e| Error::io("create", directory, e)),
    }
}

fn build(
    lab: &LabName,
    inputs: &Inputs,
    programs: &Programs,
    progress: &mut impl FnMut(&str),
) -> Result<Status> {
    let path = lab.directory().join(INPUTS_FILE);
    let text = serde_json::to_vec_pretty(inputs).during(|| "encode the inputs".to_owned())?;
    std::fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
    let path = lab.supervisor_log();
    let log =
        OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io("open", &path, e))?;
    let errors = log.try_clone().map_err(|e| Error::io("open", &path, e))?;
    let mut supervisor = Command::new(&programs.loden)
        .args(["lab", "supervise", "--name", lab.as_str()])
        .env(MEMBER_VARIABLE, lab.as_str())
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        // Ctrl-C at the terminal is for the command, not for the lab.
        .process_group(0)
        .spawn()
        .during(|| format!("start {}", programs.loden.display()))?;
    let begun = Instant::now();
    while UnixStream::connect(lab.control_socket()).is_err() {
        if let Ok(Some(status)) = supervisor.try_wait() {
            return Err(Error::Refused(format!("the supervisor of lab {lab} ended at once ({status})")));
        }
        if begun.elapsed() > PATIENCE {
            let last = last_lines(&lab.supervisor_log(), 3);
            return Err(Error::Timeout {
                what: "the supervisor listening".to_owned(),
                seconds: PATIENCE.as_secs(),
                last,
            });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    ask(lab, &Request::Build, progress)
}

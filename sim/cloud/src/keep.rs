//! The file that carries an emulator's state from one run to the next.
//!
//! It is written beside its place and renamed into it, so that a reader, or a run that is killed, finds either the old state or the new one. It
//! holds access keys, so only its owner may read it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::emulator::{Emulator, Handle};
use crate::model::StateError;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Not readable.
    #[error("cannot read the emulator's state {path}: {cause}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        cause: io::Error,
    },
    /// No JSON.
    #[error("the emulator's state {path} is not JSON: {cause}; remove the file to start afresh")]
    Json {
        /// The file.
        path: String,
        /// Where and why.
        cause: serde_json::Error,
    },
    /// Not a state.
    #[error("the emulator's state {path} is refused: {cause}; remove the file to start afresh")]
    State {
        /// The file.
        path: String,
        /// Why.
        cause: StateError,
    },
    /// Not writable.
    #[error(
        "cannot write the emulator's state {path}: {cause}; is there room, and may its folder be written?"
    )]
    Write {
        /// The file.
        path: String,
        /// Why.
        cause: io::Error,
    },
}

/// Knows where the state is kept.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    path: PathBuf,
}

impl Keeper {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The emulator that was kept, if there is one.
    pub(crate) fn read(&self) -> Result<Option<Emulator>, KeepError> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(KeepError::Read { path: self.name(), cause }),
        };
        let state =
            serde_json::from_slice(&bytes).map_err(|cause| KeepError::Json { path: self.name(), cause })?;
        Emulator::restore(state).map(Some).map_err(|cause| KeepError::State { path: self.name(), cause })
    }

    pub(crate) fn write(&self, handle: &Handle) -> Result<(), KeepError> {
        let state = handle.save().map_err(|cause| KeepError::State { path: self.name(), cause })?;
        let beside = self.beside();
        let written = write_whole(&beside, state.to_string().as_bytes())
            .and_then(|()| std::fs::rename(&beside, &self.path));
        written.map_err(|cause| {
            // Whether it goes or not changes nothing about what failed.
            let _ = std::fs::remove_file(&beside);
            KeepError::Write { path: self.name(), cause }
        })
    }

    /// In the same folder, and different for every process.
    fn beside(&self) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        self.path.with_file_name(name)
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

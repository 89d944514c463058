//! One address reserved on disk with nothing around it: a file under the directory's lock; and its removal.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::Error;

/// Makes the address's file.
///
/// # Errors
/// When it exists or the directory cannot be used.
pub fn reserve(directory: &str, address: &str) -> Result<(), Error> {
    let _held = locked(directory)?;
    let failed = |source| Error::system(format!("reserve {address}"), source);
    let path = Path::new(directory).join(address);
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    file.write_all(b"container\r\neth0").map_err(failed)
}

/// Removes the address's file.
///
/// # Errors
/// When there is none.
pub fn release(directory: &str, address: &str) -> Result<(), Error> {
    let _held = locked(directory)?;
    fs::remove_file(Path::new(directory).join(address))
        .map_err(|source| Error::system(format!("release {address}"), source))
}

fn locked(directory: &str) -> Result<File, Error> {
    let path = Path::new(directory).join("lock");
    let failed = |source| Error::system(format!("lock {}", path.display()), source);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    flock(&file, FlockOperation::LockExclusive)
        .map_err(|source| Error::system(format!("lock {}", path.display()), source))?;
    Ok(file)
}

//! Kernel parameters under `/proc/sys`, in the calling thread's network namespace.
//!
//! A parameter is named by its path, `net/ipv4/ip_forward`. A name with dots (`net.ipv4.ip_forward`) is read the way
//! `sysctl` reads it: dots become slashes, unless the name has a slash, in which case it is a path and its dots are
//! part of a link's name (`net/ipv6/conf/flannel.1/accept_ra`).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{Error, NetNs, Result};

/// The file of a parameter.
///
/// # Errors
/// When the name is empty or leads outside `/proc/sys`.
pub fn path(name: &str) -> Result<PathBuf> {
    let relative = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let path = Path::new("/proc/sys").join(&relative);
    if relative.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the name is no path below /proc/sys");
        return Err(Error::Sysctl { operation: "name".to_owned(), path, source });
    }
    Ok(path)
}

/// The parameter's value without surrounding white space; `None` if the kernel has no such parameter.
///
/// # Errors
/// When it exists but cannot be read.
pub fn read(name: &str) -> Result<Option<String>> {
    let path = path(name)?;
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Sysctl { operation: "read".to_owned(), path, source }),
    }
}

/// Sets the parameter.
///
/// # Errors
/// When there is no such parameter, the value is refused, or `/proc/sys` is mounted read-only.
pub fn write(name: &str, value: &str) -> Result<()> {
    let path = path(name)?;
    // Opened without O_CREAT: a parameter that is not there must say so.
    let written =
        fs::File::options().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|source| Error::Sysctl { operation: format!("write {value:?} to"), path, source })
}

/// [`read`] inside a namespace.
///
/// # Errors
/// As [`read`], or when the namespace cannot be entered.
pub fn read_in(netns: &NetNs, name: &str) -> Result<Option<String>> {
    netns.run(|| read(name))?
}

/// [`write()`] inside a namespace.
///
/// # Errors
/// As [`write()`], or when the namespace cannot be entered.
pub fn write_in(netns: &NetNs, name: &str, value: &str) -> Result<()> {
    netns.run(|| write(name, value))?
}

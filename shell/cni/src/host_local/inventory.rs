//! What is reserved on a node, for whoever looks at it from outside a pod's start.
//!
//! Looking takes no lock and makes nothing; freeing takes the lock and looks again, so that an address given out in between stays.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use loden_cni_protocol::host_local::Holder;

use super::store::{self, Store, StoreError};

/// One reservation's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The address, which is the file's name.
    pub address: IpAddr,
    /// Whose it is.
    pub holder: Holder,
    /// The file's content.
    pub content: Vec<u8>,
    /// When the file was written.
    pub modified: SystemTime,
}

/// The networks that have a directory of reservations below `data_dir`, in order.
///
/// # Errors
/// The directory is there and cannot be read.
pub fn networks(data_dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let entries = match fs::read_dir(data_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
            && loden_cni_protocol::env::validate_network_name(&name).is_ok()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// A network's reservations, by address.
///
/// # Errors
/// A file is there and cannot be read: the list is complete or it is an error.
pub fn reservations(data_dir: &Path, network: &str) -> Result<Vec<Reservation>, crate::Error> {
    let plain = |error: StoreError| crate::Error::from_chain(&error);
    let directory = data_dir.join(network);
    let Some(handle) = store::open_directory(&directory).map_err(plain)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (name, address) in store::names(&directory, &handle).map_err(plain)? {
        let path = directory.join(&name);
        let read = || -> io::Result<Option<Reservation>> {
            let Some(content) = store::read(&handle, &name)? else { return Ok(None) };
            let modified = match path.symlink_metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                other => other?.modified()?,
            };
            Ok(Some(Reservation { address, holder: Holder::of(&content), content, modified }))
        };
        let read = read().map_err(|error| {
            crate::Error::internal(format!("could not read the reservation {}: {error}", path.display()))
        })?;
        found.extend(read);
    }
    found.sort_by_key(|reservation| reservation.address);
    Ok(found)
}

/// Frees those of the network's reservations whose files still have the content they had; returns how many that were.
///
/// # Errors
/// A file could not be removed; the others are freed nevertheless.
pub fn free(data_dir: &Path, network: &str, reservations: &[Reservation]) -> Result<usize, crate::Error> {
    let plain = |error: StoreError| crate::Error::from_chain(&error);
    let Some(mut store) =
        Store::open_existing(data_dir.to_str().unwrap_or_default(), network).map_err(plain)?
    else {
        return Ok(0);
    };
    let mut freed = 0;
    let mut failures = Vec::new();
    for reservation in reservations {
        match store.free_one(reservation.address, &reservation.content) {
            Ok(done) => freed += usize::from(done),
            Err(error) => failures.push(plain(error)),
        }
    }
    let mut failures = failures.into_iter();
    failures.next().map_or(Ok(freed), |first| Err(first.and_also(failures)))
}

//! `host-local`: addresses out of ranges, reserved by files on this host.

mod index;
pub mod inventory;
mod store;

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use loden_cni_protocol::error::{Error, code};
use loden_cni_protocol::host_local::{HostLocalConfig, reservation};
use loden_cni_protocol::range::{Choice, RangeSet};
use loden_cni_protocol::result::Dns;
use loden_cni_protocol::{CniResult, IpConfig, ValidAttachments, version};

use crate::Plugin;
use crate::call::Call;
use store::{Store, StoreError};

pub(crate) const PLUGIN: Plugin =
    Plugin { name: "host-local", versions: &version::SUPPORTED, add, del, check, status, gc };

/// So many addresses in a row are tried before the directory is read instead.
const TRIES: usize = 64;
/// No name service's configuration is longer.
const RESOLV_CONF_MOST: u64 = 1 << 20;

fn add(call: &Call) -> Result<CniResult, Error> {
    let config = HostLocalConfig::parse(&call.config, &call.environment.args)?;
    let mut result = CniResult { routes: config.routes.clone(), ..CniResult::default() };
    if let Some(path) = &config.resolv_conf {
        result.dns = resolv_conf(path).map_err(|error| {
            // The reference plugins' words for the usual case.
            let cause = match error.kind() {
                std::io::ErrorKind::NotFound => format!("open {path}: no such file or directory"),
                _ => format!("read {path}: {error}"),
            };
            Error::internal(format!("cannot read the file that `resolvConf` names: {cause}"))
        })?;
    }
    let (assigned, unusable) = config.assign_requested();
    let environment = &call.environment;
    let mut attempt = Attempt {
        store: Store::open(&config.data_dir, &call.config.name).map_err(plain)?,
        call,
        content: reservation(&environment.container_id, &environment.ifname),
    };
    match attempt.allocate(&config, &assigned, &unusable) {
        Ok(choices) => {
            result.ips = choices
                .into_iter()
                .map(|choice| IpConfig {
                    interface: None,
                    address: choice.address,
                    gateway: Some(choice.gateway),
                })
                .collect();
            Ok(result)
        }
        Err(error) => {
            let failures = attempt.store.take_back().into_iter().map(|error| plain(error).message);
            Err(error.and_cleanup(&failures.collect::<Vec<_>>()))
        }
    }
}

fn plain(error: StoreError) -> Error {
    Error::from_chain(&error)
}

fn resolv_conf(path: &str) -> std::io::Result<Dns> {
    let mut text = Vec::new();
    File::open(path)?.take(RESOLV_CONF_MOST).read_to_end(&mut text)?;
    Ok(Dns::from_resolv_conf(&String::from_utf8_lossy(&text)))
}

/// One ADD under the lock.
struct Attempt<'a> {
    store: Store,
    call: &'a Call,
    /// What the reservations' files hold.
    content: String,
}

impl Attempt<'_> {
    fn allocate(
        &mut self,
        config: &HostLocalConfig,
        assigned: &[Option<IpAddr>],
        unusable: &[IpAddr],
    ) -> Result<Vec<Choice>, Error> {
        let mut choices = Vec::new();
        for (index, (set, requested)) in config.range_sets.iter().zip(assigned).enumerate() {
            let choice = self
                .allocate_from(index, set, *requested)
                .map_err(|cause| Error::internal(format!("failed to allocate for range {index}: {cause}")))?;
            choices.push(choice);
        }
        if !unusable.is_empty() {
            let list: Vec<String> = unusable.iter().map(ToString::to_string).collect();
            return Err(Error::internal(format!("failed to allocate all requested IPs: {}", list.join(" "))));
        }
        self.store.list(&self.content);
        Ok(choices)
    }

    fn allocate_from(
        &mut self,
        index: usize,
        set: &RangeSet,
        requested: Option<IpAddr>,
    ) -> Result<Choice, String> {
        let text = |error: StoreError| plain(error).message;
        let choice = match requested {
            Some(address) => {
                let choice = set.requested(address)?;
                self.take(address).map_err(text)?.then_some(choice)
            }
            None => {
                self.refuse_second(set)?;
                self.store.draft(&self.content).map_err(text)?;
                self.next_free(index, set).map_err(text)?
            }
        };
        let Some(choice) = choice else {
            self.store.discard_draft().map_err(text)?;
            return Err(match requested {
                Some(address) => {
                    format!("requested IP address {address} is not available in range set {set}")
                }
                None => format!("no IP addresses available in range set: {set}"),
            });
        };
        self.store.set_last_reserved(index, choice.address.addr()).map_err(text)?;
        Ok(choice)
    }

    /// An attachment has one address of a pool; a second ADD of the same is the runtime's mistake.
    fn refuse_second(&mut self, set: &RangeSet) -> Result<(), String> {
        let container_id = &self.call.environment.container_id;
        let ours = self
            .store
            .addresses(&[self.content.as_bytes(), container_id.as_bytes()])
            .map_err(|error| plain(error).message)?;
        match ours.iter().find(|address| set.contains(**address)) {
            Some(address) => Err(format!(
                "{address} has been allocated to {container_id}, duplicate allocation is not allowed"
            )),
            None => Ok(()),
        }
    }

    /// Reserves this address if nobody has it, and nothing that a crash left there.
    fn take(&mut self, address: IpAddr) -> Result<bool, StoreError> {
        self.store.draft(&self.content)?;
        if self.store.publish(address)? {
            return Ok(true);
        }
        self.store.read_all()?;
        self.store.draft(&self.content)?;
        self.store.publish(address)
    }

    /// Reserves the next free address after the one given out last. Trying is cheapest while few are taken in a row; past that, and before
    /// the pool is called exhausted, all files are read, which also frees what a crash left behind.
    fn next_free(&mut self, index: usize, set: &RangeSet) -> Result<Option<Choice>, StoreError> {
        let last = self.store.last_reserved(index);
        for has_read_all in [false, true] {
            if has_read_all {
                self.store.read_all()?;
                // What a killed ADD left is removed with the rest, so the draft has to be written again.
                self.store.draft(&self.content)?;
            }
            let mut tries = 0;
            for choice in set.candidates(last) {
                let address = choice.address.addr();
                if self.store.is_taken(address) {
                    continue;
                }
                if self.store.publish(address)? {
                    return Ok(Some(choice));
                }
                tries += 1;
                if tries >= TRIES && !has_read_all {
                    break;
                }
            }
        }
        Ok(None)
    }
}

fn del(call: &Call) -> Result<(), Error> {
    let config = HostLocalConfig::parse(&call.config, &call.environment.args)?;
    let environment = &call.environment;
    release(&config.data_dir, &call.config.name, &environment.container_id, &environment.ifname)
}

/// Frees what an attachment has of a network, or what an old file without a link's name says its container has.
pub(crate) fn release(data_dir: &str, network: &str, container_id: &str, ifname: &str) -> Result<(), Error> {
    let Some(mut store) = Store::open_existing(data_dir, network).map_err(plain)? else { return Ok(()) };
    let content = reservation(container_id, ifname);
    store.release(&[content.as_bytes(), container_id.as_bytes()]).map_err(plain)
}

fn check(call: &Call) -> Result<(), Error> {
    let config = HostLocalConfig::parse(&call.config, &call.environment.args)?;
    let environment = &call.environment;
    let content = reservation(&environment.container_id, &environment.ifname);
    let contents = [content.as_bytes(), environment.container_id.as_bytes()];
    let found = match Store::open_existing(&config.data_dir, &call.config.name).map_err(plain)? {
        Some(mut store) => !store.addresses(&contents).map_err(plain)?.is_empty(),
        None => false,
    };
    if found {
        return Ok(());
    }
    Err(Error::internal(format!(
        "host-local: Failed to find address added by container {}",
        environment.container_id
    )))
}

/// Ready while every pool has an address to give.
fn status(call: &Call) -> Result<(), Error> {
    let config = HostLocalConfig::parse(&call.config, &call.environment.args)?;
    let directory = Path::new(&config.data_dir).join(&call.config.name);
    let count = |set: &RangeSet, with_empty| -> Result<usize, Error> {
        let taken = store::taken(&directory, with_empty).map_err(plain)?;
        Ok(taken.iter().filter(|address| set.can_give(**address)).count())
    };
    for (index, set) in config.range_sets.iter().enumerate() {
        let capacity = set.capacity();
        let is_all = |used: usize| u128::try_from(used).is_ok_and(|used| used >= capacity);
        // Files that a crash left empty are as good as free.
        if is_all(count(set, true)?) && is_all(count(set, false)?) {
            return Err(Error::new(
                code::NOT_AVAILABLE,
                format!(
                    "host-local: network {} has no address left: all {capacity} of range set {index} ({set}) are reserved",
                    call.config.name
                ),
            )
            .with_details(
                "remove pods, give the network a larger range, or see whose the addresses are with `loden ipam list`",
            ));
        }
    }
    Ok(())
}

/// Frees every reservation of the network whose attachment is not valid, whatever the ranges are by now.
fn gc(call: &Call) -> Result<(), Error> {
    let valid = ValidAttachments::of(&call.config)?;
    let data_dir = HostLocalConfig::data_dir_of(&call.config)?;
    let Some(mut store) = Store::open_existing(&data_dir, &call.config.name).map_err(plain)? else {
        return Ok(());
    };
    let mut failures = store.collect(|holder| holder.is_spared_by(&valid)).into_iter().map(plain);
    failures.next().map_or(Ok(()), |first| Err(first.and_also(failures)))
}

//! `host-local`: addresses out of ranges, reserved by files on this host.

mod store;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use loden_cni_protocol::error::Error;
use loden_cni_protocol::host_local::{HostLocalConfig, reservation};
use loden_cni_protocol::range::{Choice, RangeSet};
use loden_cni_protocol::result::Dns;
use loden_cni_protocol::{CniResult, IpConfig, version};

use crate::Plugin;
use crate::call::Call;
use store::{Reservations, Store};

pub(crate) const PLUGIN: Plugin =
    Plugin { name: "host-local", versions: &version::SUPPORTED, add, del, check, status, gc: None };

fn add(call: &Call) -> Result<CniResult, Error> {
    let config = HostLocalConfig::parse(&call.config, &call.environment.args)?;
    let mut result = CniResult { routes: config.routes.clone(), ..CniResult::default() };
    if let Some(path) = &config.resolv_conf {
        let text = fs::read_to_string(path)
            .map_err(|error| Error::internal(format!("could not read `resolvConf` {path}: {error}")))?;
        result.dns = Dns::from_resolv_conf(&text);
    }
    let (assigned, unusable) = config.assign_requested();
    let store =
        Store::open(&config.data_dir, &call.config.name).map_err(|error| Error::from_chain(&error))?;
    let mut attempt = Attempt { store: &store, call, taken: Vec::new() };
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
        Err(error) => Err(error.and_cleanup(&attempt.give_back())),
    }
}

/// One ADD under the lock, with what it has reserved so far.
struct Attempt<'a> {
    store: &'a Store,
    call: &'a Call,
    taken: Vec<IpAddr>,
}

impl Attempt<'_> {
    fn allocate(
        &mut self,
        config: &HostLocalConfig,
        assigned: &[Option<IpAddr>],
        unusable: &[IpAddr],
    ) -> Result<Vec<Choice>, Error> {
        let environment = &self.call.environment;
        let scan = |address| config.range_sets.iter().any(|set| set.contains(address));
        let before = self
            .store
            .scan(&environment.container_id, &environment.ifname, scan)
            .map_err(|error| Error::from_chain(&error))?;
        let mut choices = Vec::new();
        for (index, (set, requested)) in config.range_sets.iter().zip(assigned).enumerate() {
            let choice = self
                .allocate_from(index, set, *requested, &before)
                .map_err(|cause| Error::internal(format!("failed to allocate for range {index}: {cause}")))?;
            choices.push(choice);
        }
        if !unusable.is_empty() {
            let list: Vec<String> = unusable.iter().map(ToString::to_string).collect();
            return Err(Error::internal(format!("failed to allocate all requested IPs: {}", list.join(" "))));
        }
        Ok(choices)
    }

    fn allocate_from(
        &mut self,
        index: usize,
        set: &RangeSet,
        requested: Option<IpAddr>,
        before: &Reservations,
    ) -> Result<Choice, String> {
        let text = |error: store::StoreError| Error::from_chain(&error).message;
        if let Some(address) = requested {
            let choice = set.requested(address)?;
            if before.taken.contains(&address) || !self.reserve(index, address).map_err(text)? {
                return Err(format!("requested IP address {address} is not available in range set {set}"));
            }
            return Ok(choice);
        }
        if let Some(address) = before.ours.iter().find(|address| set.contains(**address)) {
            return Err(format!(
                "{address} has been allocated to {}, duplicate allocation is not allowed",
                self.call.environment.container_id
            ));
        }
        let last = self.store.last_reserved(index);
        let mut taken: BTreeSet<IpAddr> = before.taken.clone();
        loop {
            let choice = set
                .next_free(last, &taken)
                .ok_or_else(|| format!("no IP addresses available in range set: {set}"))?;
            if self.reserve(index, choice.address.addr()).map_err(text)? {
                return Ok(choice);
            }
            // A file of this name that the scan could not see as an address of this range, such as a directory.
            taken.insert(choice.address.addr());
        }
    }

    fn reserve(&mut self, index: usize, address: IpAddr) -> Result<bool, store::StoreError> {
        let environment = &self.call.environment;
        let content = reservation(&environment.container_id, &environment.ifname);
        let reserved = self.store.reserve(address, &content)?;
        if reserved {
            self.taken.push(address);
            self.store.set_last_reserved(index, address)?;
        }
        Ok(reserved)
    }

    fn give_back(&self) -> Vec<String> {
        self.taken
            .iter()
            .filter_map(|address| self.store.remove(*address).err())
            .map(|error| Error::from_chain(&error).message)
            .collect()
    }
}

fn del(call: &Call) -> Result<(), Error> {
    let config = HostLocalConfig::parse(&call.config, &call.environment.args)?;
    let environment = &call.environment;
    let release = || -> Result<(), store::StoreError> {
        match Store::open_existing(&config.data_dir, &call.config.name)? {
            Some(store) => store.release(&environment.container_id, &environment.ifname),
            None => Ok(()),
        }
    };
    release().map_err(|error| Error::from_chain(&error))
}

fn check(call: &Call) -> Result<(), Error> {
    let config = HostLocalConfig::parse(&call.config, &call.environment.args)?;
    let environment = &call.environment;
    let find = || -> Result<bool, store::StoreError> {
        match Store::open_existing(&config.data_dir, &call.config.name)? {
            Some(store) => store.has(&environment.container_id, &environment.ifname),
            None => Ok(false),
        }
    };
    if find().map_err(|error| Error::from_chain(&error))? {
        return Ok(());
    }
    Err(Error::internal(format!(
        "host-local: Failed to find address added by container {}",
        environment.container_id
    )))
}

/// Ready when the configuration is usable. Being out of addresses is not reported here: runtimes take a failing STATUS as "the node has no
/// network" and would drain pods that run well.
fn status(call: &Call) -> Result<(), Error> {
    HostLocalConfig::parse(&call.config, &call.environment.args).map(|_| ())
}

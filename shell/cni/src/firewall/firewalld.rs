//! The firewalld backend: an address is a source of a zone, at run time only.
//!
//! The interface is `org.fedoraproject.FirewallD1.zone` of firewalld's D-Bus documentation. Errors carry a code at the beginning of their
//! message.

use std::net::IpAddr;

use ipnet::IpNet;
use loden_cni_protocol::error::Error;

use super::bus::{Bus, BusError};

const NAME: &str = "org.fedoraproject.FirewallD1";
const PATH: &str = "/org/fedoraproject/FirewallD1";
const INTERFACE: &str = "org.fedoraproject.FirewallD1.zone";

/// A firewalld that runs.
#[derive(Debug)]
pub(super) struct Firewalld {
    bus: Bus,
}

impl Firewalld {
    /// Connects to firewalld.
    pub(super) fn connect() -> Result<Self, Error> {
        let refused = |cause: &dyn std::fmt::Display| {
            Error::internal(format!(
                "cannot reach firewalld over the system bus: {cause}; start firewalld, or choose the backend \"iptables\""
            ))
        };
        let mut bus = Bus::system().map_err(|error| refused(&error))?;
        match bus.has_owner(NAME) {
            Ok(true) => Ok(Self { bus }),
            Ok(false) => Err(refused(&"it is not running")),
            Err(error) => Err(refused(&error)),
        }
    }

    /// firewalld, if it runs. A bus that does not answer has none.
    pub(super) fn connect_if_running() -> Option<Self> {
        let mut bus = Bus::system().ok()?;
        bus.has_owner(NAME).ok()?.then_some(Self { bus })
    }

    /// Makes each address a source of the zone. One that is already is fine.
    pub(super) fn add(&mut self, zone: &str, addresses: &[IpAddr]) -> Result<(), Error> {
        for source in sources(addresses) {
            match self.call("addSource", zone, &source) {
                Err(BusError::Answer { message, .. }) if message.starts_with("ZONE_ALREADY_SET") => {}
                Err(error) => {
                    return Err(Error::internal(format!(
                        "failed to add the address {source} to {zone} zone: {error}"
                    )));
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Takes the addresses out of the zone. One that is not in it is fine.
    pub(super) fn remove(&mut self, zone: &str, addresses: &[IpAddr]) -> Result<(), Error> {
        let mut outcome = Ok(());
        for source in sources(addresses) {
            match self.call("removeSource", zone, &source) {
                Err(BusError::Answer { message, .. })
                    if ["UNKNOWN_SOURCE", "INVALID_ZONE", "ZONE_CONFLICT"]
                        .iter()
                        .any(|code| message.starts_with(code)) => {}
                Err(error) => {
                    outcome = outcome.and(Err(Error::internal(format!(
                        "failed to remove the address {source} from {zone} zone: {error}"
                    ))));
                }
                Ok(_) => {}
            }
        }
        outcome
    }

    /// Whether each address is a source of the zone.
    pub(super) fn check(&mut self, zone: &str, addresses: &[IpAddr]) -> Result<(), Error> {
        for source in sources(addresses) {
            let missing = || Error::internal(format!("failed to find the address {source} in {zone} zone"));
            let answer = self.call("querySource", zone, &source);
            let answer = answer.map_err(|error| missing().with_details(error.to_string()))?;
            if !answer.bool().unwrap_or_default() {
                return Err(missing());
            }
        }
        Ok(())
    }

    fn call(&mut self, method: &str, zone: &str, source: &str) -> Result<super::bus::Answer, BusError> {
        self.bus.call(NAME, PATH, INTERFACE, method, &[zone, source])
    }
}

/// Each address with its whole length as prefix, as firewalld and the Go plugin write it.
fn sources(addresses: &[IpAddr]) -> impl Iterator<Item = String> {
    addresses.iter().map(|address| IpNet::from(*address).to_string())
}

//! `bridge`: a pair of links between the container and a bridge on the host, with addresses from an address plugin.
//!
//! Owns the pair, the container's addresses and routes, the bridge's gateway address and the container's masquerade rules. The bridge
//! itself is made on demand and never removed: other containers may be on it. Two conversations with the kernel do the work, one on the
//! host and one inside the container's namespace, which is entered once.

mod check;
mod container;
mod host;

use loden_cni_protocol::bridge::{BridgeConfig, format_mac};
use loden_cni_protocol::error::Error;
use loden_cni_protocol::{CniResult, Command, Interface, version};
use loden_netlink::{Link, NetNs, RouteSocket};

use crate::Plugin;
use crate::call::Call;
use crate::delegate::Delegate;
use crate::{masquerade, netns};

pub(crate) use check::check;

/// A refusal of the kernel as a plugin's error.
fn kernel(error: loden_netlink::Error) -> Error {
    Error::from_chain(&error)
}

fn mac_of(link: &Link) -> String {
    link.address.map(|mac| format_mac(&mac.0)).unwrap_or_default()
}

pub(crate) const PLUGIN: Plugin =
    Plugin { name: "bridge", versions: &version::SUPPORTED, add, del, check, status, gc: None };

fn add(call: &Call) -> Result<CniResult, Error> {
    let config = BridgeConfig::parse(&call.config, &call.environment.args)?;
    let mut attempt = Attempt {
        call,
        ipam: find_ipam(&config, call)?,
        sandbox: netns::open(&call.environment.netns)?,
        home: NetNs::current().map_err(kernel)?,
        host: RouteSocket::open().map_err(kernel)?,
        config,
        port: None,
        has_addresses: false,
        masquerades: false,
    };
    attempt.run().map_err(|error| error.and_cleanup(&attempt.undo()))
}

fn find_ipam(config: &BridgeConfig, call: &Call) -> Result<Option<Delegate>, Error> {
    config.ipam.as_deref().map(|kind| Delegate::find(kind, &call.environment.path)).transpose()
}

/// One ADD with what it has made so far.
#[derive(Debug)]
struct Attempt<'a> {
    call: &'a Call,
    config: BridgeConfig,
    ipam: Option<Delegate>,
    sandbox: NetNs,
    home: NetNs,
    host: RouteSocket,
    /// Index of the host's end of the pair; deleting it deletes both ends.
    port: Option<u32>,
    has_addresses: bool,
    masquerades: bool,
}

impl Attempt<'_> {
    fn run(&mut self) -> Result<CniResult, Error> {
        let bridge = host::bridge(&mut self.host, &self.config)?;
        let sandbox = self.sandbox.clone();
        let (pair, mut result) = sandbox.run(|| self.inside(&bridge)).map_err(kernel)??;
        host::quieten(&[&bridge.name, &pair.port_name]);
        let gateways = self.config.gateway_addresses(&result);
        if !gateways.is_empty() {
            host::give_addresses(&mut self.host, &bridge, &gateways, self.config.force_address)?;
            host::forward(&gateways)?;
        }
        if self.config.masquerade && !result.ips.is_empty() {
            self.masquerades = true;
            let environment = &self.call.environment;
            let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address).collect();
            masquerade::add(
                self.config.masquerade_backend,
                &self.call.config.name,
                &environment.ifname,
                &environment.container_id,
                &addresses,
            )?;
        }
        let port = if self.config.link_disabled {
            host::look_up(&mut self.host, pair.port_index, &pair.port_name)?
        } else {
            host::wait_until_up(&mut self.host, pair.port_index, &pair.port_name)?
        };
        let bridge = host::look_up(&mut self.host, bridge.index, &bridge.name)?;
        result.interfaces = vec![
            Interface { name: bridge.name.clone(), mac: mac_of(&bridge), ..Interface::default() },
            Interface { name: port.name.clone(), mac: mac_of(&port), ..Interface::default() },
            Interface {
                name: pair.near.name.clone(),
                mac: mac_of(&pair.near),
                sandbox: self.call.environment.netns.clone(),
                ..Interface::default()
            },
        ];
        if !self.config.dns.is_empty() {
            result.dns = self.config.dns.clone();
        }
        Ok(result)
    }

    /// The part that runs in the container's namespace; the host's socket keeps talking to the host.
    fn inside(&mut self, bridge: &Link) -> Result<(container::Pair, CniResult), Error> {
        let mut inside = RouteSocket::open().map_err(kernel)?;
        let pair = container::create(&mut inside, &self.config, &self.call.environment.ifname, &self.home)?;
        self.port = Some(pair.port_index);
        host::enslave(&mut self.host, pair.port_index, bridge, &self.config)?;
        let mut result = CniResult::default();
        if let Some(ipam) = &self.ipam {
            result = ipam.run(&self.call.with_command(Command::Add), &self.home)?.unwrap_or_default();
            self.has_addresses = true;
            if result.ips.is_empty() {
                return Err(Error::internal("IPAM plugin returned missing IP config"));
            }
            self.config.complete(&mut result);
            container::configure(&mut inside, &pair.near, &self.config, &result)?;
        } else if !self.config.link_disabled {
            container::bring_up(&mut inside, &pair.near)?;
        }
        Ok((pair, result))
    }

    /// Takes back what a failed ADD made; says what could not be taken back.
    fn undo(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        if let Some(port) = self.port
            && let Err(error) = self.host.delete_link(port)
            && !error.is_not_found()
        {
            failures.push(kernel(error).to_string());
        }
        if self.has_addresses
            && let Some(ipam) = &self.ipam
            && let Err(error) = ipam.run(&self.call.with_command(Command::Del), &self.home)
        {
            failures.push(error.to_string());
        }
        if self.masquerades
            && let Err(error) = remove_masquerade(self.call)
        {
            failures.push(error.to_string());
        }
        failures
    }
}

fn remove_masquerade(call: &Call) -> Result<(), Error> {
    let environment = &call.environment;
    masquerade::remove(&call.config.name, &environment.ifname, &environment.container_id)
}

/// Takes every step even if one fails, so that one broken part does not keep the others; reports the first failure.
fn del(call: &Call) -> Result<(), Error> {
    let config = BridgeConfig::parse_for_removal(&call.config, &call.environment.args)?;
    let ipam = find_ipam(&config, call)?;
    let home = NetNs::current().map_err(kernel)?;
    let link = delete_link(call);
    let addresses = match &ipam {
        Some(ipam) => ipam.run(call, &home).map(|_| ()),
        None => Ok(()),
    };
    let rules = if config.masquerade { remove_masquerade(call) } else { Ok(()) };
    link.and(addresses).and(rules)
}

fn delete_link(call: &Call) -> Result<(), Error> {
    let environment = &call.environment;
    let Some(sandbox) = netns::open_if_present(&environment.netns)? else { return Ok(()) };
    let mut inside = RouteSocket::open_in(&sandbox).map_err(kernel)?;
    let Some(link) = inside.link_by_name(&environment.ifname).map_err(kernel)? else { return Ok(()) };
    match inside.delete_link(link.index) {
        Err(error) if !error.is_not_found() => Err(kernel(error)),
        _ => Ok(()),
    }
}

/// Ready when the configuration is usable and the address plugin is ready.
fn status(call: &Call) -> Result<(), Error> {
    let config = BridgeConfig::parse(&call.config, &call.environment.args)?;
    if let Some(ipam) = find_ipam(&config, call)? {
        ipam.run(call, &NetNs::current().map_err(kernel)?)?;
    }
    Ok(())
}

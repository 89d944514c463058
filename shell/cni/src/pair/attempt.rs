//! One ADD or DEL of a plugin with a pair: what an ADD has made so far and how it is taken back, and what every DEL takes away.

use loden_cni_protocol::error::Error;
use loden_cni_protocol::link::ContainerLink;
use loden_cni_protocol::masquerade::Stale;
use loden_cni_protocol::{CniResult, Command, Interface, ValidAttachments};
use loden_netlink::{Link, NetNs, RouteSocket};

use super::{collect, delete, kernel, mac_of, marks, remove};
use crate::call::Call;
use crate::delegate::Delegate;
use crate::{masquerade, netns, spoof};

/// One ADD with what it has made so far.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) call: &'a Call,
    pub(crate) ipam: Option<Delegate>,
    pub(crate) sandbox: NetNs,
    pub(crate) home: NetNs,
    /// Talks to the host, wherever it is used.
    pub(crate) host: RouteSocket,
    /// Index of the host's end of the pair; deleting it deletes both ends.
    pub(crate) port: Option<u32>,
    pub(crate) has_filter: bool,
    has_addresses: bool,
    masquerades: bool,
}

impl<'a> Attempt<'a> {
    /// An ADD that has made nothing yet.
    pub(crate) fn new(call: &'a Call, ipam: Option<Delegate>) -> Result<Self, Error> {
        Ok(Self {
            call,
            ipam,
            sandbox: netns::open(&call.environment.netns)?,
            home: NetNs::current().map_err(kernel)?,
            host: RouteSocket::open().map_err(kernel)?,
            port: None,
            has_filter: false,
            has_addresses: false,
            masquerades: false,
        })
    }

    /// Gets the container's addresses from the address plugin; `None` when there is none to ask.
    pub(crate) fn addresses(&mut self) -> Result<Option<CniResult>, Error> {
        let Some(ipam) = &self.ipam else { return Ok(None) };
        let result = ipam.run(&self.call.with_command(Command::Add), &self.home)?.unwrap_or_default();
        self.has_addresses = true;
        if result.ips.is_empty() {
            return Err(Error::internal("IPAM plugin returned missing IP config"));
        }
        Ok(Some(result))
    }

    /// Makes what the container sends to other networks leave with the node's address, if the configuration says so.
    pub(crate) fn masquerade(&mut self, link: &ContainerLink, result: &CniResult) -> Result<(), Error> {
        if !link.masquerade || result.ips.is_empty() {
            return Ok(());
        }
        self.masquerades = true;
        let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address).collect();
        let environment = &self.call.environment;
        masquerade::add(
            link.masquerade_backend,
            &self.call.config.name,
            &environment.ifname,
            &environment.container_id,
            &addresses,
        )
    }

    /// Takes back what a failed ADD made; says what could not be taken back.
    pub(crate) fn undo(&mut self) -> Vec<String> {
        let mut outcomes = Vec::new();
        if let Some(port) = self.port {
            outcomes.push(delete(&mut self.host, port));
        }
        if self.has_addresses {
            outcomes.push(ask(self.ipam.as_ref(), &self.call.with_command(Command::Del)));
        }
        if self.has_filter {
            outcomes.push(spoof::remove(&marks(self.call)));
        }
        if self.masquerades {
            outcomes.push(unmasquerade(self.call));
        }
        outcomes.into_iter().filter_map(|outcome| outcome.err().map(|error| error.to_string())).collect()
    }
}

/// Runs the call's own command by the address plugin, if there is one.
pub(crate) fn ask(ipam: Option<&Delegate>, call: &Call) -> Result<(), Error> {
    let Some(ipam) = ipam else { return Ok(()) };
    ipam.run(call, &NetNs::current().map_err(kernel)?).map(|_| ())
}

/// DEL. Takes every step even if one fails, so that one broken part does not keep the others; reports the first failure.
pub(crate) fn detach(call: &Call, ipam: Option<&Delegate>, masquerades: bool) -> Result<(), Error> {
    let link = remove(call);
    let addresses = ask(ipam, call);
    let rules = if masquerades { unmasquerade(call) } else { Ok(()) };
    link.and(addresses).and(rules)
}

/// GC. Takes away what is left of this network's attachments that the runtime no longer knows, then lets the address plugin do the same.
/// Every step is taken; all failures are told.
pub(crate) fn sweep(call: &Call, ipam: Result<Option<Delegate>, Error>) -> Result<(), Error> {
    let valid = ValidAttachments::of(&call.config)?;
    let network = &call.config.name;
    let stale = Stale::of(network, &valid);
    let outcomes = [
        collect(&stale),
        masquerade::gc(network, &valid),
        spoof::collect(&stale),
        ipam.and_then(|ipam| ask(ipam.as_ref(), call)),
    ];
    let mut failures = outcomes.into_iter().filter_map(Result::err);
    let Some(first) = failures.next() else { return Ok(()) };
    let rest: Vec<String> = failures.map(|error| error.to_string()).collect();
    Err(if rest.is_empty() { first } else { first.with_details(rest.join("; ")) })
}

fn unmasquerade(call: &Call) -> Result<(), Error> {
    let environment = &call.environment;
    masquerade::remove(&call.config.name, &environment.ifname, &environment.container_id)
}

/// A link of the host as results say it.
pub(crate) fn on_host(link: &Link) -> Interface {
    Interface { name: link.name.clone(), mac: mac_of(link), ..Interface::default() }
}

/// A link of the container as results say it.
pub(crate) fn in_container(call: &Call, link: &Link) -> Interface {
    Interface { sandbox: call.environment.netns.clone(), ..on_host(link) }
}

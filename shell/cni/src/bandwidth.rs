//! `bandwidth`: limits what a container receives and sends, on the host's end of its pair.
//!
//! Owns the disciplines on that end, which go with it, and the `ifb` link that shapes what the container sends, which does not. That link
//! is found by its name, computed from network and container; its alias says that it is ours and of which network, which a name alone
//! cannot, so that GC spares those of other networks. Links of the Go plugin have no alias; GC leaves them to their containers' DEL.

use std::collections::BTreeSet;

use loden_cni_protocol::bandwidth::{self, Bucket, Limit, Limits, ifb_mark, ifb_name};
use loden_cni_protocol::error::Error;
use loden_cni_protocol::{CniResult, Interface, ValidAttachments};
use loden_netlink::{
    Change, Link, LinkKind, NewLink, NewLinkKind, Qdisc, QdiscKind, RouteSocket, TokenBucket,
};

use crate::Plugin;
use crate::call::Call;
use crate::netns;

pub(crate) const IFB: &str = "ifb";

/// Every version whose results have interfaces.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

pub(crate) const PLUGIN: Plugin =
    Plugin { name: "bandwidth", versions: &VERSIONS, add, del, check, status, gc };

fn kernel(error: loden_netlink::Error) -> Error {
    Error::from_chain(&error)
}

fn add(call: &Call) -> Result<CniResult, Error> {
    let limits = Limits::parse(&call.config)?;
    let mut result =
        call.config.previous()?.ok_or_else(|| Error::internal("must be called as chained plugin"))?;
    if limits.is_unlimited() {
        return Ok(result);
    }
    let mut host = RouteSocket::open().map_err(kernel)?;
    let port = host_link(&mut host, call, &result)?;
    let mut attempt = Attempt { host, ifb: None, made: Vec::new() };
    let shaped = attempt.run(call, &limits, &port);
    let ifb = shaped.map_err(|error| error.and_cleanup(&attempt.undo()))?;
    result.interfaces.extend(ifb.map(|ifb| Interface {
        name: ifb.name,
        mac: ifb.address.map(|mac| mac.to_string()).unwrap_or_default(),
        ..Interface::default()
    }));
    Ok(result)
}

/// The host's end of the container's pair; the plugin before this one must have listed it.
fn host_link(host: &mut RouteSocket, call: &Call, previous: &CniResult) -> Result<Link, Error> {
    if previous.interfaces.is_empty() {
        return Err(Error::internal("no interfaces provided"));
    }
    let ifname = &call.environment.ifname;
    let sandbox = netns::open(&call.environment.netns)?;
    let mut inside = RouteSocket::open_in(&sandbox).map_err(kernel)?;
    let no_peer =
        |cause: &str| Error::internal(format!("container interface {ifname} has no veth peer: {cause}"));
    let near =
        inside.link_by_name(ifname).map_err(kernel)?.ok_or_else(|| no_peer("there is no such link"))?;
    if near.kind != LinkKind::Veth {
        return Err(no_peer("it is not a veth"));
    }
    let index = near.lower.ok_or_else(|| no_peer("the kernel names none"))?;
    let port = host
        .link_by_index(index)
        .map_err(kernel)?
        .ok_or_else(|| Error::internal(format!("veth peer with index {index} is not in host ns")))?;
    let listed = previous
        .interfaces
        .iter()
        .any(|interface| interface.sandbox.is_empty() && interface.name == port.name);
    // Another link of the host may have the number that the peer has in a third namespace.
    if listed && port.kind == LinkKind::Veth && port.lower == Some(near.index) {
        return Ok(port);
    }
    Err(Error::internal("no veth peer of container interface found in host ns"))
}

fn token_bucket(limit: Limit) -> TokenBucket {
    let Bucket { rate, limit, buffer } = limit.bucket();
    TokenBucket { rate, limit, buffer }
}

/// One ADD with what it has made so far.
#[derive(Debug)]
struct Attempt {
    host: RouteSocket,
    ifb: Option<Link>,
    made: Vec<Qdisc>,
}

impl Attempt {
    /// Shapes; gives the link that shapes what the container sends, if there is one.
    fn run(&mut self, call: &Call, limits: &Limits, port: &Link) -> Result<Option<Link>, Error> {
        let mut wanted = Vec::new();
        if let Some(limit) = limits.ingress {
            wanted.push(("create qdisc", Qdisc::token_bucket(port.index, token_bucket(limit))));
        }
        if let Some(limit) = limits.egress {
            let network = &call.config.name;
            let new = NewLink {
                mtu: Some(port.mtu),
                up: true,
                alias: Some(ifb_mark(network)),
                ..NewLink::new(
                    ifb_name(network, &call.environment.container_id),
                    NewLinkKind::Other(IFB.to_owned()),
                )
            };
            let ifb = self
                .host
                .create_link(&new)
                .map_err(|error| Error::internal(format!("adding link: {}", kernel(error))))?;
            wanted.push(("create ifb qdisc", Qdisc::token_bucket(ifb.index, token_bucket(limit))));
            wanted.push(("create ingress qdisc", Qdisc::ingress(port.index)));
            self.ifb = Some(ifb);
        }
        self.make(wanted)?;
        // Only now: where the ingress discipline is somebody else's, his filters are none of our business.
        if let Some(ifb) = &self.ifb {
            self.host
                .apply(&Change::Redirect { from: port.index, to: ifb.index })
                .map_err(|error| Error::internal(format!("add filter: {}", kernel(error))))?;
        }
        Ok(self.ifb.clone())
    }

    /// Makes the disciplines in one round trip; the first refusal counts, and what was made is known.
    fn make(&mut self, wanted: Vec<(&str, Qdisc)>) -> Result<(), Error> {
        let changes: Vec<Change> = wanted.iter().map(|(_, qdisc)| Change::AddQdisc(qdisc.clone())).collect();
        let mut first = Ok(());
        for ((what, qdisc), outcome) in
            wanted.into_iter().zip(self.host.apply_each(&changes).map_err(kernel)?)
        {
            match outcome {
                Ok(()) => self.made.push(qdisc),
                Err(error) if first.is_ok() => {
                    first = Err(Error::internal(format!("{what}: {}", kernel(error))));
                }
                Err(_) => {}
            }
        }
        first
    }

    /// Takes back what a failed ADD made; says what could not be taken back.
    fn undo(&mut self) -> Vec<String> {
        let ifb = self.ifb.as_ref().map(|ifb| ifb.index);
        // What is on the ifb goes with it.
        let mut changes: Vec<Change> = self
            .made
            .drain(..)
            .rev()
            .filter(|qdisc| Some(qdisc.link) != ifb)
            .map(Change::DeleteQdisc)
            .collect();
        changes.extend(self.ifb.take().map(|ifb| Change::DeleteLink { index: ifb.index, name: ifb.name }));
        match self.host.apply_each(&changes) {
            Ok(outcomes) => outcomes
                .into_iter()
                .filter_map(Result::err)
                .filter(|error| !error.is_not_found())
                .map(|error| kernel(error).to_string())
                .collect(),
            Err(error) => vec![kernel(error).to_string()],
        }
    }
}

/// Needs nothing but network and container, so that no broken configuration or result keeps the link. What is on the container's pair goes
/// with the pair.
fn del(call: &Call) -> Result<(), Error> {
    let name = ifb_name(&call.config.name, &call.environment.container_id);
    let mut host = RouteSocket::open().map_err(kernel)?;
    match host.link_by_name(&name).map_err(kernel)? {
        Some(link) if link.kind == LinkKind::Other(IFB.to_owned()) => delete(&mut host, &link),
        _ => Ok(()),
    }
}

pub(crate) fn delete(host: &mut RouteSocket, link: &Link) -> Result<(), Error> {
    match host.apply(&Change::DeleteLink { index: link.index, name: link.name.clone() }) {
        Err(error) if !error.is_not_found() => Err(kernel(error)),
        _ => Ok(()),
    }
}

fn check(call: &Call) -> Result<(), Error> {
    let limits = Limits::parse(&call.config)?;
    let previous =
        call.config.previous()?.ok_or_else(|| Error::internal("must be called as a chained plugin"))?;
    if limits.is_unlimited() {
        return Ok(());
    }
    let mut host = RouteSocket::open().map_err(kernel)?;
    let port = host_link(&mut host, call, &previous)?;
    let on_port = host.qdiscs(port.index).map_err(kernel)?;
    if let Some(limit) = limits.ingress {
        check_bucket(limit, &on_port)?;
    }
    if let Some(limit) = limits.egress {
        let name = ifb_name(&call.config.name, &call.environment.container_id);
        let ifb = host.link_by_name(&name).map_err(kernel)?;
        let ifb = ifb.ok_or_else(|| Error::internal(format!("get ifb device: Link {name} not found")))?;
        check_bucket(limit, &host.qdiscs(ifb.index).map_err(kernel)?)?;
        if !on_port.iter().any(|qdisc| qdisc.kind == QdiscKind::Ingress) {
            return Err(Error::internal(
                "Failed to find qdisc ingress, so what the container sends is not limited",
            ));
        }
    }
    Ok(())
}

fn check_bucket(limit: Limit, present: &[Qdisc]) -> Result<(), Error> {
    let bucket = present.iter().find_map(|qdisc| match &qdisc.kind {
        QdiscKind::TokenBucket(TokenBucket { rate, limit, buffer }) => {
            Some(Bucket { rate: *rate, limit: *limit, buffer: *buffer })
        }
        _ => None,
    });
    limit.check(bucket.ok_or_else(|| Error::internal("Failed to find qdisc"))?)
}

/// Ready when the configuration is one that ADD would take.
fn status(call: &Call) -> Result<(), Error> {
    Limits::parse(&call.config).map(|_| ())
}

/// Removes this network's shaping links of containers that are not attached any more; goes on after a failure.
fn gc(call: &Call) -> Result<(), Error> {
    let valid = ValidAttachments::of(&call.config)?;
    let network = &call.config.name;
    let kept: BTreeSet<String> =
        valid.iter().map(|attachment| ifb_name(network, &attachment.container_id)).collect();
    let mark = ifb_mark(network);
    let mut host = RouteSocket::open().map_err(kernel)?;
    let mut failures = Vec::new();
    for link in host.links().map_err(kernel)? {
        let ours = link.kind == LinkKind::Other(IFB.to_owned())
            && link.name.starts_with(bandwidth::IFB_PREFIX)
            && link.alias.as_deref() == Some(mark.as_str());
        if ours && !kept.contains(&link.name) {
            failures.extend(delete(&mut host, &link).err().map(|error| error.to_string()));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Error::internal(failures.join("; "))) }
}

//! The filter that lets a container send only from its own hardware address, natively in the table that the Go plugins write with `nft`.
//!
//! Owns the chains and rules of single containers; the table and its base chain are shared with ebtables and stay.

use loden_cni_protocol::error::Error;
use loden_cni_protocol::link::MacAddress;
use loden_cni_protocol::mark::Marks;
use loden_cni_protocol::masquerade::Stale;
use loden_cni_protocol::spoof::{CHAIN_PREFIX, PREROUTING, SpoofCheck, table};
use loden_firewall::{Change, Listed};
use loden_netlink::nft::NftSocket;

/// How often an edit is begun again because something it names was deleted meanwhile.
const ATTEMPTS: u32 = 8;

fn failed(verb: &str, error: loden_netlink::Error) -> Error {
    Error::internal(format!("could not {verb} the spoof check: {}", Error::from_chain(&error).message))
}

/// Lets only frames from `mac` in by the port.
pub(crate) fn add(
    socket: &mut NftSocket,
    marks: &Marks<'_>,
    port: &str,
    mac: MacAddress,
) -> Result<(), Error> {
    let check = SpoofCheck::of(marks.container_id, marks.ifname);
    edit(socket, "add", |socket| {
        // A base chain that is there keeps its policy: it may be an administrator's.
        let mut changes =
            if socket.has_chain(&table(), PREROUTING)? { Vec::new() } else { SpoofCheck::base() };
        changes.extend(check.additions(port, mac, marks));
        Ok(changes)
    })
}

/// Takes the attachment's filter away. Nothing to take away is fine.
pub(crate) fn remove(marks: &Marks<'_>) -> Result<(), Error> {
    let check = SpoofCheck::of(marks.container_id, marks.ifname);
    let Some(mut socket) = nf_tables()? else { return Ok(()) };
    edit(&mut socket, "remove", |socket| {
        // The table may hold every container of the node; it is read only if there is something to remove.
        let is_there =
            socket.has_chain(&table(), &check.chain)? || socket.has_chain(&table(), &check.mac_chain)?;
        let listed = if is_there { socket.table(&table())? } else { None };
        Ok(listed.map(|listed| check.removals(&listed)).unwrap_or_default())
    })
}

/// What the containers' chains are called, without what all begin with, and what their comments say, of those that have one.
pub(crate) fn comments() -> Result<Vec<(String, String)>, Error> {
    let Some(mut socket) = nf_tables()? else { return Ok(Vec::new()) };
    let listed = socket.table(&table()).map_err(|error| failed("look for", error))?;
    let chains = listed.map(|listed| listed.table.chains).unwrap_or_default();
    let ours = chains
        .into_iter()
        .filter_map(|(name, chain)| Some((name.strip_prefix(CHAIN_PREFIX)?.to_owned(), chain.comment?)));
    Ok(ours.collect())
}

/// GC: takes away the filters of this network's attachments that need not stay.
pub(crate) fn collect(stale: &Stale) -> Result<(), Error> {
    let Some(mut socket) = nf_tables()? else { return Ok(()) };
    edit(&mut socket, "remove", |socket| {
        let leftovers = |listed: Listed| SpoofCheck::leftovers(&listed, stale);
        Ok(socket.table(&table())?.map(leftovers).unwrap_or_default())
    })
}

/// A socket, where the kernel has nf_tables; elsewhere there is nothing to remove.
fn nf_tables() -> Result<Option<NftSocket>, Error> {
    let mut socket = NftSocket::open().map_err(|error| failed("remove", error))?;
    let is_supported = socket.is_supported().map_err(|error| failed("remove", error))?;
    Ok(is_supported.then_some(socket))
}

fn edit(
    socket: &mut NftSocket,
    verb: &str,
    plan: impl Fn(&mut NftSocket) -> loden_netlink::Result<Vec<Change>>,
) -> Result<(), Error> {
    let mut attempt = 1;
    loop {
        let changes = plan(socket).map_err(|error| failed(verb, error))?;
        match socket.apply(&changes) {
            Err(error) if error.is_not_found() && attempt < ATTEMPTS => attempt += 1,
            outcome => return outcome.map_err(|error| failed(verb, error)),
        }
    }
}

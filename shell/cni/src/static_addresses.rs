//! `static`: gives a container the addresses that its configuration names, and keeps nothing.

use loden_cni_protocol::error::Error;
use loden_cni_protocol::static_addresses::StaticConfig;
use loden_cni_protocol::{CniResult, version};

use crate::Plugin;
use crate::call::Call;

pub(crate) const PLUGIN: Plugin = Plugin {
    name: "static",
    versions: &version::SUPPORTED,
    add,
    // Nothing was kept, so not even a configuration that no ADD would take is in the way.
    del: |_| Ok(()),
    check,
    status: |_| Ok(()),
    gc: |_| Ok(()),
};

fn parse(call: &Call) -> Result<StaticConfig, Error> {
    StaticConfig::parse(&call.config, &call.environment.args)
}

fn add(call: &Call) -> Result<CniResult, Error> {
    Ok(parse(call)?.result())
}

fn check(call: &Call) -> Result<(), Error> {
    let config = parse(call)?;
    let previous = call.config.previous()?.ok_or_else(|| Error::internal("Required prevResult missing"))?;
    match config.mismatch(&previous) {
        None => Ok(()),
        Some(address) => Err(Error::internal(format!(
            "static: Failed to match addr {address} on interface {}",
            call.environment.ifname
        ))),
    }
}

//! Standard input and environment, by way of every plugin's own reading of them.

use loden_cni_protocol::args::Args;
use loden_cni_protocol::bridge::BridgeConfig;
use loden_cni_protocol::flannel::{FlannelConfig, delegate_of_kept};
use loden_cni_protocol::host_local::HostLocalConfig;
use loden_cni_protocol::{CniResult, Config, Environment, Error, Json, ValidAttachments, version};
use loden_lease::SubnetEnv;

use crate::case::Case;
use crate::{Verdict, promise};

/// Reads a [`Case`] as every plugin would.
///
/// Promised: what was accepted names files that lie where they should, results and errors survive being printed and read back, and a
/// configuration that is handed on can be read by whoever gets it.
///
/// # Errors
/// What was promised and does not hold.
pub fn configuration(data: &[u8]) -> Verdict {
    let case = Case::parse(data);
    let mut refusals = Vec::new();
    match Environment::read(|name| case.variable(name).to_owned()) {
        Ok(environment) => names_are_file_names(&environment)?,
        Err(error) => refusals.push(error),
    }
    let arguments = case.variable("CNI_ARGS");
    refusals.extend(Args::parse(arguments, &["IP", "MAC"]).err());
    match Config::parse(&case.stdin) {
        Err(error) => refusals.push(error),
        Ok(config) => {
            promise(is_file_name(&config.name), || format!("network {:?} is no file name", config.name))?;
            refusals.extend(BridgeConfig::parse(&config, arguments).err());
            refusals.extend(BridgeConfig::parse_for_removal(&config, arguments).err());
            refusals.extend(HostLocalConfig::data_dir_of(&config).err());
            refusals.extend(host_local(&config, arguments)?);
            refusals.extend(flannel(&config)?);
            refusals.extend(previous(&config)?);
            match ValidAttachments::of(&config) {
                Ok(valid) => {
                    for attachment in valid.iter() {
                        promise(is_file_name(&attachment.container_id), || format!("{attachment:?}"))?;
                        promise(is_file_name(&attachment.ifname), || format!("{attachment:?}"))?;
                    }
                }
                Err(error) => refusals.push(error),
            }
        }
    }
    refusals.iter().try_for_each(can_be_told)
}

/// Whether a directory joined with the name is a file in that directory.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

fn names_are_file_names(environment: &Environment) -> Verdict {
    use loden_cni_protocol::Command::{Add, Check, Del};
    if matches!(environment.command, Ok(Add | Check | Del)) {
        for name in [&environment.container_id, &environment.ifname] {
            promise(is_file_name(name), || format!("{name:?} was accepted and is no file name"))?;
        }
    }
    Ok(())
}

fn can_be_told(error: &Error) -> Verdict {
    let told = error.render();
    promise(Error::parse(told.as_bytes()).as_ref() == Some(error), || {
        format!("{error:?} is printed as {told}, which reads differently")
    })
}

fn host_local(config: &Config, arguments: &str) -> Result<Option<Error>, String> {
    let parsed = match HostLocalConfig::parse(config, arguments) {
        Ok(parsed) => parsed,
        Err(error) => return Ok(Some(error)),
    };
    let _ = parsed.assign_requested();
    for set in &parsed.range_sets {
        for choice in set.candidates(None).take(4) {
            let address = choice.address.addr();
            promise(set.contains(address) && set.can_give(address), || format!("{address} is not in {set}"))?;
            promise(choice.gateway != address, || format!("{address} is the gateway's"))?;
        }
    }
    Ok(None)
}

fn flannel(config: &Config) -> Result<Option<Error>, String> {
    let env = SubnetEnv {
        networks: ["10.244.0.0/16", "fd00::/48"].iter().filter_map(|net| net.parse().ok()).collect(),
        subnets: ["10.244.1.1/24", "fd00:0:0:1::1/64"].iter().filter_map(|net| net.parse().ok()).collect(),
        mtu: 1450,
        ip_masq: true,
    };
    let delegate = match FlannelConfig::parse(config).and_then(|parsed| parsed.delegate(&env)) {
        Ok(delegate) => delegate,
        Err(error) => return Ok(Some(error)),
    };
    let kind = delegate_of_kept(delegate.text.as_bytes());
    promise(kind.as_ref() == Some(&delegate.kind), || format!("{:?} was kept as {kind:?}", delegate.kind))?;
    let handed_on = Config::parse(delegate.text.as_bytes())
        .map_err(|error| format!("the delegate cannot read {}: {error}", delegate.text))?;
    promise(handed_on.name == config.name, || format!("the delegate's network is {:?}", handed_on.name))?;
    Ok(None)
}

/// The result of the plugin before: printed in its own version it reads the same.
fn previous(config: &Config) -> Result<Option<Error>, String> {
    let result = match config.previous() {
        Ok(Some(result)) => result,
        Ok(None) => return Ok(None),
        Err(error) => return Ok(Some(error)),
    };
    let version = &config.version;
    if !version::SUPPORTED.contains(&version.as_str()) {
        return Ok(None);
    }
    let printed = match result.render(version) {
        Ok(printed) => printed,
        Err(error) => return Ok(Some(error)),
    };
    let json = Json::parse(printed.as_bytes()).map_err(|error| format!("{printed} is no JSON: {error}"))?;
    let again = CniResult::parse(&json, version).map_err(|error| format!("{printed}: {error}"))?;
    let twice = again.render(version).map_err(|error| format!("{printed}: {error}"))?;
    promise(twice == printed, || format!("{printed} became {twice}"))?;
    Ok(None)
}

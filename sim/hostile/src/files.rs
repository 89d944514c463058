//! Files that somebody else may have written, or half written.

use loden_cni_protocol::flannel::delegate_of_kept;
use loden_cni_protocol::host_local::{Holder, index_name, reservation};
use loden_cni_protocol::result::Dns;
use loden_cni_protocol::{Config, Json, ValidAttachments};
use loden_lease::{SubnetEnv, gateway_mark, parse_gateway_mark};

use crate::{Verdict, promise};

/// Reads the bytes as each file that a plugin reads.
///
/// Promised: a subnet file that is accepted has a usable subnet; what is written back reads the same; nobody's reservation belongs to
/// somebody.
///
/// # Errors
/// What was promised and does not hold.
pub fn files(data: &[u8]) -> Verdict {
    let text = String::from_utf8_lossy(data);
    subnet_env(&text)?;
    let dns = Dns::from_resolv_conf(&text);
    promise(dns.nameservers.iter().all(|server| !server.is_empty()), || format!("{dns:?}"))?;
    if let Some(gateways) = parse_gateway_mark(&text) {
        let mark = gateway_mark(&gateways);
        promise(parse_gateway_mark(&mark).as_ref() == Some(&gateways), || {
            format!("{gateways:?} is marked as {mark:?}, which reads differently")
        })?;
    }
    if delegate_of_kept(data).is_some() {
        promise(Json::parse(data).is_ok(), || "a delegate was read from what is no JSON".to_owned())?;
        let _ = Config::parse(data);
    }
    held(data)
}

fn subnet_env(text: &str) -> Verdict {
    let Ok(mut env) = SubnetEnv::parse("subnet.env", text) else { return Ok(()) };
    // A file is written with IPv4 first, and means the same in any order.
    env.networks.sort_by_key(|network| network.addr().is_ipv6());
    promise(!env.subnets.is_empty() && !env.networks.is_empty(), || format!("no subnet in {env:?}"))?;
    let again = SubnetEnv::parse("subnet.env", &env.render())
        .map_err(|error| format!("{env:?} is written so that it cannot be read: {error}"))?;
    promise(again == env, || format!("{env:?} is written so that it reads as {again:?}"))
}

fn held(data: &[u8]) -> Verdict {
    let holder = Holder::of(data);
    promise(index_name(data).bytes().all(|byte| byte != b'/' && byte != 0), || {
        format!("{holder:?} has an index outside of its directory")
    })?;
    let nobody = ValidAttachments::default();
    if let Holder::Attachment { container_id, ifname } = &holder {
        let again = Holder::of(reservation(container_id, ifname).as_bytes());
        promise(again == holder, || format!("{holder:?} is written so that it reads as {again:?}"))?;
        promise(!holder.is_spared_by(&nobody), || format!("{holder:?} is spared by an empty list"))?;
    }
    Ok(())
}

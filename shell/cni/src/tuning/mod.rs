//! `tuning`: kernel parameters and link attributes of a container that another plugin has attached.
//!
//! Owns one file per attachment with the attributes as they were, which DEL puts back: a link that was lent to the container returns as it
//! was. Parameters are not put back by DEL, they go with the namespace. Everything happens inside the container's namespace, which is
//! entered once.

mod backup;

pub(crate) use backup::{network_of, remove as remove_backup};

use std::io::{self, Write};

use loden_cni_protocol::error::Error;
use loden_cni_protocol::tuning::{self, Attributes, TuningConfig};
use loden_cni_protocol::{CniResult, ValidAttachments, version};
use loden_netlink::{Change, Link, LinkSettings, MacAddress, RouteSocket, sysctl};

use crate::Plugin;
use crate::call::Call;
use crate::netns;

use backup::Backup;

/// The administrator's list of parameters that may be set; without the file all may.
const ALLOWED: &str = "/etc/cni/tuning/allowlist.conf";

pub(crate) const PLUGIN: Plugin =
    Plugin { name: "tuning", versions: &version::SUPPORTED, add, del, check, status, gc };

fn kernel(error: loden_netlink::Error) -> Error {
    Error::from_chain(&error)
}

fn add(call: &Call) -> Result<CniResult, Error> {
    let config = TuningConfig::parse(&call.config, &call.environment.args)?;
    check_allowed(&config)?;
    let mut result = previous(call)?;
    let mut attempt = Attempt {
        config: &config,
        ifname: &call.environment.ifname,
        backup: backup_of(&config.data_dir, call),
        written: Vec::new(),
        kept: None,
        former: None,
    };
    let sandbox = netns::open(&call.environment.netns)?;
    sandbox.run(|| attempt.run().map_err(|error| error.and_cleanup(&attempt.undo()))).map_err(kernel)??;
    if let Some(mac) = config.attributes.mac {
        let text = MacAddress(mac).to_string();
        for interface in &mut result.interfaces {
            if interface.name == call.environment.ifname {
                interface.mac.clone_from(&text);
            }
        }
    }
    Ok(result)
}

fn previous(call: &Call) -> Result<CniResult, Error> {
    call.config.previous()?.ok_or_else(|| Error::internal("Required prevResult missing"))
}

fn backup_of(data_dir: &str, call: &Call) -> Backup {
    Backup::new(data_dir, &call.environment.container_id, &call.environment.ifname, &call.config.name)
}

fn check_allowed(config: &TuningConfig) -> Result<(), Error> {
    if config.sysctls.is_empty() {
        return Ok(());
    }
    match std::fs::read_to_string(ALLOWED) {
        Ok(text) => tuning::check_allowed(&config.sysctls, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::internal(format!(
            "could not read {ALLOWED}, the list of allowed sysctls: {error}; nothing is set until it can be read"
        ))),
    }
}

/// One ADD inside the container's namespace, with what it has changed so far.
#[derive(Debug)]
struct Attempt<'a> {
    config: &'a TuningConfig,
    ifname: &'a str,
    backup: Backup,
    /// Parameters with their former values.
    written: Vec<(String, String)>,
    /// The file as it was before; the inner `None` is no file.
    kept: Option<Option<Vec<u8>>>,
    /// The link with its former attributes.
    former: Option<(u32, Attributes)>,
}

impl Attempt<'_> {
    fn run(&mut self) -> Result<(), Error> {
        let names: Vec<String> = self
            .config
            .sysctls
            .iter()
            .map(|(key, _)| tuning::sysctl_path(key, self.ifname))
            .collect::<Result<_, _>>()?;
        for (path, (_, value)) in names.iter().zip(&self.config.sysctls) {
            let name = relative(path);
            // Some can only be written; there is nothing to put back then.
            let former = sysctl::read(name).ok().flatten();
            sysctl::write(name, value).map_err(kernel)?;
            self.written.extend(former.map(|former| (name.to_owned(), former)));
        }
        let wanted = &self.config.attributes;
        if wanted.is_empty() {
            return Ok(());
        }
        let mut socket = RouteSocket::open().map_err(kernel)?;
        let link = find(&mut socket, self.ifname)?;
        let former = attributes_of(&link).before(wanted);
        let earlier = self.backup.read()?;
        // An earlier instance of this plugin has changed the link already; what it found is what DEL must restore.
        let kept = earlier.as_deref().and_then(Attributes::of_backup).unwrap_or_default().or(&former);
        self.kept = Some(earlier);
        self.backup.write(kept.backup().as_bytes())?;
        self.former = Some((link.index, former));
        if wanted.mac.is_some() {
            // The kernel tells the neighbours of a new address itself if it may. Without IPv4 there is nobody to tell.
            let _ = sysctl::write(&format!("net/ipv4/conf/{}/arp_notify", self.ifname), "1");
        }
        socket.set_link(link.index, settings(wanted)).map_err(kernel)
    }

    /// Takes back what a failed ADD changed; says what could not be taken back.
    fn undo(&mut self) -> Vec<String> {
        let mut failures = Vec::new();
        if let Some((index, former)) = self.former.take() {
            let outcome =
                RouteSocket::open().and_then(|mut socket| socket.set_link(index, settings(&former)));
            failures.extend(outcome.err().map(|error| kernel(error).to_string()));
        }
        let outcome = match self.kept.take() {
            None => Ok(()),
            Some(None) => self.backup.remove(),
            Some(Some(text)) => self.backup.write(&text),
        };
        failures.extend(outcome.err().map(|error| error.to_string()));
        for (name, former) in self.written.drain(..).rev() {
            failures.extend(sysctl::write(&name, &former).err().map(|error| kernel(error).to_string()));
        }
        failures
    }
}

fn relative(path: &str) -> &str {
    path.strip_prefix("/proc/sys/").unwrap_or(path)
}

fn find(socket: &mut RouteSocket, ifname: &str) -> Result<Link, Error> {
    socket.link_by_name(ifname).map_err(kernel)?.ok_or_else(|| {
        Error::internal(format!("failed to get {ifname:?}: there is no such link in the container"))
    })
}

fn attributes_of(link: &Link) -> Attributes {
    Attributes {
        mac: link.address.map(|mac| mac.0),
        promiscuous: Some(link.promiscuous),
        mtu: Some(link.mtu),
        all_multicast: Some(link.all_multicast),
        tx_queue_length: Some(link.tx_queue_length),
    }
}

fn settings(wanted: &Attributes) -> LinkSettings {
    LinkSettings {
        address: wanted.mac.map(MacAddress),
        promiscuous: wanted.promiscuous,
        mtu: wanted.mtu,
        all_multicast: wanted.all_multicast,
        tx_queue_length: wanted.tx_queue_length,
        ..LinkSettings::default()
    }
}

/// Puts back what can be put back and succeeds: a link that is gone or stubborn must not keep the container from being removed.
fn del(call: &Call) -> Result<(), Error> {
    let backup = backup_of(&tuning::data_dir(&call.config)?, call);
    let told = match backup.read() {
        Ok(None) => backup.remove(),
        Ok(Some(text)) => {
            let restored = Attributes::of_backup(&text).map_or(Ok(()), |former| restore(call, &former));
            restored.and(backup.remove())
        }
        Err(error) => Err(error),
    };
    if let Err(error) = told {
        let _ = writeln!(io::stderr(), "tuning: not everything is as it was before: {error}");
    }
    Ok(())
}

fn restore(call: &Call, former: &Attributes) -> Result<(), Error> {
    let Some(sandbox) = netns::open_if_present(&call.environment.netns)? else { return Ok(()) };
    let mut socket = RouteSocket::open_in(&sandbox).map_err(kernel)?;
    let Some(link) = socket.link_by_name(&call.environment.ifname).map_err(kernel)? else { return Ok(()) };
    // Each by itself: one that the driver refuses does not keep the others.
    let each = [
        LinkSettings { mtu: former.mtu, ..LinkSettings::default() },
        LinkSettings { address: former.mac.map(MacAddress), ..LinkSettings::default() },
        LinkSettings { promiscuous: former.promiscuous, ..LinkSettings::default() },
        LinkSettings { all_multicast: former.all_multicast, ..LinkSettings::default() },
        LinkSettings { tx_queue_length: former.tx_queue_length, ..LinkSettings::default() },
    ];
    let changes: Vec<Change> = each
        .into_iter()
        .filter(|settings| *settings != LinkSettings::default())
        .map(|settings| Change::SetLink { index: link.index, settings })
        .collect();
    let outcomes = socket.apply_each(&changes).map_err(kernel)?;
    outcomes.into_iter().collect::<Result<(), _>>().map_err(kernel)
}

fn check(call: &Call) -> Result<(), Error> {
    let config = TuningConfig::parse(&call.config, &call.environment.args)?;
    previous(call)?;
    let sandbox = netns::open(&call.environment.netns)?;
    sandbox.run(|| check_inside(&config, &call.environment.ifname)).map_err(kernel)?
}

fn check_inside(config: &TuningConfig, ifname: &str) -> Result<(), Error> {
    for (key, wanted) in &config.sysctls {
        let path = tuning::sysctl_path(key, ifname)?;
        let present = sysctl::read(relative(&path)).map_err(kernel)?.ok_or_else(|| {
            Error::internal(format!("Error: Tuning configured {path}, which does not exist any more"))
        })?;
        // The kernel separates several values by tabs whatever they were written with.
        if !present.split_whitespace().eq(wanted.split_whitespace()) {
            return Err(Error::internal(format!(
                "Error: Tuning configured value of {path} is {wanted}, current value is {present}"
            )));
        }
    }
    let mut socket = RouteSocket::open().map_err(kernel)?;
    let link = socket
        .link_by_name(ifname)
        .map_err(kernel)?
        .ok_or_else(|| Error::internal(format!("Cannot find container link {ifname}")))?;
    check_link(&config.attributes, &link)
}

fn check_link(wanted: &Attributes, link: &Link) -> Result<(), Error> {
    let name = &link.name;
    let differs = |what: &str, wanted: &dyn std::fmt::Display, present: &dyn std::fmt::Display| {
        Err(Error::internal(format!("Error: Tuning {what} is {wanted}, current value is {present}")))
    };
    if let Some(mac) = wanted.mac.map(MacAddress)
        && link.address != Some(mac)
    {
        let present = link.address.map(|mac| mac.to_string()).unwrap_or_default();
        return differs(&format!("configured Ethernet of {name}"), &mac, &present);
    }
    let promiscuous = wanted.promiscuous.unwrap_or(false);
    if link.promiscuous != promiscuous {
        return differs(
            &format!("link {name} configured promisc"),
            &promiscuous,
            &u8::from(link.promiscuous),
        );
    }
    if let Some(mtu) = wanted.mtu
        && link.mtu != mtu
    {
        return differs(&format!("configured MTU of {name}"), &mtu, &link.mtu);
    }
    if let Some(on) = wanted.all_multicast
        && link.all_multicast != on
    {
        return differs(&format!("configured all-multicast mode of {name}"), &on, &link.all_multicast);
    }
    if let Some(length) = wanted.tx_queue_length
        && link.tx_queue_length != length
    {
        return differs(
            &format!("configured Transmit Queue Length of {name}"),
            &length,
            &link.tx_queue_length,
        );
    }
    Ok(())
}

/// Ready when the configuration is one that ADD would take.
fn status(call: &Call) -> Result<(), Error> {
    check_allowed(&TuningConfig::parse(&call.config, &call.environment.args)?)
}

fn gc(call: &Call) -> Result<(), Error> {
    let valid = ValidAttachments::of(&call.config)?;
    backup::remove_stale(&tuning::data_dir(&call.config)?, &call.config.name, &valid)
}

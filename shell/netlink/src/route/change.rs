//! Changes to rtnetlink objects as values, and what they are called when one fails.

use std::fmt;

use super::{
    Address, BridgeConfig, FdbEntry, LinkSettings, Neighbour, NewLink, NewLinkKind, PortVlan, Qdisc, Route,
    Rule, address, link_message, neighbour, path, rule, traffic, vlan,
};
use crate::wire::Message;
use crate::{Error, Refusal};

/// One change. "Add" fails if the object exists, "replace" makes or overwrites it, "delete" fails if it is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Make a link. The alias is not part of this single message; use [`super::RouteSocket::create_link`].
    CreateLink(NewLink),
    /// Change a link.
    SetLink {
        /// Which.
        index: u32,
        /// What.
        settings: LinkSettings,
    },
    /// Change a bridge's own settings.
    SetBridge {
        /// Which.
        index: u32,
        /// All of its settings from now on.
        config: BridgeConfig,
    },
    /// Change what can be changed on a living VXLAN link. The kernel sets the MTU back with it, to what the link was made
    /// with; set it again after this.
    SetVxlan {
        /// Which.
        index: u32,
        /// Learn remote addresses from traffic.
        learning: bool,
    },
    /// Change a link's settings as a port of its bridge; `None` leaves a thing as it is.
    SetBridgePort {
        /// Which link.
        index: u32,
        /// Frames may leave by the port they came in.
        hairpin: Option<bool>,
        /// Isolated ports do not reach each other.
        isolated: Option<bool>,
        /// Learn source addresses.
        learning: Option<bool>,
    },
    /// Let a link take part in a VLAN of its bridge, or change how it does.
    AddPortVlan(PortVlan),
    /// Let a port take part in a range of VLANs, tagged.
    AddPortVlans {
        /// Which port.
        index: u32,
        /// The first VLAN identifier.
        first: u16,
        /// The last one; greater than the first.
        last: u16,
    },
    /// Let it no longer take part.
    DeletePortVlan(PortVlan),
    /// Delete a link.
    DeleteLink {
        /// Which.
        index: u32,
        /// For the error's text; may be empty.
        name: String,
    },
    /// Add an address.
    AddAddress(Address),
    /// Add an address or overwrite its lifetime and flags.
    ReplaceAddress(Address),
    /// Delete an address.
    DeleteAddress(Address),
    /// Add a route.
    AddRoute(Route),
    /// Add a route even if one to the same destination exists (IPv6: makes a multipath route).
    AppendRoute(Route),
    /// Add a route, or overwrite the one with the same destination, metric and table.
    ReplaceRoute(Route),
    /// Delete a route.
    DeleteRoute(Route),
    /// Add a routing rule.
    AddRule(Rule),
    /// Delete a routing rule.
    DeleteRule(Rule),
    /// Add or overwrite a neighbour.
    ReplaceNeighbour(Neighbour),
    /// Delete a neighbour.
    DeleteNeighbour(Neighbour),
    /// Add a bridge or VXLAN forwarding entry beside others for the same address.
    AppendFdb(FdbEntry),
    /// Add or overwrite a bridge or VXLAN forwarding entry.
    ReplaceFdb(FdbEntry),
    /// Delete a bridge or VXLAN forwarding entry.
    DeleteFdb(FdbEntry),
    /// Add a queueing discipline.
    AddQdisc(Qdisc),
    /// Delete a queueing discipline with everything that hangs on it.
    DeleteQdisc(Qdisc),
    /// Let everything that a link receives leave by another. The link needs an ingress discipline first, and with that the redirection goes.
    Redirect {
        /// The link that receives.
        from: u32,
        /// The link that sends it on.
        to: u32,
    },
}

impl Change {
    pub(crate) fn message(&self) -> Message {
        match self {
            Self::CreateLink(new) => link_message::create(new),
            Self::SetLink { index, settings } => link_message::set(*index, settings),
            Self::SetVxlan { index, learning } => link_message::set_vxlan(*index, *learning),
            Self::SetBridgePort { index, hairpin, isolated, learning } => {
                link_message::set_port(*index, *hairpin, *isolated, *learning)
            }
            Self::SetBridge { index, config } => link_message::set_bridge(*index, *config),
            Self::AddPortVlan(v) => vlan::write(v, true),
            Self::AddPortVlans { index, first, last } => vlan::write_range(*index, *first, *last),
            Self::DeletePortVlan(v) => vlan::write(v, false),
            Self::DeleteLink { index, .. } => link_message::delete(*index),
            Self::AddAddress(a) => address::write(a, address::Verb::Add),
            Self::ReplaceAddress(a) => address::write(a, address::Verb::Replace),
            Self::DeleteAddress(a) => address::write(a, address::Verb::Delete),
            Self::AddRoute(r) => path::write(r, path::Verb::Add),
            Self::AppendRoute(r) => path::write(r, path::Verb::Append),
            Self::ReplaceRoute(r) => path::write(r, path::Verb::Replace),
            Self::DeleteRoute(r) => path::write(r, path::Verb::Delete),
            Self::AddRule(r) => rule::write(r, true),
            Self::DeleteRule(r) => rule::write(r, false),
            Self::ReplaceNeighbour(n) => neighbour::write(n, true),
            Self::DeleteNeighbour(n) => neighbour::write(n, false),
            Self::AppendFdb(e) => neighbour::write_fdb(e, neighbour::FdbVerb::Append),
            Self::ReplaceFdb(e) => neighbour::write_fdb(e, neighbour::FdbVerb::Replace),
            Self::DeleteFdb(e) => neighbour::write_fdb(e, neighbour::FdbVerb::Delete),
            Self::AddQdisc(q) => traffic::add(q),
            Self::DeleteQdisc(q) => traffic::delete(q),
            Self::Redirect { from, to } => traffic::redirect(*from, *to),
        }
    }

    /// Tells a refusal that means "this kernel cannot" from one that means "not like this".
    pub(crate) fn explain(&self, refusal: Refusal) -> Error {
        let operation = self.to_string();
        match self {
            Self::CreateLink(new)
                if refusal.errno == libc::EOPNOTSUPP
                    && (refusal.message.is_none()
                        || refusal.message.as_deref() == Some("Unknown device type")) =>
            {
                let kind = new.kind.name();
                if matches!(new.kind, NewLinkKind::Bridge(config) if config.vlan_filtering) {
                    return no_vlan_filtering(operation, refusal);
                }
                Error::MissingFeature {
                    operation,
                    feature: format!("{kind} links"),
                    advice: format!("load the module {kind} (modprobe {kind}) or use a kernel that has it"),
                    refusal,
                }
            }
            // The kernel says so when it finds no module of that name either.
            Self::AddQdisc(qdisc) if refusal.errno == libc::ENOENT => {
                let module = match qdisc.kind.name() {
                    "tbf" => "sch_tbf",
                    _ => "sch_ingress",
                };
                no_traffic_control(operation, qdisc.kind.name(), module, refusal)
            }
            Self::Redirect { .. } if refusal.errno == libc::ENOENT => no_traffic_control(
                operation,
                "u32 filter with a mirred action",
                "cls_u32 act_mirred",
                refusal,
            ),
            Self::SetBridge { .. }
            | Self::AddPortVlan(_)
            | Self::AddPortVlans { .. }
            | Self::DeletePortVlan(_)
                if refusal.errno == libc::EOPNOTSUPP =>
            {
                no_vlan_filtering(operation, refusal)
            }
            _ => Error::Refused { operation, refusal },
        }
    }
}

fn no_vlan_filtering(operation: String, refusal: Refusal) -> Error {
    Error::MissingFeature {
        operation,
        feature: "bridges that filter by VLAN".to_owned(),
        advice: "leave VLAN filtering off or use a kernel with CONFIG_BRIDGE_VLAN_FILTERING".to_owned(),
        refusal,
    }
}

fn no_traffic_control(operation: String, what: &str, modules: &str, refusal: Refusal) -> Error {
    Error::MissingFeature {
        operation,
        feature: format!("{what} for traffic control"),
        advice: format!("load what it needs (modprobe -a {modules}) or use a kernel that has it"),
        refusal,
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateLink(NewLink { name, kind: NewLinkKind::Veth(peer), .. }) => {
                write!(f, "create link {name} type veth peer {}", peer.name)
            }
            Self::CreateLink(new) => write!(f, "create link {} type {}", new.name, new.kind.name()),
            Self::SetLink { index, settings } => {
                write!(f, "set link {index}")?;
                write_settings(f, settings)
            }
            Self::SetVxlan { index, learning } => {
                write!(f, "set link {index} type vxlan {}learning", if *learning { "" } else { "no" })
            }
            Self::SetBridgePort { index, hairpin, isolated, learning } => {
                write!(f, "set bridge port {index}")?;
                for (name, value) in [("hairpin", hairpin), ("isolated", isolated), ("learning", learning)] {
                    if let Some(on) = value {
                        write!(f, " {name} {}", if *on { "on" } else { "off" })?;
                    }
                }
                Ok(())
            }
            Self::SetBridge { index, config } => {
                let filtering = if config.vlan_filtering { "on" } else { "off" };
                write!(f, "set bridge {index} vlan_filtering {filtering}")
            }
            Self::AddPortVlan(v) => write!(f, "add {v}"),
            Self::AddPortVlans { index, first, last } => {
                write!(f, "add VLANs {first}-{last} on link {index}")
            }
            Self::DeletePortVlan(v) => write!(f, "delete {v}"),
            Self::DeleteLink { index, name } if name.is_empty() => write!(f, "delete link {index}"),
            Self::DeleteLink { index, name } => write!(f, "delete link {name} ({index})"),
            Self::AddAddress(a) => write!(f, "add address {a}"),
            Self::ReplaceAddress(a) => write!(f, "replace address {a}"),
            Self::DeleteAddress(a) => write!(f, "delete address {a}"),
            Self::AddRoute(r) => write!(f, "add route {r}"),
            Self::AppendRoute(r) => write!(f, "append route {r}"),
            Self::ReplaceRoute(r) => write!(f, "replace route {r}"),
            Self::DeleteRoute(r) => write!(f, "delete route {r}"),
            Self::AddRule(r) => write!(f, "add rule {r}"),
            Self::DeleteRule(r) => write!(f, "delete rule {r}"),
            Self::ReplaceNeighbour(n) => write!(f, "replace neighbour {n}"),
            Self::DeleteNeighbour(n) => write!(f, "delete neighbour {n}"),
            Self::AppendFdb(e) => write!(f, "append FDB entry {e}"),
            Self::ReplaceFdb(e) => write!(f, "replace FDB entry {e}"),
            Self::DeleteFdb(e) => write!(f, "delete FDB entry {e}"),
            Self::AddQdisc(q) => write!(f, "add {q}"),
            Self::DeleteQdisc(q) => write!(f, "delete {q}"),
            Self::Redirect { from, to } => write!(f, "redirect what link {from} receives to link {to}"),
        }
    }
}

fn write_settings(f: &mut fmt::Formatter<'_>, settings: &LinkSettings) -> fmt::Result {
    if let Some(up) = settings.up {
        f.write_str(if up { " up" } else { " down" })?;
    }
    if let Some(name) = &settings.name {
        write!(f, " name {name}")?;
    }
    if let Some(mtu) = settings.mtu {
        write!(f, " mtu {mtu}")?;
    }
    if let Some(mac) = settings.address {
        write!(f, " address {mac}")?;
    }
    if let Some(master) = settings.master {
        write!(f, " master {master}")?;
    }
    if let Some(alias) = &settings.alias {
        write!(f, " alias {alias:?}")?;
    }
    if let Some(on) = settings.promiscuous {
        write!(f, " promisc {}", if on { "on" } else { "off" })?;
    }
    if let Some(on) = settings.all_multicast {
        write!(f, " allmulticast {}", if on { "on" } else { "off" })?;
    }
    if let Some(length) = settings.tx_queue_length {
        write!(f, " txqueuelen {length}")?;
    }
    if let Some(netns) = &settings.netns {
        write!(f, " netns {}", netns.path().display())?;
    }
    Ok(())
}

//! The metadata service: what an instance may know about itself.

use std::net::{IpAddr, Ipv4Addr};

use loden_aliyun::metadata::{ITEM_PATH, MAX_TOKEN_TTL, TOKEN_HEADER, TOKEN_PATH, TOKEN_TTL_HEADER};
use time::{Duration, OffsetDateTime};

use super::access::MetadataToken;
use super::{Cloud, Instance, Interface};

/// A request to the metadata service.
#[derive(Debug, Clone)]
pub struct MetadataCall<'a> {
    /// Who asks.
    pub peer: IpAddr,
    /// HTTP method.
    pub method: &'a str,
    /// Path.
    pub path: &'a str,
    /// Headers with lower-case names.
    pub headers: &'a std::collections::BTreeMap<String, String>,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataAnswer {
    /// HTTP status.
    pub status: u16,
    /// Body, plain text.
    pub body: String,
}

impl MetadataAnswer {
    fn ok(body: impl Into<String>) -> Self {
        Self { status: 200, body: body.into() }
    }

    fn refused(status: u16, body: &str) -> Self {
        Self { status, body: body.to_owned() }
    }
}

impl Cloud {
    /// Answers a request to the metadata service.
    pub fn answer_metadata(&mut self, call: &MetadataCall<'_>, now: OffsetDateTime) -> MetadataAnswer {
        self.advance(now);
        let Some(id) = self.instance_of(call.peer) else {
            return MetadataAnswer::refused(404, "No instance has the address that this request comes from.");
        };
        if call.path == TOKEN_PATH {
            return self.issue_token(&id, call, now);
        }
        let Some(item) = call.path.strip_prefix(ITEM_PATH) else {
            return MetadataAnswer::refused(404, "Not Found");
        };
        if !matches!(call.method, "GET" | "HEAD") {
            return MetadataAnswer::refused(405, "Method Not Allowed");
        }
        match call.headers.get(TOKEN_HEADER) {
            None if self.settings.hardened_metadata => {
                return MetadataAnswer::refused(403, "Forbidden: a token is needed.");
            }
            None => {}
            Some(token) => {
                let valid = self
                    .access
                    .metadata_tokens
                    .get(token)
                    .is_some_and(|known| known.instance == id && known.until > now);
                if !valid {
                    return MetadataAnswer::refused(401, "Unauthorized: the token is not valid.");
                }
            }
        }
        match self.item(&id, item, now) {
            Some(text) => MetadataAnswer::ok(text),
            None => MetadataAnswer::refused(404, "Not Found"),
        }
    }

    fn instance_of(&self, peer: IpAddr) -> Option<String> {
        if let Some(id) = &self.settings.metadata_instance {
            return self.instances.contains_key(id).then(|| id.clone());
        }
        let peer = match peer {
            IpAddr::V4(peer) => peer,
            IpAddr::V6(peer) => peer.to_ipv4_mapped()?,
        };
        self.instances
            .values()
            .find(|instance| instance.interfaces.iter().any(|interface| interface.address == peer))
            .map(|instance| instance.spec.id.clone())
    }

    fn issue_token(&mut self, id: &str, call: &MetadataCall<'_>, now: OffsetDateTime) -> MetadataAnswer {
        if call.method != "PUT" {
            return MetadataAnswer::refused(405, "Method Not Allowed");
        }
        if call.headers.contains_key("x-forwarded-for") {
            return MetadataAnswer::refused(403, "Forbidden: the request was forwarded.");
        }
        let ttl = call.headers.get(TOKEN_TTL_HEADER).and_then(|text| text.trim().parse::<u32>().ok());
        let Some(ttl) = ttl.filter(|ttl| (1..=MAX_TOKEN_TTL).contains(ttl)) else {
            return MetadataAnswer::refused(
                400,
                "Bad Request: the token's lifetime must be 1 to 21600 seconds.",
            );
        };
        self.access.metadata_tokens.retain(|_, known| known.until > now);
        let token = self.draw("metadata");
        let until = now + Duration::seconds(i64::from(ttl));
        self.access.metadata_tokens.insert(token.clone(), MetadataToken { instance: id.to_owned(), until });
        MetadataAnswer::ok(token)
    }

    fn item(&mut self, id: &str, item: &str, now: OffsetDateTime) -> Option<String> {
        let role = self.instances.get(id)?.spec.role.clone();
        if let Some(rest) = item.strip_prefix("ram/security-credentials") {
            let role = role?;
            return match rest.trim_matches('/') {
                "" => Some(role),
                asked if asked == role => {
                    serde_json::to_string_pretty(&self.role_credentials(id, &role, now)?).ok()
                }
                _ => None,
            };
        }
        let instance = self.instances.get(id)?;
        let primary = instance.interfaces.first()?;
        let vpc = self.vpcs.get(&instance.vpc)?;
        let vswitch = vpc.vswitches.get(&primary.vswitch)?;
        let text = match item.trim_end_matches('/') {
            "" => ITEMS.join("\n"),
            "region-id" => self.region.clone(),
            "zone-id" => vswitch.spec.zone.clone(),
            "instance-id" => id.to_owned(),
            "instance" => "instance-name\ninstance-type".to_owned(),
            "instance/instance-type" => instance.spec.instance_type.clone(),
            "instance/instance-name" => instance.spec.name.clone(),
            "hostname" => id.to_owned(),
            "owner-account-id" => self.account.to_string(),
            "network-type" => "vpc".to_owned(),
            "vpc-id" => instance.vpc.clone(),
            "vpc-cidr-block" => vpc.cidr.to_string(),
            "vswitch-id" => primary.vswitch.clone(),
            "vswitch-cidr-block" => vswitch.spec.cidr.to_string(),
            "mac" => primary.mac.clone(),
            "private-ipv4" => primary.address.to_string(),
            "network" => "interfaces/".to_owned(),
            "network/interfaces" => "macs/".to_owned(),
            "network/interfaces/macs" => {
                let macs: Vec<String> =
                    instance.interfaces.iter().map(|interface| format!("{}/", interface.mac)).collect();
                macs.join("\n")
            }
            other => {
                let (mac, item) = split_mac(other.strip_prefix("network/interfaces/macs/")?);
                let interface = instance.interfaces.iter().find(|interface| interface.mac == mac)?;
                self.interface_item(instance, interface, item)?
            }
        };
        Some(text)
    }

    fn interface_item(&self, instance: &Instance, interface: &Interface, item: &str) -> Option<String> {
        let vpc = self.vpcs.get(&instance.vpc)?;
        let vswitch = vpc.vswitches.get(&interface.vswitch)?;
        let cidr = vswitch.spec.cidr;
        Some(match item {
            "" => INTERFACE_ITEMS.join("\n"),
            "network-interface-id" => interface.id.clone(),
            "vswitch-id" => interface.vswitch.clone(),
            "vpc-id" => instance.vpc.clone(),
            "primary-ip-address" => interface.address.to_string(),
            "private-ipv4s" => format!("[\"{}\"]", interface.address),
            "netmask" => cidr.netmask().to_string(),
            // The vendor's gateway is the third address from the end.
            "gateway" => Ipv4Addr::from(u32::from(cidr.broadcast()).saturating_sub(2)).to_string(),
            "vswitch-cidr-block" => cidr.to_string(),
            "vpc-cidr-block" => vpc.cidr.to_string(),
            _ => return None,
        })
    }
}

const ITEMS: &[&str] = &[
    "hostname",
    "instance/",
    "instance-id",
    "mac",
    "network/",
    "network-type",
    "owner-account-id",
    "private-ipv4",
    "ram/",
    "region-id",
    "vpc-cidr-block",
    "vpc-id",
    "vswitch-cidr-block",
    "vswitch-id",
    "zone-id",
];

const INTERFACE_ITEMS: &[&str] = &[
    "gateway",
    "netmask",
    "network-interface-id",
    "primary-ip-address",
    "private-ipv4s",
    "vpc-cidr-block",
    "vpc-id",
    "vswitch-cidr-block",
    "vswitch-id",
];

fn split_mac(rest: &str) -> (&str, &str) {
    rest.split_once('/').unwrap_or((rest, ""))
}

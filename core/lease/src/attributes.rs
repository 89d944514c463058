//! What a lease says about its owner: the addresses peers use, the backend and the backend's own data.
//!
//! The same facts have two spellings: JSON as the value of an etcd key, and a handful of node annotations.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::AnnotationKeys;

/// The addresses under which peers reach a node (flannel's word; they need not be public).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PublicIp {
    /// IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
}

/// What a backend tells its peers, per family.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum BackendData {
    /// `null`: host-gw, ipip, ipsec, udp, alloc and tencent-vpc need nothing.
    #[default]
    None,
    /// vxlan: `{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}`.
    Vxlan {
        /// The VXLAN network identifier; 0 where an old peer left it out.
        vni: u32,
        /// The VTEP's MAC address in lower-case colon notation.
        vtep_mac: String,
    },
    /// wireguard: `{"PublicKey":"<base64>","Port":51820}`; old peers leave the port out.
    WireGuard {
        /// Base64 of the device's public key.
        public_key: String,
        /// UDP port the peer listens on; absent or 0 means the reader's own port.
        port: Option<u16>,
    },
    /// Anything else (the extension backend's output, or a shape this version does not know), kept as it came.
    Other(Value),
}

#[derive(Serialize, Deserialize)]
struct VxlanJson {
    #[serde(rename = "VNI", default)]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    vtep_mac: String,
}

#[derive(Serialize, Deserialize)]
struct WireGuardJson {
    #[serde(rename = "PublicKey")]
    public_key: String,
    #[serde(rename = "Port", skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

impl BackendData {
    /// The JSON text, as it stands in an annotation.
    #[must_use]
    pub fn to_json(&self) -> String {
        let text = match self {
            Self::None => return "null".to_owned(),
            Self::Vxlan { vni, vtep_mac } => {
                serde_json::to_string(&VxlanJson { vni: *vni, vtep_mac: vtep_mac.clone() })
            }
            Self::WireGuard { public_key, port } => {
                serde_json::to_string(&WireGuardJson { public_key: public_key.clone(), port: *port })
            }
            Self::Other(value) => serde_json::to_string(value),
        };
        text.unwrap_or_else(|_| "null".to_owned())
    }

    /// Reads the data of a lease of this backend type. An empty text counts as `null`.
    ///
    /// # Errors
    /// When the text is no JSON, or not the shape the backend type asks for.
    pub fn from_json(backend_type: &str, text: &str) -> Result<Self, AttributesError> {
        let broken = |cause: String| AttributesError { field: "backend data", cause };
        if text.is_empty() {
            return Ok(Self::None);
        }
        let value: Value =
            serde_json::from_str(text).map_err(|error| broken(format!("{text:?} is not JSON: {error}")))?;
        Self::from_value(backend_type, value).map_err(broken)
    }

    fn from_value(backend_type: &str, value: Value) -> Result<Self, String> {
        if value.is_null() {
            return Ok(Self::None);
        }
        match backend_type {
            "vxlan" => serde_json::from_value::<VxlanJson>(value)
                .map(|json| Self::Vxlan { vni: json.vni, vtep_mac: json.vtep_mac })
                .map_err(|error| format!("not vxlan's: {error}")),
            "wireguard" => serde_json::from_value::<WireGuardJson>(value)
                .map(|json| Self::WireGuard {
                    public_key: json.public_key,
                    port: json.port.filter(|port| *port != 0),
                })
                .map_err(|error| format!("not wireguard's: {error}")),
            _ => Ok(Self::Other(value)),
        }
    }
}

/// Lease attributes that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("lease attributes: {field}: {cause}; the lease's owner must publish it again")]
pub struct AttributesError {
    /// Which attribute.
    pub field: &'static str,
    /// What is wrong.
    pub cause: String,
}

/// A lease's attributes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LeaseAttributes {
    /// Where peers send.
    pub public_ip: PublicIp,
    /// The backend's lease type; empty for `udp`, `alloc` and `tencent-vpc`.
    pub backend_type: String,
    /// The backend's data for IPv4.
    pub backend_data: BackendData,
    /// The backend's data for IPv6.
    pub backend_v6_data: BackendData,
}

impl LeaseAttributes {
    /// The value of an etcd lease key, in flannel's field order. An unset IPv4 address is written as `0.0.0.0`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let v4 = self.public_ip.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let v6 =
            self.public_ip.ipv6.map_or_else(|| "null".to_owned(), |address| quoted(&address.to_string()));
        let mut text = format!("{{\"PublicIP\":\"{v4}\",\"PublicIPv6\":{v6}");
        if !self.backend_type.is_empty() {
            text.push_str(&format!(",\"BackendType\":{}", quoted(&self.backend_type)));
        }
        for (key, data) in [("BackendData", &self.backend_data), ("BackendV6Data", &self.backend_v6_data)] {
            if *data != BackendData::None {
                text.push_str(&format!(",\"{key}\":{}", data.to_json()));
            }
        }
        text.push('}');
        text
    }

    /// Reads the value of an etcd lease key.
    ///
    /// # Errors
    /// When the text is no JSON object or a field has the wrong shape.
    pub fn from_json(text: &str) -> Result<Self, AttributesError> {
        #[derive(Deserialize)]
        struct Json {
            #[serde(rename = "PublicIP", default)]
            public_ip: Option<Ipv4Addr>,
            #[serde(rename = "PublicIPv6", default)]
            public_ipv6: Option<Ipv6Addr>,
            #[serde(rename = "BackendType", default)]
            backend_type: String,
            #[serde(rename = "BackendData", default)]
            backend_data: Value,
            #[serde(rename = "BackendV6Data", default)]
            backend_v6_data: Value,
        }
        let json: Json = serde_json::from_str(text)
            .map_err(|error| AttributesError { field: "value", cause: error.to_string() })?;
        let data = |value| {
            BackendData::from_value(&json.backend_type, value)
                .map_err(|cause| AttributesError { field: "backend data", cause })
        };
        Ok(Self {
            public_ip: PublicIp {
                ipv4: json.public_ip.filter(|a| !a.is_unspecified()),
                ipv6: json.public_ipv6,
            },
            backend_data: data(json.backend_data)?,
            backend_v6_data: data(json.backend_v6_data)?,
            backend_type: json.backend_type,
        })
    }

    /// The annotations a node publishes, by flannel's rules of which family is written for which backend.
    ///
    /// `current` are the node's annotations as they are: a non-empty `public-ip-overwrite` there replaces our own
    /// address in what is published (an operator's address translation).
    #[must_use]
    pub fn to_annotations(
        &self,
        keys: &AnnotationKeys,
        current: &BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let overwritten =
            |key: &str, own: String| current.get(key).filter(|text| !text.is_empty()).cloned().unwrap_or(own);
        let mut out = BTreeMap::from([
            (keys.subnet_manager.clone(), "true".to_owned()),
            (keys.backend_type.clone(), self.backend_type.clone()),
        ]);
        if !(self.backend_type == "vxlan" && self.backend_data == BackendData::None) {
            let own = self.public_ip.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED).to_string();
            out.insert(keys.backend_data.clone(), self.backend_data.to_json());
            out.insert(keys.public_ip.clone(), overwritten(&keys.public_ip_overwrite, own));
        }
        let writes_v6 = match self.backend_type.as_str() {
            "vxlan" => self.backend_v6_data != BackendData::None,
            "wireguard" => self.backend_v6_data != BackendData::None && self.public_ip.ipv6.is_some(),
            "host-gw" | "extension" => self.public_ip.ipv6.is_some(),
            _ => false,
        };
        if writes_v6 {
            let own = self.public_ip.ipv6.unwrap_or(Ipv6Addr::UNSPECIFIED).to_string();
            out.insert(keys.backend_v6_data.clone(), self.backend_v6_data.to_json());
            out.insert(keys.public_ipv6.clone(), overwritten(&keys.public_ipv6_overwrite, own));
        }
        out
    }

    /// Reads a peer's annotations. `Ok(None)` when the node does not run flannel.
    ///
    /// # Errors
    /// When an address or backend data cannot be read.
    pub fn from_annotations(
        keys: &AnnotationKeys,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<Self>, AttributesError> {
        if annotations.get(&keys.subnet_manager).map(String::as_str) != Some("true") {
            return Ok(None);
        }
        let text = |key: &str| annotations.get(key).map(String::as_str).unwrap_or_default();
        let address = |field, key: &str| match text(key) {
            "" => Ok(None),
            text => text
                .parse::<IpAddr>()
                .map(Some)
                .map_err(|_| AttributesError { field, cause: format!("{text:?} is not an address") }),
        };
        let wrong = |field, address: IpAddr| AttributesError {
            field,
            cause: format!("{address} is of the other address family"),
        };
        let ipv4 = match address("public-ip", &keys.public_ip)? {
            Some(IpAddr::V4(address)) => Some(address).filter(|a| !a.is_unspecified()),
            Some(other) => return Err(wrong("public-ip", other)),
            None => None,
        };
        let ipv6 = match address("public-ipv6", &keys.public_ipv6)? {
            Some(IpAddr::V6(address)) => Some(address),
            Some(other) => return Err(wrong("public-ipv6", other)),
            None => None,
        };
        let backend_type = text(&keys.backend_type).to_owned();
        Ok(Some(Self {
            public_ip: PublicIp { ipv4, ipv6 },
            backend_data: BackendData::from_json(&backend_type, text(&keys.backend_data))?,
            backend_v6_data: BackendData::from_json(&backend_type, text(&keys.backend_v6_data))?,
            backend_type,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::{BackendData, LeaseAttributes, PublicIp};
    use crate::AnnotationKeys;
    use std::collections::BTreeMap;

    fn at(ipv4: &str) -> PublicIp {
        PublicIp { ipv4: Some(ipv4.parse().unwrap()), ipv6: None }
    }

    #[test]
    fn etcd_values_are_byte_exact_and_round_trip() {
        let bare = LeaseAttributes { public_ip: at("1.2.3.4"), ..Default::default() };
        assert_eq!(bare.to_json(), r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#);
        let vxlan = LeaseAttributes {
            public_ip: PublicIp { ipv6: Some("fd00::1".parse().unwrap()), ..at("1.2.3.4") },
            backend_type: "vxlan".into(),
            backend_data: BackendData::Vxlan { vni: 1, vtep_mac: "12:c6:65:89:b4:e3".into() },
            backend_v6_data: BackendData::None,
        };
        assert_eq!(
            vxlan.to_json(),
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}}"#
        );
        for attributes in [bare, vxlan] {
            assert_eq!(LeaseAttributes::from_json(&attributes.to_json()).unwrap(), attributes);
        }
    }

    #[test]
    fn peers_that_leave_a_number_out_are_understood() {
        let data = BackendData::from_json("wireguard", r#"{"PublicKey":"a2V5"}"#).unwrap();
        assert_eq!(data, BackendData::WireGuard { public_key: "a2V5".into(), port: None });
        assert_eq!(BackendData::from_json("wireguard", r#"{"PublicKey":"a2V5","Port":0}"#).unwrap(), data);
        assert_eq!(
            BackendData::from_json("vxlan", r#"{"VtepMAC":"12:c6:65:89:b4:e3"}"#).unwrap(),
            BackendData::Vxlan { vni: 0, vtep_mac: "12:c6:65:89:b4:e3".into() }
        );
        assert!(BackendData::from_json("vxlan", r#"{"PublicKey":"a2V5"}"#).is_err());
        assert!(BackendData::from_json("vxlan", "{").is_err());
    }

    #[test]
    fn alloc_publishes_four_annotations_and_honours_the_overwrite() {
        let keys = AnnotationKeys::new(AnnotationKeys::DEFAULT_PREFIX).unwrap();
        let own = LeaseAttributes { public_ip: at("192.168.0.7"), ..Default::default() };
        let written = own.to_annotations(&keys, &BTreeMap::new());
        let shown: Vec<String> = written.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            shown,
            [
                "flannel.alpha.coreos.com/backend-data=null",
                "flannel.alpha.coreos.com/backend-type=",
                "flannel.alpha.coreos.com/kube-subnet-manager=true",
                "flannel.alpha.coreos.com/public-ip=192.168.0.7",
            ]
        );
        assert_eq!(LeaseAttributes::from_annotations(&keys, &written).unwrap(), Some(own.clone()));
        let operator = BTreeMap::from([(keys.public_ip_overwrite.clone(), "203.0.113.9".to_owned())]);
        assert_eq!(own.to_annotations(&keys, &operator)[&keys.public_ip], "203.0.113.9");
    }

    #[test]
    fn v6_only_host_gw_writes_the_zero_address_as_flannel_does() {
        let keys = AnnotationKeys::new(AnnotationKeys::DEFAULT_PREFIX).unwrap();
        let own = LeaseAttributes {
            public_ip: PublicIp { ipv4: None, ipv6: Some("fd00::7".parse().unwrap()) },
            backend_type: "host-gw".into(),
            ..Default::default()
        };
        let written = own.to_annotations(&keys, &BTreeMap::new());
        assert_eq!(written[&keys.public_ip], "0.0.0.0");
        assert_eq!(written[&keys.backend_data], "null");
        assert_eq!(written[&keys.public_ipv6], "fd00::7");
        assert_eq!(written[&keys.backend_v6_data], "null");
    }

    #[test]
    fn strangers_and_broken_peers_are_told_apart() {
        let keys = AnnotationKeys::new(AnnotationKeys::DEFAULT_PREFIX).unwrap();
        assert_eq!(LeaseAttributes::from_annotations(&keys, &BTreeMap::new()).unwrap(), None);
        let mut peer = BTreeMap::from([(keys.subnet_manager.clone(), "true".to_owned())]);
        peer.insert(keys.public_ip.clone(), "nowhere".to_owned());
        assert!(LeaseAttributes::from_annotations(&keys, &peer).is_err());
    }
}

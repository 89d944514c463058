//! What `Backend` in the network configuration says beyond its type.

use loden_lease::{NetConf, NetConfError};

/// The VXLAN backend's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanSettings {
    /// `VNI`: the network identifier, 24 bits. It names the device, too.
    pub vni: u32,
    /// `Port`: the UDP port; Linux' own 8472 where the configuration says 0 or nothing.
    pub port: u16,
    /// `MTU` of the outer packets; the external interface's where the configuration says 0 or nothing.
    pub mtu: Option<u32>,
    /// `GBP`: carry group policy marks.
    pub gbp: bool,
    /// `Learning`: learn where addresses are from traffic, beside what the peers tell.
    pub learning: bool,
    /// `DirectRouting`: reach a peer on a shared layer 2 without encapsulation.
    pub direct_routing: bool,
}

/// The port the Linux kernel uses for VXLAN unless told otherwise, and so Flannel. IANA's is 4789.
const PORT: u16 = 8472;
/// Largest network identifier.
const MAX_VNI: u32 = 0x00ff_ffff;
/// An IPv4 packet of 68 bytes must fit inside.
const MIN_MTU: u32 = 68 + 50;

impl VxlanSettings {
    /// Reads the settings; keys without regard to case, unknown ones are passed over.
    ///
    /// # Errors
    /// For a value of the wrong type or out of its range.
    pub fn read(conf: &NetConf) -> Result<Self, NetConfError> {
        Ok(Self {
            vni: number(conf, "VNI", 0, MAX_VNI)?.unwrap_or(1),
            port: number(conf, "Port", 0, u16::MAX.into())?
                .and_then(|port| u16::try_from(port).ok())
                .filter(|port| *port != 0)
                .unwrap_or(PORT),
            mtu: match number(conf, "MTU", 0, u16::MAX.into())?.filter(|mtu| *mtu != 0) {
                Some(mtu) if mtu < MIN_MTU => {
                    let cause = format!("{mtu} leaves no room for a packet within the tunnel's 50 bytes");
                    let remedy = format!("write at least {MIN_MTU}, or leave it out");
                    return Err(broken(conf, "MTU", cause, remedy));
                }
                mtu => mtu,
            },
            gbp: flag(conf, "GBP")?,
            learning: flag(conf, "Learning")?,
            direct_routing: flag(conf, "DirectRouting")?,
        })
    }
}

fn broken(conf: &NetConf, key: &str, cause: String, remedy: String) -> NetConfError {
    let key = Some(format!("Backend.{key}"));
    NetConfError { source_name: conf.source_name.clone(), key, cause, remedy }
}

fn number(conf: &NetConf, key: &str, least: u32, most: u32) -> Result<Option<u32>, NetConfError> {
    let Some(value) = conf.backend.get(key) else { return Ok(None) };
    let fits = |n: &u32| (least..=most).contains(n);
    value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(fits).map(Some).ok_or_else(|| {
        let cause = format!("{value} is not a whole number from {least} to {most}");
        broken(conf, key, cause, "write one without quotes, or leave it out".to_owned())
    })
}

fn flag(conf: &NetConf, key: &str) -> Result<bool, NetConfError> {
    let Some(value) = conf.backend.get(key) else { return Ok(false) };
    value.as_bool().ok_or_else(|| {
        let cause = format!("{value} is not a boolean");
        broken(conf, key, cause, "write true or false without quotes".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::VxlanSettings;
    use loden_lease::NetConf;

    fn read(backend: &str) -> Result<VxlanSettings, String> {
        let text = format!(r#"{{"Network":"10.1.0.0/16","Backend":{{"Type":"vxlan"{backend}}}}}"#);
        VxlanSettings::read(&NetConf::parse("net-conf.json", &text).unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_flannels() {
        let plain = VxlanSettings {
            vni: 1,
            port: 8472,
            mtu: None,
            gbp: false,
            learning: false,
            direct_routing: false,
        };
        assert_eq!(read(""), Ok(plain.clone()));
        assert_eq!(read(r#","Port":0,"MTU":0,"Learning":null,"Unknown":[]"#), Ok(plain));
        let all =
            read(r#","vni":4096,"PORT":4789,"mtu":1400,"gbp":true,"learning":true,"directRouting":true"#)
                .unwrap();
        assert_eq!((all.vni, all.port, all.mtu), (4096, 4789, Some(1400)));
        assert!(all.gbp && all.learning && all.direct_routing);
    }

    #[test]
    fn wrong_values_name_their_key() {
        for (text, key) in [
            (r#","VNI":16777216"#, "Backend.VNI"),
            (r#","VNI":"1""#, "Backend.VNI"),
            (r#","VNI":1.5"#, "Backend.VNI"),
            (r#","Port":65536"#, "Backend.Port"),
            (r#","Port":-1"#, "Backend.Port"),
            (r#","MTU":100"#, "Backend.MTU"),
            (r#","MTU":true"#, "Backend.MTU"),
            (r#","GBP":1"#, "Backend.GBP"),
            (r#","Learning":"no""#, "Backend.Learning"),
            (r#","DirectRouting":"true""#, "Backend.DirectRouting"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(key) && error.contains("; write"), "{error}");
        }
    }
}

//! The note on a bridge that says which of its addresses are gateways of pods.
//!
//! The bridge plugin gives a bridge its gateway addresses when the first pod arrives and leaves this note as the link's
//! alias; flanneld reads it and puts back what somebody removes. Read too generously, another bridge would be given
//! addresses; read too strictly, pods would stay without their way out.

use ipnet::IpNet;

/// How the note begins; the addresses with their prefix lengths follow, each after one space.
const PREFIX: &str = "loden gateway";

/// The note for a bridge that carries these gateway addresses.
#[must_use]
pub fn gateway_mark(addresses: &[IpNet]) -> String {
    addresses.iter().fold(PREFIX.to_owned(), |text, address| format!("{text} {address}"))
}

/// The addresses that a bridge's alias lists; `None` when it is not such a note, every word of it.
#[must_use]
pub fn parse_gateway_mark(alias: &str) -> Option<Vec<IpNet>> {
    let rest = alias.strip_prefix(PREFIX)?;
    if !rest.is_empty() && !rest.starts_with(' ') {
        return None;
    }
    rest.split_ascii_whitespace().map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::{gateway_mark, parse_gateway_mark};

    fn any_address() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<[u8; 4]>(), 0..=32_u8).prop_map(|(a, len)| IpNet::new(a.into(), len).unwrap()),
            (any::<[u8; 16]>(), 0..=128_u8).prop_map(|(a, len)| IpNet::new(a.into(), len).unwrap()),
        ]
    }

    #[test]
    fn the_text_is_as_people_see_it_on_the_link() {
        let gateways: Vec<IpNet> = vec!["10.1.0.1/24".parse().unwrap(), "fd00::9/64".parse().unwrap()];
        assert_eq!(gateway_mark(&gateways), "loden gateway 10.1.0.1/24 fd00::9/64");
    }

    #[test]
    fn other_aliases_are_no_notes() {
        for alias in [
            "",
            "uplink",
            "loden gateways 10.1.0.1/24",
            "loden gateway10.1.0.1/24",
            "loden gateway 10.1.0.1/24 and more",
        ] {
            assert_eq!(parse_gateway_mark(alias), None, "{alias:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_noted_is_read(addresses in prop::collection::vec(any_address(), 0..4)) {
            prop_assert_eq!(parse_gateway_mark(&gateway_mark(&addresses)), Some(addresses));
        }
    }
}

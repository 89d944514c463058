//! The marks by which what was made for an attachment is found again when its container is gone.
//!
//! A mark starts with two hashes, the network's and the attachment's, so that whoever knows the attachment can recompute it and a GC can
//! tell a network's leftovers from everybody else's. A mark read too generously would take a running pod's link away; one read too
//! strictly would leave the link for ever.

use crate::masquerade::{comment, hash, instance_hash, network_hash};

/// How the link alias of a container's port begins.
const PORT_PREFIX: &str = "loden port ";
/// Hexadecimal digits of the network's hash, and of the attachment's.
const DIGITS: usize = 16;

/// One attachment: a network, a container, and the name of the interface in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks<'a> {
    /// Name of the network.
    pub network: &'a str,
    /// `CNI_IFNAME`
    pub ifname: &'a str,
    /// `CNI_CONTAINERID`
    pub container_id: &'a str,
}

impl Marks<'_> {
    /// The two hashes, `<network>-<attachment>`.
    pub fn instance(&self) -> String {
        instance_hash(self.network, self.ifname, self.container_id)
    }

    /// The name of the host's end of the pair: `veth` and eight hexadecimal digits, as the Go plugins name it, but always the same ones, so
    /// that a pair whose maker was killed before it could mark it is found by name.
    pub fn port_name(&self) -> String {
        format!("veth{}", hash(&format!("{}/{}:{}", self.network, self.ifname, self.container_id), 8))
    }

    /// The alias of the host's end of the pair: the hashes for us, names for people.
    pub fn port_alias(&self) -> String {
        format!("{PORT_PREFIX}{}", comment(self.network, self.ifname, self.container_id))
    }

    /// The comment of a firewall chain that belongs to the attachment.
    pub fn chain_comment(&self) -> String {
        comment(self.network, self.ifname, self.container_id)
    }
}

/// What a port's alias notes, hashes first; `None` when the alias is not ours.
pub fn noted_on_port(alias: &str) -> Option<&str> {
    let note = alias.strip_prefix(PORT_PREFIX)?;
    let (network, attachment) = note.get(..2 * DIGITS + 1)?.split_once('-')?;
    let is_hash = |text: &str| {
        text.len() == DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    (is_hash(network) && is_hash(attachment)).then_some(note)
}

/// Whose the thing is that a note is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted<'a> {
    /// The two hashes, as of [`Marks::instance`].
    pub instance: &'a str,
    /// Name of the network, which makes the first hash.
    pub network: &'a str,
    /// `CNI_IFNAME`
    pub ifname: &'a str,
    /// What the container's ID begins with: a long note is cut off.
    pub container_start: &'a str,
}

impl<'a> Noted<'a> {
    /// Reads a note. `None` when it is none, or too little is left of it.
    pub fn read(note: &'a str) -> Option<Self> {
        let (instance, rest) = note.split_once(", net: ")?;
        let (network, rest) = rest.split_once(", if: ")?;
        let (ifname, container_start) = rest.split_once(", id: ")?;
        let of_network = instance.split_once('-')?.0;
        (of_network == network_hash(network)).then_some(Self { instance, network, ifname, container_start })
    }

    /// Whether it is this container's.
    pub fn is_of(&self, container_id: &str) -> bool {
        container_id.starts_with(self.container_start)
            && instance_hash(self.network, self.ifname, container_id) == self.instance
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Attachment;
    use crate::masquerade::Stale;

    const ONE: Marks<'_> = Marks { network: "n", ifname: "eth0", container_id: "c1" };

    #[test]
    fn a_port_is_named_as_go_names_it_and_always_the_same() {
        let name = ONE.port_name();
        assert_eq!((name.len(), &name[..4]), (12, "veth"));
        assert_eq!(name, ONE.port_name());
        for other in [
            Marks { network: "m", ..ONE },
            Marks { ifname: "eth1", ..ONE },
            Marks { container_id: "c2", ..ONE },
        ] {
            assert_ne!(other.port_name(), name);
        }
    }

    #[test]
    fn an_alias_tells_whose_port_it_is() {
        assert!(noted_on_port(&ONE.port_alias()).is_some_and(|note| note.starts_with(&ONE.instance())));
        assert!(ONE.port_alias().ends_with(", net: n, if: eth0, id: c1"));
        let long = Marks { container_id: &"x".repeat(300), ..ONE };
        assert!(long.port_alias().len() < 256, "the kernel takes no longer alias");
        for foreign in [
            "",
            "loden gateway 10.0.0.1/24",
            "loden port ",
            "loden port é-",
            "loden port 0-1",
            &format!("loden port {}", "z".repeat(40)),
        ] {
            assert_eq!(noted_on_port(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_note_tells_its_container_also_when_cut_off() {
        let comment = ONE.chain_comment();
        let noted = Noted::read(&comment).unwrap();
        assert_eq!((noted.network, noted.ifname, noted.container_start), ("n", "eth0", "c1"));
        assert!(noted.is_of("c1") && !noted.is_of("c") && !noted.is_of("c11"));
        let id = "x".repeat(300);
        let comment = Marks { container_id: &id, ..ONE }.chain_comment();
        let noted = Noted::read(&comment).unwrap();
        assert!(noted.is_of(&id) && !noted.is_of(noted.container_start));
        assert_eq!(Noted::read(&comment.replace("net: n,", "net: m,")), None);
        let comment = Marks { network: &"n".repeat(200), ..ONE }.chain_comment();
        assert_eq!(Noted::read(&comment), None, "too little is left");
        assert_eq!(Noted::read("no note"), None);
    }

    #[test]
    fn a_gc_takes_only_its_own_networks_dead() {
        let valid = [Attachment { container_id: "c1".to_owned(), ifname: "eth0".to_owned() }];
        let stale = Stale::of("n", &valid.into_iter().collect());
        let is_dead =
            |marks: Marks<'_>| noted_on_port(&marks.port_alias()).is_some_and(|note| stale.has(note));
        assert!(!is_dead(ONE));
        assert!(is_dead(Marks { container_id: "c2", ..ONE }) && is_dead(Marks { ifname: "net1", ..ONE }));
        assert!(!is_dead(Marks { network: "m", container_id: "c2", ..ONE }));
    }
}

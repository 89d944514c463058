//! The attachments that a GC must spare.
//!
//! Whatever a plugin made for an attachment that is not in the list goes. A list that is read wrongly takes a running pod's network away, so
//! an absent or malformed one is an error and never "none".

use std::collections::BTreeSet;

use crate::error::{Error, code};
use crate::json::{Fields, Json, Mismatch};
use crate::{Config, env};

/// The key of the list, and the misspelling of it that runtimes send as well.
pub(crate) const KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// One container's place in a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// `containerID`
    pub container_id: String,
    /// `ifname`: the interface's name inside the container.
    pub ifname: String,
}

/// What the runtime still knows of one network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValidAttachments(BTreeSet<Attachment>);

impl ValidAttachments {
    /// Reads the list from a GC's configuration. `null` and `[]` both say that nothing is attached any more.
    ///
    /// # Errors
    /// [`code::INVALID_NETWORK_CONFIG`] when there is no list, when an entry lacks a part, or has one that no ADD would accept.
    pub fn of(config: &Config) -> Result<Self, Error> {
        let invalid = |text: String| Error::new(code::INVALID_NETWORK_CONFIG, text);
        let list = KEYS.iter().find_map(|key| config.json.get_exact(key)).ok_or_else(|| {
            invalid(format!("GC needs {:?}, the list of what must stay; nothing was removed", KEYS[0]))
        })?;
        let items = match list {
            Json::Null => &[][..],
            Json::Array(items) => items,
            other => return Err(invalid(Mismatch::new(KEYS[0], "a list", other).to_string())),
        };
        let entries = items.iter().map(|item| entry(item).map_err(&invalid));
        Ok(Self(entries.collect::<Result<_, _>>()?))
    }

    /// Whether this attachment must stay.
    pub fn has(&self, container_id: &str, ifname: &str) -> bool {
        // The set is ordered by container first, so that only this container's entries are looked at.
        self.of_container(container_id).any(|attachment| attachment.ifname == ifname)
    }

    /// Whether any attachment of the container must stay, for what is kept per container.
    pub fn has_container(&self, container_id: &str) -> bool {
        self.of_container(container_id).next().is_some()
    }

    /// Every attachment that must stay, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Attachment> {
        self.0.iter()
    }

    fn of_container<'a>(&'a self, container_id: &'a str) -> impl Iterator<Item = &'a Attachment> {
        let first = Attachment { container_id: container_id.to_owned(), ifname: String::new() };
        self.0.range(first..).take_while(move |attachment| attachment.container_id == container_id)
    }
}

impl FromIterator<Attachment> for ValidAttachments {
    fn from_iter<T: IntoIterator<Item = Attachment>>(items: T) -> Self {
        Self(items.into_iter().collect())
    }
}

fn entry(item: &Json) -> Result<Attachment, String> {
    let fields = Fields::of(item, KEYS[0]).map_err(|error| error.to_string())?;
    let text = |key: &str| -> Result<String, String> {
        let value = fields.string(key).map_err(|error| error.to_string())?;
        let value = value.filter(|value| !value.is_empty() && !value.contains('\0'));
        value.map(str::to_owned).ok_or_else(|| format!("an entry of {:?} has no usable {key:?}", KEYS[0]))
    };
    let attachment = Attachment { container_id: text("containerID")?, ifname: text("ifname")? };
    env::validate_container_id(&attachment.container_id).map_err(|error| error.to_string())?;
    env::validate_ifname(&attachment.ifname).map_err(|error| error.to_string())?;
    Ok(attachment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: &str) -> Result<ValidAttachments, Error> {
        ValidAttachments::of(&Config::parse(format!(r#"{{"name":"n"{list}}}"#).as_bytes()).unwrap())
    }

    #[test]
    fn a_missing_list_is_never_an_empty_one() {
        assert!(read("").unwrap_err().message.contains("nothing was removed"));
        assert!(read(r#","cni.dev/valid-attachments":{}"#).is_err());
        assert!(read(r#","cni.dev/valid-attachments":[{"ifname":"eth0"}]"#).is_err());
        assert!(read(r#","cni.dev/valid-attachments":[{"containerID":"c","ifname":""}]"#).is_err());
        assert!(read(r#","cni.dev/valid-attachments":[{"containerID":"../x","ifname":"eth0"}]"#).is_err());
        assert_eq!(read(r#","cni.dev/valid-attachments":null"#).unwrap(), ValidAttachments::default());
        assert_eq!(read(r#","cni.dev/attachments":[]"#).unwrap(), ValidAttachments::default());
    }

    #[test]
    fn an_attachment_is_a_container_and_an_interface() {
        let list = r#","cni.dev/valid-attachments":[{"containerID":"b","ifname":"eth0"},{"containerID":"a","ifname":"net1"}]"#;
        let valid = read(list).unwrap();
        assert!(valid.has("b", "eth0") && valid.has("a", "net1"));
        assert!(!valid.has("a", "eth0") && !valid.has("", "eth0"));
        assert!(valid.has_container("a") && !valid.has_container("aa") && !valid.has_container("c"));
        assert_eq!(valid.iter().count(), 2);
    }
}

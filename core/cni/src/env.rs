//! The environment of a plugin: which variables each command needs, and what they may hold.
//!
//! The rules, their order and their texts are those of the Go library, since runtimes and people search logs for them: missing variables
//! are reported together and first, then the first invalid value.

use crate::error::{Error, code};

/// What the runtime asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Command {
    /// Attach a container to the network.
    Add,
    /// Detach it; must succeed when things are gone already.
    Del,
    /// Verify an attachment against the result of ADD.
    Check,
    /// Remove what belongs to no valid attachment.
    Gc,
    /// Say whether ADD could be served now.
    Status,
    /// Print the supported versions.
    Version,
}

impl Command {
    /// The value of `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version]
            .into_iter()
            .find(|command| command.as_str() == text)
    }
}

/// The `CNI_*` variables of one command, validated. Variables that the command does not need may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`; `Err` holds a value that is not a command, which is only refused after standard input was read.
    pub command: Result<Command, String>,
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_NETNS`: path of the container's network namespace.
    pub netns: String,
    /// `CNI_IFNAME`: name of the link inside the container.
    pub ifname: String,
    /// `CNI_ARGS`: `K=V;K=V`.
    pub args: String,
    /// `CNI_PATH`: directories with plugins, separated by `:`.
    pub path: String,
    /// `CNI_NETNS_OVERRIDE` is `1` or `true`: the plugin's own network namespace is allowed as `CNI_NETNS`.
    pub netns_override: bool,
}

impl Environment {
    /// Reads and validates the variables; `lookup` gives a variable's value, empty when unset.
    ///
    /// # Errors
    /// [`code::INVALID_ENVIRONMENT`].
    pub fn read(lookup: impl Fn(&str) -> String) -> Result<Self, Error> {
        let command_text = lookup("CNI_COMMAND");
        let command = Command::parse(&command_text).ok_or_else(|| command_text.clone());
        let container = matches!(command, Ok(Command::Add | Command::Del | Command::Check));
        let netns = matches!(command, Ok(Command::Add | Command::Check));
        let path = matches!(
            command,
            Ok(Command::Add | Command::Del | Command::Check | Command::Gc | Command::Status)
        );
        let environment = Self {
            command,
            container_id: lookup("CNI_CONTAINERID"),
            netns: lookup("CNI_NETNS"),
            ifname: lookup("CNI_IFNAME"),
            args: lookup("CNI_ARGS"),
            path: lookup("CNI_PATH"),
            netns_override: matches!(
                lookup("CNI_NETNS_OVERRIDE").to_ascii_lowercase().as_str(),
                "1" | "true"
            ),
        };
        let missing: Vec<&str> = [
            ("CNI_COMMAND", true, &command_text),
            ("CNI_CONTAINERID", container, &environment.container_id),
            ("CNI_NETNS", netns, &environment.netns),
            ("CNI_IFNAME", container, &environment.ifname),
            ("CNI_PATH", path, &environment.path),
        ]
        .into_iter()
        .filter(|(_, required, value)| *required && value.is_empty())
        .map(|(name, _, _)| name)
        .collect();
        if !missing.is_empty() {
            return Err(Error::new(
                code::INVALID_ENVIRONMENT,
                format!("required env variables [{}] missing", missing.join(",")),
            ));
        }
        if container {
            validate_container_id(&environment.container_id)?;
            validate_ifname(&environment.ifname)?;
        }
        Ok(environment)
    }

    /// The command.
    ///
    /// # Errors
    /// [`code::INVALID_ENVIRONMENT`] when `CNI_COMMAND` is not a command.
    pub fn command(&self) -> Result<Command, Error> {
        self.command
            .clone()
            .map_err(|text| Error::new(code::INVALID_ENVIRONMENT, format!("unknown CNI_COMMAND: {text}")))
    }
}

/// Whether `text` is a letter or digit followed by letters, digits, `_`, `.` and `-`: the rule for container IDs and network names, both of
/// which become file names.
fn is_plain_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

pub(crate) fn validate_container_id(id: &str) -> Result<(), Error> {
    if is_plain_name(id) {
        return Ok(());
    }
    Err(Error::new(code::INVALID_ENVIRONMENT, "invalid characters in containerID").with_details(id))
}

/// Refuses what is not a usable network name.
///
/// # Errors
/// [`code::INVALID_NETWORK_CONFIG`].
pub fn validate_network_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::new(code::INVALID_NETWORK_CONFIG, "missing network name"));
    }
    if is_plain_name(name) {
        return Ok(());
    }
    Err(Error::new(code::INVALID_NETWORK_CONFIG, "invalid characters found in network name")
        .with_details(name))
}

/// Refuses what the kernel would not take as a link's name.
pub(crate) fn validate_ifname(name: &str) -> Result<(), Error> {
    let error = |message: &str, details: &str| {
        Err(Error::new(code::INVALID_ENVIRONMENT, message).with_details(details))
    };
    if name.len() > 15 {
        return error("interface name is too long", "interface name should be less than 16 characters");
    }
    if name == "." || name == ".." {
        return error("interface name is . or ..", "");
    }
    if name.chars().any(|character| matches!(character, '/' | ':') || character.is_whitespace()) {
        return error("interface name contains / or : or whitespace characters", "");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, Error> {
        Environment::read(|name| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
                .unwrap_or_default()
        })
    }

    const FULL: [(&str, &str); 4] =
        [("CNI_CONTAINERID", "a"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/p")];

    fn with(changes: &[(&'static str, &'static str)]) -> Result<Environment, Error> {
        let mut all = changes.to_vec();
        all.extend(FULL);
        read(&all)
    }

    #[test]
    fn missing_variables_come_together_and_first() {
        let error =
            read(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "a/b"), ("CNI_CONTAINERID", "%%")]).unwrap_err();
        assert_eq!(
            (error.code, error.message.as_str()),
            (4, "required env variables [CNI_NETNS,CNI_PATH] missing")
        );
        assert_eq!(read(&[]).unwrap_err().message, "required env variables [CNI_COMMAND] missing");
        assert!(read(&[("CNI_COMMAND", "VERSION")]).is_ok());
        assert_eq!(
            read(&[("CNI_COMMAND", "STATUS")]).unwrap_err().message,
            "required env variables [CNI_PATH] missing"
        );
        assert!(
            read(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "b"), ("CNI_PATH", "c")])
                .is_ok()
        );
    }

    #[test]
    fn values_are_validated() {
        let message = |changes: &[(&'static str, &'static str)]| with(changes).unwrap_err().message;
        assert_eq!(
            message(&[("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "-a")]),
            "invalid characters in containerID"
        );
        assert_eq!(
            message(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "abcdefghijklmnop")]),
            "interface name is too long"
        );
        assert_eq!(message(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "..")]), "interface name is . or ..");
        assert_eq!(
            message(&[("CNI_COMMAND", "DEL"), ("CNI_IFNAME", "a b")]),
            "interface name contains / or : or whitespace characters"
        );
        let unknown = with(&[("CNI_COMMAND", "JUMP")]).unwrap();
        assert_eq!(unknown.command().unwrap_err().message, "unknown CNI_COMMAND: JUMP");
    }

    #[test]
    fn network_names() {
        assert_eq!(validate_network_name("").unwrap_err().message, "missing network name");
        assert_eq!(validate_network_name("../x").unwrap_err().details, "../x");
        assert!(validate_network_name("cbr0").is_ok());
    }
}

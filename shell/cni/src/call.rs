//! One command on its way through plugins.

use loden_cni_protocol::error::Error;
use loden_cni_protocol::{Command, Config, Environment};

/// A command with everything it was given.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) command: Command,
    pub(crate) environment: Environment,
    /// Standard input, byte by byte, for delegates that get the same.
    pub(crate) text: Vec<u8>,
    pub(crate) config: Config,
}

impl Call {
    /// The same attachment with another command.
    pub(crate) fn with_command(&self, command: Command) -> Self {
        Self { command, ..self.clone() }
    }

    /// The same attachment with another command and configuration.
    pub(crate) fn with_text(&self, command: Command, text: Vec<u8>) -> Result<Self, Error> {
        let config = Config::parse(&text)?;
        Ok(Self { command, environment: self.environment.clone(), text, config })
    }
}

//! The emulator over loopback: our own client, the metadata service, the control path, and what is no call at all.

#[cfg(test)]
#[path = "http/configuration.rs"]
mod configuration;
#[cfg(test)]
#[path = "http/control.rs"]
mod control;
#[cfg(test)]
#[path = "http/metadata.rs"]
mod metadata;
#[cfg(test)]
#[path = "http/port.rs"]
mod port;
#[cfg(test)]
#[path = "http/surroundings.rs"]
mod surroundings;
#[cfg(test)]
#[path = "http/transport.rs"]
mod transport;

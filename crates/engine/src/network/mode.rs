//! `--network`: what an instance's network is.

use crate::error::{Error, Result};

/// What `NetworkMode` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode<'a> {
    /// A loopback interface alone.
    None,
    /// The host's.
    Host,
    /// That of another instance.
    Container(&'a str),
    /// A place in this network.
    Network(&'a str),
}

impl<'a> Mode<'a> {
    /// From Docker's `NetworkMode`; what is left open is the default network.
    ///
    /// # Errors
    /// It names nothing.
    pub fn parse(text: &'a str) -> Result<Self> {
        match text {
            "" | "default" => Ok(Self::Network(super::DEFAULT)),
            "none" => Ok(Self::None),
            "host" => Ok(Self::Host),
            other => match other.strip_prefix("container:") {
                Some("") => Err(Error::invalid("--network container: names no instance")),
                Some(name) => Ok(Self::Container(name)),
                None => Ok(Self::Network(other)),
            },
        }
    }
}

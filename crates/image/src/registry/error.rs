//! What can go wrong with a registry.

use crate::error::ErrorKind;

/// A registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// No address for its name.
    #[error("registry {host}: no such host (check the name, and this machine's DNS)")]
    UnknownHost {
        /// The registry.
        host: String,
    },
    /// It does not answer.
    #[error("registry {host} cannot be reached: {reason}")]
    Unreachable {
        /// The registry.
        host: String,
        /// Why.
        reason: String,
    },
    /// The connection cannot be made secure.
    #[error("registry {host}: {reason}\n{hint}")]
    Tls {
        /// The registry.
        host: String,
        /// Why.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// It speaks HTTP where HTTPS is asked for.
    #[error(
        "registry {host} speaks plain HTTP\nallow it in the configuration file: [registries.\"{host}\"] insecure = true"
    )]
    PlainHttp {
        /// The registry.
        host: String,
    },
    /// It wants other credentials, or any.
    #[error("access to {what} was denied: {reason}")]
    Denied {
        /// What was asked for.
        what: String,
        /// Why, and what to do.
        reason: String,
    },
    /// It has no such thing.
    #[error(
        "{what} was not found in the registry (check the name and tag; a private one needs 'proa login {host}')"
    )]
    NotFound {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
    },
    /// It wants fewer requests.
    #[error("registry {host} refuses more requests for now{}: try again later, or log in for a higher limit", wait_text(.retry_after))]
    TooManyRequests {
        /// The registry.
        host: String,
        /// How many seconds to wait, where it said.
        retry_after: Option<u64>,
    },
    /// Any other status.
    #[error("{what}: registry {host} answered {status}{detail}")]
    Status {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// The answer.
        status: u16,
        /// What it said, with a leading colon.
        detail: String,
    },
    /// It broke off.
    #[error("{what}: the transfer from {host} broke off at byte {at}: {reason}")]
    Interrupted {
        /// What was being transferred.
        what: String,
        /// The registry.
        host: String,
        /// How far it came.
        at: u64,
        /// Why.
        reason: String,
    },
    /// It does not keep to the protocol.
    #[error("{what}: registry {host} does not follow the protocol: {reason}")]
    Protocol {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// No mirror and no registry had it.
    #[error("{last}\nmirrors were tried first: {mirrors}")]
    Mirrors {
        /// The registry's own answer.
        last: Box<crate::Error>,
        /// What the mirrors answered.
        mirrors: String,
    },
}

impl RegistryError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownHost { .. }
            | Self::Unreachable { .. }
            | Self::Tls { .. }
            | Self::PlainHttp { .. }
            | Self::TooManyRequests { .. }
            | Self::Status { .. }
            | Self::Interrupted { .. } => ErrorKind::Unavailable,
            Self::Denied { .. } => ErrorKind::Denied,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Protocol { .. } => ErrorKind::Invalid,
            Self::Mirrors { last, .. } => last.kind(),
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Interrupted { .. } | Self::TooManyRequests { .. } => true,
            Self::Status { status, .. } => {
                *status == 408 || *status >= 500 && *status != 501 && *status != 505
            }
            _ => false,
        }
    }
}

fn wait_text(retry_after: &Option<u64>) -> String {
    retry_after.map_or_else(String::new, |seconds| format!(" (for {seconds} seconds)"))
}

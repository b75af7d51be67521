//! What can go wrong, with what the user can do about it.
//!
//! Each error says what failed and on which path, reference or name; [`Error::hint`] says what to do. The
//! [`Kind`] is what the edges map to exit codes and, later, to HTTP statuses.

use std::io;
use std::path::{Path, PathBuf};

use proa_protocol::message::ErrorKind;

use crate::policy::{Level, Violation};

/// A result of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Sorts of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request makes no sense.
    InvalidInput,
    /// An instance, an image or a path does not exist.
    NotFound,
    /// A name is taken, or an instance is not in a state that allows it.
    Conflict,
    /// This level, host or version cannot do it.
    Unsupported,
    /// The program does not exist inside the instance.
    CommandNotFound,
    /// The program cannot be run inside the instance.
    CommandNotExecutable,
    /// Anything else.
    Internal,
}

/// Why the engine could not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No instance has this name or id.
    #[error("no such instance: {0}")]
    NoSuchInstance(String),
    /// No network has this name or id.
    #[error("no such network: {0}")]
    NoSuchNetwork(String),
    /// Something about interfaces or the firewall of the host.
    #[error(transparent)]
    Network(#[from] proa_network::Error),
    /// More than one id begins so.
    #[error("more than one instance id begins with {0}")]
    AmbiguousId(String),
    /// Another instance has the name.
    #[error("the name {name} is in use by instance {holder}")]
    NameInUse {
        /// The name asked for.
        name: String,
        /// First twelve digits of the id of the instance that has it.
        holder: String,
    },
    /// No volume has this name.
    #[error("no such volume: {0}")]
    NoSuchVolume(String),
    /// Instances have the volume.
    #[error("volume {name} is in use by {}", told(users))]
    VolumeInUse {
        /// The volume.
        name: String,
        /// Names and ids of the instances.
        users: Vec<(String, String)>,
    },
    /// The request makes no sense.
    #[error("{message}")]
    Invalid {
        /// What makes no sense.
        message: String,
        /// What would; may be empty.
        hint: String,
    },
    /// The instance is not in a state that allows it.
    #[error("{message}")]
    Conflict {
        /// What stands against it.
        message: String,
        /// What to do; may be empty.
        hint: String,
    },
    /// This level, host or version cannot do it.
    #[error("{message}")]
    Unsupported {
        /// What it cannot do.
        message: String,
        /// What to do instead; may be empty.
        hint: String,
    },
    /// A path inside an instance does not exist.
    #[error("no such path in instance {instance}: {path}")]
    NoSuchPath {
        /// The instance.
        instance: String,
        /// The path.
        path: String,
    },
    /// Something on the host's disk.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// A verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The database.
    #[error("cannot {action} in the database {}", path.display())]
    Database {
        /// A verb and its object.
        action: &'static str,
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The database is from a newer Proa.
    #[error("the database {} has version {found}, this Proa knows {known}", path.display())]
    NewerDatabase {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A policy forbids it.
    #[error("the policy {} forbids it ({} {})", level.as_str(), violations.len(), plural(violations.len()))]
    Policy {
        /// Which.
        level: Level,
        /// All that is wrong.
        violations: Vec<Violation>,
    },
    /// The image store.
    #[error(transparent)]
    Image(#[from] proa_image::Error),
    /// The instance's monitor could not do it.
    #[error("{message}")]
    Monitor {
        /// Its sort.
        kind: ErrorKind,
        /// Its words.
        message: String,
    },
    /// The monitor ended in the middle of a conversation.
    #[error("the monitor of instance {0} ended unexpectedly")]
    MonitorGone(String),
    /// The monitor said something that no protocol allows.
    #[error("the monitor of instance {instance} broke the protocol: {what}")]
    Protocol {
        /// The instance.
        instance: String,
        /// What it said.
        what: String,
    },
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "violation" } else { "violations" }
}

/// As `web (0123456789ab), db (…)`.
fn told(users: &[(String, String)]) -> String {
    let texts = users.iter().map(|(name, id)| format!("{name} ({})", crate::names::short(id)));
    texts.collect::<Vec<_>>().join(", ")
}

impl Error {
    /// More lines about it, in their order; none for most.
    pub fn details(&self) -> Vec<String> {
        match self {
            Self::Policy { violations, .. } => violations.iter().map(Violation::line).collect(),
            _ => Vec::new(),
        }
    }

    /// A request that makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), hint: String::new() }
    }

    /// Something this level, host or version cannot do.
    pub fn unsupported(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unsupported { message: message.into(), hint: hint.into() }
    }

    /// A request that makes no sense, and what would.
    pub fn invalid_with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), hint: hint.into() }
    }

    /// A state that does not allow it.
    pub fn conflict(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Conflict { message: message.into(), hint: hint.into() }
    }

    /// A failed call on `path`; `action` is a verb.
    pub fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { action, path: path.to_owned(), source: source.into() }
    }

    /// Its sort.
    pub fn kind(&self) -> Kind {
        match self {
            Self::NoSuchInstance(_)
            | Self::NoSuchNetwork(_)
            | Self::NoSuchVolume(_)
            | Self::NoSuchPath { .. } => Kind::NotFound,
            Self::AmbiguousId(_) | Self::Invalid { .. } | Self::Policy { .. } => Kind::InvalidInput,
            Self::NameInUse { .. } | Self::VolumeInUse { .. } | Self::Conflict { .. } => Kind::Conflict,
            Self::Unsupported { .. } => Kind::Unsupported,
            Self::Image(error) => match error.kind() {
                proa_image::ErrorKind::NotFound => Kind::NotFound,
                proa_image::ErrorKind::Conflict => Kind::Conflict,
                proa_image::ErrorKind::Invalid => Kind::InvalidInput,
                proa_image::ErrorKind::Denied
                | proa_image::ErrorKind::Unavailable
                | proa_image::ErrorKind::Other => Kind::Internal,
            },
            Self::Monitor { kind, .. } => match kind {
                ErrorKind::CommandNotFound => Kind::CommandNotFound,
                ErrorKind::CommandNotExecutable => Kind::CommandNotExecutable,
                ErrorKind::InvalidInput => Kind::InvalidInput,
                ErrorKind::NoSuchPath => Kind::NotFound,
                ErrorKind::Conflict => Kind::Conflict,
                ErrorKind::Unsupported => Kind::Unsupported,
                ErrorKind::Internal => Kind::Internal,
            },
            Self::Network(_)
            | Self::Io { .. }
            | Self::Database { .. }
            | Self::NewerDatabase { .. }
            | Self::MonitorGone(_)
            | Self::Protocol { .. } => Kind::Internal,
        }
    }

    /// What the user can do about it; empty where nothing helps.
    pub fn hint(&self) -> String {
        match self {
            Self::NoSuchInstance(_) => "`proa ps -a` lists all instances".into(),
            Self::NoSuchNetwork(name) => {
                format!("`proa network ls` lists them, `proa network create {name}` makes it")
            }
            Self::NoSuchVolume(_) => "`proa volume ls` lists all volumes".into(),
            Self::VolumeInUse { .. } => "`proa rm` these instances first, whether they run or not".into(),
            Self::AmbiguousId(_) => "give more digits, or the name".into(),
            Self::NameInUse { name, .. } => format!("choose another name, or `proa rm {name}` first"),
            Self::Invalid { hint, .. } | Self::Conflict { hint, .. } | Self::Unsupported { hint, .. } => {
                hint.clone()
            }
            Self::Image(_) | Self::Network(_) => String::new(),
            Self::NewerDatabase { .. } => "use the newer Proa, or another --root".into(),
            Self::MonitorGone(_) => "`proa system check --repair` cleans up what it left".into(),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "see whom it belongs to: another user's state needs that user, or root".into()
                }
                io::ErrorKind::StorageFull => "free some space: `proa image prune`, `proa rm`".into(),
                _ => String::new(),
            },
            Self::NoSuchPath { .. }
            | Self::Policy { .. }
            | Self::Database { .. }
            | Self::Monitor { .. }
            | Self::Protocol { .. } => String::new(),
        }
    }
}

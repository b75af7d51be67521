//! Speaking with registries (OCI distribution specification 1.1, and Docker's registry as it is).
//!
//! * [`config`]: which registries have mirrors, may be spoken with insecurely, or have a CA of their own.
//! * [`credentials`]: Docker's `config.json`: passwords, tokens and credential helpers.
//! * `auth`: what a `WWW-Authenticate` asks for, and the tokens it leads to.
//! * `http`: connections, certificates, redirects, time limits, retries.
//! * `names`: addresses of their names.
//! * `client`: one repository's manifests and blobs.

pub mod config;
pub mod credentials;

mod auth;
mod client;
mod error;
mod http;
mod login;
mod names;

use std::path::PathBuf;
use std::time::Duration;

pub use config::{ProxyConfig, RegistryConfig};
pub use error::RegistryError;
pub use login::{login, logout};

pub(crate) use client::{BlobReader, Place, RawManifest, Repository};
pub(crate) use http::Http;

/// How to reach registries.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Mirrors, insecure registries and CAs.
    pub config: RegistryConfig,
    /// Docker's `config.json` with the credentials; it need not exist.
    pub credentials: Option<PathBuf>,
    /// Proxies.
    pub proxy: ProxyConfig,
    /// Directories with a directory per registry, which holds `ca.crt` and client certificates.
    pub cert_dirs: Vec<PathBuf>,
    /// How often a request that fails for a passing reason is made in all.
    pub attempts: u32,
    /// How long an answer may take to begin, and each further part of it to come.
    pub stall: Duration,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            config: RegistryConfig::default(),
            credentials: None,
            proxy: ProxyConfig::default(),
            cert_dirs: vec![PathBuf::from("/etc/docker/certs.d"), PathBuf::from("/etc/containers/certs.d")],
            attempts: 5,
            stall: Duration::from_secs(45),
        }
    }
}

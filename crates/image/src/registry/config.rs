//! The `registries` table of the configuration file, TOML or JSON.
//!
//! ```toml
//! [registries."docker.io"]
//! mirrors = ["https://mirror.example:5000"]
//!
//! [registries."registry.example:5000"]
//! ca = "/etc/ssl/example-ca.pem"     # trusted for this registry, besides the system's
//! insecure = true                    # allow plain HTTP, and certificates nobody vouches for
//! ```
//!
//! A registry is named as in references, with its port. Loopback addresses are spoken with insecurely, as by
//! Docker, unless a CA is given for them.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};

/// Settings by registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct RegistryConfig {
    /// By `HOST[:PORT]`.
    #[serde(default)]
    pub registries: BTreeMap<String, RegistrySettings>,
}

/// Settings of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrySettings {
    /// Asked first, in this order: `HOST[:PORT]` or `https://HOST[:PORT]`; `http://` for a plain one.
    pub mirrors: Vec<String>,
    /// Allow plain HTTP and certificates nobody vouches for.
    pub insecure: bool,
    /// A file with certificates to trust.
    pub ca: Option<PathBuf>,
}

/// Proxies, as the usual environment variables give them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyConfig {
    /// `HTTP_PROXY`.
    pub http: Option<String>,
    /// `HTTPS_PROXY`.
    pub https: Option<String>,
    /// `NO_PROXY`: hosts and domains, separated by commas.
    pub no_proxy: String,
}

impl RegistryConfig {
    /// Reads the file's `registries` table; other tables are not this crate's. A missing file is an empty one.
    ///
    /// # Errors
    /// The file cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Error::io(path)(error)),
        };
        let parsed = if text.trim_start().starts_with('{') {
            serde_json::from_str(&text).map_err(|error| error.to_string())
        } else {
            toml::from_str(&text).map_err(|error| error.to_string().trim_end().to_owned())
        };
        parsed.map_err(|message| Error::Config { path: path.to_owned(), message })
    }

    /// The settings of a registry.
    pub fn of(&self, host: &str) -> RegistrySettings {
        self.registries.get(host).cloned().unwrap_or_default()
    }
}

impl ProxyConfig {
    /// The proxy for a URL's scheme and host, if it goes through one.
    pub(super) fn for_host(&self, https: bool, host: &str) -> Option<&str> {
        let name = host_name(host);
        let bypassed = self.no_proxy.split(',').map(str::trim).any(|entry| {
            let suffix = entry.trim_start_matches("*.").trim_start_matches('.');
            entry == "*" || (!suffix.is_empty() && (name == suffix || name.ends_with(&format!(".{suffix}"))))
        });
        if bypassed || is_loopback(host) {
            return None;
        }
        let proxy = if https { &self.https } else { &self.http };
        proxy.as_deref().filter(|proxy| !proxy.is_empty())
    }
}

/// The host without its port.
pub(super) fn host_name(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

/// Whether the host is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = host_name(host);
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<RegistryConfig> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        RegistryConfig::load(file.path())
    }

    #[test]
    fn toml_and_json_mean_the_same() {
        let toml =
            "log = 'x'\n[registries.\"a.b:5000\"]\nmirrors = ['https://m']\ninsecure = true\nca = '/x'\n";
        let json =
            r#"{"log":"x","registries":{"a.b:5000":{"mirrors":["https://m"],"insecure":true,"ca":"/x"}}}"#;
        let config = load(toml).unwrap();
        assert_eq!(config, load(json).unwrap());
        assert!(config.of("a.b:5000").insecure);
        assert_eq!(config.of("a.b"), RegistrySettings::default());
    }

    #[test]
    fn a_missing_file_is_empty_and_a_wrong_one_an_error_that_names_it() {
        assert_eq!(RegistryConfig::load(Path::new("/nonexistent/x")).unwrap(), RegistryConfig::default());
        for text in ["registries = 1", "[registries.x]\ninsecur = true", "{", "[registries.x]\nmirrors = 1"] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.starts_with("/"), "{error}");
        }
    }

    #[test]
    fn loopback_and_proxies() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:1", "127.9.9.9", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "[::2]"] {
            assert!(!is_loopback(host), "{host}");
        }
        let proxy =
            ProxyConfig { http: None, https: Some("http://p:1".into()), no_proxy: "a.b, .c.d,*.e.f".into() };
        assert_eq!(proxy.for_host(true, "x.y:5"), Some("http://p:1"));
        assert_eq!(proxy.for_host(false, "x.y"), None);
        for host in ["a.b", "x.a.b:5", "c.d", "x.e.f", "localhost:5000"] {
            assert_eq!(proxy.for_host(true, host), None, "{host}");
        }
        assert!(proxy.for_host(true, "xa.b").is_some());
    }
}

//! Requests: connections by host, certificates, redirects, and what failures mean.
//!
//! A host is spoken with over HTTPS, verified against the system's certificates and those given for the host.
//! Where the host is allowed to be insecure nothing is verified. Redirects are followed for requests without a
//! body; the `Authorization` header goes no further than the host it was meant for, and no redirect leads from
//! HTTPS to HTTP unless the registry is insecure.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ureq::http::{HeaderMap, Method, Request, Uri, header};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body, Proxy, SendBody, Timeout};

use super::config::is_loopback;
use super::names::SystemNames;
use super::{RegistryError, RegistryOptions};
use crate::error::{Error, Result};

const CONNECT: Duration = Duration::from_secs(15);
const MAX_REDIRECTS: usize = 10;
/// Where distributions keep the certificates they trust.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// Makes requests to any host.
#[derive(Debug)]
pub(crate) struct Http {
    options: RegistryOptions,
    agents: Mutex<HashMap<String, Agent>>,
    roots: OnceLock<Vec<Certificate<'static>>>,
}

/// One request.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) url: String,
    /// What is asked for, for messages.
    pub(super) what: &'a str,
    pub(super) headers: Vec<(header::HeaderName, String)>,
    pub(super) authorization: Option<String>,
}

/// What a request sends along.
pub(super) enum Payload {
    Nothing,
    Bytes(Vec<u8>),
    Stream(Box<dyn Read + Send + Sync>, u64),
}

/// The answer, its body not yet read.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    /// Where it came from at last.
    pub(super) url: String,
}

impl Answer {
    /// A header's text.
    pub(super) fn header(&self, name: &header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body, if it has no more bytes than `max`.
    pub(super) fn bytes(self, max: u64, what: &str) -> Result<Vec<u8>> {
        let host = host_of(&self.url);
        let mut bytes = Vec::new();
        let read = self.body.into_reader().take(max + 1).read_to_end(&mut bytes);
        read.map_err(|error| interrupted(&host, what, bytes.len() as u64, &error))?;
        if bytes.len() as u64 > max {
            let reason = format!("more than {max} bytes");
            return Err(RegistryError::Protocol { what: what.to_owned(), host, reason }.into());
        }
        Ok(bytes)
    }
}

impl Http {
    pub(crate) fn new(options: RegistryOptions) -> Self {
        Self { options, agents: Mutex::default(), roots: OnceLock::new() }
    }

    pub(super) fn options(&self) -> &RegistryOptions {
        &self.options
    }

    /// Whether the host may be spoken with without verification or encryption.
    pub(super) fn may_be_insecure(&self, host: &str) -> bool {
        let settings = self.options.config.of(host);
        settings.insecure || (is_loopback(host) && settings.ca.is_none() && !self.has_own_ca(host))
    }

    /// Sends the request and follows redirects.
    pub(super) fn send(&self, mut call: Call<'_>, payload: Payload) -> Result<Answer> {
        let follows = matches!(payload, Payload::Nothing);
        let mut answer = self.send_once(&call, payload)?;
        for _ in 0..MAX_REDIRECTS {
            if !follows || !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let target = answer.header(&header::LOCATION).and_then(|location| join(&call.url, location));
            let Some(target) = target else {
                return Err(protocol(&call, "a redirect to nowhere"));
            };
            if call.url.starts_with("https:")
                && !target.starts_with("https:")
                && !self.may_be_insecure(&host_of(&call.url))
            {
                return Err(protocol(&call, "a redirect from HTTPS to HTTP"));
            }
            if origin(&target) != origin(&call.url) {
                call.authorization = None;
            }
            call.url = target;
            answer = self.send_once(&call, Payload::Nothing)?;
        }
        Err(protocol(&call, "too many redirects"))
    }

    fn send_once(&self, call: &Call<'_>, payload: Payload) -> Result<Answer> {
        let host = host_of(&call.url);
        let agent = self.agent(&host, call.url.starts_with("https:"))?;
        let mut request = Request::builder().method(call.method.clone()).uri(&call.url);
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = &call.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let invalid = |error: ureq::http::Error| protocol(call, &error.to_string());
        let sent = match payload {
            Payload::Nothing => agent.run(request.body(()).map_err(invalid)?),
            Payload::Bytes(bytes) => agent.run(request.body(bytes).map_err(invalid)?),
            Payload::Stream(reader, length) => {
                let request = request.header(header::CONTENT_LENGTH, length);
                agent.run(request.body(SendBody::from_owned_reader(reader)).map_err(invalid)?)
            }
        };
        let response = sent.map_err(|error| self.explain(&host, call, error))?;
        let (parts, body) = response.into_parts();
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body, url: call.url.clone() })
    }

    fn agent(&self, host: &str, https: bool) -> Result<Agent> {
        let key = format!("{https} {host}");
        if let Some(agent) = self.agents.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(agent.clone());
        }
        let proxy = match self.options.proxy.for_host(https, host) {
            Some(url) => Some(Proxy::new(url).map_err(|error| Error::Config {
                path: PathBuf::from("proxy"),
                message: format!("'{url}': {error}"),
            })?),
            None => None,
        };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("proa/", env!("CARGO_PKG_VERSION")))
            .proxy(proxy)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(self.options.stall))
            .timeout_per_read(Some(self.options.stall))
            .timeout_per_write(Some(self.options.stall));
        if https {
            config = config.tls_config(self.tls(host)?);
        }
        let agent = Agent::with_parts(config.build(), DefaultConnector::default(), SystemNames::default());
        self.agents.lock().unwrap_or_else(PoisonError::into_inner).insert(key, agent.clone());
        Ok(agent)
    }

    fn tls(&self, host: &str) -> Result<TlsConfig> {
        let mut tls = TlsConfig::builder().client_cert(self.client_certificate(host)?);
        if self.may_be_insecure(host) {
            return Ok(tls.disable_verification(true).build());
        }
        let own = self.own_roots(host)?;
        let system = self.roots.get_or_init(system_roots);
        if !own.is_empty() || !system.is_empty() {
            let all: Vec<_> = own.into_iter().chain(system.iter().cloned()).collect();
            tls = tls.root_certs(RootCerts::Specific(Arc::new(all)));
        }
        Ok(tls.build())
    }

    /// Certificates given for this host alone.
    fn own_roots(&self, host: &str) -> Result<Vec<Certificate<'static>>> {
        let mut roots = Vec::new();
        if let Some(path) = self.options.config.of(host).ca {
            let found = certificates(&path)?;
            if found.is_empty() {
                return Err(Error::Config { path, message: "holds no certificate".to_owned() });
            }
            roots.extend(found);
        }
        for path in self.host_files(host, "crt") {
            roots.extend(certificates(&path)?);
        }
        Ok(roots)
    }

    fn has_own_ca(&self, host: &str) -> bool {
        !self.host_files(host, "crt").is_empty()
    }

    /// `NAME.cert` with `NAME.key` beside it, by which the registry knows us.
    fn client_certificate(&self, host: &str) -> Result<Option<ClientCert>> {
        let Some(path) = self.host_files(host, "cert").into_iter().next() else { return Ok(None) };
        let chain = certificates(&path)?;
        let key_path = path.with_extension("key");
        let pem = std::fs::read(&key_path).map_err(Error::io(&key_path))?;
        let wrong = |error: ureq::Error| Error::Config { path: key_path.clone(), message: error.to_string() };
        let key = PrivateKey::from_pem(&pem).map_err(wrong)?;
        Ok(Some(ClientCert::new_with_certs(&chain, key)))
    }

    fn host_files(&self, host: &str, extension: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        if host.starts_with('.') || host.contains('/') {
            return found;
        }
        for dir in &self.options.cert_dirs {
            let Ok(entries) = std::fs::read_dir(dir.join(host)) else { continue };
            let paths = entries.flatten().map(|entry| entry.path());
            found.extend(paths.filter(|path| path.extension().is_some_and(|found| found == extension)));
        }
        found.sort();
        found
    }

    fn explain(&self, host: &str, call: &Call<'_>, error: ureq::Error) -> Error {
        let owned = host.to_owned();
        let text = error.to_string();
        let unreachable = |reason: String| RegistryError::Unreachable { host: host.to_owned(), reason };
        let explained = match error {
            ureq::Error::HostNotFound | ureq::Error::Timeout(Timeout::Resolve) => {
                RegistryError::UnknownHost { host: owned }
            }
            ureq::Error::Timeout(Timeout::Connect) => {
                unreachable("no answer (is a firewall in between?)".to_owned())
            }
            ureq::Error::ConnectProxyFailed(reason) => unreachable(format!("the proxy refuses: {reason}")),
            ureq::Error::Timeout(_) => {
                return interrupted(host, call.what, 0, &io::Error::other("no answer in time")).into();
            }
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) => tls_error(host, &text),
            ureq::Error::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => {
                    unreachable("connection refused (is it running, and is the port right?)".to_owned())
                }
                io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                    unreachable(error.to_string())
                }
                io::ErrorKind::InvalidData => tls_error(host, &error.to_string()),
                _ if text.contains("lookup address") => RegistryError::UnknownHost { host: owned },
                _ => interrupted(host, call.what, 0, &error),
            },
            _ => RegistryError::Protocol { what: call.what.to_owned(), host: owned, reason: text },
        };
        explained.into()
    }
}

pub(super) fn interrupted(host: &str, what: &str, at: u64, error: &io::Error) -> RegistryError {
    RegistryError::Interrupted { what: what.to_owned(), host: host.to_owned(), at, reason: error.to_string() }
}

fn protocol(call: &Call<'_>, reason: &str) -> Error {
    let host = host_of(&call.url);
    RegistryError::Protocol { what: call.what.to_owned(), host, reason: reason.to_owned() }.into()
}

fn tls_error(host: &str, text: &str) -> RegistryError {
    let host = host.to_owned();
    if text.contains("InvalidContentType") || text.contains("corrupt message") {
        return RegistryError::PlainHttp { host };
    }
    let untrusted = ["UnknownIssuer", "BadSignature", "CaUsedAsEndEntity"];
    let hint = if untrusted.iter().any(|word| text.contains(word)) {
        format!("trust its CA: put it into /etc/docker/certs.d/{host}/ca.crt")
    } else if text.contains("NotValidForName") {
        "its certificate is for another name: use that name, or have it renewed with this one".to_owned()
    } else if text.contains("Expired") || text.contains("NotValidYet") {
        "its certificate is out of date: have it renewed, or check this machine's clock".to_owned()
    } else {
        "check that the registry's certificate and protocol are sound".to_owned()
    };
    RegistryError::Tls { host, reason: format!("no secure connection: {text}"), hint }
}

fn system_roots() -> Vec<Certificate<'static>> {
    let found = SYSTEM_ROOTS.iter().find_map(|path| certificates(Path::new(path)).ok());
    found.unwrap_or_default()
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let pem = std::fs::read(path).map_err(Error::io(path))?;
    let mut found = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => found.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(Error::Config { path: path.to_owned(), message: error.to_string() }),
        }
    }
    Ok(found)
}

/// The host and port of a URL.
pub(super) fn host_of(url: &str) -> String {
    let uri: Option<Uri> = url.parse().ok();
    uri.and_then(|uri| uri.authority().map(|authority| authority.as_str().to_owned())).unwrap_or_default()
}

fn origin(url: &str) -> &str {
    let after = url.find("://").map_or(0, |at| at + 3);
    let end = url[after..].find(['/', '?', '#']).map_or(url.len(), |at| after + at);
    &url[..end]
}

/// The URL that `location` means on the page `base`; `None` where it is not HTTP, or names a user.
pub(super) fn join(base: &str, location: &str) -> Option<String> {
    let location = location.split('#').next().unwrap_or_default();
    let joined = if location.starts_with("https://") || location.starts_with("http://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{}:{location}", base.split(':').next()?)
    } else if location.starts_with('/') {
        format!("{}{location}", origin(base))
    } else {
        return None;
    };
    let uri: Uri = joined.parse().ok()?;
    let authority = uri.authority()?;
    (!authority.as_str().contains('@') && !authority.host().is_empty()).then_some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_joined() {
        let base = "https://a.b:5/v2/x?y=/z";
        let cases = [
            ("/p?q=1", Some("https://a.b:5/p?q=1")),
            ("http://c/d#e", Some("http://c/d")),
            ("//c.d/e", Some("https://c.d/e")),
            ("ftp://c/d", None),
            ("file:///etc/passwd", None),
            ("https://user@c/d", None),
            ("https://", None),
            ("d", None),
            ("", None),
        ];
        for (location, expected) in cases {
            assert_eq!(join(base, location).as_deref(), expected, "{location}");
        }
        assert_eq!(origin(base), "https://a.b:5");
        assert_eq!(host_of(base), "a.b:5");
    }

    #[test]
    fn loopback_is_insecure_until_it_has_a_ca() {
        let dir = tempfile::tempdir().unwrap();
        let options =
            RegistryOptions { cert_dirs: vec![dir.path().to_owned()], ..RegistryOptions::default() };
        let http = Http::new(options);
        assert!(http.may_be_insecure("localhost:5000"));
        assert!(!http.may_be_insecure("registry.example"));
        std::fs::create_dir(dir.path().join("localhost:5000")).unwrap();
        std::fs::write(dir.path().join("localhost:5000/ca.crt"), "").unwrap();
        assert!(!http.may_be_insecure("localhost:5000"));
    }

    #[test]
    fn tls_failures_have_hints() {
        let hint = |text: &str| tls_error("h:1", text).to_string();
        assert!(hint("invalid peer certificate: UnknownIssuer").contains("/etc/docker/certs.d/h:1/ca.crt"));
        assert!(hint("received corrupt message of type InvalidContentType").contains("insecure = true"));
        assert!(hint("invalid peer certificate: Expired").contains("clock"));
    }
}

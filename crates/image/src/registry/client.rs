//! One repository of one registry: its manifests and blobs.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use proa_oci::image::{MAX_MANIFEST, media_type};
use proa_oci::reference::{DEFAULT_DOMAIN, Digest, Reference};
use serde::Deserialize;
use ureq::BodyReader;
use ureq::http::{Method, header};

use super::RegistryError;
use super::auth::{Authorizer, encode_form};
use super::credentials::{CredentialFile, Credentials};
use super::http::{Answer, Call, Http, Payload, interrupted, join};
use crate::digest::digest_of;
use crate::error::{Error, Result};
use crate::progress::{Event, Progress};

/// docker.io's API is at another host.
const DOCKER_API: &str = "registry-1.docker.io";
const MAX_ERROR: u64 = 64 * 1024;
/// The first wait before another attempt; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A registry that asks for a longer wait is not waited for.
const LONGEST_ASKED: u64 = 20;
/// After this many bytes a transfer has earned its attempts anew.
const FRESH_AFTER: u64 = 1024 * 1024;

/// A repository at a registry, or at a mirror of it.
#[derive(Debug)]
pub(crate) struct Repository {
    http: Arc<Http>,
    /// The host as messages and certificates name it.
    host: String,
    /// Scheme and host.
    base: String,
    path: String,
    scope: String,
    auth: Authorizer,
}

/// A manifest as it came, its digest verified.
#[derive(Debug)]
pub(crate) struct RawManifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) media_type: Option<String>,
    pub(crate) digest: Digest,
}

impl Repository {
    /// Finds out how the place is spoken with, for `pull` or `pull,push`.
    pub(crate) fn open(http: &Arc<Http>, place: &Place, path: &str, actions: &str) -> Result<Self> {
        let auth = Authorizer::new(&place.key, stored_credentials(http, &place.key)?);
        Self::with_auth(http, place, path, actions, auth)
    }

    fn with_auth(
        http: &Arc<Http>,
        place: &Place,
        path: &str,
        actions: &str,
        auth: Authorizer,
    ) -> Result<Self> {
        let base = place.choose(http)?;
        let scope = if path.is_empty() { String::new() } else { format!("repository:{path}:{actions}") };
        Ok(Self { http: http.clone(), host: place.host.clone(), base, path: path.to_owned(), scope, auth })
    }

    /// Asks the registry whether it takes the credentials.
    pub(crate) fn check_login(http: &Arc<Http>, domain: &str, credentials: Credentials) -> Result<()> {
        let auth = Authorizer::new(domain, Some(credentials));
        let registry = Self::with_auth(http, &Place::of_registry(http, domain), "", "", auth)?;
        let what = format!("registry {domain}");
        let answer = registry
            .send(Method::GET, format!("{}/v2/", registry.base), &what, vec![], || Payload::Nothing)?;
        registry.checked(answer, &what, &[200]).map(drop)
    }

    /// The host as messages name it.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The manifest with this tag, or with this digest, which is compared.
    pub(crate) fn manifest(
        &self,
        tag: &str,
        digest: Option<&Digest>,
        progress: &dyn Progress,
    ) -> Result<RawManifest> {
        let name = digest.map_or(tag, Digest::as_str);
        let separator = if digest.is_some() { '@' } else { ':' };
        let what = format!("manifest {}/{}{separator}{name}", self.host, self.path);
        let url = format!("{}/v2/{}/manifests/{name}", self.base, self.path);
        let accept = media_type::MANIFESTS.join(", ");
        self.retry(&what, progress, || {
            let headers = vec![(header::ACCEPT, accept.clone())];
            let answer = self.send(Method::GET, url.clone(), &what, headers, || Payload::Nothing)?;
            let answer = self.checked(answer, &what, &[200])?;
            let media_type = answer
                .header(&header::CONTENT_TYPE)
                .map(|text| text.split(';').next().unwrap_or("").trim().to_owned());
            let told: Option<Digest> = answer
                .headers
                .get("docker-content-digest")
                .and_then(|value| value.to_str().ok()?.parse().ok());
            let length = answer.body.content_length();
            let bytes = answer.bytes(MAX_MANIFEST, &what)?;
            if let Some(expected) = length.filter(|length| *length != bytes.len() as u64) {
                return Err(Error::SizeMismatch { what: what.clone(), expected, actual: bytes.len() as u64 });
            }
            let expected = digest.or(told.as_ref());
            let actual =
                digest_of(expected.map_or(proa_oci::reference::Algorithm::Sha256, Digest::algorithm), &bytes);
            match expected {
                Some(expected) if *expected != actual => {
                    Err(Error::DigestMismatch { what: what.clone(), expected: expected.clone(), actual })
                }
                _ => Ok(RawManifest { bytes, media_type, digest: actual }),
            }
        })
    }

    /// A blob that fits into memory, its digest and size verified.
    pub(crate) fn small_blob(
        &self,
        digest: &Digest,
        size: u64,
        max: u64,
        progress: &dyn Progress,
    ) -> Result<Vec<u8>> {
        let what = format!("blob {digest}");
        if size > max {
            let reason = format!("{what} has {size} bytes, more than the {max} allowed");
            return Err(RegistryError::Protocol { what, host: self.host.clone(), reason }.into());
        }
        let mut bytes = Vec::new();
        let read = BlobReader::new(self, digest, size, progress).read_to_end(&mut bytes);
        read.map_err(|error| Error::from_stream(what.clone(), error))?;
        let actual = digest_of(digest.algorithm(), &bytes);
        if actual != *digest {
            return Err(Error::DigestMismatch { what, expected: digest.clone(), actual });
        }
        Ok(bytes)
    }

    /// Whether the registry has the blob.
    pub(crate) fn has_blob(&self, digest: &Digest, progress: &dyn Progress) -> Result<bool> {
        let what = format!("blob {digest}");
        self.retry(&what, progress, || {
            let answer =
                self.send(Method::HEAD, self.blob_url(digest), &what, vec![], || Payload::Nothing)?;
            if answer.status == 404 { Ok(false) } else { self.checked(answer, &what, &[200]).map(|_| true) }
        })
    }

    /// Sends a blob; `open` gives it from its beginning, for each attempt.
    pub(crate) fn put_blob(
        &self,
        digest: &Digest,
        size: u64,
        progress: &dyn Progress,
        open: &dyn Fn() -> Result<Box<dyn Read + Send + Sync>>,
    ) -> Result<()> {
        let what = format!("blob {digest}");
        self.retry(&what, progress, || {
            let begin = format!("{}/v2/{}/blobs/uploads/", self.base, self.path);
            let empty = || Payload::Bytes(Vec::new());
            let answer = self.send(Method::POST, begin.clone(), &what, vec![], empty)?;
            let answer = self.checked(answer, &what, &[202])?;
            let location = answer.header(&header::LOCATION).and_then(|location| join(&begin, location));
            let Some(location) = location else {
                let reason = "it names no place for the upload".to_owned();
                return Err(
                    RegistryError::Protocol { what: what.clone(), host: self.host.clone(), reason }.into()
                );
            };
            let separator = if location.contains('?') { '&' } else { '?' };
            let url = format!("{location}{separator}{}", encode_form(&[("digest", digest.as_str())]));
            let headers = vec![(header::CONTENT_TYPE, "application/octet-stream".to_owned())];
            let reader = open()?;
            let call = self.call(Method::PUT, url, &what, headers);
            let answer = self.http.send(call, Payload::Stream(reader, size))?;
            self.checked(answer, &what, &[201, 202, 204]).map(drop)
        })
    }

    /// Sends a manifest under a tag or a digest.
    pub(crate) fn put_manifest(
        &self,
        name: &str,
        media_type: &str,
        bytes: &[u8],
        progress: &dyn Progress,
    ) -> Result<()> {
        let what = format!("manifest {}/{}:{name}", self.host, self.path);
        let url = format!("{}/v2/{}/manifests/{name}", self.base, self.path);
        self.retry(&what, progress, || {
            let headers = vec![(header::CONTENT_TYPE, media_type.to_owned())];
            let answer =
                self.send(Method::PUT, url.clone(), &what, headers, || Payload::Bytes(bytes.to_vec()))?;
            self.checked(answer, &what, &[200, 201]).map(drop)
        })
    }

    fn blob_url(&self, digest: &Digest) -> String {
        format!("{}/v2/{}/blobs/{digest}", self.base, self.path)
    }

    fn call<'a>(
        &self,
        method: Method,
        url: String,
        what: &'a str,
        headers: Vec<(header::HeaderName, String)>,
    ) -> Call<'a> {
        // An upload may go to another host than the registry, which must not see what opens the registry.
        let ours = url.starts_with(&format!("{}/", self.base));
        let authorization = if ours { self.auth.header(&self.scope) } else { None };
        Call { method, url, what, headers, authorization }
    }

    /// Sends a request, and once more with what the registry asks for to let us in.
    fn send(
        &self,
        method: Method,
        url: String,
        what: &str,
        headers: Vec<(header::HeaderName, String)>,
        payload: impl Fn() -> Payload,
    ) -> Result<Answer> {
        let answer =
            self.http.send(self.call(method.clone(), url.clone(), what, headers.clone()), payload())?;
        if answer.status != 401 || !answer.url.starts_with(&format!("{}/", self.base)) {
            return Ok(answer);
        }
        let authorization = self.auth.answer(&self.http, &self.base, &answer.headers, &self.scope)?;
        let mut call = self.call(method, url, what, headers);
        call.authorization = Some(authorization);
        self.http.send(call, payload())
    }

    fn checked(&self, answer: Answer, what: &str, expected: &[u16]) -> Result<Answer> {
        if expected.contains(&answer.status) {
            return Ok(answer);
        }
        match answer.status {
            401 | 403 => Err(self.auth.refused(what)),
            404 => Err(RegistryError::NotFound { what: what.to_owned(), host: self.host.clone() }.into()),
            _ => Err(status_error(answer, what)),
        }
    }

    fn retry<T>(
        &self,
        what: &str,
        progress: &dyn Progress,
        mut attempt: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let mut backoff = Backoff::new(self.http.options().attempts);
        loop {
            match attempt() {
                Err(Error::Registry(error)) if error.is_passing() && backoff.wait(&error) => {
                    progress.event(Event::Retry { what, reason: &error.to_string() });
                }
                result => return result,
            }
        }
    }
}

/// A registry or a mirror, and how it may be spoken with.
#[derive(Debug)]
pub(crate) struct Place {
    host: String,
    /// Base URLs to try, the safest first.
    bases: Vec<String>,
    /// Under which its credentials are kept.
    key: String,
}

impl Place {
    /// The mirrors of a registry, and last the registry itself.
    pub(crate) fn all(http: &Http, domain: &str) -> Result<Vec<Self>> {
        let mirrors = http.options().config.of(domain).mirrors;
        let mut places =
            mirrors.iter().map(|mirror| Self::of_mirror(http, mirror)).collect::<Result<Vec<_>>>()?;
        places.push(Self::of_registry(http, domain));
        Ok(places)
    }

    /// The registry by its name in references.
    pub(crate) fn of_registry(http: &Http, domain: &str) -> Self {
        let host = if domain == DEFAULT_DOMAIN { DOCKER_API } else { domain };
        Self { key: domain.to_owned(), ..Self::of_host(http, host) }
    }

    fn of_host(http: &Http, host: &str) -> Self {
        let mut bases = vec![format!("https://{host}")];
        if http.may_be_insecure(host) {
            bases.push(format!("http://{host}"));
        }
        Self { host: host.to_owned(), bases, key: host.to_owned() }
    }

    fn of_mirror(http: &Http, text: &str) -> Result<Self> {
        let bare = text.trim_end_matches('/');
        let (host, plain) = match (bare.strip_prefix("http://"), bare.strip_prefix("https://")) {
            (Some(host), _) => (host, true),
            (_, Some(host)) => (host, false),
            _ => (bare, false),
        };
        let named = Reference::parse(&format!("{host}/x")).ok().filter(|parsed| parsed.domain() == host);
        if named.is_none() {
            let message = format!("mirror '{text}' is not HOST[:PORT] or https://HOST[:PORT]");
            return Err(Error::Config { path: "registries".into(), message });
        }
        if plain {
            return Ok(Self { bases: vec![format!("http://{host}")], ..Self::of_host(http, host) });
        }
        Ok(Self::of_host(http, host))
    }

    /// The first base URL under which a registry answers. Where there is but one, the request itself will tell.
    fn choose(&self, http: &Http) -> Result<String> {
        let [secure, others @ ..] = self.bases.as_slice() else { return Ok(String::new()) };
        if others.is_empty() {
            return Ok(secure.clone());
        }
        let mut first_error = None;
        for base in &self.bases {
            let call = Call {
                method: Method::GET,
                url: format!("{base}/v2/"),
                what: "registry",
                headers: Vec::new(),
                authorization: None,
            };
            match http.send(call, Payload::Nothing) {
                Ok(_) => return Ok(base.clone()),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        // The last one's word is about plain HTTP; what matters is that nothing answers at all.
        Err(first_error.unwrap_or_else(|| Error::NotFound(self.host.clone())))
    }
}

/// Waits between attempts, each time longer.
struct Backoff {
    left: u32,
    wait: Duration,
}

impl Backoff {
    fn new(attempts: u32) -> Self {
        Self { left: attempts.saturating_sub(1), wait: FIRST_WAIT }
    }

    /// Waits before another attempt; `false` where there is none left.
    fn wait(&mut self, error: &RegistryError) -> bool {
        let asked = match error {
            RegistryError::TooManyRequests { retry_after: Some(seconds), .. } => *seconds,
            _ => 0,
        };
        if self.left == 0 || asked > LONGEST_ASKED {
            return false;
        }
        std::thread::sleep(self.wait.max(Duration::from_secs(asked)));
        self.left -= 1;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        true
    }
}

/// Reads a blob, going on where it broke off.
pub(crate) struct BlobReader<'a> {
    repository: &'a Repository,
    digest: &'a Digest,
    what: String,
    size: u64,
    at: u64,
    body: Option<BodyReader<'static>>,
    backoff: Backoff,
    fresh_at: u64,
    ended: bool,
    progress: &'a dyn Progress,
}

impl<'a> BlobReader<'a> {
    pub(crate) fn new(
        repository: &'a Repository,
        digest: &'a Digest,
        size: u64,
        progress: &'a dyn Progress,
    ) -> Self {
        let what = format!("blob {digest}");
        let backoff = Backoff::new(repository.http.options().attempts);
        Self {
            repository,
            digest,
            what,
            size,
            at: 0,
            body: None,
            backoff,
            fresh_at: FRESH_AFTER,
            ended: false,
            progress,
        }
    }

    /// Asks for the blob from where we are.
    fn open(&self) -> Result<BodyReader<'static>> {
        let url = self.repository.blob_url(self.digest);
        let mut headers = Vec::new();
        if self.at > 0 {
            headers.push((header::RANGE, format!("bytes={}-", self.at)));
        }
        let answer = self.repository.send(Method::GET, url, &self.what, headers, || Payload::Nothing)?;
        let answer = self.repository.checked(answer, &self.what, &[200, 206])?;
        let skip = if answer.status == 206 { self.check_range(&answer)? } else { self.at };
        if let Some(length) = answer.body.content_length()
            && length != self.size - self.at + skip
        {
            let actual = length + self.at - skip;
            return Err(Error::SizeMismatch { what: self.what.clone(), expected: self.size, actual });
        }
        let mut body = answer.body.into_reader();
        let skipped = io::copy(&mut body.by_ref().take(skip), &mut io::sink());
        if skipped.as_ref().is_ok_and(|skipped| *skipped == skip) {
            return Ok(body);
        }
        let error = skipped.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
        Err(self.broken(&error).into())
    }

    /// How many bytes of a partial answer come before where we are; it must begin no later.
    fn check_range(&self, answer: &Answer) -> Result<u64> {
        let text = answer.header(&header::CONTENT_RANGE).unwrap_or_default();
        let start =
            text.strip_prefix("bytes ").and_then(|rest| rest.split('-').next()?.trim().parse::<u64>().ok());
        match start {
            Some(start) if start == self.at => Ok(0),
            _ => Err(RegistryError::Protocol {
                what: self.what.clone(),
                host: self.repository.host.clone(),
                reason: format!("asked for bytes from {} on, it sent '{}'", self.at, text.escape_debug()),
            }
            .into()),
        }
    }

    fn broken(&self, error: &io::Error) -> RegistryError {
        interrupted(&self.repository.host, &self.what, self.at, error)
    }

    /// One attempt to read; no bytes are the end.
    fn step(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.open()?,
        };
        if self.at == self.size {
            // What is longer than was said is not what was asked for.
            return match body.read(&mut [0; 1]) {
                Ok(0) | Err(_) => {
                    self.ended = true;
                    Ok(0)
                }
                Ok(_) => {
                    let actual = self.size + 1;
                    Err(Error::SizeMismatch { what: self.what.clone(), expected: self.size, actual })
                }
            };
        }
        let room = usize::try_from(self.size - self.at).unwrap_or(usize::MAX).min(buffer.len());
        match body.read(&mut buffer[..room]) {
            Ok(0) => Err(self.broken(&io::Error::other("it ended too early")).into()),
            Ok(read) => {
                self.at += read as u64;
                self.body = Some(body);
                Ok(read)
            }
            Err(error) => Err(self.broken(&error).into()),
        }
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.ended {
            return Ok(0);
        }
        loop {
            let error = match self.step(buffer) {
                Ok(read) => {
                    if self.at >= self.fresh_at {
                        self.fresh_at = self.at + FRESH_AFTER;
                        self.backoff = Backoff::new(self.repository.http.options().attempts);
                    }
                    return Ok(read);
                }
                Err(error) => error,
            };
            match &error {
                Error::Registry(cause) if cause.is_passing() && self.backoff.wait(cause) => {
                    self.progress.event(Event::Retry { what: &self.what, reason: &cause.to_string() });
                }
                _ => return Err(io::Error::other(error)),
            }
        }
    }
}

fn stored_credentials(http: &Http, registry: &str) -> Result<Option<Credentials>> {
    match &http.options().credentials {
        Some(path) => CredentialFile::load(path)?.get(registry),
        None => Ok(None),
    }
}

/// The error of a status that has no meaning of its own here.
pub(super) fn status_error(answer: Answer, what: &str) -> Error {
    let host = super::http::host_of(&answer.url);
    if answer.status == 429 {
        let retry_after = answer.header(&header::RETRY_AFTER).and_then(|text| text.trim().parse().ok());
        return RegistryError::TooManyRequests { host, retry_after }.into();
    }
    let status = answer.status;
    let detail = answer.bytes(MAX_ERROR, what).ok().and_then(|bytes| error_detail(&bytes));
    let detail = detail.map_or_else(String::new, |detail| format!(": {detail}"));
    RegistryError::Status { what: what.to_owned(), host, status, detail }.into()
}

/// The first message of a registry's error document, made fit for a terminal.
fn error_detail(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Detail {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Detail>,
    }
    let errors: Errors = serde_json::from_slice(bytes).ok()?;
    let first = errors.errors.into_iter().next()?;
    let text = if first.message.is_empty() { first.code } else { first.message };
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    (!clean.trim().is_empty()).then_some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_messages_are_short_and_printable() {
        let detail = |text: &str| error_detail(text.as_bytes());
        let long = format!(r#"{{"errors":[{{"message":"\u001b[31m{}"}}]}}"#, "x".repeat(900));
        let text = detail(&long).unwrap();
        assert!(text.len() == 200 && !text.contains('\u{1b}'));
        assert_eq!(detail(r#"{"errors":[{"code":"DENIED"}]}"#).unwrap(), "DENIED");
        for text in ["", "<html>", "{}", r#"{"errors":[]}"#, r#"{"errors":[{"message":" "}]}"#] {
            assert_eq!(detail(text), None, "{text}");
        }
    }

    #[test]
    fn mirrors_are_hosts() {
        let http = Http::new(super::super::RegistryOptions::default());
        assert_eq!(Place::of_mirror(&http, "http://m.example:1/").unwrap().bases, ["http://m.example:1"]);
        assert_eq!(Place::of_mirror(&http, "m.example").unwrap().bases, ["https://m.example"]);
        assert_eq!(Place::of_mirror(&http, "https://127.0.0.1:5").unwrap().bases.len(), 2);
        for text in ["", "ftp://x.y", "https://x.y/path", "x y", "https://u@x.y"] {
            assert!(Place::of_mirror(&http, text).is_err(), "{text}");
        }
    }
}

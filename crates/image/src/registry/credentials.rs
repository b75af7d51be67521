//! Docker's `config.json`: where credentials are, and the helpers that keep them.
//!
//! ```json
//! { "auths": { "registry.example:5000": { "auth": "base64 of user:password" } },
//!   "credHelpers": { "registry.example": "pass" }, "credsStore": "secretservice" }
//! ```
//!
//! A helper is the program `docker-credential-NAME`, spoken with over its standard streams. All that others
//! have written into the file is kept when it is changed.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proa_oci::reference::DEFAULT_DOMAIN;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Under which docker.io's credentials are kept.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";
/// The user name by which helpers mark an identity token.
const TOKEN_USER: &str = "<token>";

/// What to show a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that is exchanged for others.
    IdentityToken(String),
}

/// Secrets do not get into messages.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { user, .. } => write!(f, "Password({user})"),
            Self::IdentityToken(_) => write!(f, "IdentityToken"),
        }
    }
}

impl Credentials {
    /// The value of an `Authorization` header with a password.
    pub(super) fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    }
}

/// The file, with all it holds.
#[derive(Debug, Clone)]
pub struct CredentialFile {
    path: PathBuf,
    document: Map<String, Value>,
}

impl CredentialFile {
    /// Reads the file; a missing one is empty.
    ///
    /// # Errors
    /// It cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self> {
        let document = match fs::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => Map::new(),
            Ok(text) => serde_json::from_str(&text)
                .map_err(|error| Error::Config { path: path.to_owned(), message: error.to_string() })?,
            Err(error) if error.kind() == ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(Error::io(path)(error)),
        };
        Ok(Self { path: path.to_owned(), document })
    }

    /// The registry's credentials, from its helper or from the file.
    ///
    /// # Errors
    /// The helper fails, or what is in the file is no credential.
    pub fn get(&self, registry: &str) -> Result<Option<Credentials>> {
        if let Some(helper) = self.helper(registry) {
            return helper_get(&helper, key_of(registry));
        }
        let wrong = |message: &str| Error::Config {
            path: self.path.clone(),
            message: format!("credentials of {registry}: {message}"),
        };
        let Some(entry) = self.entry(registry) else { return Ok(None) };
        let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credentials::IdentityToken(token.to_owned())));
        }
        if let Some(auth) = text("auth") {
            let bytes = STANDARD.decode(auth.trim()).map_err(|_| wrong("'auth' is not base64"))?;
            let pair = String::from_utf8(bytes).map_err(|_| wrong("'auth' is not text"))?;
            let (user, password) = pair.split_once(':').ok_or_else(|| wrong("'auth' holds no ':'"))?;
            let password = password.trim_end_matches('\0');
            return Ok(Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() }));
        }
        match (text("username"), text("password")) {
            (Some(user), Some(password)) => {
                Ok(Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() }))
            }
            _ => Ok(None),
        }
    }

    /// Keeps a password, with the registry's helper or in the file. Returns where.
    ///
    /// # Errors
    /// The helper fails, or the file cannot be written.
    pub fn store(&mut self, registry: &str, user: &str, password: &str) -> Result<String> {
        let key = key_of(registry);
        if let Some(helper) = self.helper(registry) {
            let secret = HelperSecret {
                server_url: key.to_owned(),
                username: user.to_owned(),
                secret: password.to_owned(),
            };
            let input =
                serde_json::to_string(&secret).map_err(|error| helper_error(&helper, error.to_string()))?;
            run_helper(&helper, "store", &input)?;
            self.auths()?.insert(key.to_owned(), json!({}));
            self.save()?;
            return Ok(format!("docker-credential-{helper}"));
        }
        let auth = STANDARD.encode(format!("{user}:{password}"));
        self.auths()?.insert(key.to_owned(), json!({ "auth": auth }));
        self.save()?;
        Ok(self.path.display().to_string())
    }

    /// Forgets the registry's credentials. Returns whether there were any.
    ///
    /// # Errors
    /// The helper fails, or the file cannot be written.
    pub fn erase(&mut self, registry: &str) -> Result<bool> {
        let mut known = false;
        if let Some(helper) = self.helper(registry) {
            run_helper(&helper, "erase", key_of(registry))?;
            known = true;
        }
        for key in aliases(registry) {
            known |= self.auths()?.remove(&key).is_some();
        }
        if known {
            self.save()?;
        }
        Ok(known)
    }

    fn helper(&self, registry: &str) -> Option<String> {
        let helpers = self.document.get("credHelpers").and_then(Value::as_object);
        let own = helpers.and_then(|helpers| aliases(registry).iter().find_map(|key| helpers.get(key)));
        let named = own.or_else(|| self.document.get("credsStore")).and_then(Value::as_str);
        named.filter(|name| !name.is_empty()).map(str::to_owned)
    }

    fn entry(&self, registry: &str) -> Option<&Map<String, Value>> {
        let auths = self.document.get("auths")?.as_object()?;
        aliases(registry).iter().find_map(|key| auths.get(key))?.as_object()
    }

    fn auths(&mut self) -> Result<&mut Map<String, Value>> {
        let auths = self.document.entry("auths").or_insert_with(|| json!({}));
        if auths.is_null() {
            *auths = json!({});
        }
        let path = &self.path;
        auths.as_object_mut().ok_or_else(|| Error::Config {
            path: path.clone(),
            message: "'auths' is not an object".to_owned(),
        })
    }

    /// Writes the file beside itself and renames it, readable to its owner alone.
    fn save(&self) -> Result<()> {
        // The file may be a link to where the user really keeps it.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let dir = path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io(dir))?;
        let temp = path.with_extension(format!("tmp{}", std::process::id()));
        let mut text = serde_json::to_string_pretty(&self.document)
            .map_err(|error| Error::Config { path: path.clone(), message: error.to_string() })?;
        text.push('\n');
        let write = || {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temp, &path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&temp);
            Error::io(&path)(error)
        })
    }
}

fn key_of(registry: &str) -> &str {
    if registry == DEFAULT_DOMAIN { DOCKER_KEY } else { registry }
}

/// The keys under which clients have written a registry's credentials over the years.
fn aliases(registry: &str) -> Vec<String> {
    let mut keys = vec![registry.to_owned()];
    if registry == DEFAULT_DOMAIN {
        let hosts = ["index.docker.io", "registry-1.docker.io"];
        keys.insert(0, DOCKER_KEY.to_owned());
        keys.extend(hosts.iter().flat_map(|host| [(*host).to_owned(), format!("https://{host}/v1/")]));
    }
    keys.extend(["https://", "http://"].iter().flat_map(|scheme| {
        ["", "/", "/v1/", "/v2/"].iter().map(move |path| format!("{scheme}{registry}{path}"))
    }));
    keys
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperSecret {
    #[serde(rename = "ServerURL", default)]
    server_url: String,
    username: String,
    secret: String,
}

fn helper_get(helper: &str, key: &str) -> Result<Option<Credentials>> {
    let output = match run_helper(helper, "get", key) {
        Ok(output) => output,
        Err(Error::Config { message, .. }) if message.contains("credentials not found") => return Ok(None),
        Err(error) => return Err(error),
    };
    let found: HelperSecret =
        serde_json::from_str(&output).map_err(|error| helper_error(helper, error.to_string()))?;
    Ok(Some(if found.username == TOKEN_USER {
        Credentials::IdentityToken(found.secret)
    } else {
        Credentials::Password { user: found.username, password: found.secret }
    }))
}

fn run_helper(helper: &str, verb: &str, input: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if helper.starts_with('.') || !helper.chars().all(plain) {
        return Err(helper_error(helper, "not a helper's name".to_owned()));
    }
    let failed = |error: std::io::Error| helper_error(helper, error.to_string());
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read says why it failed in its own words.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() {
        return Ok(text);
    }
    let said = if text.is_empty() { String::from_utf8_lossy(&output.stderr).trim().to_owned() } else { text };
    Err(helper_error(helper, said.lines().next().unwrap_or("failed").to_owned()))
}

fn helper_error(helper: &str, message: String) -> Error {
    Error::Config { path: PathBuf::from(format!("docker-credential-{helper}")), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { user: user.into(), password: password.into() })
    }

    #[test]
    fn finds_what_docker_and_others_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let text = json!({"auths": {
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("a:b:c")},
            "https://old.example/v1/": {"username": "u", "password": "p"},
            "token.example": {"auth": "", "identitytoken": "t"},
            "empty.example": {},
            "bad.example": {"auth": "%%%"},
        }});
        fs::write(&path, text.to_string()).unwrap();
        let file = CredentialFile::load(&path).unwrap();
        assert_eq!(file.get("docker.io").unwrap(), password("a", "b:c"));
        assert_eq!(file.get("old.example").unwrap(), password("u", "p"));
        assert_eq!(file.get("token.example").unwrap(), Some(Credentials::IdentityToken("t".into())));
        assert_eq!(file.get("empty.example").unwrap(), None);
        assert_eq!(file.get("none.example").unwrap(), None);
        assert!(file.get("bad.example").unwrap_err().to_string().contains("bad.example"));
    }

    #[test]
    fn stores_privately_and_keeps_what_others_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/config.json");
        let mut file = CredentialFile::load(&path).unwrap();
        file.document.insert("psFormat".into(), json!("x"));
        file.store("a.b:5000", "me", "secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let mut again = CredentialFile::load(&path).unwrap();
        assert_eq!(again.get("a.b:5000").unwrap(), password("me", "secret"));
        assert!(again.erase("a.b:5000").unwrap());
        assert!(!again.erase("a.b:5000").unwrap());
        let last = CredentialFile::load(&path).unwrap();
        assert_eq!(last.get("a.b:5000").unwrap(), None);
        assert_eq!(last.document["psFormat"], "x");
    }

    #[test]
    fn helpers_are_names_only() {
        for name in ["../x", "a/b", ".", "a b", "..", ""] {
            assert!(name.is_empty() || run_helper(name, "get", "x").is_err(), "{name}");
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let text = format!("{:?} {:?}", password("u", "hidden"), Credentials::IdentityToken("hidden".into()));
        assert!(!text.contains("hidden"));
    }
}

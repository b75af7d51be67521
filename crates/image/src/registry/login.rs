//! `login` and `logout`.

use std::sync::Arc;

use super::client::Repository;
use super::credentials::{CredentialFile, Credentials};
use super::http::Http;
use super::{RegistryError, RegistryOptions};
use crate::error::{Error, Result};

/// Shows the registry the password, and keeps it where the registry took it. Returns where it is kept.
///
/// # Errors
/// The registry refuses the password or cannot be reached, or it cannot be kept.
pub fn login(options: &RegistryOptions, registry: &str, user: &str, password: &str) -> Result<String> {
    let host = registry_host(registry)?;
    let mut file = credential_file(options)?;
    let http = Arc::new(Http::new(options.clone()));
    let credentials = Credentials::Password { user: user.to_owned(), password: password.to_owned() };
    Repository::check_login(&http, &host, credentials)?;
    file.store(&host, user, password)
}

/// Forgets what was kept for the registry. Returns whether there was anything.
///
/// # Errors
/// The file or the helper that keeps it fails.
pub fn logout(options: &RegistryOptions, registry: &str) -> Result<bool> {
    credential_file(options)?.erase(&registry_host(registry)?)
}

fn credential_file(options: &RegistryOptions) -> Result<CredentialFile> {
    match &options.credentials {
        Some(path) => CredentialFile::load(path),
        None => Err(RegistryError::Denied {
            what: "login".to_owned(),
            reason: "there is no place to keep credentials (set HOME or DOCKER_CONFIG)".to_owned(),
        }
        .into()),
    }
}

/// The registry's name as references have it; users also give its URL, or nothing for docker.io.
fn registry_host(text: &str) -> Result<String> {
    let bare = text.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let bare = bare.trim_end_matches("/v1").trim_end_matches("/v2");
    if matches!(bare, "" | "index.docker.io" | "registry-1.docker.io" | "docker.io") {
        return Ok(proa_oci::reference::DEFAULT_DOMAIN.to_owned());
    }
    let parsed = proa_oci::reference::Reference::parse(&format!("{bare}/x")).map_err(Error::from)?;
    match parsed.domain() == bare {
        true => Ok(bare.to_owned()),
        // A bare word is a host here, though in a reference it would be a repository of docker.io.
        false if !bare.contains('/') => Ok(bare.to_owned()),
        false => Err(Error::Reference(proa_oci::reference::ReferenceError::Domain {
            text: text.to_owned(),
            domain: bare.to_owned(),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_named_as_in_references() {
        for (text, expected) in [
            ("", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("localhost:5000", "localhost:5000"),
            ("https://r.example:5000/", "r.example:5000"),
            ("myhost", "myhost"),
        ] {
            assert_eq!(registry_host(text).unwrap(), expected, "{text}");
        }
        for text in ["r.example/team", "../x", "a b", "-x.y"] {
            assert!(registry_host(text).is_err(), "{text}");
        }
    }
}

//! What a `WWW-Authenticate` asks for, and the header that satisfies it.
//!
//! ```text
//!   401 Basic   ──▶ Authorization: Basic …
//!   401 Bearer  ──▶ GET realm?service=…&scope=…  (with the password, or POST with an identity token)
//!                   ──▶ token ──▶ Authorization: Bearer …, kept for the scope until it expires
//! ```

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::http::{HeaderMap, Method, header};

use super::RegistryError;
use super::credentials::Credentials;
use super::http::{Call, Http, Payload, host_of};
use crate::error::{Error, Result};

const MAX_ANSWER: u64 = 1024 * 1024;
/// A token is good for a minute where its answer does not say how long.
const DEFAULT_LIFE: u64 = 60;
/// A token is renewed this long before its end.
const MARGIN: u64 = 5;

/// One way in that a registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Challenge {
    /// In lower case.
    scheme: String,
    params: HashMap<String, String>,
}

/// Knows how to get into one registry.
#[derive(Debug)]
pub(super) struct Authorizer {
    host: String,
    credentials: Option<Credentials>,
    headers: Mutex<HashMap<String, (String, Instant)>>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Authorizer {
    pub(super) fn new(host: &str, credentials: Option<Credentials>) -> Self {
        Self { host: host.to_owned(), credentials, headers: Mutex::default() }
    }

    /// The header that got in last time.
    pub(super) fn header(&self, scope: &str) -> Option<String> {
        let headers = self.headers.lock().unwrap_or_else(PoisonError::into_inner);
        headers.get(scope).filter(|(_, end)| *end > Instant::now()).map(|(header, _)| header.clone())
    }

    /// The header that the answer with `headers`, a 401 from `url`, asks for.
    pub(super) fn answer(&self, http: &Http, url: &str, headers: &HeaderMap, scope: &str) -> Result<String> {
        let values = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<Challenge> = values.flat_map(parse_challenges).collect();
        let (header, life) = if let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer") {
            self.bearer(http, url, bearer, scope)?
        } else if challenges.iter().any(|c| c.scheme == "basic") {
            (self.basic()?, u64::from(u32::MAX))
        } else {
            return Err(self.denied("it offers no way to log in that is known here (Basic and Bearer are)"));
        };
        let end = Instant::now() + Duration::from_secs(life.saturating_sub(MARGIN));
        let mut headers = self.headers.lock().unwrap_or_else(PoisonError::into_inner);
        headers.insert(scope.to_owned(), (header.clone(), end));
        Ok(header)
    }

    /// The error where credentials were shown in vain, or none are known.
    pub(super) fn refused(&self, what: &str) -> Error {
        let reason = match self.credentials {
            Some(_) => format!(
                "the credentials for {} do not allow it (log in again: proa login {})",
                self.host, self.host
            ),
            None => format!("it does not exist, or needs a login (proa login {})", self.host),
        };
        RegistryError::Denied { what: what.to_owned(), reason }.into()
    }

    fn denied(&self, reason: &str) -> Error {
        RegistryError::Denied { what: format!("registry {}", self.host), reason: reason.to_owned() }.into()
    }

    fn basic(&self) -> Result<String> {
        match &self.credentials {
            Some(Credentials::Password { user, password }) => Ok(Credentials::basic(user, password)),
            _ => Err(self.denied(&format!("it needs a login (proa login {})", self.host))),
        }
    }

    fn bearer(&self, http: &Http, url: &str, challenge: &Challenge, scope: &str) -> Result<(String, u64)> {
        let Some(realm) = challenge.params.get("realm") else {
            return Err(self.denied("its challenge names no token server"));
        };
        let https = realm.starts_with("https://");
        let may_be_plain = url.starts_with("http:") || http.may_be_insecure(&host_of(url));
        if !https && !(realm.starts_with("http://") && (self.credentials.is_none() || may_be_plain)) {
            return Err(self.denied("it wants the password sent unencrypted"));
        }
        let scope = challenge.params.get("scope").map_or(scope, String::as_str);
        let service = challenge.params.get("service").map_or("", String::as_str);
        let answer = self.ask_for_token(http, realm, service, scope)?;
        let what = format!("a token from {}", host_of(realm));
        match answer.status {
            200 => {}
            401 | 403 => return Err(self.refused(&format!("registry {}", self.host))),
            _ => return Err(super::client::status_error(answer, &what)),
        }
        let bytes = answer.bytes(MAX_ANSWER, &what)?;
        let parsed: Option<TokenAnswer> = serde_json::from_slice(&bytes).ok();
        let life = parsed.as_ref().and_then(|answer| answer.expires_in).unwrap_or(DEFAULT_LIFE);
        let token = parsed.and_then(|answer| answer.token.filter(|t| !t.is_empty()).or(answer.access_token));
        match token {
            Some(token) => Ok((format!("Bearer {token}"), life)),
            None => Err(RegistryError::Protocol {
                what,
                host: host_of(realm),
                reason: "its answer holds no token".to_owned(),
            }
            .into()),
        }
    }

    fn ask_for_token(
        &self,
        http: &Http,
        realm: &str,
        service: &str,
        scope: &str,
    ) -> Result<super::http::Answer> {
        let mut fields = vec![("service", service)];
        if !scope.is_empty() {
            // Several scopes stand in one parameter, separated by spaces, and are asked for one by one.
            fields.extend(scope.split(' ').map(|scope| ("scope", scope)));
        }
        let what = format!("a token from {}", host_of(realm));
        let mut call = Call {
            method: Method::GET,
            url: realm.to_owned(),
            what: &what,
            headers: Vec::new(),
            authorization: None,
        };
        match &self.credentials {
            Some(Credentials::IdentityToken(token)) => {
                fields.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "proa"),
                    ("refresh_token", token),
                ]);
                call.method = Method::POST;
                call.headers.push((header::CONTENT_TYPE, "application/x-www-form-urlencoded".to_owned()));
                return http.send(call, Payload::Bytes(encode_form(&fields).into_bytes()));
            }
            Some(Credentials::Password { user, password }) => {
                fields.push(("account", user));
                call.authorization = Some(Credentials::basic(user, password));
            }
            None => {}
        }
        let separator = if realm.contains('?') { '&' } else { '?' };
        call.url = format!("{realm}{separator}{}", encode_form(&fields));
        http.send(call, Payload::Nothing)
    }
}

pub(super) fn encode_form(fields: &[(&str, &str)]) -> String {
    let encode = |text: &str| {
        let mut out = String::new();
        for byte in text.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                out.push(byte as char);
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
        out
    };
    let pairs: Vec<String> = fields.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect();
    pairs.join("&")
}

/// Reads `Scheme key=value, key="value", Scheme …`; what cannot be read ends the list.
fn parse_challenges(text: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_whitespace() || c == '=' || c == ',').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            break;
        }
        let after = after.trim_start_matches([' ', '\t']);
        if let Some(value) = after.strip_prefix('=') {
            let Some(challenge) = challenges.last_mut() else { break };
            let (value, after) = parse_value(value.trim_start());
            challenge.params.insert(word.to_ascii_lowercase(), value);
            rest = after;
        } else {
            challenges.push(Challenge { scheme: word.to_ascii_lowercase(), params: HashMap::new() });
            rest = after;
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    challenges
}

fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> (String, Vec<(String, String)>) {
        let mut challenges = parse_challenges(text);
        assert_eq!(challenges.len(), 1, "{text}");
        let challenge = challenges.remove(0);
        let mut params: Vec<_> = challenge.params.into_iter().collect();
        params.sort();
        (challenge.scheme, params)
    }

    #[test]
    fn challenges_as_registries_write_them() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let (scheme, params) = one(hub);
        assert_eq!(scheme, "bearer");
        assert_eq!(params[0], ("realm".into(), "https://auth.docker.io/token".into()));
        assert_eq!(params[1], ("scope".into(), "repository:a/b:pull,push".into()));
        assert_eq!(one("BASIC realm=x"), ("basic".into(), vec![("realm".into(), "x".into())]));
        assert_eq!(one(r#"Bearer realm = "a\"b" , x=y"#).1[0].1, "a\"b");
        let two = parse_challenges(r#"Basic realm="x", Bearer realm="y",service="z""#);
        assert_eq!((two.len(), two[1].params["service"].as_str()), (2, "z"));
    }

    #[test]
    fn nonsense_is_no_challenge_and_no_panic() {
        for text in
            ["", ",,,", "=", "a=b", "Bearer realm=\"", "Bearer =", "\u{e9}", "Bearer \"x\"", "a b=\"\\"]
        {
            parse_challenges(text);
        }
        assert!(parse_challenges("realm=x").is_empty());
    }

    #[test]
    fn forms_are_encoded() {
        assert_eq!(
            encode_form(&[("scope", "repository:a/b:pull"), ("x", "ü &")]),
            "scope=repository%3Aa%2Fb%3Apull&x=%C3%BC%20%26"
        );
    }
}

//! Image references as Docker normalizes them, and digests.
//!
//! ```text
//!   reference := name [":" tag] ["@" digest]          busybox            docker.io/library/busybox:latest
//!   name      := [domain "/"] path                    team/app:1         docker.io/team/app:1
//!   digest    := algorithm ":" hex                    localhost:5000/app localhost:5000/app:latest
//! ```
//!
//! The first component is a domain when it holds a `.`, a `:` or an upper-case letter, or is `localhost`;
//! else the domain is `docker.io`, where a path of one component lies below `library/`. Looking up an image
//! by a prefix of its id is the store's work: nothing here knows which images exist.
//!
//! Both types can only be made by parsing, so whoever holds one may use it as part of a path or a URL:
//! a digest is an algorithm and hexadecimal digits of that algorithm's length, and no component of a
//! repository is `..` or empty.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The registry meant by a reference without a domain.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag meant by a reference with neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";
/// Most bytes of a repository's path.
pub const MAX_PATH: usize = 255;
/// Most bytes of a tag.
pub const MAX_TAG: usize = 128;

const MAX_DOMAIN: usize = 253 + 6;
const LIBRARY: &str = "library/";

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing at all.
    #[error("image reference is empty")]
    Empty,
    /// A name that could not be told from an image id.
    #[error("'{0}' has the form of an image id and cannot be the name of a repository")]
    LooksLikeId(String),
    /// An upper-case letter in the path.
    #[error(
        "invalid reference '{}': repository name must be lowercase (try '{}')",
        printable(.0),
        printable(&.0.to_lowercase())
    )]
    Uppercase(String),
    /// A path or domain over its length.
    #[error("invalid reference: repository name is longer than {MAX_PATH} characters")]
    TooLong,
    /// The domain breaks the grammar.
    #[error("invalid reference '{}': '{}' is not a registry's HOST[:PORT]", printable(.text), printable(.domain))]
    Domain {
        /// The whole text.
        text: String,
        /// The part at fault.
        domain: String,
    },
    /// The path breaks the grammar.
    #[error(
        "invalid reference '{}': '{}' is not a repository name (lower-case letters, digits, and '.', '_', '-' between them)",
        printable(.text),
        printable(.path)
    )]
    Path {
        /// The whole text.
        text: String,
        /// The part at fault.
        path: String,
    },
    /// The tag breaks the grammar.
    #[error(
        "invalid reference '{}': '{}' is not a tag (up to {MAX_TAG} letters, digits, '_', '.', '-')",
        printable(.text),
        printable(.tag)
    )]
    Tag {
        /// The whole text.
        text: String,
        /// The part at fault.
        tag: String,
    },
    /// The digest breaks the grammar.
    #[error("invalid reference '{}': {source}", printable(.text))]
    Digest {
        /// The whole text.
        text: String,
        /// What is wrong with it.
        source: DigestError,
    },
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// No `:` between algorithm and digits.
    #[error("'{}' is not a digest (expected 'sha256:' and 64 hexadecimal digits)", printable(.0))]
    Form(String),
    /// Neither of the algorithms of the specification.
    #[error("digest algorithm '{}' is not supported (sha256 and sha512 are)", printable(.0))]
    Algorithm(String),
    /// Too few, too many or other characters than lower-case hexadecimal digits.
    #[error("'{}' is not a digest (expected {expected} lower-case hexadecimal digits)", printable(.text))]
    Hex {
        /// The whole text.
        text: String,
        /// How many digits the algorithm has.
        expected: usize,
    },
}

/// A hash function that digests may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Its name in a digest and in a layout's `blobs` directory.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Number of hexadecimal digits.
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// The address of content: an algorithm and the hash of the content.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    text: String,
}

impl Digest {
    /// The digest whose hash is `bytes`, as a hash function of `algorithm` gives them.
    ///
    /// # Errors
    /// The number of bytes is not the algorithm's.
    pub fn from_hash(algorithm: Algorithm, bytes: &[u8]) -> Result<Self, DigestError> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(7 + bytes.len() * 2);
        text.push_str(algorithm.as_str());
        text.push(':');
        for byte in bytes {
            text.push(DIGITS[usize::from(byte >> 4)] as char);
            text.push(DIGITS[usize::from(byte & 15)] as char);
        }
        text.parse()
    }

    /// Its hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hash in lower-case hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.as_str().len() + 1..]
    }

    /// `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::Form(text.to_owned()))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::Algorithm(name.to_owned())),
        };
        let expected = algorithm.hex_len();
        if hex.len() != expected || !hex.bytes().all(is_lower_hex) {
            return Err(DigestError::Hex { text: text.to_owned(), expected });
        }
        Ok(Self { algorithm, text: text.to_owned() })
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A sender's text as it may stand in a message: on one line, without control characters, and not too long.
pub(crate) fn printable(text: &str) -> String {
    const MOST: usize = 200;
    let mut shown: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() {
        shown.push('…');
    }
    shown
}

/// Whether a byte is a lower-case hexadecimal digit.
pub fn is_lower_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

/// A normalized reference: where an image is, and which one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses as `docker` does; a text with neither tag nor digest means the tag `latest`.
    ///
    /// # Errors
    /// The text breaks the grammar; the error names the part at fault.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() == 64 && text.bytes().all(is_lower_hex) {
            return Err(ReferenceError::LooksLikeId(text.to_owned()));
        }
        let (rest, digest) = split_digest(text)?;
        let (domain, rest) = split_domain(rest);
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        check_domain(text, &domain)?;
        let path = if domain == DEFAULT_DOMAIN && !path.is_empty() && !path.contains('/') {
            format!("{LIBRARY}{path}")
        } else {
            path.to_owned()
        };
        check_path(text, &path)?;
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ReferenceError::Tag { text: text.to_owned(), tag: tag.to_owned() });
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { domain, path, tag, digest })
    }

    /// The registry, `docker.io` or `HOST[:PORT]`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository below the registry, `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; always there when there is no digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, where one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository, `docker.io/library/busybox`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Registry and repository as users write them, `busybox`.
    pub fn familiar_repository(&self) -> String {
        familiar_repository(&self.repository()).to_owned()
    }

    /// As users write it: `busybox:latest`, `localhost:5000/app:1`.
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_repository())
    }

    /// The same repository with another tag and no digest; `None` where the text is not a tag.
    pub fn with_tag(&self, tag: &str) -> Option<Self> {
        is_tag(tag).then(|| Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    fn with_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest.as_str());
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.repository()))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// A normalized name (with or without tag or digest) as users write it: without `docker.io/library/`.
pub fn familiar_repository(normalized: &str) -> &str {
    match normalized.strip_prefix("docker.io/") {
        // `docker.io/library/a/b` keeps its `library/`, or it would be read as another repository.
        Some(rest) => rest.strip_prefix(LIBRARY).filter(|path| !path.contains('/')).unwrap_or(rest),
        None => normalized,
    }
}

fn split_digest(text: &str) -> Result<(&str, Option<Digest>), ReferenceError> {
    match text.split_once('@') {
        None => Ok((text, None)),
        Some((rest, digest)) => match digest.parse() {
            Ok(digest) => Ok((rest, Some(digest))),
            Err(source) => Err(ReferenceError::Digest { text: text.to_owned(), source }),
        },
    }
}

fn split_domain(text: &str) -> (String, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            let domain = if first == "index.docker.io" { DEFAULT_DOMAIN } else { first };
            (domain.to_owned(), rest)
        }
        _ => (DEFAULT_DOMAIN.to_owned(), text),
    }
}

fn check_domain(text: &str, domain: &str) -> Result<(), ReferenceError> {
    let fail = || ReferenceError::Domain { text: text.to_owned(), domain: domain.to_owned() };
    if domain.len() > MAX_DOMAIN {
        return Err(ReferenceError::TooLong);
    }
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or_else(fail)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| fail())?;
            (None, after.strip_prefix(':').or((!after.is_empty()).then_some("!")))
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    let host_fits = host.is_none_or(|host| host.split('.').all(is_domain_label));
    let port_fits =
        port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    if host_fits && port_fits { Ok(()) } else { Err(fail()) }
}

fn is_domain_label(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn check_path(text: &str, path: &str) -> Result<(), ReferenceError> {
    if path.len() > MAX_PATH {
        return Err(ReferenceError::TooLong);
    }
    if path.split('/').all(is_path_component) {
        return Ok(());
    }
    let lower = path.to_ascii_lowercase();
    if lower != path && lower.split('/').all(is_path_component) {
        return Err(ReferenceError::Uppercase(text.to_owned()));
    }
    Err(ReferenceError::Path { text: text.to_owned(), path: path.to_owned() })
}

/// Runs of lower-case letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let mut at = 0;
    loop {
        let word = bytes[at..].iter().take_while(|b| is_word(**b)).count();
        if word == 0 {
            return false;
        }
        at += word;
        let separator = bytes[at..].iter().take_while(|b| !is_word(**b)).count();
        let fits = match &bytes[at..at + separator] {
            [] => return true,
            b"." | b"_" | b"__" => true,
            dashes => dashes.iter().all(|b| *b == b'-'),
        };
        if !fits {
            return false;
        }
        at += separator;
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=MAX_TAG).contains(&tag.len())
        && word(tag.as_bytes()[0])
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn normal(text: &str) -> String {
        Reference::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).to_string()
    }

    #[test]
    fn normalizes_as_docker_does() {
        let cases = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("team/app", "docker.io/team/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("localhost:5000/team/app:1.2", "localhost:5000/team/app:1.2"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("LOCALHOST/app", "LOCALHOST/app:latest"),
            ("Registry/app", "Registry/app:latest"),
            ("a.b/c/d/e:F", "a.b/c/d/e:F"),
            ("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("[fe80::1]/app", "[fe80::1]/app:latest"),
            ("127.0.0.1:80/a", "127.0.0.1:80/a:latest"),
        ];
        for (text, expected) in cases {
            assert_eq!(normal(text), expected, "{text}");
        }
    }

    #[test]
    fn a_digest_needs_no_tag() {
        let text = format!("busybox@sha256:{HEX}");
        let reference = Reference::parse(&text).unwrap();
        assert_eq!(reference.to_string(), format!("docker.io/library/busybox@sha256:{HEX}"));
        assert_eq!(reference.tag(), None);
        assert_eq!(reference.familiar(), text);
        let both = Reference::parse(&format!("a.b/c:1@sha256:{HEX}")).unwrap();
        assert_eq!((both.tag(), both.digest().unwrap().hex()), (Some("1"), HEX));
    }

    #[test]
    fn refuses_what_docker_refuses() {
        let long_path = "a".repeat(256);
        let long_tag = format!("a:{}", "t".repeat(129));
        let bad = [
            "",
            ":",
            "/",
            "@",
            "a:",
            "a@",
            "/a",
            "a/",
            "a//b",
            "a:b:c",
            "-a",
            "a-",
            ".a",
            "a.",
            "a..b",
            "a___b",
            "a._b",
            "../a",
            "a/../b",
            "a b",
            "a\nb",
            "a:-t",
            "a:.t",
            "a:t/b",
            "docker.io/",
            "a.b/",
            "a.b",
            "héé",
            "-a.b/c",
            "a-.b/c",
            "a..b/c",
            "a.b:/c",
            "a.b:x/c",
            "a.b:99999/c",
            "[::1/a",
            "[x]/a",
            "[::1]5/a",
            "a@sha256:00",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "a@../../etc",
            "http://a.b/c",
            HEX,
        ];
        for text in bad.into_iter().chain([long_path.as_str(), long_tag.as_str()]) {
            // `a.b` alone is a repository of docker.io, and so is fine.
            if text == "a.b" {
                assert_eq!(normal(text), "docker.io/library/a.b:latest");
                continue;
            }
            assert!(Reference::parse(text).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn errors_tell_what_to_do() {
        let hint = |text: &str| Reference::parse(text).unwrap_err().to_string();
        assert!(hint("BusyBox").contains("try 'busybox'"), "{}", hint("BusyBox"));
        assert!(hint("a:t/b/c").contains("repository name") || hint("a:t/b/c").contains("HOST[:PORT]"));
        assert!(hint("a@sha256:zz").contains("64 lower-case"), "{}", hint("a@sha256:zz"));
    }

    #[test]
    fn familiar_names_parse_to_the_same() {
        for text in
            ["busybox", "docker.io/library/a/b", "team/app:2", "localhost:5000/x", "docker.io/library/x"]
        {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(Reference::parse(&reference.familiar()).unwrap(), reference, "{text}");
        }
        assert_eq!(Reference::parse("docker.io/library/a/b").unwrap().familiar(), "library/a/b:latest");
    }

    #[test]
    fn digests_hold_nothing_but_digits() {
        let sha512 = format!("sha512:{HEX}{HEX}");
        for text in [format!("sha256:{HEX}"), sha512] {
            let digest: Digest = text.parse().unwrap();
            assert_eq!(digest.to_string(), text);
            assert_eq!(digest.hex().len(), digest.algorithm().hex_len());
        }
        let upper = format!("sha256:{}", HEX.to_uppercase());
        let short = format!("sha256:{}", &HEX[1..]);
        let path = format!("sha256:../{}", &HEX[3..]);
        for text in ["", ":", "sha256", "sha256:", "sha1:00", "sha512:00", &upper, &short, &path, HEX] {
            assert!(text.parse::<Digest>().is_err(), "{text} was taken");
        }
        let json = serde_json::to_string(&format!("sha256:{}", &HEX[1..])).unwrap();
        assert!(serde_json::from_str::<Digest>(&json).is_err());
    }

    #[test]
    fn a_senders_text_does_not_reach_the_terminal_as_it_is() {
        for text in ["\u{1b}[2J", "a:\u{1b}[2J\n", &format!("sha256:{}\r", "\n".repeat(5000))] {
            let message = text.parse::<Digest>().unwrap_err().to_string();
            assert!(!message.chars().any(char::is_control) && message.len() < 1000, "{message:?}");
            let message = Reference::parse(text).unwrap_err().to_string();
            assert!(!message.chars().any(char::is_control), "{message:?}");
        }
    }

    #[test]
    fn from_hash_writes_lower_case() {
        let digest = Digest::from_hash(Algorithm::Sha256, &[0xab; 32]).unwrap();
        assert_eq!(digest.hex(), "ab".repeat(32));
        assert!(Digest::from_hash(Algorithm::Sha256, &[0; 31]).is_err());
    }
}

//! Manifests, indexes, configs and descriptors (OCI image specification 1.1, Docker schema 2).
//!
//! What a registry or an archive sends is read by the `parse` functions here, and by nothing else. They refuse
//! what is too large before they read it, and what names no content. Images made by Docker write `null` where
//! the specification has a list or a map; such a field is empty.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::{DeserializeOwned, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use crate::disk;
use crate::reference::{Digest, printable};

/// Most bytes of a manifest or an index, as the distribution specification says.
pub const MAX_MANIFEST: u64 = 4 * 1024 * 1024;
/// Most bytes of an image's config.
pub const MAX_CONFIG: u64 = 8 * 1024 * 1024;
/// Most layers of an image: Linux stacks no more than this in one overlay.
pub const MAX_LAYERS: usize = 500;
/// Most entries of an index.
pub const MAX_INDEX_ENTRIES: usize = 2_000;
/// Most indexes on the way from a reference to a manifest; what is deeper may be a loop.
pub const MAX_INDEX_DEPTH: usize = 4;

/// Media types, and what they stand for.
pub mod media_type {
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image config.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// OCI layer, a plain tar.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// OCI layer, gzip.
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// OCI layer, zstd.
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Docker image manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker image config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

    /// All that a registry may answer a request for a manifest with.
    pub const MANIFESTS: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];

    /// Whether it is an index or a manifest list.
    pub fn is_index(media_type: &str) -> bool {
        media_type == OCI_INDEX || media_type == DOCKER_INDEX
    }

    /// Whether it is an image manifest of either kind.
    pub fn is_manifest(media_type: &str) -> bool {
        media_type == OCI_MANIFEST || media_type == DOCKER_MANIFEST
    }

    /// Whether it is an image's config; other artifacts have configs of their own types.
    pub fn is_config(media_type: &str) -> bool {
        media_type == OCI_CONFIG || media_type == DOCKER_CONFIG
    }
}

/// Why a document is refused.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// More bytes than allowed.
    #[error("{what} is larger than the {max} bytes allowed")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// Not JSON, or not of the document's shape.
    #[error("{what} cannot be read: {}", printable(&.source.to_string()))]
    Json {
        /// Which document.
        what: &'static str,
        /// Where it went wrong.
        source: serde_json::Error,
    },
    /// A document of the first schema, which registries stopped serving.
    #[error(
        "manifest has schema version {0}, only 2 is supported: push the image again with a current client"
    )]
    SchemaVersion(u32),
    /// A manifest of something that is not an image.
    #[error("manifest is not an image's: its config has the media type '{}'", printable(.0))]
    NotAnImage(String),
    /// Neither manifest nor index.
    #[error("'{}' is neither an image manifest nor an index", printable(.0))]
    MediaType(String),
    /// Fields of both a manifest and an index.
    #[error(
        "document has the fields of both a manifest and an index: its sender may show others another image"
    )]
    Ambiguous,
    /// More layers than can be stacked.
    #[error("manifest has {0} layers, more than the {MAX_LAYERS} that can be stacked")]
    TooManyLayers(usize),
    /// More entries than allowed.
    #[error("index has {0} entries, more than the {MAX_INDEX_ENTRIES} allowed")]
    TooManyEntries(usize),
    /// Config and manifest disagree.
    #[error("config has {diff_ids} diff ids, but the manifest has {layers} layers")]
    LayerCount {
        /// Those of the config.
        diff_ids: usize,
        /// Those of the manifest.
        layers: usize,
    },
    /// A disk's config that makes no sense, or does not go with its manifest.
    #[error(
        "disk config and manifest do not go together: the disk was not made by this program, or was changed"
    )]
    Disk,
    /// The index offers nothing for the platform.
    #[error("no image for {wanted}, only for {} (choose one with --platform)", printable(.offered))]
    NoPlatform {
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        offered: String,
    },
}

/// A pointer to content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default, deserialize_with = "or_default")]
    pub media_type: String,
    /// Its address.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What it runs on; in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free-form metadata.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Kind of artifact; in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// A descriptor with nothing but what it must have.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
            artifact_type: None,
        }
    }
}

/// An image manifest: one config and its layers, lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    #[serde(default)]
    pub schema_version: u32,
    /// OCI's or Docker's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The image's config.
    pub config: Descriptor,
    /// The layers.
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<Descriptor>,
    /// Free-form metadata.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An index or manifest list: manifests to choose from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    #[serde(default)]
    pub schema_version: u32,
    /// OCI's or Docker's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What there is to choose from.
    #[serde(default, deserialize_with = "or_default")]
    pub manifests: Vec<Descriptor>,
    /// Free-form metadata.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What the address of a manifest can lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// An image.
    Manifest(Box<Manifest>),
    /// Images to choose from.
    Index(Index),
}

impl Document {
    /// Reads a manifest or an index. `media_type` is what the sender calls it, the document's own word counts
    /// more; where neither says, the document's fields decide.
    ///
    /// # Errors
    /// The document is too large, of another kind, or names too much.
    pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            #[serde(default)]
            schema_version: u32,
            #[serde(default)]
            media_type: Option<String>,
            // Their presence is what counts: neither is read here.
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            config: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            layers: Option<serde::de::IgnoredAny>,
        }
        let head: Head = parse_json("manifest", bytes, MAX_MANIFEST)?;
        if head.schema_version != 2 {
            return Err(DocumentError::SchemaVersion(head.schema_version));
        }
        let known = |name: &&str| media_type::is_index(name) || media_type::is_manifest(name);
        let said = head.media_type.as_deref().or(media_type.filter(known));
        let is_index = match said {
            Some(name) if !known(&name) => return Err(DocumentError::MediaType(name.to_owned())),
            Some(name) => media_type::is_index(name),
            None => head.manifests.is_some(),
        };
        if head.manifests.is_some() && (head.config.is_some() || head.layers.is_some()) {
            return Err(DocumentError::Ambiguous);
        }
        if is_index {
            parse_index(bytes).map(Self::Index)
        } else {
            parse_manifest(bytes).map(|manifest| Self::Manifest(Box::new(manifest)))
        }
    }
}

/// Reads an image manifest.
///
/// # Errors
/// As [`Document::parse`].
pub fn parse_manifest(bytes: &[u8]) -> Result<Manifest, DocumentError> {
    let manifest: Manifest = parse_json("manifest", bytes, MAX_MANIFEST)?;
    // Docker's older clients left the type out, or wrote octet-stream.
    let kind = manifest.config.media_type.as_str();
    if kind == disk::CONFIG && manifest.layers.len() as u64 <= disk::MAX_CHUNKS {
        return Ok(manifest);
    }
    if manifest.layers.len() > MAX_LAYERS {
        return Err(DocumentError::TooManyLayers(manifest.layers.len()));
    }
    if !kind.is_empty() && kind != "application/octet-stream" && !media_type::is_config(kind) {
        return Err(DocumentError::NotAnImage(kind.to_owned()));
    }
    Ok(manifest)
}

/// Reads an index or manifest list.
///
/// # Errors
/// As [`Document::parse`].
pub fn parse_index(bytes: &[u8]) -> Result<Index, DocumentError> {
    let index: Index = parse_json("index", bytes, MAX_MANIFEST)?;
    if index.manifests.len() > MAX_INDEX_ENTRIES {
        return Err(DocumentError::TooManyEntries(index.manifests.len()));
    }
    Ok(index)
}

/// Reads an image's config.
///
/// # Errors
/// The document is too large or of another shape.
pub fn parse_config(bytes: &[u8]) -> Result<ImageConfig, DocumentError> {
    let config: ImageConfig = parse_json("image config", bytes, MAX_CONFIG)?;
    if config.rootfs.diff_ids.len() > MAX_LAYERS {
        return Err(DocumentError::TooManyLayers(config.rootfs.diff_ids.len()));
    }
    Ok(config)
}

/// Whether the config has one diff id for each layer of the manifest.
///
/// # Errors
/// It has not.
pub fn check_layer_count(manifest: &Manifest, config: &ImageConfig) -> Result<(), DocumentError> {
    let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
    if layers == diff_ids { Ok(()) } else { Err(DocumentError::LayerCount { diff_ids, layers }) }
}

fn parse_json<T: DeserializeOwned>(what: &'static str, bytes: &[u8], max: u64) -> Result<T, DocumentError> {
    if bytes.len() as u64 > max {
        return Err(DocumentError::TooLarge { what, max });
    }
    serde_json::from_slice(bytes).map_err(|source| DocumentError::Json { what, source })
}

/// What an image runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// As Go names architectures: `amd64`, `arm64`.
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    /// `linux`.
    #[serde(default, deserialize_with = "or_default")]
    pub os: String,
    /// `v2`, `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Version of a Windows kernel.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
}

impl Platform {
    /// Linux on the architecture this program was built for.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), ..Self::default() }
    }

    /// Reads `os/architecture[/variant]`, or an architecture alone; `None` where it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [architecture] => ("linux", architecture, None),
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return None,
        };
        let word =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !word(os) || !word(architecture) || !variant.is_none_or(word) {
            return None;
        }
        let (architecture, implied) = match architecture {
            "x86_64" | "x86-64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            other => (other, None),
        };
        let variant = variant.or(implied).map(str::to_owned);
        Some(Self { architecture: architecture.to_owned(), os: os.to_owned(), variant, os_version: None })
    }

    /// How well `offer` serves a host of this platform: higher is better, `None` is not at all.
    fn rank(&self, offer: &Platform) -> Option<u32> {
        if self.os != offer.os || self.architecture != offer.architecture {
            return None;
        }
        let wanted = variant_level(&self.architecture, self.variant.as_deref());
        let offered = variant_level(&offer.architecture, offer.variant.as_deref());
        (offered <= wanted).then_some(offered)
    }
}

/// Variants of an architecture are levels, each of which runs what the ones below it run.
fn variant_level(architecture: &str, variant: Option<&str>) -> u32 {
    let level = variant.and_then(|v| v.strip_prefix('v')).and_then(|v| v.parse().ok());
    level.unwrap_or(match architecture {
        "amd64" => 1,
        "arm64" => 8,
        "arm" => 7,
        _ => 0,
    })
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl Index {
    /// The entry that serves `wanted` best. An entry without a platform serves where nothing else does.
    ///
    /// # Errors
    /// No entry does; the error names those there are.
    pub fn choose(&self, wanted: &Platform) -> Result<&Descriptor, DocumentError> {
        let images = || self.manifests.iter().filter(|entry| is_image_entry(entry));
        let mut best: Option<(u32, &Descriptor)> = None;
        for entry in images() {
            let Some(rank) = entry.platform.as_ref().and_then(|offer| wanted.rank(offer)) else { continue };
            if best.is_none_or(|(top, _)| rank > top) {
                best = Some((rank, entry));
            }
        }
        if let Some((_, entry)) = best {
            return Ok(entry);
        }
        images().find(|entry| entry.platform.is_none()).ok_or_else(|| {
            let known = images().filter_map(|entry| entry.platform.as_ref());
            let mut offered: Vec<String> = known.map(Platform::to_string).collect();
            offered.dedup();
            offered.truncate(12);
            let offered = if offered.is_empty() { "nothing".to_owned() } else { offered.join(", ") };
            DocumentError::NoPlatform { wanted: wanted.clone(), offered }
        })
    }
}

/// Signatures and build records stand in indexes beside the images, on a platform called `unknown`.
fn is_image_entry(entry: &Descriptor) -> bool {
    let kind = entry.media_type.as_str();
    let fits = kind.is_empty() || media_type::is_manifest(kind) || media_type::is_index(kind);
    fits && entry.artifact_type.is_none()
        && entry.platform.as_ref().is_none_or(|platform| platform.os != "unknown")
}

/// An image's config: the document whose digest is the image's id.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// When it was made, RFC 3339.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub created: String,
    /// Who made it.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// As in [`Platform`].
    #[serde(deserialize_with = "or_default")]
    pub architecture: String,
    /// As in [`Platform`].
    #[serde(deserialize_with = "or_default")]
    pub os: String,
    /// As in [`Platform`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// How to run it.
    #[serde(deserialize_with = "or_default")]
    pub config: ExecConfig,
    /// What its root file system is made of.
    #[serde(deserialize_with = "or_default")]
    pub rootfs: RootFs,
    /// How each layer was made.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

impl ImageConfig {
    /// What the image runs on.
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone(),
            os_version: None,
        }
    }
}

/// How to run an image (`config`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecConfig {
    /// `user[:group]`, by name or number.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `port[/protocol]`.
    #[serde(with = "key_set", skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    /// `KEY=value`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program where there is no entrypoint.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Directories that hold data.
    #[serde(with = "key_set", skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
    /// Working directory.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Free-form metadata.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Signal that asks the program to end.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Seconds it has to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// How to see whether it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Shell of the build's shell forms.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Instructions for builds upon this image.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
}

/// How to see whether a program is well; times in nanoseconds, 0 for the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["CMD", …]`, `["CMD-SHELL", "…"]`, `["NONE"]`, or nothing to inherit.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Between two checks.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// For one check.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// In which failures do not count.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Between two checks of the start period.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row that make it unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// What a root file system is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    /// Digests of the layers' uncompressed tars, lowest first.
    #[serde(deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

/// How one layer was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// When, RFC 3339.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub created: String,
    /// By which instruction.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// By whom.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Words about it.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether the instruction made no layer.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// `null` is the default.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Go writes a set as a map to empty objects: `{"80/tcp":{}}`.
mod key_set {
    use super::*;
    use serde::ser::SerializeMap;

    #[derive(Serialize)]
    struct Nothing {}

    pub(super) fn serialize<S: Serializer>(set: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(set.len()))?;
        for key in set {
            map.serialize_entry(key, &Nothing {})?;
        }
        map.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeSet<String>, D::Error> {
        let map: Option<BTreeMap<String, serde::de::IgnoredAny>> = Option::deserialize(deserializer)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(byte: u8) -> Digest {
        Digest::from_hash(crate::reference::Algorithm::Sha256, &[byte; 32]).unwrap()
    }

    fn manifest_with(layers: usize) -> Vec<u8> {
        let manifest = Manifest {
            schema_version: 2,
            media_type: None,
            config: Descriptor::new(media_type::OCI_CONFIG, digest(1), 2),
            layers: vec![Descriptor::new(media_type::OCI_LAYER, digest(2), 1024); layers],
            annotations: BTreeMap::new(),
        };
        serde_json::to_vec(&manifest).unwrap()
    }

    fn entry(platform: Option<&str>, byte: u8) -> Descriptor {
        let platform = platform.map(|text| Platform::parse(text).unwrap());
        Descriptor { platform, ..Descriptor::new(media_type::OCI_MANIFEST, digest(byte), 7) }
    }

    #[test]
    fn limits_hold() {
        assert!(parse_manifest(&manifest_with(MAX_LAYERS)).is_ok());
        let refused = parse_manifest(&manifest_with(MAX_LAYERS + 1));
        assert!(matches!(refused, Err(DocumentError::TooManyLayers(_))));
        let big = vec![b' '; MAX_MANIFEST as usize + 1];
        assert!(matches!(Document::parse(&big, None), Err(DocumentError::TooLarge { .. })));
        // Deep nesting ends in an error of the parser, not of the stack.
        let deep = format!("{{\"schemaVersion\":2,\"manifests\":{}", "[".repeat(1_000_000));
        assert!(matches!(Document::parse(deep.as_bytes(), None), Err(DocumentError::Json { .. })));
    }

    #[test]
    fn the_kind_is_told_by_type_or_by_fields() {
        let manifest = manifest_with(1);
        assert!(matches!(Document::parse(&manifest, None), Ok(Document::Manifest(_))));
        assert!(matches!(Document::parse(&manifest, Some("text/plain")), Ok(Document::Manifest(_))));
        let index = br#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(Document::parse(index, None), Ok(Document::Index(_))));
        let old = br#"{"schemaVersion":1,"name":"x","fsLayers":[]}"#;
        assert!(matches!(Document::parse(old, None), Err(DocumentError::SchemaVersion(1))));
        let both = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert!(matches!(Document::parse(both, None), Err(DocumentError::Ambiguous)));
        let other = br#"{"schemaVersion":2,"mediaType":"application/x","config":{},"layers":[]}"#;
        assert!(matches!(Document::parse(other, None), Err(DocumentError::MediaType(_))));
        let artifact =
            String::from_utf8(manifest).unwrap().replace(media_type::OCI_CONFIG, "application/vnd.helm");
        assert!(matches!(parse_manifest(artifact.as_bytes()), Err(DocumentError::NotAnImage(_))));
    }

    #[test]
    fn digests_in_documents_are_checked() {
        let text = String::from_utf8(manifest_with(1)).unwrap().replace(digest(2).as_str(), "sha256:../../x");
        assert!(matches!(parse_manifest(text.as_bytes()), Err(DocumentError::Json { .. })));
    }

    #[test]
    fn platform_choice_prefers_the_highest_usable_variant() {
        let index = Index {
            schema_version: 2,
            media_type: None,
            manifests: vec![
                entry(Some("linux/arm64/v8"), 1),
                entry(Some("linux/amd64"), 2),
                entry(Some("linux/amd64/v3"), 3),
                entry(Some("windows/amd64"), 4),
                entry(Some("unknown/unknown"), 5),
            ],
            annotations: BTreeMap::new(),
        };
        let chosen =
            |text: &str| index.choose(&Platform::parse(text).unwrap()).map(|entry| entry.digest.clone());
        assert_eq!(chosen("linux/amd64").unwrap(), digest(2));
        assert_eq!(chosen("linux/amd64/v4").unwrap(), digest(3));
        assert_eq!(chosen("arm64").unwrap(), digest(1));
        assert_eq!(chosen("aarch64").unwrap(), digest(1));
        let error = chosen("linux/riscv64").unwrap_err().to_string();
        assert!(error.contains("linux/arm64/v8, linux/amd64"), "{error}");
        assert!(!error.contains("unknown"), "{error}");
    }

    #[test]
    fn an_entry_without_platform_is_the_last_choice() {
        let mut index: Index = serde_json::from_str(r#"{"schemaVersion":2,"manifests":null}"#).unwrap();
        assert!(index.choose(&Platform::host()).is_err());
        index.manifests = vec![entry(None, 1)];
        assert_eq!(index.choose(&Platform::host()).unwrap().digest, digest(1));
    }

    #[test]
    fn docker_writes_null() {
        let text = r#"{"architecture":"amd64","os":"linux","created":null,"history":null,
            "config":{"User":null,"ExposedPorts":{"80/tcp":{}},"Env":null,"Cmd":["sh"],"Entrypoint":null,
            "Volumes":null,"Labels":null,"OnBuild":null,"Healthcheck":{"Test":["NONE"],"Interval":5}},
            "rootfs":{"type":"layers","diff_ids":null},"unknown":{"x":[1]}}"#;
        let config = parse_config(text.as_bytes()).unwrap();
        assert_eq!(config.config.cmd, ["sh"]);
        assert!(config.config.exposed_ports.contains("80/tcp"));
        assert_eq!(config.config.healthcheck.as_ref().unwrap().interval, 5);
        let again = parse_config(&serde_json::to_vec(&config).unwrap()).unwrap();
        assert_eq!(again, config);
        assert_eq!(parse_config(br#"{"config":null,"rootfs":null}"#).unwrap(), ImageConfig::default());
    }

    #[test]
    fn platforms_parse() {
        assert_eq!(Platform::parse("linux/arm/v7").unwrap().to_string(), "linux/arm/v7");
        for text in ["", "/", "linux/", "a/b/c/d", "linux/am d64"] {
            assert!(Platform::parse(text).is_none(), "{text}");
        }
    }
}

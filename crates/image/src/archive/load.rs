//! `load`: from an archive into the store.

use std::collections::BTreeMap;
use std::io::Read;

use proa_oci::image::{
    Descriptor, Document, Index, MAX_CONFIG, MAX_INDEX_DEPTH, MAX_MANIFEST, Manifest, Platform,
    check_layer_count, media_type, parse_config, parse_index,
};
use proa_oci::reference::{Digest, Reference};

use super::spool::{Member, Spool};
use super::{DockerEntry, INDEX_FILE, LAYOUT_FILE, MANIFEST_FILE, NAME_ANNOTATION, REF_ANNOTATION};
use crate::decompress::Compression;
use crate::digest::sha256;
use crate::error::{Error, Result};
use crate::progress::{Event, Progress};
use crate::pull::{PullOptions, Source, make_layers};
use crate::store::{Image, NewImage, Session, Store, tag_name};

/// How to load: of the options for pulling, those that are not about registries.
pub type LoadOptions = PullOptions;

/// One image that an archive held.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The image.
    pub image: Image,
    /// The normalized names the archive gave it.
    pub names: Vec<String>,
}

/// An image of the archive, its documents read.
struct Found {
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    manifest_digest: Digest,
    /// The layers' members, in the manifest's order.
    layers: Vec<Member>,
    config: Member,
    names: Vec<String>,
}

/// Brings the archive's images into the store, with their names.
///
/// # Errors
/// The archive is of no known kind, is damaged, or its content does not match its digests. The images before
/// the one at fault are loaded.
pub fn load(
    store: &Store,
    input: impl Read,
    options: &LoadOptions,
    progress: &dyn Progress,
) -> Result<Vec<Loaded>> {
    let session = Session::begin(store)?;
    let spool = Spool::read(input, &session)?;
    let found = match (spool.get(INDEX_FILE), spool.get(MANIFEST_FILE)) {
        (Some(index), docker) if spool.get(LAYOUT_FILE).is_some() => {
            let index =
                parse_index(&index.bytes(INDEX_FILE, MAX_MANIFEST)?).map_err(Error::document(INDEX_FILE))?;
            let docker = docker.map(read_docker).transpose()?.unwrap_or_default();
            find_oci(&spool, &index, &docker, options)?
        }
        (_, Some(docker)) => {
            read_docker(docker)?.iter().map(|entry| find_docker(&spool, entry)).collect::<Result<_>>()?
        }
        _ => {
            let text = "neither an OCI layout nor what 'docker save' writes (a root file system is for 'proa import')";
            return Err(Error::Archive(text.to_owned()));
        }
    };
    if found.is_empty() {
        return Err(Error::Archive("it holds no image".to_owned()));
    }
    found.iter().map(|found| add(&session, store, found, options, progress)).collect()
}

/// Puts one image into the store.
fn add(
    session: &Session<'_>,
    store: &Store,
    found: &Found,
    options: &LoadOptions,
    progress: &dyn Progress,
) -> Result<Loaded> {
    let manifest = &found.manifest;
    let id = &manifest.config.digest;
    let text = found.config.bytes("config", MAX_CONFIG)?;
    let config = parse_config(&text).map_err(Error::document(format!("image {id}")))?;
    let config_text =
        String::from_utf8(text).map_err(|_| Error::Archive(format!("config {id} is not text")))?;
    check_layer_count(manifest, &config).map_err(Error::document(format!("image {id}")))?;
    session.lease([&found.manifest_digest, id])?;
    session.lease(manifest.layers.iter().map(|layer| &layer.digest))?;
    session.lease(&config.rootfs.diff_ids)?;
    for (layer, member) in manifest.layers.iter().zip(&found.layers) {
        if store.blob(&layer.digest)?.is_none() {
            store.add_blob(&member.file, &layer.digest, member.size, None)?;
        }
    }
    let source = Source { repository: None, session, store, progress };
    make_layers(&source, manifest, &config, options)?;
    session.add_bytes(id, config_text.as_bytes())?;
    session.add_bytes(&found.manifest_digest, &found.manifest_bytes)?;
    let new = NewImage {
        manifest_digest: &found.manifest_digest,
        manifest,
        config: &config,
        config_text: &config_text,
        names: &found.names,
        repo_digest: None,
    };
    let (id, changed) = session.commit(&new)?;
    progress.event(Event::Done { id: &id, changed });
    Ok(Loaded { image: store.get(&id)?, names: found.names.clone() })
}

fn read_docker(member: &Member) -> Result<Vec<DockerEntry>> {
    let bytes = member.bytes(MANIFEST_FILE, MAX_MANIFEST)?;
    serde_json::from_slice(&bytes).map_err(|error| Error::Archive(format!("{MANIFEST_FILE}: {error}")))
}

/// The images of a layout. An image that has several names has several entries.
fn find_oci(
    spool: &Spool,
    index: &Index,
    docker: &[DockerEntry],
    options: &LoadOptions,
) -> Result<Vec<Found>> {
    let mut images: Vec<Found> = Vec::new();
    for entry in &index.manifests {
        let Some(mut found) = find_manifest(spool, entry, options)? else { continue };
        found.names = oci_names(entry)?;
        let tags = docker.iter().filter(|other| {
            spool.get(&other.config).is_some_and(|config| config.digest == found.manifest.config.digest)
        });
        for tag in tags.flat_map(|entry| entry.repo_tags.iter().flatten()) {
            found.names.push(tag_name(&Reference::parse(tag)?)?);
        }
        match images.iter_mut().find(|image| image.manifest_digest == found.manifest_digest) {
            Some(known) => known.names.append(&mut found.names),
            None => images.push(found),
        }
    }
    for image in &mut images {
        image.names.sort();
        image.names.dedup();
    }
    Ok(images)
}

/// The names an index gives an image: a full one, or one that is more than a tag.
fn oci_names(entry: &Descriptor) -> Result<Vec<String>> {
    let full = entry.annotations.get(NAME_ANNOTATION);
    let name =
        full.or_else(|| entry.annotations.get(REF_ANNOTATION).filter(|name| name.contains([':', '/'])));
    name.map(|name| tag_name(&Reference::parse(name)?)).into_iter().collect()
}

/// Goes from an entry of the index to an image, through nested indexes; `None` where the entry is no image.
fn find_manifest(spool: &Spool, entry: &Descriptor, options: &LoadOptions) -> Result<Option<Found>> {
    let wanted = options.platform.clone().unwrap_or_else(Platform::host);
    let mut entry = entry.clone();
    for _ in 0..=MAX_INDEX_DEPTH {
        let what = format!("manifest {}", entry.digest);
        let bytes = spool.blob(&entry.digest)?.bytes(&what, MAX_MANIFEST)?;
        let kind = Some(entry.media_type.as_str()).filter(|kind| !kind.is_empty());
        match Document::parse(&bytes, kind) {
            Ok(Document::Manifest(manifest)) => {
                return describe(spool, *manifest, bytes, entry.digest).map(Some);
            }
            Ok(Document::Index(mut index)) => {
                // An archive need not hold all the platforms its index speaks of.
                index.manifests.retain(|entry| spool.blob(&entry.digest).is_ok());
                entry = index.choose(&wanted).map_err(Error::document(what))?.clone();
            }
            Err(proa_oci::image::DocumentError::NotAnImage(_)) => return Ok(None),
            Err(error) => return Err(Error::document(what)(error)),
        }
    }
    Err(Error::Archive(format!("its index leads through more than {MAX_INDEX_DEPTH} others")))
}

fn describe(
    spool: &Spool,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    manifest_digest: Digest,
) -> Result<Found> {
    let layers = manifest.layers.iter().map(|layer| sized(spool, layer)).collect::<Result<_>>()?;
    let config = sized(spool, &manifest.config)?;
    Ok(Found { manifest, manifest_bytes, manifest_digest, layers, config, names: Vec::new() })
}

fn sized(spool: &Spool, descriptor: &Descriptor) -> Result<Member> {
    let member = spool.blob(&descriptor.digest)?;
    if member.size != descriptor.size {
        let (expected, actual) = (descriptor.size, member.size);
        return Err(Error::SizeMismatch { what: format!("blob {}", descriptor.digest), expected, actual });
    }
    Ok(member.clone())
}

/// An image of a docker-archive has no manifest; it gets one, in which each layer stands as it came.
fn find_docker(spool: &Spool, entry: &DockerEntry) -> Result<Found> {
    let member = |name: &str| {
        spool
            .get(name)
            .ok_or_else(|| Error::Archive(format!("member '{}' is missing", name.escape_default())))
    };
    let config = member(&entry.config)?.clone();
    let names = entry.layers.iter().flatten();
    let layers = names.map(|name| member(name).cloned()).collect::<Result<Vec<_>>>()?;
    let describe = |layer: &Member| -> Result<Descriptor> {
        let kind = match Compression::of_file(&layer.file).map_err(Error::io(&layer.file))? {
            Compression::None => media_type::OCI_LAYER,
            Compression::Gzip => media_type::OCI_LAYER_GZIP,
            Compression::Zstd => media_type::OCI_LAYER_ZSTD,
        };
        Ok(Descriptor::new(kind, layer.digest.clone(), layer.size))
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        config: Descriptor::new(media_type::OCI_CONFIG, config.digest.clone(), config.size),
        layers: layers.iter().map(describe).collect::<Result<_>>()?,
        annotations: BTreeMap::new(),
    };
    let manifest_bytes = serde_json::to_vec(&manifest).map_err(|error| Error::Archive(error.to_string()))?;
    let tags = entry.repo_tags.iter().flatten();
    let names = tags.map(|tag| tag_name(&Reference::parse(tag)?)).collect::<Result<_>>()?;
    let manifest_digest = sha256(&manifest_bytes);
    // The same limits hold as for a manifest that was sent.
    proa_oci::image::parse_manifest(&manifest_bytes).map_err(Error::document(MANIFEST_FILE))?;
    Ok(Found { manifest, manifest_bytes, manifest_digest, layers, config, names })
}

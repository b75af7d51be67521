//! `save`: from the store into an archive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;

use proa_oci::image::{Descriptor, Index, media_type};
use proa_oci::reference::{Digest, Reference, familiar_repository};

use super::{DockerEntry, INDEX_FILE, LAYOUT_FILE, MANIFEST_FILE, NAME_ANNOTATION, REF_ANNOTATION};
use crate::error::{Error, Result};
use crate::push::read_manifest;
use crate::store::{ImageId, Session, Store};

/// Kinds of archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// Both kinds at once, as Docker writes it.
    #[default]
    Docker,
    /// An OCI layout alone.
    Oci,
}

/// One image to write, and the names it was asked for by.
struct Chosen {
    id: ImageId,
    manifest: Digest,
    names: Vec<Reference>,
}

/// Writes the images into one archive. Blobs are written as they came, so all digests stay.
///
/// # Errors
/// There is no such image, it lacks a blob, or the archive cannot be written.
pub fn save(store: &Store, images: &[String], format: ArchiveFormat, out: &mut dyn Write) -> Result<()> {
    let session = Session::begin(store)?;
    let chosen = choose(store, images)?;
    let mut writer = Writer { tar: tar::Builder::new(out), written: BTreeSet::new(), store };
    let (mut index, mut docker) = (Vec::new(), Vec::new());
    for dir in ["blobs/", "blobs/sha256/"] {
        writer.directory(dir)?;
    }
    for image in &chosen {
        let (bytes, manifest) = read_manifest(store, &image.manifest)?;
        if crate::disk::is_disk(&manifest) {
            return Err(Error::Archive(format!("{} is a disk, which travels by `proa push`", image.id)));
        }
        let blobs: Vec<&Descriptor> = manifest.layers.iter().chain([&manifest.config]).collect();
        // Nothing that is being written may be removed meanwhile.
        session.lease(blobs.iter().map(|blob| &blob.digest).chain([&image.manifest]))?;
        for blob in &blobs {
            writer.blob(&blob.digest, blob.size)?;
        }
        writer.blob(&image.manifest, bytes.len() as u64)?;
        let kind = manifest.media_type.as_deref().unwrap_or(media_type::OCI_MANIFEST);
        let descriptor = Descriptor::new(kind, image.manifest.clone(), bytes.len() as u64);
        index.extend(index_entries(image, &descriptor, format));
        docker.push(DockerEntry {
            config: blob_name(&image.id),
            repo_tags: Some(image.names.iter().map(|name| name.familiar()).collect()),
            layers: Some(manifest.layers.iter().map(|layer| blob_name(&layer.digest)).collect()),
        });
    }
    let index = Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        manifests: index,
        annotations: BTreeMap::new(),
    };
    writer.json(INDEX_FILE, &index)?;
    if format == ArchiveFormat::Docker {
        writer.json(MANIFEST_FILE, &docker)?;
    }
    writer.bytes(LAYOUT_FILE, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    writer.finish()
}

/// Each image once, with all the names it was asked for by.
fn choose(store: &Store, images: &[String]) -> Result<Vec<Chosen>> {
    let mut chosen: Vec<Chosen> = Vec::new();
    for text in images {
        let image = store.resolve(text)?;
        let name = Reference::parse(text).ok().filter(|name| image.names.contains(&name.to_string()));
        match chosen.iter_mut().find(|known| known.id == image.id) {
            Some(known) => known.names.extend(name),
            None => {
                chosen.push(Chosen {
                    id: image.id,
                    manifest: image.manifest,
                    names: name.into_iter().collect(),
                });
            }
        }
    }
    Ok(chosen)
}

/// An entry for each name; Docker's readers expect the tag alone in the annotation where others have the name.
fn index_entries(image: &Chosen, descriptor: &Descriptor, format: ArchiveFormat) -> Vec<Descriptor> {
    if image.names.is_empty() {
        return vec![descriptor.clone()];
    }
    let named = image.names.iter().map(|name| {
        let full = name.to_string();
        let short = match format {
            ArchiveFormat::Docker => name.tag().unwrap_or_default().to_owned(),
            ArchiveFormat::Oci => full.clone(),
        };
        let annotations = [(NAME_ANNOTATION, full), (REF_ANNOTATION, short)];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value)).into();
        Descriptor { annotations, ..descriptor.clone() }
    });
    named.collect()
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

struct Writer<'a> {
    tar: tar::Builder<&'a mut dyn Write>,
    written: BTreeSet<Digest>,
    store: &'a Store,
}

impl Writer<'_> {
    fn blob(&mut self, digest: &Digest, size: u64) -> Result<()> {
        if !self.written.insert(digest.clone()) {
            return Ok(());
        }
        let path = self.store.layout().blob(digest);
        let file = File::open(&path).map_err(Error::io(&path))?;
        let length = file.metadata().map_err(Error::io(&path))?.len();
        if length != size {
            let what = format!("blob {digest} has {length} bytes, not {size}");
            return Err(Error::Damaged { image: familiar_repository(digest.as_str()).to_owned(), what });
        }
        self.member(&blob_name(digest), size, file)
    }

    fn json(&mut self, name: &str, value: &impl serde::Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(|error| Error::Archive(error.to_string()))?;
        self.bytes(name, &bytes)
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.member(name, bytes.len() as u64, bytes)
    }

    fn member(&mut self, name: &str, size: u64, content: impl std::io::Read) -> Result<()> {
        let mut header = header(tar::EntryType::Regular, 0o644);
        header.set_size(size);
        self.tar.append_data(&mut header, name, content).map_err(Error::stream("archive"))
    }

    fn directory(&mut self, name: &str) -> Result<()> {
        let mut header = header(tar::EntryType::Directory, 0o755);
        self.tar.append_data(&mut header, name, std::io::empty()).map_err(Error::stream("archive"))
    }

    fn finish(self) -> Result<()> {
        let out = self.tar.into_inner().map_err(Error::stream("archive"))?;
        out.flush().map_err(Error::stream("archive"))
    }
}

/// Times and owners are left out: the same images give the same archive.
fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

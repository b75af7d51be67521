//! Disk images: a raw disk as chunks in the store, and back. Their form is told in [`proa_oci::disk`].
//!
//! ```text
//!   pack:    data of the file ─▶ chunk ─▶ zeros? left out ─▶ compressed ─▶ blob, once ─▶ config, manifest ─▶ known
//!   unpack:  blob ─▶ as long as its chunk ─▶ written wherever the layout says, zeros left out
//!   pull:    config ─▶ layout ─▶ each chunk that is not here, its digest verified
//! ```
//!
//! A chunk in the store was verified when it came. What it unpacks to is no longer than its chunk, whatever it says.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use proa_oci::disk::{CHUNK, CONFIG, DiskLayout};
use proa_oci::image::{Descriptor, DocumentError, Manifest, Platform, media_type};
use proa_oci::reference::{Digest, Reference};
use rustix::fs::{SeekFrom, seek};

use crate::digest::{HashingReader, sha256};
use crate::error::{Error, Result};
use crate::layout::LockFile;
use crate::progress::{Event, Progress};
use crate::registry::{BlobReader, Repository};
use crate::store::{Image, NewImage, Session, Store, tag_name};

/// Zstandard's own default: chunks of a system's disk become a third, at the disk's pace.
const LEVEL: i32 = 3;
/// Zeros of this length are not written.
const BLOCK: usize = 64 * 1024;

/// Makes a disk image of the raw disk at `path`, and gives it this name.
///
/// # Errors
/// The disk cannot be read, is too large, or the store cannot take it.
pub fn pack(store: &Store, path: &Path, name: &Reference, progress: &dyn Progress) -> Result<Image> {
    let names = [tag_name(name)?];
    let file = File::open(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    let too_large = || Error::Archive(format!("a disk of {size} bytes is too large for an image"));
    let mut layout = DiskLayout::new(size).ok_or_else(too_large)?;
    let session = Session::begin(store)?;
    let mut layers: Vec<Descriptor> = Vec::new();
    let mut known: BTreeMap<Digest, usize> = BTreeMap::new();
    let mut buffer = vec![0; layout.length(0) as usize];
    let mut next = next_chunk(&file, &layout, 0).map_err(Error::io(path))?;
    while let Some(number) = next {
        let chunk = &mut buffer[..layout.length(number) as usize];
        file.read_exact_at(chunk, number * layout.chunk).map_err(Error::io(path))?;
        if !is_zero(chunk) {
            let (digest, length) = add_chunk(&session, store, chunk)?;
            let place = *known.entry(digest.clone()).or_insert_with(|| {
                layers.push(Descriptor::new(CHUNK, digest, length));
                layout.places.push(Vec::new());
                layers.len() - 1
            });
            layout.places[place].push(number);
        }
        progress.event(Event::DiskBytes { work: "pack", done: number * layout.chunk, total: size });
        next = next_chunk(&file, &layout, number + 1).map_err(Error::io(path))?;
    }
    progress.event(Event::DiskBytes { work: "pack", done: size, total: size });
    finish(&session, store, &layout, layers, &names)
}

/// The first chunk from `number` on that holds data.
fn next_chunk(file: &File, layout: &DiskLayout, number: u64) -> std::io::Result<Option<u64>> {
    let from = number * layout.chunk;
    if from >= layout.size {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(from)) {
        Ok(at) => Ok(Some(at / layout.chunk)),
        // Nothing but a hole is left.
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn add_chunk(session: &Session<'_>, store: &Store, chunk: &[u8]) -> Result<(Digest, u64)> {
    let failed = Error::stream("compressing a disk");
    let bytes = zstd::bulk::compress(chunk, LEVEL).map_err(failed)?;
    let digest = sha256(&bytes);
    session.lease([&digest])?;
    let _lock = LockFile::take(&store.layout().content_lock(&digest))?;
    session.add_bytes(&digest, &bytes)?;
    Ok((digest, bytes.len() as u64))
}

fn finish(
    session: &Session<'_>,
    store: &Store,
    layout: &DiskLayout,
    layers: Vec<Descriptor>,
    names: &[String],
) -> Result<Image> {
    let created = jiff::Timestamp::now().to_string();
    let text = layout.to_config(&created, &Platform::host().architecture);
    let id = sha256(text.as_bytes());
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        config: Descriptor::new(CONFIG, id.clone(), text.len() as u64),
        layers,
        annotations: BTreeMap::new(),
    };
    let bytes = serde_json::to_vec(&manifest)
        .map_err(|error| Error::stream("a disk's manifest")(std::io::Error::other(error)))?;
    let manifest_digest = sha256(&bytes);
    session.lease([&id, &manifest_digest])?;
    session.add_bytes(&id, text.as_bytes())?;
    session.add_bytes(&manifest_digest, &bytes)?;
    let config = proa_oci::image::parse_config(text.as_bytes()).map_err(Error::document("disk config"))?;
    session.commit(&NewImage {
        manifest_digest: &manifest_digest,
        manifest: &manifest,
        config: &config,
        config_text: &text,
        names,
        repo_digest: None,
    })?;
    store.get(&id)
}

/// Writes a disk image to an empty file, which gets the disk's length.
///
/// # Errors
/// It is no disk image, is damaged, or the file cannot be written.
pub fn unpack(
    store: &Store,
    image: &Image,
    target: &File,
    path: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    let layout = image.disk.as_ref().ok_or_else(|| not_a_disk(image))?;
    let (_, manifest) = crate::push::read_manifest(store, &image.manifest)?;
    target.set_len(layout.size).map_err(Error::io(path))?;
    let lengths = layout.places.iter().flatten().map(|place| layout.length(*place));
    let (mut done, total) = (0, lengths.sum());
    for (layer, places) in manifest.layers.iter().zip(&layout.places) {
        let chunk = read_chunk(store, image, &layer.digest, layout.chunk)?;
        for place in places {
            if chunk.len() as u64 != layout.length(*place) {
                let what = format!("chunk {} has {} bytes", layer.digest, chunk.len());
                return Err(Error::Damaged { image: image.id.to_string(), what });
            }
            write_chunk(target, &chunk, place * layout.chunk).map_err(Error::io(path))?;
            done += chunk.len() as u64;
            progress.event(Event::DiskBytes { work: "unpack", done, total });
        }
    }
    target.sync_all().map_err(Error::io(path))
}

fn read_chunk(store: &Store, image: &Image, digest: &Digest, most: u64) -> Result<Vec<u8>> {
    let path = store.layout().blob(digest);
    let file = File::open(&path).map_err(Error::io(&path))?;
    let damaged = |what: String| Error::Damaged { image: image.id.to_string(), what };
    let mut chunk = Vec::new();
    let decoder = zstd::Decoder::new(file).map_err(Error::io(&path))?;
    let read = decoder.take(most + 1).read_to_end(&mut chunk);
    read.map_err(|error| damaged(format!("chunk {digest}: {error}")))?;
    if chunk.len() as u64 > most {
        return Err(damaged(format!("chunk {digest} is longer than {most} bytes")));
    }
    Ok(chunk)
}

fn write_chunk(target: &File, chunk: &[u8], at: u64) -> std::io::Result<()> {
    let blocks = chunk.chunks(BLOCK).enumerate().filter(|(_, block)| !is_zero(block));
    for (number, block) in blocks {
        target.write_all_at(block, at + (number * BLOCK) as u64)?;
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    // Eight at a time.
    let (head, words, tail) = (bytes.len() % 8, bytes.chunks_exact(8), bytes.chunks_exact(8).remainder());
    debug_assert_eq!(head, tail.len());
    words.into_iter().all(|word| word == [0; 8]) && tail.iter().all(|byte| *byte == 0)
}

/// The error for what is used as a disk and is none.
fn not_a_disk(image: &Image) -> Error {
    let name = image.names.first().cloned().unwrap_or_else(|| image.id.to_string());
    Error::Archive(format!("image {name} is no disk: `proa run` runs it"))
}

/// Whether a manifest is a disk's.
pub(crate) fn is_disk(manifest: &Manifest) -> bool {
    manifest.config.media_type == CONFIG
}

/// Checks that config and manifest of a disk agree.
pub(crate) fn check(manifest: &Manifest, config: &[u8]) -> Result<(), DocumentError> {
    let layout = DiskLayout::parse(config)?.ok_or(DocumentError::Disk)?;
    if layout.places.len() == manifest.layers.len() { Ok(()) } else { Err(DocumentError::Disk) }
}

/// Brings a disk's chunks into the store.
pub(crate) fn fetch_chunks(
    session: &Session<'_>,
    store: &Store,
    repository: &Repository,
    manifest: &Manifest,
    progress: &dyn Progress,
) -> Result<()> {
    for layer in &manifest.layers {
        let digest = &layer.digest;
        let _lock = LockFile::take(&store.layout().content_lock(digest))?;
        if store.blob(digest)?.is_some() {
            progress.event(Event::LayerExists { digest });
            continue;
        }
        progress.event(Event::LayerStarted { digest, size: layer.size });
        let temp = session.temp(digest.hex());
        let mut out = File::create(&temp).map_err(Error::io(&temp))?;
        let reader = BlobReader::new(repository, digest, layer.size, progress);
        let mut reader = HashingReader::new(reader, digest.algorithm());
        let what = || format!("blob {digest}");
        std::io::copy(&mut reader, &mut out).map_err(|error| Error::from_stream(what(), error))?;
        out.flush().map_err(Error::io(&temp))?;
        let (actual, length) = reader.finish();
        if actual != *digest {
            return Err(Error::DigestMismatch { what: what(), expected: digest.clone(), actual });
        }
        if length != layer.size {
            return Err(Error::SizeMismatch { what: what(), expected: layer.size, actual: length });
        }
        store.add_blob(&temp, digest, length, None)?;
        progress.event(Event::LayerBytes { digest, transferred: length });
        progress.event(Event::LayerDone { digest });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn disk(path: &Path, change: u8) {
        let file = File::create(path).unwrap();
        file.set_len((40 << 20) + 512).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(&[change; 100], 9 << 20).unwrap();
        file.write_all_at(b"first", 16 << 20).unwrap();
        // Zeros that were written are left out as well.
        file.write_all_at(&[0; 5 << 20], 24 << 20).unwrap();
        file.write_all_at(b"last", 40 << 20).unwrap();
    }

    #[test]
    fn a_disk_goes_into_the_store_and_comes_out_the_same_and_sparse() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(&scratch.path().join("root")).unwrap();
        let path = scratch.path().join("disk");
        disk(&path, 1);
        let one = pack(&store, &path, &Reference::parse("disk:1").unwrap(), &()).unwrap();
        // The first chunk is there twice.
        assert_eq!(one.disk.as_ref().unwrap().places, [vec![0, 4], vec![2], vec![10]]);
        disk(&path, 2);
        let two = pack(&store, &path, &Reference::parse("disk:2").unwrap(), &()).unwrap();
        let layers = |image: &Image| crate::push::read_manifest(&store, &image.manifest).unwrap().1.layers;
        let (first, second) = (layers(&one), layers(&two));
        assert_eq!(first.iter().filter(|layer| second.contains(layer)).count(), 2);
        let target = scratch.path().join("out");
        let out = File::create(&target).unwrap();
        let image = store.resolve("disk:2").unwrap();
        unpack(&store, &image, &out, &target, &()).unwrap();
        assert!(std::fs::read(&target).unwrap() == std::fs::read(&path).unwrap());
        assert!(out.metadata().unwrap().blocks() * 512 < 1 << 20);
        assert!(store.check(false, true, &()).unwrap().is_empty());
        store.remove("disk:1", false, &()).unwrap();
        unpack(&store, &image, &File::create(&target).unwrap(), &target, &()).unwrap();
        store.remove("disk:2", false, &()).unwrap();
        assert_eq!(store.list().unwrap(), []);
    }

    #[test]
    fn a_chunk_that_is_no_chunk_is_damage() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open(&scratch.path().join("root")).unwrap();
        let path = scratch.path().join("disk");
        disk(&path, 1);
        let image = pack(&store, &path, &Reference::parse("disk").unwrap(), &()).unwrap();
        let layers = crate::push::read_manifest(&store, &image.manifest).unwrap().1.layers;
        let blob = store.layout().blob(&layers[0].digest);
        std::fs::set_permissions(&blob, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        for bomb in [zstd::bulk::compress(&vec![1; 8 << 20], 3).unwrap(), b"nonsense".to_vec(), Vec::new()] {
            std::fs::write(&blob, bomb).unwrap();
            let target = scratch.path().join("out");
            let error = unpack(&store, &image, &File::create(&target).unwrap(), &target, &()).unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{error}");
        }
    }
}

//! `push`: an image's blobs and manifest, as they came, to a registry.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use proa_oci::image::{Document, Manifest, media_type};
use proa_oci::reference::{Digest, Reference};

use crate::error::{Error, Result};
use crate::progress::{Event, Progress};
use crate::registry::{Http, Place, RegistryOptions, Repository};
use crate::store::Store;

/// Sends the image that `source` names to the repository and tag of `target`. Returns the manifest's digest,
/// which is the one it was pulled with.
///
/// # Errors
/// There is no such image, the target has no tag, or the registry refuses it.
pub fn push(
    store: &Store,
    source: &str,
    target: &Reference,
    options: &RegistryOptions,
    progress: &dyn Progress,
) -> Result<Digest> {
    let image = store.resolve(source)?;
    let Some(tag) = target.tag().filter(|_| target.digest().is_none()) else {
        return Err(Error::NotATag(target.familiar()));
    };
    let (bytes, manifest) = read_manifest(store, &image.manifest)?;
    let http = Arc::new(Http::new(options.clone()));
    let place = Place::of_registry(&http, target.domain());
    let repository = Repository::open(&http, &place, target.path(), "pull,push")?;
    progress.event(Event::Resolved {
        reference: target,
        digest: &image.manifest,
        layers: manifest.layers.len(),
    });
    let mut sent: Vec<&Digest> = Vec::new();
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        if !sent.contains(&&blob.digest) {
            push_blob(store, &repository, &blob.digest, blob.size, progress)?;
            sent.push(&blob.digest);
        }
    }
    let kind = manifest.media_type.as_deref().unwrap_or(media_type::OCI_MANIFEST);
    repository.put_manifest(tag, kind, &bytes, progress)?;
    store.add_repo_digest(&image.id, &target.repository(), &image.manifest)?;
    progress.event(Event::Done { id: &image.id, changed: true });
    Ok(image.manifest)
}

/// The image's manifest, as it came and as it reads.
pub(crate) fn read_manifest(store: &Store, digest: &Digest) -> Result<(Vec<u8>, Manifest)> {
    let path = store.layout().blob(digest);
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    match Document::parse(&bytes, None).map_err(Error::document(format!("manifest {digest}")))? {
        Document::Manifest(manifest) => Ok((bytes, *manifest)),
        Document::Index(_) => Err(Error::Archive(format!("{digest} is an index"))),
    }
}

fn push_blob(
    store: &Store,
    repository: &Repository,
    digest: &Digest,
    size: u64,
    progress: &dyn Progress,
) -> Result<()> {
    if repository.has_blob(digest, progress)? {
        progress.event(Event::LayerExists { digest });
        return Ok(());
    }
    progress.event(Event::LayerStarted { digest, size });
    let path = store.layout().blob(digest);
    repository.put_blob(digest, size, progress, &|| {
        let file = File::open(&path).map_err(Error::io(&path))?;
        Ok(Box::new(file.take(size)) as Box<dyn Read + Send + Sync>)
    })?;
    progress.event(Event::LayerBytes { digest, transferred: size });
    progress.event(Event::LayerDone { digest });
    Ok(())
}

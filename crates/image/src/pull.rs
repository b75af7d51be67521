//! `pull`: from a reference to an image in the store.
//!
//! ```text
//!   reference ─▶ manifest ◀─ index (platform)      from the first mirror that has it, else the registry
//!                   │
//!                   ├─▶ config ─▶ diff ids
//!                   └─▶ layers: a few at a time, the largest first; each under its content's lock
//!                          here already ─▶ nothing      blob here ─▶ unpack      else ─▶ fetch and unpack
//!                   ─▶ one transaction makes the image known
//! ```

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use proa_oci::image::{
    Descriptor, Document, ImageConfig, MAX_CONFIG, MAX_INDEX_DEPTH, Manifest, Platform, check_layer_count,
    parse_config,
};
use proa_oci::reference::{Digest, Reference};

use crate::disk;
use crate::error::{Error, Result};
use crate::ingest::{self, Job};
use crate::layer::{KeptIds, LayerForm, Limits};
use crate::layout::LockFile;
use crate::progress::{Event, Progress, tell_left_out};
use crate::registry::{BlobReader, Http, Place, RawManifest, RegistryError, RegistryOptions, Repository};
use crate::store::{Image, NewImage, Session, Store, tag_name};

/// Layers in the making at once, where the caller does not say.
const PARALLEL: usize = 4;

/// How to pull.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// How to reach registries.
    pub registry: RegistryOptions,
    /// The platform asked for; the host's where there is none.
    pub platform: Option<Platform>,
    /// The form of new layers.
    pub form: LayerForm,
    /// What a layer may ask for.
    pub limits: Limits,
    /// Layers in the making at once; 0 for the default.
    pub parallel: usize,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            registry: RegistryOptions::default(),
            platform: None,
            form: LayerForm::usable(),
            limits: Limits::default(),
            parallel: 0,
        }
    }
}

/// Brings the image into the store, and gives it the reference's name where that has a tag.
///
/// # Errors
/// The registry has no such image, refuses it, or sends something else; or the store cannot take it. What was
/// made by then stays only where it is whole, and then makes the next attempt shorter.
pub fn pull(
    store: &Store,
    reference: &Reference,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Image> {
    let http = Arc::new(Http::new(options.registry.clone()));
    let found = find(&http, reference, options, progress)?;
    let digest = &found.top.digest;
    progress.event(Event::Resolved { reference, digest, layers: found.manifest.layers.len() });
    let names = match reference.digest() {
        Some(_) => Vec::new(),
        None => vec![tag_name(reference)?],
    };
    let session = Session::begin(store)?;
    let layers = found.manifest.layers.iter();
    session.lease(
        [&found.raw.digest, &found.manifest.config.digest].into_iter().chain(layers.map(|l| &l.digest)),
    )?;
    let config_text = fetch_config(&session, store, &found, progress)?;
    let config = parse_config(config_text.as_bytes())
        .map_err(Error::document(format!("image {}", reference.familiar())))?;
    if disk::is_disk(&found.manifest) {
        disk::check(&found.manifest, config_text.as_bytes())
            .map_err(Error::document(reference.familiar()))?;
        disk::fetch_chunks(&session, store, &found.repository, &found.manifest, progress)?;
    } else {
        check_layer_count(&found.manifest, &config).map_err(Error::document(reference.familiar()))?;
        check_platform(&config, options, reference)?;
        session.lease(&config.rootfs.diff_ids)?;
        let source = Source { repository: Some(&found.repository), session: &session, store, progress };
        make_layers(&source, &found.manifest, &config, options)?;
    }
    session.add_bytes(&found.raw.digest, &found.raw.bytes)?;
    let repository = reference.repository();
    let new = NewImage {
        manifest_digest: &found.raw.digest,
        manifest: &found.manifest,
        config: &config,
        config_text: &config_text,
        names: &names,
        repo_digest: Some((&repository, digest)),
    };
    let (id, changed) = session.commit(&new)?;
    progress.event(Event::Done { id: &id, changed });
    store.get(&id)
}

/// What a reference leads to.
struct Found {
    repository: Repository,
    /// What the reference names: an index, or the manifest.
    top: RawManifest,
    raw: RawManifest,
    manifest: Manifest,
}

/// Asks the mirrors, then the registry.
fn find(
    http: &Arc<Http>,
    reference: &Reference,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Found> {
    let mut failures = Vec::new();
    let mut places = Place::all(http, reference.domain())?;
    let own = places.pop();
    for place in places {
        let found = Repository::open(http, &place, reference.path(), "pull")
            .and_then(|repository| find_at(repository, reference, options, progress));
        match found {
            Ok(found) => return Ok(found),
            Err(error) => failures.push(error.to_string()),
        }
    }
    let own = own.ok_or_else(|| Error::NotFound(reference.familiar()))?;
    let found = Repository::open(http, &own, reference.path(), "pull")
        .and_then(|repository| find_at(repository, reference, options, progress));
    found.map_err(|last| match failures.is_empty() {
        true => last,
        false => RegistryError::Mirrors { last: Box::new(last), mirrors: failures.join("; ") }.into(),
    })
}

fn find_at(
    repository: Repository,
    reference: &Reference,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Found> {
    let wanted = options.platform.clone().unwrap_or_else(Platform::host);
    let what = || format!("{} at {}", reference.familiar(), repository.host());
    let mut top = None;
    let mut raw = repository.manifest(reference.tag().unwrap_or_default(), reference.digest(), progress)?;
    for _ in 0..=MAX_INDEX_DEPTH {
        let document =
            Document::parse(&raw.bytes, raw.media_type.as_deref()).map_err(Error::document(what()))?;
        match document {
            Document::Manifest(manifest) => {
                let copy = || RawManifest { bytes: Vec::new(), media_type: None, digest: raw.digest.clone() };
                let top = top.unwrap_or_else(copy);
                return Ok(Found { repository, top, raw, manifest: *manifest });
            }
            Document::Index(index) => {
                let entry = index.choose(&wanted).map_err(Error::document(what()))?;
                let next = repository.manifest("", Some(&entry.digest), progress)?;
                if next.bytes.len() as u64 != entry.size {
                    let (expected, actual) = (entry.size, next.bytes.len() as u64);
                    return Err(Error::SizeMismatch {
                        what: format!("manifest {}", entry.digest),
                        expected,
                        actual,
                    });
                }
                top.get_or_insert(std::mem::replace(&mut raw, next));
            }
        }
    }
    let reason = format!("its index leads through more than {MAX_INDEX_DEPTH} others");
    Err(RegistryError::Protocol { what: what(), host: repository.host().to_owned(), reason }.into())
}

fn fetch_config(
    session: &Session<'_>,
    store: &Store,
    found: &Found,
    progress: &dyn Progress,
) -> Result<String> {
    let Descriptor { digest, size, .. } = &found.manifest.config;
    let path = store.layout().blob(digest);
    let bytes = match store.blob(digest)? {
        Some(_) => std::fs::read(&path).map_err(Error::io(&path))?,
        None => {
            let bytes = found.repository.small_blob(digest, *size, MAX_CONFIG, progress)?;
            session.add_bytes(digest, &bytes)?;
            bytes
        }
    };
    String::from_utf8(bytes)
        .map_err(|error| Error::stream(format!("blob {digest}"))(std::io::Error::other(error)))
}

fn check_platform(config: &ImageConfig, options: &PullOptions, reference: &Reference) -> Result<()> {
    let wanted = options.platform.clone().unwrap_or_else(Platform::host);
    let is = config.platform();
    // An image of another architecture may be meant for an emulator; one of another system cannot run at all.
    let fits = is.os == wanted.os && (options.platform.is_none() || is.architecture == wanted.architecture);
    if fits || (is.os.is_empty() && is.architecture.is_empty()) {
        return Ok(());
    }
    let source = proa_oci::image::DocumentError::NoPlatform { wanted, offered: is.to_string() };
    Err(Error::document(reference.familiar())(source))
}

/// Where layers come from and go to.
pub(crate) struct Source<'a> {
    /// Where blobs are fetched that the store has not; none where it must have them all.
    pub(crate) repository: Option<&'a Repository>,
    pub(crate) session: &'a Session<'a>,
    pub(crate) store: &'a Store,
    pub(crate) progress: &'a dyn Progress,
}

/// Makes every layer of the image that is not there.
pub(crate) fn make_layers(
    source: &Source<'_>,
    manifest: &Manifest,
    config: &ImageConfig,
    options: &PullOptions,
) -> Result<()> {
    let mut work: Vec<(&Descriptor, &Digest)> = manifest.layers.iter().zip(&config.rootfs.diff_ids).collect();
    work.sort_by(|a, b| b.0.size.cmp(&a.0.size).then_with(|| (&a.0.digest, a.1).cmp(&(&b.0.digest, b.1))));
    work.dedup();
    let mut todo = Vec::new();
    for (blob, diff_id) in work {
        if is_made(source.store, &blob.digest, diff_id)? {
            source.progress.event(Event::LayerExists { digest: &blob.digest });
        } else {
            todo.push((blob, diff_id));
        }
    }
    let threads = if options.parallel == 0 { PARALLEL } else { options.parallel }.min(todo.len());
    let (next, stop, failure) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
    let worker = Worker {
        root: source.store.root(),
        repository: source.repository,
        temp: &source.session.temp(""),
        options,
        progress: source.progress,
        stop: &stop,
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((blob, diff_id)) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = worker.make(blob, diff_id) {
                        // What the others say after they were stopped explains nothing.
                        if !stop.swap(true, Ordering::Relaxed) {
                            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        }
                        return;
                    }
                }
            });
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Whether both the blob and its layer are there and belong together.
fn is_made(store: &Store, blob: &Digest, diff_id: &Digest) -> Result<bool> {
    let Some(known) = store.blob(blob)?.and_then(|row| row.diff_id) else { return Ok(false) };
    if known != *diff_id {
        return Err(Error::WrongDiffId { blob: blob.clone(), expected: diff_id.clone(), actual: known });
    }
    Ok(store.layer_form(diff_id)?.is_some())
}

/// What the threads that make layers share.
struct Worker<'a> {
    root: &'a Path,
    repository: Option<&'a Repository>,
    /// The session's directory.
    temp: &'a Path,
    options: &'a PullOptions,
    progress: &'a dyn Progress,
    stop: &'a AtomicBool,
}

impl Worker<'_> {
    /// Makes one layer, or waits while another process does.
    fn make(&self, blob: &Descriptor, diff_id: &Digest) -> Result<()> {
        let digest = &blob.digest;
        let store = Store::open(self.root)?;
        let lock = store.layout().content_lock(digest);
        let _lock = match LockFile::try_take(&lock)? {
            Some(lock) => lock,
            None => {
                self.progress.event(Event::LayerWaiting { digest });
                LockFile::take(&lock)?
            }
        };
        if is_made(&store, digest, diff_id)? {
            self.progress.event(Event::LayerExists { digest });
            return Ok(());
        }
        self.progress.event(Event::LayerStarted { digest, size: blob.size });
        let has_blob = store.blob(digest)?.is_some();
        let blob_file = self.temp.join(format!("{}.blob", digest.hex()));
        let layer_file = self.temp.join(format!("{}.layer", digest.hex()));
        let has_layer = store.layer_form(diff_id)?.is_some();
        let job = Job {
            blob: digest,
            size: blob.size,
            blob_file: (!has_blob).then_some(&*blob_file),
            layer: (!has_layer).then_some((&*layer_file, self.options.form)),
            kept: KeptIds::default(),
            algorithm: diff_id.algorithm(),
            limits: &self.options.limits,
        };
        let made = self.run(&job, has_blob.then(|| store.layout().blob(digest)))?;
        if made.diff_id != *diff_id {
            let (expected, actual) = (diff_id.clone(), made.diff_id);
            return Err(Error::WrongDiffId { blob: digest.clone(), expected, actual });
        }
        if let Some(info) = &made.info {
            store.add_layer(&layer_file, diff_id, self.options.form, info)?;
            tell_left_out(self.progress, digest, info);
        }
        if has_blob {
            store.set_diff_id(digest, diff_id)?;
        } else {
            store.add_blob(&blob_file, digest, blob.size, Some(diff_id))?;
        }
        self.progress.event(Event::LayerDone { digest });
        Ok(())
    }

    fn run(&self, job: &Job<'_>, blob: Option<std::path::PathBuf>) -> Result<ingest::Made> {
        let (digest, size) = (job.blob, job.size);
        let mut step = |transferred| {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Archive("stopped".to_owned()));
            }
            self.progress.event(Event::LayerBytes { digest, transferred });
            if transferred == size {
                self.progress.event(Event::LayerConverting { digest });
            }
            Ok(())
        };
        match (blob, self.repository) {
            (Some(path), _) => ingest::make(job, File::open(&path).map_err(Error::io(&path))?, &mut step),
            (None, Some(repository)) => {
                ingest::make(job, BlobReader::new(repository, digest, size, self.progress), &mut step)
            }
            (None, None) => Err(Error::Archive(format!("blob {digest} is missing"))),
        }
    }
}

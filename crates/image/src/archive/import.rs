//! `import`: a root file system's tar becomes an image of one layer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};

use proa_oci::image::{Descriptor, History, ImageConfig, Manifest, Platform, RootFs, media_type};
use proa_oci::reference::{Algorithm, Digest, Reference};

use super::changes;
use crate::decompress::Compression;
use crate::digest::{Hasher, sha256};
use crate::error::{Error, Result};
use crate::ingest::{self, Job};
use crate::layer::{KeptIds, LayerForm, Limits};
use crate::progress::{Event, Progress, tell_left_out};
use crate::store::{Image, NewImage, Session, Store, tag_name};

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Instructions as in a Dockerfile, applied to the image's config: `CMD ["sh"]`, `ENV A=b`.
    pub changes: Vec<String>,
    /// A word about the import, for the history.
    pub message: String,
    /// What the root file system runs on; the host's platform where not given.
    pub platform: Option<Platform>,
    /// When the image was made, RFC 3339; now where not given. The same input with the same time is the same
    /// image.
    pub created: Option<String>,
    /// The form of the layer.
    pub form: LayerForm,
    /// What the layer may ask for.
    pub limits: Limits,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            changes: Vec::new(),
            message: String::new(),
            platform: None,
            created: None,
            form: LayerForm::usable(),
            limits: Limits::default(),
        }
    }
}

/// Makes an image of the tar, and gives it a name where `target` has one.
///
/// # Errors
/// The tar cannot be read or is none, a change is wrong, or the target has a digest.
pub fn import(
    store: &Store,
    input: impl Read,
    target: Option<&Reference>,
    options: &ImportOptions,
    progress: &dyn Progress,
) -> Result<Image> {
    let names = target.map(tag_name).transpose()?;
    let mut config = ImageConfig::default();
    for change in &options.changes {
        changes::apply(change, &mut config.config)?;
    }
    let session = Session::begin(store)?;
    let layer = add_layer(&session, store, input, options, progress)?;
    let created = options.created.clone().unwrap_or_else(|| jiff::Timestamp::now().to_string());
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    config.architecture = platform.architecture;
    config.os = platform.os;
    config.variant = platform.variant;
    config.rootfs = RootFs { kind: "layers".to_owned(), diff_ids: vec![layer.diff_id] };
    config.history =
        vec![History { created: created.clone(), comment: options.message.clone(), ..History::default() }];
    config.created = created;
    let text = to_json(&config)?;
    let config_digest = sha256(text.as_bytes());
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        config: Descriptor::new(media_type::OCI_CONFIG, config_digest.clone(), text.len() as u64),
        layers: vec![layer.blob],
        annotations: BTreeMap::new(),
    };
    let manifest_text = to_json(&manifest)?;
    let manifest_digest = sha256(manifest_text.as_bytes());
    session.lease([&config_digest, &manifest_digest])?;
    session.add_bytes(&config_digest, text.as_bytes())?;
    session.add_bytes(&manifest_digest, manifest_text.as_bytes())?;
    let names: Vec<String> = names.into_iter().collect();
    let new = NewImage {
        manifest_digest: &manifest_digest,
        manifest: &manifest,
        config: &config,
        config_text: &text,
        names: &names,
        repo_digest: None,
    };
    let (id, changed) = session.commit(&new)?;
    progress.event(Event::Done { id: &id, changed });
    store.get(&id)
}

fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Archive(error.to_string()))
}

struct NewLayer {
    blob: Descriptor,
    diff_id: Digest,
}

/// Keeps the input as it came, for its digest is known only at its end, then makes the layer of it.
fn add_layer(
    session: &Session<'_>,
    store: &Store,
    input: impl Read,
    options: &ImportOptions,
    progress: &dyn Progress,
) -> Result<NewLayer> {
    let temp = session.temp("import.blob");
    let (digest, size) = spool(input, &temp)?;
    if size == 0 {
        return Err(Error::Archive("there is nothing to import".to_owned()));
    }
    let kind = match Compression::of_file(&temp).map_err(Error::stream("import"))? {
        Compression::None => media_type::OCI_LAYER,
        Compression::Gzip => media_type::OCI_LAYER_GZIP,
        Compression::Zstd => media_type::OCI_LAYER_ZSTD,
    };
    progress.event(Event::LayerConverting { digest: &digest });
    let layer_file = session.temp("import.layer");
    let job = Job {
        blob: &digest,
        size,
        blob_file: None,
        layer: Some((&layer_file, options.form)),
        kept: KeptIds::default(),
        algorithm: Algorithm::Sha256,
        limits: &options.limits,
    };
    let file = File::open(&temp).map_err(Error::io(&temp))?;
    let made = ingest::make(&job, file, &mut |_| Ok(()))?;
    session.lease([&digest, &made.diff_id])?;
    if let Some(info) = &made.info {
        store.add_layer(&layer_file, &made.diff_id, options.form, info)?;
        tell_left_out(progress, &digest, info);
    }
    match store.blob(&digest)? {
        Some(_) => store.set_diff_id(&digest, &made.diff_id)?,
        None => store.add_blob(&temp, &digest, size, Some(&made.diff_id))?,
    }
    progress.event(Event::LayerDone { digest: &digest });
    Ok(NewLayer { blob: Descriptor::new(kind, digest, size), diff_id: made.diff_id })
}

fn spool(mut input: impl Read, path: &std::path::Path) -> Result<(Digest, u64)> {
    let mut file = File::create_new(path).map_err(Error::io(path))?;
    let (mut hasher, mut size, mut block) = (Hasher::new(Algorithm::Sha256), 0, vec![0; 128 * 1024]);
    loop {
        match input.read(&mut block) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(read) => {
                hasher.update(&block[..read]);
                file.write_all(&block[..read]).map_err(Error::io(path))?;
                size += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::stream("import")(error)),
        }
    }
}

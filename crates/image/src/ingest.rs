//! From the bytes of a layer's blob to a layer, in one pass over them.
//!
//! ```text
//!   thread 1                     thread 2            thread 3
//!   source ─▶ hash, count ─▶ pipe ─▶ decompress ─▶ pipe ─▶ hash ─▶ layer::convert
//!                └─▶ blob file
//! ```
//!
//! What is made here is only worth something once both digests have been compared: the caller gets the paths
//! back with what was found, and nothing is moved to its place before.
//!
//! When several stages fail, the first in the stream is the cause: what a stage behind it sees is only that its
//! input ended.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::path::Path;

use proa_oci::reference::{Algorithm, Digest};

use crate::decompress::Decompressor;
use crate::digest::{Hasher, HashingReader};
use crate::error::{Error, Result};
use crate::layer::{self, KeptIds, LayerError, LayerForm, LayerInfo, Limits};
use crate::pipe::{PipeReader, PipeWriter, pipe};

/// Once a later stage has failed, this many bytes may still be read to see whether the digest is wrong, which
/// explains more than what the later stage says.
const EXPLAIN: u64 = 16 * 1024 * 1024;

/// A tar may be this much longer than the blob: gzip cannot do more, and zstd must not.
const MAX_RATIO: u64 = 1100;
const RATIO_FREE: u64 = 1 << 30;

/// What to make.
pub(crate) struct Job<'a> {
    /// The blob's address, and its size.
    pub(crate) blob: &'a Digest,
    pub(crate) size: u64,
    /// Where to keep the blob; none where it is kept already.
    pub(crate) blob_file: Option<&'a Path>,
    /// Where and in which form to make the layer; none where it exists.
    pub(crate) layer: Option<(&'a Path, LayerForm)>,
    /// Owners of the files, where it is a directory.
    pub(crate) kept: KeptIds,
    /// The algorithm of the diff id.
    pub(crate) algorithm: Algorithm,
    pub(crate) limits: &'a Limits,
}

/// What was made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) diff_id: Digest,
    /// Where a layer was asked for.
    pub(crate) info: Option<LayerInfo>,
}

/// Makes the layer. `step` hears the number of bytes read so far, and stops everything by returning an error.
///
/// # Errors
/// The source fails, is not what its digest or size says, or is no layer.
pub(crate) fn make(
    job: &Job<'_>,
    source: impl Read,
    step: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Made> {
    let (to_decompress, compressed) = pipe();
    let (to_convert, tar) = pipe();
    std::thread::scope(|scope| {
        let decompress = scope.spawn(move || decompress(compressed, to_convert));
        let convert = scope.spawn(move || convert(job, tar));
        let received = receive(job, source, to_decompress, step);
        let decompressed = decompress.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let converted = convert.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let verified = received?;
        let blob = || job.blob.to_string();
        match decompressed {
            Err(source) if source.kind() != io::ErrorKind::BrokenPipe || converted.is_ok() => {
                Err(Error::Decompress { blob: blob(), source })
            }
            _ => {
                let made = converted.map_err(|source| Error::Layer { blob: blob(), source })?;
                assert!(verified, "the later stages end well only after all has been read");
                Ok(made)
            }
        }
    })
}

/// Reads the source to its end and compares what it was; `false` where it gave up before because a later stage
/// has failed, whose error is its own to tell.
fn receive(
    job: &Job<'_>,
    mut source: impl Read,
    mut pipe: PipeWriter,
    step: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<bool> {
    let what = || format!("blob {}", job.blob);
    let mut file = match job.blob_file {
        Some(path) => Some((path, File::create_new(path).map_err(Error::io(path))?)),
        None => None,
    };
    let mut hasher = Hasher::new(job.blob.algorithm());
    let (mut count, mut stop_at) = (0, job.size);
    loop {
        let block = pipe.fill(&mut source).map_err(|error| Error::from_stream(what(), error))?;
        if block.is_empty() {
            break;
        }
        count += block.len() as u64;
        if count > job.size {
            return Err(Error::SizeMismatch { what: what(), expected: job.size, actual: count });
        }
        hasher.update(block);
        if let Some((path, file)) = &mut file {
            file.write_all(block).map_err(Error::io(path))?;
        }
        step(count)?;
        if count > stop_at {
            return Ok(false);
        }
        if pipe.flush().is_err() && stop_at == job.size {
            stop_at = stop_at.min(count + EXPLAIN);
        }
    }
    if count != job.size {
        return Err(Error::SizeMismatch { what: what(), expected: job.size, actual: count });
    }
    let actual = hasher.finish();
    if actual != *job.blob {
        return Err(Error::DigestMismatch { what: what(), expected: job.blob.clone(), actual });
    }
    // A reader that is gone has an error of its own to tell.
    let _ = pipe.finish();
    Ok(true)
}

fn decompress(compressed: PipeReader, mut tar: PipeWriter) -> io::Result<()> {
    let mut source = Decompressor::new(compressed)?;
    while !tar.fill(&mut source)?.is_empty() {
        tar.flush()?;
    }
    tar.finish()
}

fn convert(job: &Job<'_>, tar: PipeReader) -> Result<Made, LayerError> {
    let mut tar = HashingReader::new(tar, job.algorithm);
    let most = job.size.saturating_mul(MAX_RATIO).saturating_add(RATIO_FREE);
    let max = job.limits.max_uncompressed.min(most);
    let info = match job.layer {
        Some((path, form)) => {
            let limits = Limits { max_uncompressed: max, ..*job.limits };
            Some(match form {
                LayerForm::Erofs => layer::convert(&mut tar, path, form, &limits)?,
                LayerForm::Directory => layer::unpack(&mut tar, path, job.kept, &limits)?,
            })
        }
        None => {
            drain(&mut tar, max)?;
            None
        }
    };
    Ok(Made { diff_id: tar.finish().0, info })
}

fn drain(tar: &mut HashingReader<PipeReader>, max: u64) -> Result<(), LayerError> {
    let mut limited = io::BufReader::with_capacity(128 * 1024, tar.by_ref().take(max.saturating_add(1)));
    let mut total = 0;
    loop {
        let read = limited.fill_buf().map_err(LayerError::Read)?.len();
        if read == 0 {
            return Ok(());
        }
        total += read as u64;
        if total > max {
            return Err(LayerError::Limit { what: "bytes", max });
        }
        limited.consume(read);
    }
}

//! What a long operation tells while it works. Rendering it is the caller's work.

use proa_oci::reference::{Digest, Reference};

use crate::ImageId;
use crate::layer::{LayerInfo, LeftOut};

/// One thing that happened.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The reference leads to this content (an index or a manifest), of which the layers follow.
    Resolved {
        /// What was asked for.
        reference: &'a Reference,
        /// Where it leads.
        digest: &'a Digest,
        /// How many layers the image has.
        layers: usize,
    },
    /// The layer is here already.
    LayerExists {
        /// The layer's blob.
        digest: &'a Digest,
    },
    /// Another process works on the layer; this one waits for it.
    LayerWaiting {
        /// The layer's blob.
        digest: &'a Digest,
    },
    /// The transfer of a layer begins.
    LayerStarted {
        /// The layer's blob.
        digest: &'a Digest,
        /// Its compressed size.
        size: u64,
    },
    /// A part of the layer has been transferred.
    LayerBytes {
        /// The layer's blob.
        digest: &'a Digest,
        /// Bytes transferred in all.
        transferred: u64,
    },
    /// All has been transferred; what remains is to finish the layer's file.
    LayerConverting {
        /// The layer's blob.
        digest: &'a Digest,
    },
    /// The layer is whole and on disk, or with the registry.
    LayerDone {
        /// The layer's blob.
        digest: &'a Digest,
    },
    /// The layer lacks what this user cannot make.
    LayerIncomplete {
        /// The layer's blob.
        digest: &'a Digest,
        /// What it lacks.
        left_out: LeftOut,
    },
    /// A part of a disk has been worked on.
    DiskBytes {
        /// What is done with it, in a word or two.
        work: &'static str,
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A transfer broke and is tried again.
    Retry {
        /// What was being transferred.
        what: &'a str,
        /// Why it broke.
        reason: &'a str,
    },
    /// The image is complete.
    Done {
        /// Its id.
        id: &'a ImageId,
        /// Whether it was not here, or not under this name, before.
        changed: bool,
    },
}

/// Who is told. Events come from several threads.
pub trait Progress: Sync {
    /// Takes one event.
    fn event(&self, event: Event<'_>);
}

/// Tells of what a layer lacks, if it lacks something.
pub(crate) fn tell_left_out(progress: &dyn Progress, digest: &Digest, info: &LayerInfo) {
    if info.left_out != LeftOut::default() {
        progress.event(Event::LayerIncomplete { digest, left_out: info.left_out });
    }
}

/// Nobody.
impl Progress for () {
    fn event(&self, _: Event<'_>) {}
}

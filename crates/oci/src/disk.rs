//! Disks as OCI artifacts: an image manifest whose layers are pieces of a disk.
//!
//! ```text
//!   manifest ─▶ config   application/vnd.proa.disk.config.v1+json: how large the disk is, and what lies where
//!      └─▶ layers        application/vnd.proa.disk.chunk.v1+zstd: a chunk of the disk each, compressed
//! ```
//!
//! A disk is cut at multiples of its chunk. A chunk of zeros is not sent, and one that is there twice is sent once; one
//! that did not change has the digest that it had, so a registry that has it is sent nothing. The config is an image's
//! config too, of an image without layers, and has this beside it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::image::{DocumentError, MAX_CONFIG};

/// Media type of a disk's config.
pub const CONFIG: &str = "application/vnd.proa.disk.config.v1+json";
/// Media type of a chunk.
pub const CHUNK: &str = "application/vnd.proa.disk.chunk.v1+zstd";
/// What a disk's config has for the operating system.
pub const OS: &str = "disk";
/// Most chunks of a disk: their manifest must stay below what registries take.
pub const MAX_CHUNKS: u64 = 16_384;
/// Bytes of a chunk, at the least and at the most; a disk of up to 64 GiB has the least.
pub const CHUNK_SIZES: std::ops::RangeInclusive<u64> = 4 << 20..=256 << 20;

/// What a disk's config says beside what images' configs say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskLayout {
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a chunk; the last may be shorter.
    pub chunk: u64,
    /// For each layer of the manifest, the numbers of the chunks that it is.
    pub places: Vec<Vec<u64>>,
}

/// A disk's config as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct DiskConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk: Option<DiskLayout>,
}

impl DiskLayout {
    /// For a disk of this size, without any chunk yet; `None` where it is too large.
    pub fn new(size: u64) -> Option<Self> {
        let mut chunk = *CHUNK_SIZES.start();
        while size.div_ceil(chunk) > MAX_CHUNKS {
            chunk *= 2;
        }
        CHUNK_SIZES.contains(&chunk).then(|| Self { size, chunk, places: Vec::new() })
    }

    /// Bytes of the chunk with this number.
    pub fn length(&self, number: u64) -> u64 {
        self.size.saturating_sub(number.saturating_mul(self.chunk)).min(self.chunk)
    }

    /// The config's text. `created` is as in an image's config.
    pub fn to_config(&self, created: &str, architecture: &str) -> String {
        serde_json::json!({
            "created": created,
            "architecture": architecture,
            "os": OS,
            "rootfs": { "type": "layers", "diff_ids": [] },
            "disk": self,
        })
        .to_string()
    }

    /// Reads a config; `None` where it is that of an image.
    ///
    /// # Errors
    /// It is of another shape, or makes no sense.
    pub fn parse(config: &[u8]) -> Result<Option<Self>, DocumentError> {
        const WHAT: &str = "disk config";
        if config.len() as u64 > MAX_CONFIG {
            return Err(DocumentError::TooLarge { what: WHAT, max: MAX_CONFIG });
        }
        let read: Result<DiskConfig, _> = serde_json::from_slice(config);
        let disk = read.map_err(|source| DocumentError::Json { what: WHAT, source })?.disk;
        match disk {
            Some(disk) if !disk.is_sound() => Err(DocumentError::Disk),
            other => Ok(other),
        }
    }

    fn is_sound(&self) -> bool {
        let chunks = if self.chunk == 0 { u64::MAX } else { self.size.div_ceil(self.chunk) };
        let mut seen = BTreeSet::new();
        CHUNK_SIZES.contains(&self.chunk)
            && chunks <= MAX_CHUNKS
            && self.places.iter().all(|places| !places.is_empty())
            && self.places.iter().flatten().all(|place| *place < chunks && seen.insert(*place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_survives_the_way_and_is_an_images_too() {
        let mut disk = DiskLayout::new(10 << 20).unwrap();
        disk.places = vec![vec![0, 2]];
        let text = disk.to_config("2026-01-01T00:00:00Z", "amd64");
        assert_eq!(DiskLayout::parse(text.as_bytes()).unwrap(), Some(disk.clone()));
        let image = crate::image::parse_config(text.as_bytes()).unwrap();
        assert_eq!((image.os.as_str(), image.rootfs.diff_ids.len()), ("disk", 0));
        assert_eq!((disk.length(0), disk.length(2), disk.length(3)), (4 << 20, 2 << 20, 0));
        assert_eq!(DiskLayout::parse(b"{}").unwrap(), None);
    }

    #[test]
    fn chunks_grow_with_the_disk_up_to_a_limit() {
        assert_eq!(DiskLayout::new(64 << 30).unwrap().chunk, 4 << 20);
        assert_eq!(DiskLayout::new((64 << 30) + 1).unwrap().chunk, 8 << 20);
        assert_eq!(DiskLayout::new(8 << 40), None);
    }

    #[test]
    fn nonsense_is_refused() {
        let sound = DiskLayout { size: 9 << 20, chunk: 4 << 20, places: vec![vec![2]] };
        let wrong = [
            DiskLayout { chunk: 0, ..sound.clone() },
            DiskLayout { chunk: 1 << 40, ..sound.clone() },
            DiskLayout { size: 1 << 60, ..sound.clone() },
            DiskLayout { places: vec![vec![3]], ..sound.clone() },
            DiskLayout { places: vec![vec![]], ..sound.clone() },
            DiskLayout { places: vec![vec![0], vec![0]], ..sound.clone() },
        ];
        for disk in wrong {
            let text = disk.to_config("", "");
            assert!(matches!(DiskLayout::parse(text.as_bytes()), Err(DocumentError::Disk)), "{text}");
        }
        assert!(DiskLayout::parse(sound.to_config("", "").as_bytes()).unwrap().is_some());
        assert!(DiskLayout::parse(b"{\"disk\":7}").is_err());
    }
}

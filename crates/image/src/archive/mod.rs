//! Images as files: `load`, `save` and `import`.
//!
//! Two kinds of archive are read and written, both tars, and read also when compressed:
//!
//! ```text
//!   oci-archive      oci-layout  index.json  blobs/<algorithm>/<hex>
//!   docker-archive   manifest.json  and the files it names: configs, and layers as tars
//! ```
//!
//! What `docker save` writes since version 25 is both at once, and so is what [`save`] writes by default. No
//! name in an archive is ever used as a path: members are kept under names of ours, and their own names are
//! only looked up.

mod changes;
mod import;
mod load;
mod save;
mod spool;

pub use import::{ImportOptions, import};
pub use load::{LoadOptions, Loaded, load};
pub use save::{ArchiveFormat, save};

use serde::{Deserialize, Serialize};

/// The file that marks an OCI layout.
const LAYOUT_FILE: &str = "oci-layout";
/// The layout's list of images.
const INDEX_FILE: &str = "index.json";
/// The docker-archive's list of images.
const MANIFEST_FILE: &str = "manifest.json";
/// Annotation with an image's full name, as containerd and Docker write it.
const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// Annotation with a name or a tag.
const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// One image of a docker-archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

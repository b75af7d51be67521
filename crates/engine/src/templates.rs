//! Templates of virtual machines, as far as one looks at them or removes them: making and using them is the
//! monitor's.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proa_protocol::template::{DIRECTORY, INFO_FILE, LOCK_FILE, MAKER_ARGUMENT, STORE, TemplateInfo};
use rustix::process::Signal;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::holder;

/// A template on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Its name.
    pub id: String,
    /// What it says of itself.
    pub info: TemplateInfo,
    /// Last used.
    pub used: SystemTime,
    /// Bytes on disk.
    pub bytes: u64,
    directory: PathBuf,
}

impl Engine {
    /// All templates, the last used first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn templates(&self) -> Result<Vec<Template>> {
        let directory = self.paths.root.join(STORE).join(DIRECTORY);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", &directory, error)),
        };
        let mut templates: Vec<Template> =
            entries.flatten().filter_map(|entry| Template::read(&entry.path())).collect();
        templates.sort_by_key(|template| std::cmp::Reverse(template.used));
        Ok(templates)
    }

    /// Removes the template whose name begins with `id`. Machines that run keep what they have of it.
    ///
    /// # Errors
    /// There is none, or more than one; it cannot be removed.
    pub fn remove_template(&self, id: &str) -> Result<Template> {
        let mut found: Vec<Template> =
            self.templates()?.into_iter().filter(|template| template.id.starts_with(id)).collect();
        match (found.pop(), found.is_empty()) {
            (Some(template), true) if !id.is_empty() => {
                template.remove()?;
                Ok(template)
            }
            (Some(_), _) => Err(Error::Invalid {
                message: format!("{id:?} is the beginning of more than one template"),
                hint: "`proa template ls` lists them".into(),
            }),
            (None, _) => Err(Error::Invalid {
                message: format!("no such template: {id}"),
                hint: "`proa template ls` lists them".into(),
            }),
        }
    }
}

/// Who makes templates goes on when its instance has ended.
impl Engine {
    /// Waits until nobody makes a template of this root any more, at most as long as `limit`; whether that is so.
    pub fn await_template_makers(&self, limit: Duration) -> bool {
        let path = self.paths.root.join(STORE).join(LOCK_FILE);
        holder::await_end(&path, MAKER_ARGUMENT.as_bytes(), limit)
    }

    /// Ends whoever makes a template of this root; what is half-made is removed by the next. Roots that share a
    /// store through a link leave that to each other.
    ///
    /// # Errors
    /// One does not end.
    pub(crate) fn end_template_makers(&self) -> Result<()> {
        let store = self.paths.root.join(STORE);
        let path = store.join(LOCK_FILE);
        if store.is_symlink() {
            return Ok(());
        }
        holder::end(&path, MAKER_ARGUMENT.as_bytes(), Signal::KILL)
            .map_err(|error| Error::io("end who makes a template, by", &path, error))
    }
}

impl Template {
    /// One that is being made has a name that begins with a dot; one that is being removed has no description.
    fn read(directory: &Path) -> Option<Self> {
        let id = directory.file_name()?.to_str().filter(|name| !name.starts_with('.'))?.to_owned();
        let description = directory.join(INFO_FILE);
        let info = serde_json::from_slice(&fs::read(&description).ok()?).ok()?;
        let used = fs::metadata(&description).ok()?.modified().ok()?;
        let sizes = fs::read_dir(directory).ok()?.flatten().filter_map(|entry| entry.metadata().ok());
        Some(Self {
            id,
            info,
            used,
            bytes: sizes.map(|metadata| metadata.blocks() * 512).sum(),
            directory: directory.to_owned(),
        })
    }

    /// The description first: without it there is no template, whatever becomes of the rest.
    fn remove(&self) -> Result<()> {
        let failed = |error| Error::io("remove", &self.directory, error);
        match fs::remove_file(self.directory.join(INFO_FILE)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        fs::remove_dir_all(&self.directory).map_err(failed)
    }
}

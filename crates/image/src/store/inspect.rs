//! Images as documents in Docker's shape.

use proa_oci::image::History;
use proa_oci::reference::familiar_repository;
use serde_json::{Map, Value, json};

use super::{Image, Store};
use crate::error::{Error, Result};
use crate::layer::LayerForm;

/// Fields that Docker shows even where the config leaves them out, as nothing or as an empty text.
const SHOWN_NULL: [&str; 6] = ["Env", "Cmd", "Volumes", "Entrypoint", "OnBuild", "Labels"];
const SHOWN_EMPTY: [&str; 2] = ["User", "WorkingDir"];

/// One line of an image's history, the newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryRow {
    /// What the config says.
    pub entry: History,
    /// Bytes of the layer it made; 0 where it made none.
    pub size: u64,
}

impl Store {
    /// The image as `docker image inspect` shows it.
    ///
    /// # Errors
    /// There is no such image.
    pub fn inspect(&self, name_or_id: &str) -> Result<Value> {
        let image = self.resolve(name_or_id)?;
        let config = &image.config;
        let mut digests = self.repo_digests(&image.id)?;
        digests.iter_mut().for_each(|name| *name = familiar_repository(name).to_owned());
        let names: Vec<&str> = image.names.iter().map(|name| familiar_repository(name)).collect();
        let last = config.history.last();
        let mut document = json!({
            "Id": image.id,
            "RepoTags": names,
            "RepoDigests": digests,
            "Parent": "",
            "Comment": last.map_or("", |entry| entry.comment.as_str()),
            "Created": config.created,
            "DockerVersion": "",
            "Author": config.author,
            "Config": self.raw_config(&image)?,
            "Architecture": config.architecture,
            "Os": config.os,
            "Size": image.size,
            "GraphDriver": graph_driver(&image),
            "RootFS": { "Type": "layers", "Layers": config.rootfs.diff_ids },
            "Metadata": { "LastTagTime": self.last_tag_time(&image)? },
            "Manifest": image.manifest,
            "DiskSize": image.disk_size,
        });
        if let Some(variant) = &config.variant {
            document["Variant"] = json!(variant);
        }
        Ok(document)
    }

    /// How the image was made, the newest step first.
    ///
    /// # Errors
    /// There is no such image.
    pub fn history(&self, name_or_id: &str) -> Result<Vec<HistoryRow>> {
        let image = self.resolve(name_or_id)?;
        let sql =
            "SELECT coalesce(l.tar_size, 0) FROM image_layers i LEFT JOIN layers l ON l.diff_id = i.diff_id
                   WHERE i.image = ?1 ORDER BY i.position";
        let mut statement = self.db.prepare(sql).map_err(self.failed())?;
        let sizes =
            statement.query_map([image.id.as_str()], |row| super::unsigned(row, 0)).map_err(self.failed())?;
        let mut sizes = sizes.collect::<rusqlite::Result<Vec<u64>>>().map_err(self.failed())?.into_iter();
        let mut rows = Vec::new();
        for entry in image.config.history {
            let size = if entry.empty_layer { 0 } else { sizes.next().unwrap_or(0) };
            rows.push(HistoryRow { entry, size });
        }
        // Layers the history does not speak of.
        rows.extend(sizes.map(|size| HistoryRow { entry: History::default(), size }));
        rows.reverse();
        Ok(rows)
    }

    /// The config's `config` object as it came, with the fields Docker always shows.
    fn raw_config(&self, image: &Image) -> Result<Value> {
        let sql = "SELECT config FROM images WHERE id = ?1";
        let text: String =
            self.db.query_row(sql, [image.id.as_str()], |row| row.get(0)).map_err(self.failed())?;
        let mut document: Value = serde_json::from_str(&text)
            .map_err(|error| Error::Damaged { image: image.id.to_string(), what: error.to_string() })?;
        let mut config = match document.get_mut("config").map(Value::take) {
            Some(Value::Object(config)) => config,
            _ => Map::new(),
        };
        for key in SHOWN_NULL {
            config.entry(key).or_insert(Value::Null);
        }
        for key in SHOWN_EMPTY {
            config.entry(key).or_insert_with(|| json!(""));
        }
        Ok(Value::Object(config))
    }

    fn last_tag_time(&self, image: &Image) -> Result<String> {
        let sql = "SELECT coalesce(max(tagged), ?2) FROM names WHERE image = ?1";
        let values = rusqlite::params![image.id.as_str(), super::signed(image.stored)];
        let seconds = self.db.query_row(sql, values, |row| row.get(0)).map_err(self.failed())?;
        Ok(jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string())
    }
}

fn graph_driver(image: &Image) -> Value {
    let name = match image.layers.first().map(|layer| layer.form) {
        Some(LayerForm::Directory) => "directory",
        _ => "erofs",
    };
    let layers: Vec<_> = image.layers.iter().map(|layer| layer.path.display().to_string()).collect();
    json!({ "Name": name, "Data": { "Layers": layers } })
}

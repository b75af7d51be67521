//! `cp`: trees into and out of an instance, running or not.
//!
//! Where a copy goes follows `cp -a`, as Docker's does:
//!
//! | destination | source is a file | source is a directory | source is `DIR/.` |
//! | --- | --- | --- | --- |
//! | an existing directory | below it, by its name | below it, by its name | its contents below it |
//! | an existing file | over it | refused | refused |
//! | does not exist, its parent does | as that | as that | as that |
//! | ends in `/`, does not exist | refused | as that | as that |
//!
//! Inside, every path is resolved by the instance's monitor or guest; outside, by `extract`, which lets no entry
//! of a hostile archive out of the destination.

mod extract;
mod pack;
mod stream;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use proa_protocol::message::{ErrorKind, PathStat, Request, Response};

use crate::channel::Channel;
use crate::engine::{Engine, Instance};
use crate::error::{Error, Result};
use crate::life::unexpected;

pub use extract::Ownership;

/// How to copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// Keep owners.
    pub archive: bool,
    /// Copy what a symbolic link leads to.
    pub follow_link: bool,
}

const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const TYPE: u32 = 0o170_000;

fn is_directory(stat: &PathStat) -> bool {
    stat.mode & TYPE == DIRECTORY
}

/// A path as a user wrote it.
struct Given<'a> {
    /// Without a final `/.`.
    path: &'a str,
    /// It ended in `/.`.
    contents: bool,
    /// It ended in `/`.
    slash: bool,
}

impl<'a> Given<'a> {
    fn new(text: &'a str) -> Self {
        let contents = text == "." || text.ends_with("/.");
        let path = if contents { &text[..text.len() - 1] } else { text };
        let trimmed = path.trim_end_matches('/');
        let slash = trimmed.len() < path.len();
        let path = match (trimmed.is_empty(), path.starts_with('/'), contents) {
            (false, ..) => trimmed,
            (true, true, _) => "/",
            (true, false, true) => ".",
            (true, false, false) => "",
        };
        Self { path, contents, slash: slash && path != "/" }
    }
}

/// Where a copy goes: a directory that exists, and the name there; no name for the contents alone.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    directory: String,
    name: Option<String>,
}

/// Decides by the table of the module's documentation.
fn target(
    source: &Given<'_>,
    source_is_directory: bool,
    name: &str,
    destination: &Given<'_>,
    found: Option<bool>,
) -> Result<Target> {
    let place = destination.path;
    let beside = || -> Result<Target> {
        let path = Path::new(place);
        let directory = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => ".",
            Some(parent) => parent.to_str().unwrap_or("."),
            None => "/",
        };
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::invalid(format!("cannot copy to {place:?}")))?;
        Ok(Target { directory: directory.to_owned(), name: Some(name.to_owned()) })
    };
    match found {
        Some(true) if source_is_directory && source.contents => {
            Ok(Target { directory: place.to_owned(), name: None })
        }
        Some(true) => Ok(Target { directory: place.to_owned(), name: Some(name.to_owned()) }),
        Some(false) if source_is_directory => {
            Err(Error::invalid(format!("cannot copy a directory over the file {place:?}")))
        }
        Some(false) if destination.slash => Err(Error::invalid(format!("{place:?} is not a directory"))),
        None if destination.slash && !source_is_directory => Err(Error::Invalid {
            message: format!("there is no directory {place:?}"),
            hint: "make it first, or leave the final slash out".into(),
        }),
        Some(false) | None => beside(),
    }
}

fn base_name(path: &str) -> &str {
    Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or("")
}

fn absolute(path: &str) -> String {
    crate::mounts::normalize(path)
}

impl Engine {
    /// What a path inside is; `None` where there is nothing.
    fn stat(&self, instance: &Instance, channel: &mut Channel, path: &str) -> Result<Option<PathStat>> {
        match channel.call(Request::Stat { path: path.to_owned() }) {
            Ok(Response::Stat(stat)) => Ok(Some(stat)),
            Ok(other) => Err(unexpected(instance, &other)),
            Err(Error::Monitor { kind: ErrorKind::NoSuchPath, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn source_inside(
        &self,
        instance: &Instance,
        channel: &mut Channel,
        given: &Given<'_>,
        options: CopyOptions,
    ) -> Result<(String, PathStat)> {
        let missing =
            |path: &str| Error::NoSuchPath { instance: instance.record.name.clone(), path: path.to_owned() };
        let mut path = absolute(given.path);
        let mut stat = self.stat(instance, channel, &path)?.ok_or_else(|| missing(&path))?;
        let follow = options.follow_link || given.slash || given.contents;
        if follow && stat.mode & TYPE == LINK {
            path.clone_from(&stat.link_target);
            stat = self.stat(instance, channel, &path)?.ok_or_else(|| missing(&path))?;
        }
        Ok((path, stat))
    }

    /// A tar stream of a path inside, written to `out`.
    ///
    /// # Errors
    /// There is no such path, or `out` takes no more.
    pub fn copy_out_tar(
        &self,
        instance: &Instance,
        path: &str,
        options: CopyOptions,
        out: &mut dyn Write,
    ) -> Result<()> {
        let mut channel = self.open_files(instance)?;
        let (path, _) = self.source_inside(instance, &mut channel, &Given::new(path), options)?;
        let mut archive = stream::ArchiveReader::open(&mut channel, &path)?;
        std::io::copy(&mut archive, out).map_err(|error| Error::io("write", Path::new("-"), error))?;
        archive.finish()
    }

    /// Copies a path inside to the host. Returns what was left out, a line each.
    ///
    /// # Errors
    /// There is no such path, or the destination does not fit.
    pub fn copy_out(
        &self,
        instance: &Instance,
        path: &str,
        to: &str,
        options: CopyOptions,
    ) -> Result<Vec<String>> {
        let mut channel = self.open_files(instance)?;
        let (mut source, destination) = (Given::new(path), Given::new(to));
        let (path, stat) = self.source_inside(instance, &mut channel, &source, options)?;
        // The root has no name to give to a copy.
        let is_root = path == "/";
        source.contents |= is_root;
        let place = PathBuf::from(if destination.path.is_empty() { "." } else { destination.path });
        let found = std::fs::metadata(&place).ok().map(|metadata| metadata.is_dir());
        // A link that is followed lends its name to the copy.
        let name = match base_name(source.path) {
            "" => base_name(&stat.name).to_owned(),
            given => given.to_owned(),
        };
        let target = target(&source, is_directory(&stat), &name, &destination, found)?;
        let directory = Path::new(&target.directory);
        if !directory.is_dir() {
            return Err(Error::invalid(format!("there is no directory {:?}", target.directory)));
        }
        let owners = if options.archive { Ownership::AsInArchive } else { Ownership::Ours };
        let mut archive = stream::ArchiveReader::open(&mut channel, &path)?;
        let names = extract::Names { strip: !is_root, first: target.name.as_deref() };
        let left_out = extract::extract(&mut archive, directory, names, owners)?;
        archive.finish()?;
        Ok(left_out)
    }

    /// Unpacks a tar stream into an existing directory inside.
    ///
    /// # Errors
    /// There is no such directory, or the stream is no tar.
    pub fn copy_in_tar(&self, instance: &Instance, path: &str, tar: &mut dyn Read) -> Result<()> {
        let mut channel = self.open_files(instance)?;
        let mut archive = stream::ArchiveWriter::open(&mut channel, &absolute(path))?;
        if let Err(error) = std::io::copy(tar, &mut archive) {
            return Err(archive.failure(error));
        }
        archive.finish()
    }

    /// Copies a path of the host into the instance.
    ///
    /// # Errors
    /// There is no such path, or the destination does not fit.
    pub fn copy_in(&self, instance: &Instance, from: &str, path: &str, options: CopyOptions) -> Result<()> {
        let source = Given::new(from);
        let host = Path::new(source.path);
        let follow = options.follow_link || source.slash || source.contents;
        let metadata = if follow { std::fs::metadata(host) } else { std::fs::symlink_metadata(host) };
        let metadata = metadata.map_err(|error| Error::io("copy", host, error))?;
        let mut channel = self.open_files(instance)?;
        let destination = Given::new(path);
        let mut place = absolute(destination.path);
        let mut found = self.stat(instance, &mut channel, &place)?;
        if let Some(stat) = found.take_if(|stat| stat.mode & TYPE == LINK) {
            place.clone_from(&stat.link_target);
            found = self.stat(instance, &mut channel, &place)?;
        }
        let resolved =
            Given { path: &place, contents: false, slash: destination.slash || destination.contents };
        let name = name_of(host)?;
        let target = target(&source, metadata.is_dir(), &name, &resolved, found.as_ref().map(is_directory))?;
        let mut archive = stream::ArchiveWriter::open(&mut channel, &target.directory)?;
        let packed = pack::pack(&mut archive, host, target.name.as_deref(), follow, options.archive);
        if let Err(error) = packed {
            return Err(match error {
                pack::Failure::Source(error) => error,
                pack::Failure::Stream(error) => archive.failure(error),
            });
        }
        archive.finish()
    }
}

/// The last part of a host path, also of one such as `.` or `..`.
fn name_of(host: &Path) -> Result<String> {
    let named = match host.file_name() {
        Some(_) => host.to_owned(),
        None => host.canonicalize().map_err(|error| Error::io("copy", host, error))?,
    };
    let name = named.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(name.unwrap_or_else(|| "root".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let to = |source: &str, source_is_directory, destination: &str, found| {
            let source = Given::new(source);
            let name = base_name(source.path).to_owned();
            target(&source, source_is_directory, &name, &Given::new(destination), found)
                .map(|target| (target.directory, target.name.unwrap_or_else(|| "*".into())))
        };
        let pair = |directory: &str, name: &str| (directory.to_owned(), name.to_owned());
        // An existing directory.
        assert_eq!(to("a/f", false, "/d", Some(true)).unwrap(), pair("/d", "f"));
        assert_eq!(to("a/s", true, "/d/", Some(true)).unwrap(), pair("/d", "s"));
        assert_eq!(to("a/s/.", true, "/d", Some(true)).unwrap(), pair("/d", "*"));
        // An existing file.
        assert_eq!(to("a/f", false, "/d/g", Some(false)).unwrap(), pair("/d", "g"));
        assert!(to("a/s", true, "/d/g", Some(false)).is_err());
        assert!(to("a/f", false, "/d/g/", Some(false)).is_err());
        // Nothing.
        assert_eq!(to("a/f", false, "/d/n", None).unwrap(), pair("/d", "n"));
        assert_eq!(to("a/s", true, "/d/n/", None).unwrap(), pair("/d", "n"));
        assert_eq!(to("a/s/.", true, "n", None).unwrap(), pair(".", "n"));
        assert_eq!(to("a/f", false, "/n", None).unwrap(), pair("/", "n"));
        assert!(to("a/f", false, "/d/n/", None).is_err());
        // The root.
        assert_eq!(to("a/f", false, "/", Some(true)).unwrap(), pair("/", "f"));
    }

    #[test]
    fn given_paths() {
        let parts = |text| {
            let given = Given::new(text);
            (given.path.to_owned(), given.contents, given.slash)
        };
        assert_eq!(parts("/a/b"), ("/a/b".into(), false, false));
        assert_eq!(parts("/a/b//"), ("/a/b".into(), false, true));
        assert_eq!(parts("/a/."), ("/a".into(), true, true));
        assert_eq!(parts("/"), ("/".into(), false, false));
        assert_eq!(parts("."), (".".into(), true, false));
        assert_eq!(parts("/."), ("/".into(), true, false));
    }
}

//! An archive's members, kept while it streams by. Standard input cannot be read twice, and what a member is
//! for is often told by the last one.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use proa_oci::reference::{Algorithm, Digest};
use tar::EntryType;

use crate::decompress::Decompressor;
use crate::digest::Hasher;
use crate::error::{Error, Result};
use crate::store::Session;

/// Most members of an archive.
const MAX_MEMBERS: usize = 20_000;
/// Links followed from one member.
const MAX_LINKS: usize = 8;
const BLOCK: usize = 128 * 1024;

/// One regular file of the archive.
#[derive(Debug, Clone)]
pub(super) struct Member {
    /// Where it is kept.
    pub(super) file: PathBuf,
    /// Its digest, by the algorithm its name asks for, or SHA-256.
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// All members by their names.
#[derive(Debug, Default)]
pub(super) struct Spool {
    members: HashMap<String, Member>,
    links: HashMap<String, String>,
}

impl Spool {
    /// Reads the archive to its end.
    pub(super) fn read(input: impl Read, session: &Session<'_>) -> Result<Self> {
        let failed = |error| Error::stream("archive")(error);
        let input = Decompressor::new(io::BufReader::with_capacity(BLOCK, input)).map_err(failed)?;
        let mut archive = tar::Archive::new(input);
        let mut spool = Self::default();
        for entry in archive.entries().map_err(failed)? {
            let mut entry = entry.map_err(failed)?;
            let Some(name) = clean(&entry.path().map_err(failed)?) else { continue };
            let kind = entry.header().entry_type();
            if spool.members.len() + spool.links.len() >= MAX_MEMBERS {
                return Err(Error::Archive(format!("more than {MAX_MEMBERS} members")));
            }
            match kind {
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    let temp = session.temp(&format!("member{}", spool.members.len()));
                    let member = keep(&mut entry, &name, temp)?;
                    spool.members.insert(name, member);
                }
                EntryType::Symlink | EntryType::Link => {
                    let target = entry.link_name().map_err(failed)?.unwrap_or_default();
                    // A symbolic link's target is relative to its directory, a hard link's to the archive.
                    let base = match kind {
                        EntryType::Symlink => Path::new(&name).parent().unwrap_or(Path::new("")).to_owned(),
                        _ => PathBuf::new(),
                    };
                    if let Some(target) = clean(&base.join(target)) {
                        spool.links.insert(name, target);
                    }
                }
                _ => {}
            }
        }
        drain(archive.into_inner())?;
        Ok(spool)
    }

    /// The member of this name.
    pub(super) fn get(&self, name: &str) -> Option<&Member> {
        let mut name = clean(Path::new(name))?;
        for _ in 0..MAX_LINKS {
            match self.links.get(&name) {
                Some(target) => name.clone_from(target),
                None => return self.members.get(&name),
            }
        }
        None
    }

    /// The blob of this digest, which is compared.
    pub(super) fn blob(&self, digest: &Digest) -> Result<&Member> {
        let name = format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex());
        let member = self.get(&name).ok_or_else(|| Error::Archive(format!("blob {digest} is missing")))?;
        if member.digest != *digest {
            let (expected, actual) = (digest.clone(), member.digest.clone());
            return Err(Error::DigestMismatch { what: format!("archive member {name}"), expected, actual });
        }
        Ok(member)
    }
}

impl Member {
    /// Its bytes, if there are no more than `max`.
    pub(super) fn bytes(&self, name: &str, max: u64) -> Result<Vec<u8>> {
        if self.size > max {
            return Err(Error::Archive(format!("{name} has more than {max} bytes")));
        }
        std::fs::read(&self.file).map_err(Error::io(&self.file))
    }
}

fn keep(entry: &mut impl Read, name: &str, temp: PathBuf) -> Result<Member> {
    let algorithm = if name.starts_with("blobs/sha512/") { Algorithm::Sha512 } else { Algorithm::Sha256 };
    let mut file = File::create_new(&temp).map_err(Error::io(&temp))?;
    let (mut hasher, mut size, mut block) = (Hasher::new(algorithm), 0, vec![0; BLOCK]);
    loop {
        let read = entry
            .read(&mut block)
            .map_err(|error| Error::stream(format!("archive member {}", name.escape_debug()))(error))?;
        if read == 0 {
            return Ok(Member { file: temp, digest: hasher.finish(), size });
        }
        hasher.update(&block[..read]);
        file.write_all(&block[..read]).map_err(Error::io(&temp))?;
        size += read as u64;
    }
}

/// Reads what follows the archive, so that whoever writes it is not cut off.
fn drain(mut rest: impl Read) -> Result<()> {
    io::copy(&mut rest, &mut io::sink()).map(drop).map_err(Error::stream("archive"))
}

/// A name in its shortest form, as a key; `None` where it has none.
fn clean(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => drop(parts.pop()?),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_keys() {
        let key = |text: &str| clean(Path::new(text));
        assert_eq!(key("./a//b/../c").as_deref(), Some("a/c"));
        assert_eq!(key("/a").as_deref(), Some("a"));
        for text in ["", ".", "/", "../a", "a/../.."] {
            assert_eq!(key(text), None, "{text}");
        }
    }
}

//! Units of systemd from files that name an instance, a volume or a network, as Podman's Quadlet has them
//! (podman-systemd.unit(5)).
//!
//! ```text
//!   web.container ─┐                    ┌─▶ web.service            proa run … image
//!   data.volume   ─┼─ parse ─▶ convert ─┼─▶ data-volume.service    proa volume create systemd-data
//!   net.network   ─┘      └ Problem     └─▶ net-network.service    proa network create --ignore systemd-net
//! ```
//!
//! Sections `Unit`, `Service` and `Install` are systemd's; `Container`, `Volume` and `Network` are ours, and a key in them
//! that is not known is a problem of its line. A file with a problem makes no unit; the others do. What is written is
//! words that systemd reads as they were: no value can become another directive.

mod container;
mod convert;
mod network;
mod parse;
mod volume;

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use convert::Converted;
use parse::File;

/// The longest file that is read.
const LONGEST: u64 = 64 * 1024;
/// The longest name of a file, so that units' names fit systemd.
const LONGEST_NAME: usize = 200;
/// Directives of the section `Service` that the unit's work depends on.
const RESERVED: &[&str] = &["ExecStart", "ExecStop", "Type", "KillMode", "Delegate", "RemainAfterExit"];
/// Directives of the section `Install`, and the directory that each makes links in.
const INSTALL: &[(&str, &str)] = &[("WantedBy", "wants"), ("RequiredBy", "requires")];

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which.
    pub file: PathBuf,
    /// Where in it; 0 for the whole.
    pub line: usize,
    /// What.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(out, "{}: {}", self.file.display(), self.text),
            line => write!(out, "{}:{line}: {}", self.file.display(), self.text),
        }
    }
}

/// A problem of a line whose file is known later.
type At = (usize, String);

/// The kinds of files, by the ends of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Container,
    Volume,
    Network,
}

impl Kind {
    fn of(name: &str) -> Option<(Self, &str)> {
        let (stem, end) = name.rsplit_once('.')?;
        let kind = match end {
            "container" => Self::Container,
            "volume" => Self::Volume,
            "network" => Self::Network,
            _ => return None,
        };
        Some((kind, stem))
    }

    /// The section that is ours.
    fn section(self) -> &'static str {
        match self {
            Self::Container => "Container",
            Self::Volume => "Volume",
            Self::Network => "Network",
        }
    }

    fn service(self, stem: &str) -> String {
        match self {
            Self::Container => format!("{stem}.service"),
            Self::Volume => format!("{stem}-volume.service"),
            Self::Network => format!("{stem}-network.service"),
        }
    }

    /// The key that names what is made.
    fn name_key(self) -> &'static str {
        match self {
            Self::Container => "ContainerName",
            Self::Volume => "VolumeName",
            Self::Network => "NetworkName",
        }
    }
}

/// What files refer to each other by: a file's name, the name of what it makes, and its service.
type Names = BTreeMap<String, (String, String)>;

/// Makes units in `to` of the files in `from`, which run `program`, on the state directory `root` if one is named. Gives
/// what is wrong.
///
/// # Errors
/// A directory cannot be read, or a unit not written.
pub fn generate(program: &Path, root: Option<&Path>, from: &Path, to: &Path) -> io::Result<Vec<Problem>> {
    let mut problems = Vec::new();
    let mut files = BTreeMap::new();
    for name in file_names(from)? {
        match read(&from.join(&name)) {
            Ok(file) => drop(files.insert(name, file)),
            Err((line, text)) => problems.push(Problem { file: from.join(name), line, text }),
        }
    }
    let word = |path: &Path| convert::word(&path.to_string_lossy());
    let root = root.map_or_else(String::new, |root| format!(" --root {}", word(root)));
    let proa = format!("{}{root}", word(program));
    let names: Names = files.iter().filter_map(|(name, file)| names_of(name, file)).collect();
    for (name, file) in &files {
        match convert(&proa, name, file, &names) {
            Ok(unit) => unit.write(to)?,
            Err((line, text)) => problems.push(Problem { file: from.join(name), line, text }),
        }
    }
    Ok(problems)
}

/// Names of files in a directory that are ours; none where there is no directory.
fn file_names(from: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(Kind::of(&name).is_some().then_some(name));
    }
    names.sort();
    Ok(names)
}

fn read(path: &Path) -> Result<File, At> {
    let failed = |error: io::Error| (0, error.to_string());
    // Not a device or a pipe, at which the boot would wait.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err((0, "it is no file".to_owned()));
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > LONGEST {
        return Err((0, format!("it is longer than {LONGEST} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| (0, "it is not UTF-8".to_owned()))?;
    parse::file(&text)
}

fn names_of(name: &str, file: &File) -> Option<(String, (String, String))> {
    let (kind, stem) = Kind::of(name)?;
    let given = file.last(kind.section(), kind.name_key()).map(|entry| entry.value.clone());
    let made = given.unwrap_or_else(|| format!("systemd-{stem}"));
    Some((name.to_owned(), (made, kind.service(stem))))
}

/// A unit that is to be written.
struct Unit {
    name: String,
    text: String,
    /// Directories below which it is linked.
    links: Vec<String>,
}

impl Unit {
    fn write(&self, to: &Path) -> io::Result<()> {
        fs::create_dir_all(to)?;
        fs::write(to.join(&self.name), &self.text)?;
        for directory in &self.links {
            fs::create_dir_all(to.join(directory))?;
            let link = to.join(directory).join(&self.name);
            match symlink(Path::new("..").join(&self.name), &link) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
        Ok(())
    }
}

fn convert(proa: &str, name: &str, file: &File, names: &Names) -> Result<Unit, At> {
    let (kind, stem) = Kind::of(name).ok_or((0, "it has no known ending".to_owned()))?;
    check_name(stem)?;
    check_sections(kind, file)?;
    let made = &names[name].0;
    let converted = match kind {
        Kind::Container => container::convert(file, made, names),
        Kind::Volume => volume::convert(file, made),
        Kind::Network => network::convert(file, made),
    }?;
    Ok(Unit { name: kind.service(stem), text: text(name, file, proa, &converted), links: links(file)? })
}

fn check_name(stem: &str) -> Result<(), At> {
    let may = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    if stem.is_empty() || stem.len() > LONGEST_NAME || !stem.bytes().all(may) {
        return Err((0, "its name is none for a unit: letters, digits, and - _ . :".to_owned()));
    }
    Ok(())
}

fn check_sections(kind: Kind, file: &File) -> Result<(), At> {
    for section in &file.sections {
        let known = ["Unit", "Service", "Install", kind.section()].contains(&section.name.as_str());
        if !known && !section.name.starts_with("X-") {
            return Err((section.line, format!("unknown section [{}]", section.name)));
        }
    }
    let reserved = file.entries("Service").find(|entry| RESERVED.contains(&entry.key.as_str()));
    match reserved {
        Some(entry) => Err((entry.line, format!("{} is what the unit is made for; leave it out", entry.key))),
        None => Ok(()),
    }
}

/// Where units that want this one have their links.
fn links(file: &File) -> Result<Vec<String>, At> {
    let mut links = Vec::new();
    for entry in file.entries("Install") {
        let Some((_, end)) = INSTALL.iter().find(|(key, _)| *key == entry.key) else {
            return Err((entry.line, format!("unknown key {} in [Install]", entry.key)));
        };
        for target in entry.value.split_whitespace() {
            check_name(target).map_err(|_| (entry.line, format!("{target:?} is no unit")))?;
            links.push(format!("{target}.{end}"));
        }
    }
    Ok(links)
}

fn text(source: &str, file: &File, proa: &str, converted: &Converted) -> String {
    let mut text = format!("# Made by `proa system generate` of {source}.\n[Unit]\n");
    for line in &converted.unit {
        let _ = writeln!(text, "{line}");
    }
    let given = |text: &mut String, section: &str| {
        for entry in file.entries(section) {
            let _ = writeln!(text, "{}={}", entry.key, entry.value);
        }
    };
    given(&mut text, "Unit");
    text.push_str("\n[Service]\n");
    for line in &converted.service {
        let _ = writeln!(text, "{}", line.replace(convert::PROA, proa));
    }
    given(&mut text, "Service");
    text
}

#[cfg(test)]
mod tests;

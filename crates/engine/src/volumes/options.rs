//! Options of the driver `local`: Docker's `type`, `device` and `o`, and `size`.
//!
//! | options | the volume is |
//! | --- | --- |
//! | none | a directory |
//! | `size=BYTES`, or `o=size=BYTES` alone | an ext4 file system of that size, in a file |
//! | `type=none`, `o=bind`, `device=/PATH` | that directory of the host |
//! | `type=TYPE`, `device=DEVICE`, `o=OPTIONS` | that file system, mounted while it is used |

use std::collections::BTreeMap;

use proa_protocol::volume::Backing;

use crate::error::{Error, Result};
use crate::parse;

/// The smallest file system that is made.
const SMALLEST: i64 = 2 << 20;

/// Where a volume with these options has its files.
///
/// # Errors
/// They make no sense together, or cannot be had as an ordinary user.
pub fn backing(options: &BTreeMap<String, String>) -> Result<Backing> {
    let wrong = |message: String| {
        Err(Error::invalid_with_hint(message, "type=TYPE with device=DEVICE and o=OPTIONS, or size=BYTES"))
    };
    if let Some(key) = options.keys().find(|key| !["type", "device", "o", "size"].contains(&key.as_str())) {
        return wrong(format!("invalid volume option {key:?}"));
    }
    let get = |key: &str| options.get(key).map_or("", String::as_str);
    let (kind, device, words) = (get("type"), get("device"), get("o"));
    let size = match (get("size"), words.strip_prefix("size=")) {
        (size, None) if !size.is_empty() => Some(size),
        ("", Some(size)) if kind.is_empty() && device.is_empty() && !size.contains(',') => Some(size),
        _ => None,
    };
    if let Some(size) = size {
        if !(kind.is_empty() && device.is_empty()) || (words.is_empty() == get("size").is_empty()) {
            return wrong("size is for volumes without type; a tmpfs has it in o, as o=size=64m".into());
        }
        return image(size);
    }
    if kind.is_empty() && device.is_empty() && words.is_empty() {
        return Ok(Backing::Directory);
    }
    for (key, value) in [("device", device), ("type", kind)] {
        if value.is_empty() {
            return wrong(format!("missing required volume option {key:?}"));
        }
    }
    let is_bind = words.split(',').any(|word| word == "bind" || word == "rbind");
    if is_bind || kind == "none" {
        return bind(device, words);
    }
    if !proa_sys::userns::is_initial() {
        return Err(Error::unsupported(
            format!(
                "a volume of type {kind} needs root: what an ordinary user mounts is not shared by its instances"
            ),
            "leave type out, use type=none with o=bind, or --tmpfs for memory of one instance",
        ));
    }
    Ok(Backing::Mount { kind: kind.to_owned(), device: device.to_owned(), options: words.to_owned() })
}

fn image(size: &str) -> Result<Backing> {
    let bytes = parse::bytes(size)?;
    if bytes < SMALLEST {
        return Err(Error::invalid(format!(
            "a volume's size must be at least {} MiB: {size}",
            SMALLEST >> 20
        )));
    }
    if !proa_sys::userns::is_initial() {
        return Err(Error::unsupported(
            "a volume with a size needs root: a user may neither mount a file system nor set quotas",
            "leave size out, or give your directory a quota of the host's",
        ));
    }
    // Whole blocks.
    Ok(Backing::Image(bytes.unsigned_abs().next_multiple_of(4096)))
}

fn bind(device: &str, words: &str) -> Result<Backing> {
    if !device.starts_with('/') {
        return Err(Error::invalid(format!("device must be an absolute path of a directory: {device:?}")));
    }
    let known = ["bind", "rbind", "rw", "defaults"];
    match words.split(',').find(|word| !word.is_empty() && !known.contains(word)) {
        Some(word) => Err(Error::unsupported(
            format!("the option {word:?} means nothing for a volume that is a directory of the host"),
            "o=bind; an instance mounts it read-only with :ro",
        )),
        None => Ok(Backing::Bind(device.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<Backing> {
        backing(&options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn dockers_options() {
        assert_eq!(read(&[]).unwrap(), Backing::Directory);
        assert_eq!(read(&[("size", "64m")]).unwrap(), Backing::Image(64 << 20));
        assert_eq!(read(&[("o", "size=3000001")]).unwrap(), Backing::Image(3_002_368));
        let bind = [("type", "none"), ("device", "/srv"), ("o", "bind")];
        assert_eq!(read(&bind).unwrap(), Backing::Bind("/srv".into()));
        let tmpfs = read(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=8m,uid=1000")]).unwrap();
        let expected = Backing::Mount {
            kind: "tmpfs".into(),
            device: "tmpfs".into(),
            options: "size=8m,uid=1000".into(),
        };
        assert_eq!(tmpfs, expected);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for options in [
            &[("colour", "red")][..],
            &[("type", "tmpfs")],
            &[("device", "/srv")],
            &[("o", "bind")],
            &[("size", "64m"), ("type", "tmpfs"), ("device", "tmpfs")],
            &[("size", "64m"), ("o", "size=64m")],
            &[("size", "1k")],
            &[("size", "much")],
            &[("type", "none"), ("device", "srv"), ("o", "bind")],
            &[("type", "none"), ("device", "/srv"), ("o", "bind,ro")],
        ] {
            assert!(read(options).is_err(), "{options:?}");
        }
    }
}

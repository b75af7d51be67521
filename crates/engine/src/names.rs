//! Ids and names of instances.

use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Error, Result};

/// Digits of an id that people see.
pub const SHORT: usize = 12;

const MANNERS: &[&str] = &[
    "able", "ample", "amber", "azure", "balmy", "bold", "brave", "breezy", "bright", "brisk", "calm",
    "candid", "clear", "coral", "crisp", "daring", "deep", "deft", "eager", "early", "fair", "fast", "fleet",
    "fresh", "gentle", "glad", "golden", "grand", "hardy", "hearty", "indigo", "jolly", "keen", "kind",
    "light", "lively", "lucid", "lunar", "mellow", "merry", "mild", "nimble", "noble", "pearly", "placid",
    "polar", "proud", "quick", "quiet", "ready", "robust", "ruddy", "serene", "sharp", "silver", "sleek",
    "smooth", "snug", "solar", "sound", "stable", "steady", "still", "stout", "sunny", "sure", "swift",
    "tidal", "trim", "true", "vivid", "warm", "windy", "wise",
];

const VESSELS: &[&str] = &[
    "anchor",
    "atoll",
    "barge",
    "bay",
    "beacon",
    "bight",
    "bowsprit",
    "breeze",
    "brig",
    "buoy",
    "canoe",
    "cape",
    "catboat",
    "cay",
    "clipper",
    "compass",
    "cove",
    "coxswain",
    "current",
    "cutter",
    "delta",
    "dhow",
    "dinghy",
    "dory",
    "estuary",
    "ferry",
    "fjord",
    "flagship",
    "frigate",
    "galleon",
    "gale",
    "galley",
    "gull",
    "halyard",
    "harbor",
    "helm",
    "hull",
    "inlet",
    "island",
    "jib",
    "junk",
    "kayak",
    "keel",
    "ketch",
    "lagoon",
    "lantern",
    "launch",
    "lighter",
    "lugger",
    "mainsail",
    "mariner",
    "marlin",
    "mast",
    "mooring",
    "oar",
    "outrigger",
    "packet",
    "paddle",
    "pelican",
    "petrel",
    "pilot",
    "pinnace",
    "pontoon",
    "porpoise",
    "port",
    "punt",
    "quay",
    "raft",
    "reef",
    "rigging",
    "rudder",
    "sail",
    "sampan",
    "schooner",
    "scow",
    "sextant",
    "shoal",
    "skiff",
    "sloop",
    "sounding",
    "spar",
    "spinnaker",
    "starboard",
    "strait",
    "swell",
    "tender",
    "tide",
    "tiller",
    "topsail",
    "trawler",
    "trimaran",
    "tug",
    "voyage",
    "wake",
    "wharf",
    "wherry",
    "windlass",
    "yawl",
];

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let got = getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|errno| Error::io("read random bytes from", "getrandom(2)".as_ref(), errno))?;
    if got != N {
        return Err(Error::io(
            "read random bytes from",
            "getrandom(2)".as_ref(),
            std::io::ErrorKind::UnexpectedEof,
        ));
    }
    Ok(bytes)
}

/// A random number below `limit`, a power of two.
pub(crate) fn random_below(limit: u16) -> Result<u16> {
    Ok(u16::from_be_bytes(random()?) % limit)
}

/// A fresh id: 64 hexadecimal digits, of which the first twelve are not all decimal (the host name that is
/// made of them must not look like a number).
pub fn fresh_id() -> Result<String> {
    loop {
        let bytes: [u8; 32] = random()?;
        let id: String = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(hex_digit).collect();
        if id[..SHORT].bytes().any(|digit| !digit.is_ascii_digit()) {
            return Ok(id);
        }
    }
}

fn hex_digit(value: u8) -> char {
    char::from(b"0123456789abcdef"[usize::from(value)])
}

/// A fresh name such as `brisk_sloop`; with a number from the third attempt on.
pub fn fresh_name(attempt: u32) -> Result<String> {
    let [a, b, c, d, e, f]: [u8; 6] = random()?;
    let pick =
        |high, low, words: &[&'static str]| words[usize::from(u16::from_be_bytes([high, low])) % words.len()];
    let name = format!("{}_{}", pick(a, b, MANNERS), pick(c, d, VESSELS));
    Ok(if attempt < 2 { name } else { format!("{name}{}", u16::from_be_bytes([e, f])) })
}

/// Checks a name that a user chose, by Docker's rule.
///
/// # Errors
/// It has other characters.
pub fn check_name(name: &str) -> Result<()> {
    check("instance", name)
}

/// The same of the name of something else.
pub(crate) fn check(what: &str, name: &str) -> Result<()> {
    let mut characters = name.chars();
    let first = characters.next().is_some_and(|c| c.is_ascii_alphanumeric());
    let mut count = 0;
    let rest = characters.all(|c| {
        count += 1;
        c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
    });
    if first && rest && count > 0 && name.len() <= 255 {
        return Ok(());
    }
    Err(Error::Invalid {
        message: format!("invalid {what} name {name:?}"),
        hint: "two or more of a-z A-Z 0-9 _ . -, the first a letter or a digit".into(),
    })
}

/// The digits of an id that people see.
pub fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// The host's own name.
pub fn of_host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_64_digits_and_differ() {
        let (one, two) = (fresh_id().unwrap(), fresh_id().unwrap());
        assert_eq!(one.len(), 64);
        assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()));
        assert_ne!(one, two);
    }

    #[test]
    fn made_names_are_valid() {
        for attempt in 0..4 {
            check_name(&fresh_name(attempt).unwrap()).unwrap();
        }
        for words in [MANNERS, VESSELS] {
            assert!(words.iter().all(|word| word.bytes().all(|byte| byte.is_ascii_lowercase())));
        }
    }

    #[test]
    fn names_follow_dockers_rule() {
        for name in ["web", "a1", "My.app_2-x"] {
            check_name(name).unwrap();
        }
        for name in ["", "a", "-web", ".x", "a b", "a/b", "ä1", &"x".repeat(256)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}

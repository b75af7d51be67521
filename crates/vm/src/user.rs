//! Whom VMMs run as.
//!
//! | who starts it | the VMM's user |
//! | --- | --- |
//! | root of the host | one of 16 million ids above what distributions and systemd give out |
//! | root of an ordinary user's namespace | one of 4096 ids that the namespace has, below the last 4096: some of those, as 65534, are in use in images |
//!
//! In either case a VMM owns nothing, and is not who started it.

use std::io;

use proa_sys::jail::Identity;
use proa_sys::userns;
use sha2::{Digest, Sha256};

use crate::accelerator::Accelerator;

/// On the host; 24 bits of the id follow.
const FIRST_USER: u32 = 0x7000_0000;
/// How many of the ids of an ordinary user's namespace are for VMMs, and how many there are above them.
const FEW: u32 = 4096;

/// Whom the VMM of an instance runs as.
///
/// # Errors
/// This user namespace has too few ids.
pub(crate) fn identity(id: &str, accelerator: &Accelerator) -> io::Result<Identity> {
    let device = match accelerator {
        Accelerator::Kvm { group } => vec![*group],
        Accelerator::Emulation { .. } => Vec::new(),
    };
    if userns::is_initial() {
        return Ok(Identity { id: user_of(id), groups: Some(device) });
    }
    let user = user_below(id, userns::count_ids()).ok_or_else(|| {
        io::Error::other("your user namespace has too few ids: it takes a line as NAME:100000:65536 in /etc/subuid and /etc/subgid")
    })?;
    // The device's group has no id here. The user may have it none the less, and then the VMM does: nothing of it
    // is in its view but the device.
    let groups = if device.is_empty() { Some(Vec::new()) } else { None };
    Ok(Identity { id: user, groups })
}

/// No two instances share a user, but for one chance in sixteen million: VMMs can't reach each other.
fn user_of(id: &str) -> u32 {
    FIRST_USER | number(id)
}

/// Of `count` ids from 0 up; nothing where those are too few to keep some apart.
fn user_below(id: &str, count: u32) -> Option<u32> {
    let first = count.checked_sub(2 * FEW).filter(|first| *first >= FEW)?;
    Some(first + number(id) % FEW)
}

/// 24 bits that belong to an instance.
fn number(id: &str) -> u32 {
    let hash = Sha256::digest(id);
    u32::from_be_bytes([0, hash[0], hash[1], hash[2]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_apart_and_above_all_others() {
        assert_ne!(user_of("a"), user_of("b"));
        assert!((FIRST_USER..0x7100_0000).contains(&user_of("a")));
        let (a, b) = (user_below("a", 65537).unwrap(), user_below("b", 65537).unwrap());
        assert!(a != b && (57345..61441).contains(&a) && (57345..61441).contains(&b), "{a} {b}");
        assert_eq!(user_below("a", 1), None);
        assert_eq!(user_below("a", 3 * FEW - 1), None);
    }
}

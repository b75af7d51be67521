//! Reads a kernel file: an ELF `vmlinux` as it is, a bzImage unpacked to one.
//!
//! A hypervisor enters a `vmlinux` at the place its PVH note names. That skips the kernel's own decompressor,
//! which is slow under software emulation. What cannot be unpacked here is started as it is.

use std::path::Path;

use super::decompress::decompress;
use super::elf::Elf;
use crate::VmError;

/// A kernel to be started.
pub(crate) struct Image {
    /// What the hypervisor loads.
    pub bytes: Vec<u8>,
    /// As `uname -r` says it in the guest.
    pub release: String,
}

const MAGIC: &[u8] = b"HdrS";
const MAGIC_AT: usize = 0x202;
const BANNER: &[u8] = b"Linux version ";

/// Reads the kernel at `path`.
///
/// # Errors
/// There is none, or it is not for x86-64.
pub(crate) fn read(path: &Path) -> Result<Image, VmError> {
    let bytes =
        std::fs::read(path).map_err(|source| VmError::MissingKernel { path: path.to_owned(), source })?;
    let bad = |reason: &str| VmError::BadKernel { path: path.to_owned(), reason: reason.to_owned() };
    if let Some(elf) = Elf::parse(&bytes) {
        if !elf.has_pvh_entry() {
            return Err(bad("it has no PVH entry point (build it with CONFIG_PVH, or name its bzImage)"));
        }
        let release = banner_release(&bytes).ok_or_else(|| bad("it does not tell its version"))?;
        return Ok(Image { bytes, release });
    }
    if bytes.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) != Some(MAGIC) {
        return Err(bad("it is neither a vmlinux nor a bzImage"));
    }
    let release = header_release(&bytes).ok_or_else(|| bad("its header does not tell its version"))?;
    let unpacked = payload(&bytes).and_then(|payload| decompress(payload).ok().flatten());
    let unpacked = unpacked.filter(|vmlinux| Elf::parse(vmlinux).is_some_and(|elf| elf.has_pvh_entry()));
    Ok(Image { bytes: unpacked.unwrap_or(bytes), release })
}

/// The compressed kernel inside a bzImage (Documentation/arch/x86/boot.rst: `payload_offset`, `payload_length`).
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| image.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word) as usize);
    let setup_sectors = match *image.get(0x1F1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = ((setup_sectors + 1) * 512).checked_add(word(0x248)?)?;
    image.get(start..)?.get(..word(0x24C)?)
}

fn header_release(image: &[u8]) -> Option<String> {
    let at = usize::from(u16::from_le_bytes(*image.get(0x20E..)?.first_chunk()?));
    first_word(image.get(at.checked_add(0x200)?..)?)
}

fn banner_release(vmlinux: &[u8]) -> Option<String> {
    let mut starts = vmlinux.windows(BANNER.len()).enumerate().filter(|(_, window)| *window == BANNER);
    starts.find_map(|(at, _)| first_word(&vmlinux[at + BANNER.len()..]))
}

fn first_word(text: &[u8]) -> Option<String> {
    let end = text.iter().take(128).position(|&byte| byte == b' ' || byte == 0)?;
    let word = std::str::from_utf8(&text[..end]).ok()?;
    let plain = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+~".contains(&byte));
    (plain && word.starts_with(|first: char| first.is_ascii_digit())).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kernel_is_refused_with_the_reason() {
        let reason = |path: &str| read(Path::new(path)).err().unwrap().to_string();
        assert!(reason("/no/such/kernel").contains("missing kernel /no/such/kernel"));
        assert!(reason("/etc/passwd").contains("neither a vmlinux nor a bzImage"));
        assert!(reason("/proc/self/exe").contains("no PVH entry point"));
    }

    #[test]
    fn releases_are_single_plain_words() {
        assert_eq!(first_word(b"6.1.0-13-cloud-amd64 (x)").as_deref(), Some("6.1.0-13-cloud-amd64"));
        assert_eq!(first_word(b"../../etc passwd"), None);
        assert_eq!(first_word(b"%s (%s)"), None);
        assert_eq!(banner_release(b"..Linux version %s \0Linux version 6.9.1 (a)").as_deref(), Some("6.9.1"));
    }
}

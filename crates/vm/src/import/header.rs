//! The first bytes of a disk image: what form it has, and whether it asks for another file.
//!
//! QEMU reads the rest, in a jail that has no other file to give. What is refused here is refused with a reason, before
//! anything of the image's is believed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use proa_protocol::machine::DiskFormat;

/// Bytes of a header that matter.
const HEADER: usize = 512;
/// More than QEMU reads of the description of a VMware image.
const DESCRIPTION: usize = 64 * 1024;
/// Bits of a qcow2's features that change no more than how its own clusters are found: dirty, compression type,
/// extended entries.
const QCOW2_KNOWN: u64 = 1 | 1 << 3 | 1 << 4;
const QCOW2_CORRUPT: u64 = 1 << 1;
const QCOW2_EXTERNAL: u64 = 1 << 2;
/// Kinds of VirtualBox images that stand alone: growing and fixed.
const VDI_ALONE: [u32; 2] = [1, 2];
/// Kinds of Virtual PC images that do: fixed and growing.
const VHD_ALONE: [u32; 2] = [2, 3];
/// A VMware image's parent where it has none.
const NO_PARENT: &str = "ffffffff";

/// The form that an image is said to have, or says itself that it has, and why it is refused, if it is.
///
/// # Errors
/// The file cannot be read.
pub fn judge(file: &File, named: Option<DiskFormat>) -> io::Result<(DiskFormat, Option<String>)> {
    let format = named.map_or_else(|| detect(file), Ok)?;
    Ok((format, refusal(file, format)?))
}

/// The form that the file says it has; its bytes are the disk's where it says nothing.
fn detect(file: &File) -> io::Result<DiskFormat> {
    let head = read(file, 0, HEADER)?;
    let length = file.metadata()?.len();
    let foot = read(file, length.saturating_sub(512), 8)?;
    Ok(match &head[..] {
        head if head.starts_with(b"QFI\xfb") => DiskFormat::Qcow2,
        head if head.starts_with(b"KDMV") || head.starts_with(b"COWD") => DiskFormat::Vmdk,
        head if head.starts_with(b"# Disk DescriptorFile") => DiskFormat::Vmdk,
        head if head.starts_with(b"vhdxfile") => DiskFormat::Vhdx,
        head if little(head, 0x40) == 0xbeda_107f => DiskFormat::Vdi,
        head if head.starts_with(b"conectix") || foot == b"conectix" => DiskFormat::Vhd,
        _ => DiskFormat::Raw,
    })
}

/// Why an image of this form is refused, if it is.
fn refusal(file: &File, format: DiskFormat) -> io::Result<Option<String>> {
    let head = read(file, 0, HEADER)?;
    Ok(match format {
        DiskFormat::Raw | DiskFormat::Vhdx => None,
        DiskFormat::Qcow2 => qcow2(&head),
        DiskFormat::Vmdk => vmdk(file, &head)?,
        DiskFormat::Vdi => alone("vdi", little(&head, 0x4c), &VDI_ALONE),
        DiskFormat::Vhd => {
            let foot = read(file, file.metadata()?.len().saturating_sub(512), HEADER)?;
            alone("vhd", big(&foot, 60), &VHD_ALONE)
        }
    })
}

fn alone(form: &str, kind: u32, known: &[u32]) -> Option<String> {
    (!known.contains(&kind)).then(|| {
        format!("this {form} (kind {kind}) is not whole without another file: merge it with that first")
    })
}

fn qcow2(head: &[u8]) -> Option<String> {
    if head.len() < 72 || !head.starts_with(b"QFI\xfb") {
        return Some("this is no qcow2".into());
    }
    let (version, backing) = (big(head, 4), big64(head, 8));
    if !matches!(version, 2 | 3) {
        return Some(format!("a qcow2 of version {version} is not known"));
    }
    if backing != 0 || big(head, 16) != 0 {
        return Some(
            "this qcow2 has a backing file, which is not followed: merge them first (qemu-img convert)"
                .into(),
        );
    }
    if big(head, 32) != 0 {
        return Some("this qcow2 is encrypted: decrypt it first (qemu-img convert)".into());
    }
    let features = if version == 3 { big64(head, 72) } else { 0 };
    if features & QCOW2_EXTERNAL != 0 {
        return Some(
            "this qcow2 has its data in another file, which is not followed: merge them first (qemu-img convert)"
                .into(),
        );
    }
    if features & QCOW2_CORRUPT != 0 {
        return Some("this qcow2 is marked as damaged: repair it first (qemu-img check -r all)".into());
    }
    (features & !QCOW2_KNOWN != 0).then(|| "this qcow2 has features that are not known here".into())
}

/// A sparse extent describes itself in a text of `key=value` lines.
fn vmdk(file: &File, head: &[u8]) -> io::Result<Option<String>> {
    if head.starts_with(b"# Disk") {
        return Ok(Some(
            "this vmdk is a description of other files, which are not followed: make it one file first (qemu-img convert)"
                .into(),
        ));
    }
    if head.starts_with(b"COWD") {
        return Ok(None);
    }
    if !head.starts_with(b"KDMV") {
        return Ok(Some("this is no vmdk".into()));
    }
    if little64(head, 12) == 0 {
        return Ok(Some("this vmdk is not whole without other files: make it one file first".into()));
    }
    // QEMU reads on behind the length that the header tells, to the first zero, and finds words wherever they stand.
    let bytes = read(file, little64(head, 28).saturating_mul(512), DESCRIPTION)?;
    let text = bytes.split(|byte| *byte == 0).next().map(String::from_utf8_lossy).unwrap_or_default();
    let is_parent = |rest: &str| {
        let id = rest.trim_start_matches([' ', '=']).get(..NO_PARENT.len());
        !id.is_some_and(|id| id.eq_ignore_ascii_case(NO_PARENT))
    };
    let has_parent = text.contains("parentFileNameHint") || text.split("parentCID").skip(1).any(is_parent);
    Ok(has_parent.then(|| "this vmdk has a parent, which is not followed: merge them first".into()))
}

/// Up to `length` bytes at `offset`: fewer where the file ends.
fn read(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
}

fn little(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn little64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn big(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

fn big64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn judged(bytes: &[u8]) -> (DiskFormat, String) {
        let (format, refusal) = judge(&file(bytes), None).unwrap();
        (format, refusal.unwrap_or_default())
    }

    /// A header of version 3 with these bytes in it.
    fn qcow2_with(changes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; 512];
        head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        for (at, bytes) in changes {
            head[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn forms_are_told_by_their_first_bytes() {
        let at = |place: usize, bytes: &[u8]| {
            let mut whole = vec![0; 4096];
            whole[place..place + bytes.len()].copy_from_slice(bytes);
            whole
        };
        assert_eq!(judged(&[]).0, DiskFormat::Raw);
        assert_eq!(judged(&at(510, b"\x55\xaa")), (DiskFormat::Raw, String::new()));
        assert_eq!(judged(&qcow2_with(&[])), (DiskFormat::Qcow2, String::new()));
        assert_eq!(judged(&at(0, b"vhdxfile")), (DiskFormat::Vhdx, String::new()));
        assert_eq!(judged(&at(0x40, &0xbeda_107f_u32.to_le_bytes())).0, DiskFormat::Vdi);
        assert_eq!(judged(&at(4096 - 512, b"conectix")).0, DiskFormat::Vhd);
        assert_eq!(judged(&at(0, b"COWD")).0, DiskFormat::Vmdk);
    }

    #[test]
    fn what_asks_for_another_file_is_refused() {
        let refused = |bytes: &[u8], words: &str| {
            let (format, reason) = judged(bytes);
            assert!(reason.contains(words), "{format:?}: {reason}");
        };
        refused(&qcow2_with(&[(15, b"\x70")]), "backing file");
        refused(&qcow2_with(&[(19, b"\x0b")]), "backing file");
        refused(&qcow2_with(&[(79, b"\x04")]), "data in another file");
        refused(&qcow2_with(&[(79, b"\x02")]), "damaged");
        refused(&qcow2_with(&[(78, b"\x01")]), "features");
        refused(&qcow2_with(&[(35, b"\x02")]), "encrypted");
        refused(&qcow2_with(&[(7, b"\x07")]), "version 7");
        refused(b"# Disk DescriptorFile\nRW 1 FLAT \"/etc/shadow\" 0\n", "other files");
        let mut vmdk = vec![0; 4096];
        vmdk[..4].copy_from_slice(b"KDMV");
        refused(&vmdk, "not whole");
        vmdk[12] = 1;
        (vmdk[28], vmdk[36]) = (1, 1);
        assert_eq!(judged(&vmdk).1, "");
        vmdk[512..530].copy_from_slice(b"\nparentCID=12345\n ");
        refused(&vmdk, "parent");
        // Behind the end that the header tells, and in the middle of a line.
        vmdk[512..].fill(b' ');
        vmdk[2000..2022].copy_from_slice(b" parentFileNameHint=\"/");
        refused(&vmdk, "parent");
        vmdk[1999] = 0;
        assert_eq!(judged(&vmdk).1, "");
        let mut vdi = vec![0; 512];
        vdi[0x40..0x44].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
        vdi[0x4c] = 4;
        refused(&vdi, "kind 4");
    }
}

//! A disc with some small files: ISO 9660 with the Joliet names of all who read it.
//!
//! Written here since it is a page of numbers: a crate that makes discs is a hundred times that, and FAT would need
//! long names in a form of their own. Files lie in one directory, one after the other.
//!
//! ```text
//!   sector 0-15  empty        16  primary descriptor    17  Joliet's        18  end of descriptors
//!   19, 20  path tables (little, big)     21  root directory         22, 23, 24  the same for Joliet
//!   25 …  the files
//! ```

const SECTOR: usize = 2048;
const PATH_TABLES: [u32; 2] = [19, 22];
const ROOTS: [u32; 2] = [21, 24];
const FIRST_FILE: u32 = 25;
/// Flags of a directory's record.
const DIRECTORY: u8 = 2;

/// A disc with this label and these files; their names are of letters, digits and hyphens.
pub fn build(label: &str, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut at = FIRST_FILE;
    let mut extents = Vec::new();
    for (_, bytes) in files {
        extents.push((at, bytes.len() as u32));
        at += bytes.len().div_ceil(SECTOR) as u32;
    }
    let mut disc = vec![0; 16 * SECTOR];
    for joliet in [false, true] {
        disc.extend(descriptor(label, at, joliet));
    }
    disc.extend(sector(b"\xffCD001\x01"));
    for joliet in [false, true] {
        for big in [false, true] {
            disc.extend(sector(&path_table(ROOTS[usize::from(joliet)], big)));
        }
        disc.extend(sector(&directory(files, &extents, joliet)));
    }
    for (_, bytes) in files {
        disc.extend(bytes);
        disc.resize(disc.len().next_multiple_of(SECTOR), 0);
    }
    disc
}

/// A volume descriptor: what the disc is called, how large it is, and where its root is.
fn descriptor(label: &str, sectors: u32, joliet: bool) -> Vec<u8> {
    let mut out = vec![0; SECTOR];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[if joliet { 2 } else { 1 }]);
    put(1, b"CD001\x01");
    let text = |text: &str, length: usize| padded(text, length, joliet);
    put(8, &text("", 32));
    put(40, &text(label, 32));
    put(80, &both32(sectors));
    if joliet {
        put(88, b"%/E");
    }
    put(120, &both16(1));
    put(124, &both16(1));
    put(128, &both16(SECTOR as u16));
    put(132, &both32(10));
    let table = PATH_TABLES[usize::from(joliet)];
    put(140, &table.to_le_bytes());
    put(148, &(table + 1).to_be_bytes());
    put(156, &record(&[0], ROOTS[usize::from(joliet)], SECTOR as u32, DIRECTORY));
    for (at, length) in [(190, 128), (318, 128), (446, 128), (574, 128), (702, 37), (739, 37), (776, 37)] {
        put(at, &text("", length));
    }
    // No dates: as many zeros as there are digits.
    for at in [813, 830, 847, 864] {
        put(at, b"0000000000000000\0");
    }
    put(881, &[1]);
    out
}

fn path_table(root: u32, big: bool) -> Vec<u8> {
    let (root, parent) =
        if big { (root.to_be_bytes(), 1u16.to_be_bytes()) } else { (root.to_le_bytes(), 1u16.to_le_bytes()) };
    [&[1, 0][..], &root, &parent, &[0, 0]].concat()
}

/// Itself, its parent (itself as well), and the files in the order of their names.
fn directory(files: &[(&str, Vec<u8>)], extents: &[(u32, u32)], joliet: bool) -> Vec<u8> {
    let root = ROOTS[usize::from(joliet)];
    let mut out =
        [record(&[0], root, SECTOR as u32, DIRECTORY), record(&[1], root, SECTOR as u32, DIRECTORY)].concat();
    let mut named: Vec<(Vec<u8>, (u32, u32))> =
        files.iter().zip(extents).map(|((name, _), extent)| (identifier(name, joliet), *extent)).collect();
    named.sort();
    for (name, (at, length)) in named {
        out.extend(record(&name, at, length, 0));
    }
    out
}

/// The plain names know no hyphen.
fn identifier(name: &str, joliet: bool) -> Vec<u8> {
    if joliet {
        return wide(name);
    }
    format!("{}.;1", name.replace('-', "_").to_ascii_uppercase()).into_bytes()
}

fn record(name: &[u8], at: u32, length: u32, flags: u8) -> Vec<u8> {
    let size = (33 + name.len()).next_multiple_of(2);
    let mut out = vec![size as u8, 0];
    out.extend(both32(at));
    out.extend(both32(length));
    // The first of January 1970.
    out.extend([70, 1, 1, 0, 0, 0, 0, flags, 0, 0]);
    out.extend(both16(1));
    out.push(name.len() as u8);
    out.extend(name);
    out.resize(size, 0);
    out
}

fn padded(text: &str, length: usize, joliet: bool) -> Vec<u8> {
    if !joliet {
        return format!("{text:<length$}").into_bytes();
    }
    let mut out = wide(&format!("{text:<width$}", width = length / 2));
    out.resize(length, 0);
    out
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

fn both32(value: u32) -> Vec<u8> {
    [value.to_le_bytes(), value.to_be_bytes()].concat()
}

fn both16(value: u16) -> Vec<u8> {
    [value.to_le_bytes(), value.to_be_bytes()].concat()
}

fn sector(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out.resize(SECTOR, 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn others_read_the_disc() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("disc.iso");
        let files = [("user-data", b"#cloud-config\n".to_vec()), ("meta-data", vec![b'x'; 5000])];
        std::fs::write(&path, build("cidata", &files)).unwrap();
        let blkid = Command::new("blkid").args(["-p", "-o", "export"]).arg(&path).output().unwrap();
        let text = String::from_utf8_lossy(&blkid.stdout).into_owned();
        assert!(text.contains("LABEL=cidata") && text.contains("TYPE=iso9660"), "{text}");
        for (name, bytes) in &files {
            let extract = ["-osirrox", "on", "-read_fs", "any", "-indev"];
            let to = scratch.path().join(name);
            let mut xorriso = Command::new("xorriso");
            xorriso.args(extract).arg(&path).args(["-extract", &format!("/{name}")]).arg(&to);
            let output = xorriso.output().expect("xorriso is needed: apt-get install xorriso");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(&std::fs::read(&to).unwrap_or_else(|error| panic!("{error}: {said}")), bytes);
        }
    }
}

//! A guest's memory as its VMM has it mapped, from outside.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::PAGE;

/// Bits of an entry of `/proc/PID/pagemap`: the page is there, in swap, or not private.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const SHARED: u64 = 1 << 61;
/// Bytes of an entry, and how many are read at once.
const ENTRY: usize = 8;
const AT_ONCE: usize = 8192;

/// The private mapping of a file by another process.
#[derive(Debug)]
pub struct GuestMemory {
    pid: u32,
    bytes: File,
    parts: Vec<Part>,
}

/// A piece of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    /// Address in the process.
    address: u64,
    /// Offset in the file.
    offset: u64,
    length: u64,
}

impl GuestMemory {
    /// All of the file, as the process has it mapped; to be written as well where `write`.
    pub fn open(pid: u32, file: &fs::Metadata, write: bool) -> io::Result<Self> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let parts = parts_of(&maps, file);
        let mapped: u64 = parts.iter().map(|part| part.length).sum();
        if mapped != file.size() {
            return Err(io::Error::other(format!("the VMM has {mapped} bytes of {} mapped", file.size())));
        }
        let bytes = OpenOptions::new().read(true).write(write).open(format!("/proc/{pid}/mem"))?;
        Ok(Self { pid, bytes, parts })
    }

    /// Numbers of the pages that are the process's own, in ascending order.
    pub fn own_pages(&self) -> io::Result<Vec<u64>> {
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid))?;
        let mut pages = Vec::new();
        let mut entries = vec![0; ENTRY * AT_ONCE];
        for part in &self.parts {
            let (first, count) = (part.address / PAGE as u64, part.length / PAGE as u64);
            for start in (0..count).step_by(AT_ONCE) {
                let length = (count - start).min(AT_ONCE as u64) as usize * ENTRY;
                pagemap.read_exact_at(&mut entries[..length], (first + start) * ENTRY as u64)?;
                let own =
                    entries[..length].chunks_exact(ENTRY).enumerate().filter(|(_, entry)| is_own(entry));
                pages.extend(own.map(|(place, _)| part.offset / PAGE as u64 + start + place as u64));
            }
        }
        pages.sort_unstable();
        Ok(pages)
    }

    /// Reads pages that follow each other.
    pub fn read(&self, page: u64, into: &mut [u8]) -> io::Result<()> {
        self.at(page, into.len()).and_then(|address| self.bytes.read_exact_at(into, address))
    }

    /// Writes pages that follow each other.
    pub fn write(&self, page: u64, from: &[u8]) -> io::Result<()> {
        self.at(page, from.len()).and_then(|address| self.bytes.write_all_at(from, address))
    }

    fn at(&self, page: u64, length: usize) -> io::Result<u64> {
        let offset = page.saturating_mul(PAGE as u64);
        let holds = |part: &&Part| {
            offset >= part.offset
                && offset.saturating_add(length as u64) <= part.offset.saturating_add(part.length)
        };
        let part = self.parts.iter().find(holds);
        part.map(|part| part.address + (offset - part.offset))
            .ok_or_else(|| io::Error::other(format!("the guest has no page {page}")))
    }
}

fn is_own(entry: &[u8]) -> bool {
    let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
    entry & (PRESENT | SWAPPED) != 0 && entry & SHARED == 0
}

/// The lines of `/proc/PID/maps` that are of this file: `from-to rwxp offset major:minor inode path`, numbers in
/// hexadecimal but for the inode.
fn parts_of(maps: &str, file: &fs::Metadata) -> Vec<Part> {
    let device = format!("{:02x}:{:02x}", rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    let inode = file.ino().to_string();
    let part = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (range, offset) = (fields.next()?, fields.nth(1)?);
        let is_of_file = fields.next()? == device && fields.next()? == inode;
        let (from, to) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (address, end, offset) = (number(from)?, number(to)?, number(offset)?);
        is_of_file.then_some(Part { address, offset, length: end.checked_sub(address)? })
    };
    maps.lines().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_one_file_are_told_from_others() {
        let file = tempfile::tempfile().unwrap();
        let metadata = file.metadata().unwrap();
        let device =
            format!("{:02x}:{:02x}", rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
        let inode = metadata.ino();
        let maps = format!(
            "7f00000-7f01000 rw-p 00000000 {device} {inode}    /a b\n\
             7f01000-7f03000 rw-p 00001000 {device} {inode}\n\
             7f03000-7f04000 rw-p 00000000 {device} {}\n\
             7f04000-7f05000 rw-p 00000000 00:00 0\nnonsense\n",
            inode + 1
        );
        let parts = parts_of(&maps, &metadata);
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[1], Part { address: 0x7f0_1000, offset: 0x1000, length: 0x2000 });
    }

    #[test]
    fn a_page_is_own_when_it_is_there_and_not_shared() {
        let own = [(PRESENT, true), (SWAPPED, true), (PRESENT | SHARED, false), (0, false), (SHARED, false)];
        for (entry, expected) in own {
            assert_eq!(is_own(&u64::to_ne_bytes(entry)), expected, "{entry:x}");
        }
    }
}

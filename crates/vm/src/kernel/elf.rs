//! As much of ELF as kernels and modules need: sections by name, notes, the machine.

/// A 64-bit little-endian ELF file.
pub(crate) struct Elf<'a> {
    data: &'a [u8],
}

const MACHINE_X86_64: u16 = 62;
const NOTE_SEGMENT: u32 = 4;
/// A note of the owner `Xen` that holds the 32-bit entry point for PVH.
const PVH_ENTRY: u32 = 18;

impl<'a> Elf<'a> {
    /// Reads the header; `None` where it is not for x86-64.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let elf = Self { data };
        let fits = data.starts_with(b"\x7fELF\x02\x01") && elf.half(18)? == MACHINE_X86_64;
        fits.then_some(elf)
    }

    /// The contents of a section.
    pub fn section(&self, name: &str) -> Option<&'a [u8]> {
        self.contents(self.find(name)?.0)
    }

    /// Where in the file a section's name stands.
    pub fn section_name(&self, name: &str) -> Option<usize> {
        self.find(name).map(|found| found.1)
    }

    /// A section's header and name.
    fn find(&self, name: &str) -> Option<(usize, usize)> {
        let (table, size) = (self.long(40)? as usize, self.half(58)? as usize);
        let (count, names) = (self.half(60)? as usize, self.half(62)? as usize);
        let header = |index: usize| table.checked_add(index.checked_mul(size)?);
        let strings = self.long(header(names)?.checked_add(24)?)? as usize;
        let named = |at: usize| {
            let place = strings.checked_add(self.word(at)? as usize)?;
            let rest = self.data.get(place..)?.strip_prefix(name.as_bytes())?;
            (rest.first() == Some(&0)).then_some((at, place))
        };
        (0..count).filter_map(header).find_map(named)
    }

    /// Whether the file tells where a hypervisor may enter it directly.
    pub fn has_pvh_entry(&self) -> bool {
        self.notes().is_some_and(|notes| contains_note(notes, b"Xen\0", PVH_ENTRY))
    }

    fn notes(&self) -> Option<&'a [u8]> {
        let (table, size, count) =
            (self.long(32)? as usize, self.half(54)? as usize, self.half(56)? as usize);
        let segment = (0..count)
            .filter_map(|index| table.checked_add(index.checked_mul(size)?))
            .find(|&at| self.word(at) == Some(NOTE_SEGMENT))?;
        self.slice(self.long(segment + 8)?, self.long(segment + 32)?)
    }

    fn contents(&self, header: usize) -> Option<&'a [u8]> {
        self.slice(self.long(header.checked_add(24)?)?, self.long(header.checked_add(32)?)?)
    }

    fn slice(&self, offset: u64, size: u64) -> Option<&'a [u8]> {
        self.data.get(offset as usize..)?.get(..size as usize)
    }

    fn half(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(*self.data.get(at..)?.first_chunk()?))
    }

    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(*self.data.get(at..)?.first_chunk()?))
    }

    fn long(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(*self.data.get(at..)?.first_chunk()?))
    }
}

fn contains_note(mut notes: &[u8], owner: &[u8], kind: u32) -> bool {
    let word = |bytes: &[u8], at: usize| bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word));
    while let (Some(name), Some(size), Some(found)) = (word(notes, 0), word(notes, 4), word(notes, 8)) {
        let padded = |length: u32| (length as usize).saturating_add(3) & !3;
        if found == kind && notes.get(12..12 + name as usize) == Some(owner) {
            return true;
        }
        let Some(rest) = notes.get(12_usize.saturating_add(padded(name)).saturating_add(padded(size))..)
        else {
            return false;
        };
        notes = rest;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_notes_behind_others() {
        let mut notes = Vec::new();
        for (kind, text) in [(6_u32, &b"linux\0"[..]), (PVH_ENTRY, &[0, 0, 0, 1])] {
            notes.extend_from_slice(&4_u32.to_le_bytes());
            notes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            notes.extend_from_slice(&kind.to_le_bytes());
            notes.extend_from_slice(b"Xen\0");
            notes.extend_from_slice(text);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        assert!(contains_note(&notes, b"Xen\0", PVH_ENTRY));
        assert!(!contains_note(&notes, b"GNU\0", PVH_ENTRY));
        assert!(!contains_note(&notes[..notes.len() - 20], b"Xen\0", PVH_ENTRY));
    }

    #[test]
    fn damaged_files_are_refused_not_followed() {
        assert!(Elf::parse(b"\x7fELF").is_none());
        let own = std::fs::read("/proc/self/exe").unwrap();
        let elf = Elf::parse(&own).unwrap();
        assert!(elf.section(".text").is_some() && elf.section(".no-such").is_none());
        assert!(!elf.has_pvh_entry());
        for length in [64, 100, 1000] {
            let cut = Elf::parse(&own[..length]).unwrap();
            assert!(cut.section(".text").is_none() && !cut.has_pvh_entry());
        }
    }
}

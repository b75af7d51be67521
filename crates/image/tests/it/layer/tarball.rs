//! Writes tars, sound and unsound, that no tool would write.

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A file's bytes.
    File(Vec<u8>),
    /// Pieces of a sparse file, its size, and the way it is written.
    Sparse(Vec<(u64, Vec<u8>)>, u64, SparseFormat),
    Dir,
    Symlink(String),
    HardLink(String),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// The four ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SparseFormat {
    Old,
    Pax00,
    Pax01,
    Pax10,
}

/// One entry, to be changed with the methods.
#[derive(Debug, Clone)]
pub struct Item {
    pub path: Vec<u8>,
    pub what: What,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: (i64, u32),
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Item {
    pub fn new(path: impl Into<Vec<u8>>, what: What) -> Self {
        let mode = if what == What::Dir { 0o755 } else { 0o644 };
        Self { path: path.into(), what, mode, uid: 0, gid: 0, mtime: (1_700_000_000, 0), xattrs: Vec::new() }
    }

    pub fn file(path: &str, data: impl Into<Vec<u8>>) -> Self {
        Self::new(path, What::File(data.into()))
    }

    pub fn dir(path: &str) -> Self {
        Self::new(path, What::Dir)
    }

    pub fn link(path: &str, target: &str) -> Self {
        Self::new(path, What::HardLink(target.into()))
    }

    pub fn symlink(path: &str, target: &str) -> Self {
        Self::new(path, What::Symlink(target.into()))
    }

    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    pub fn time(self, seconds: i64, nanos: u32) -> Self {
        Self { mtime: (seconds, nanos), ..self }
    }

    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name.into(), value.into()));
        self
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut records = Vec::new();
        if self.path.len() > 100 {
            records.extend(record(b"path", &self.path));
        }
        let (kind, link): (u8, &str) = match &self.what {
            What::File(_) => (b'0', ""),
            What::Sparse(_, _, SparseFormat::Old) => (b'S', ""),
            What::Sparse(..) => (b'0', ""),
            What::Dir => (b'5', ""),
            What::Symlink(target) => (b'2', target),
            What::HardLink(target) => (b'1', target),
            What::Char(..) => (b'3', ""),
            What::Block(..) => (b'4', ""),
            What::Fifo => (b'6', ""),
        };
        if link.len() > 100 {
            records.extend(record(b"linkpath", link.as_bytes()));
        }
        if self.uid.max(self.gid) > 0o7_777_777 {
            records.extend(record(b"uid", self.uid.to_string().as_bytes()));
            records.extend(record(b"gid", self.gid.to_string().as_bytes()));
        }
        if self.mtime.1 > 0 || self.mtime.0 < 0 {
            records.extend(record(b"mtime", time(self.mtime).as_bytes()));
        }
        for (name, value) in &self.xattrs {
            records.extend(record(format!("SCHILY.xattr.{name}").as_bytes(), value));
        }
        let (more, blocks, data) = self.content();
        records.extend(more);
        if !records.is_empty() {
            header(b"pax", b'x', records.len() as u64).finish(out);
            pad(out, &records);
        }
        let mut header = header(&self.path, kind, data.len() as u64);
        header.number(100, 8, self.mode.into());
        header.number(108, 8, self.uid & 0o7_777_777);
        header.number(116, 8, self.gid & 0o7_777_777);
        header.number(136, 12, self.mtime.0.max(0) as u64);
        header.text(157, 100, link.as_bytes());
        if let What::Char(major, minor) | What::Block(major, minor) = self.what {
            header.number(329, 8, major.into());
            header.number(337, 8, minor.into());
        }
        if let What::Sparse(pieces, size, SparseFormat::Old) = &self.what {
            header.text(257, 8, b"ustar  \0");
            header.old_map(pieces, *size);
        }
        header.finish(out);
        out.extend(blocks);
        pad(out, &data);
    }

    /// Records, blocks before the data that don't count as data, and the data.
    fn content(&self) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (pieces, size, format) = match &self.what {
            What::File(data) => return (Vec::new(), Vec::new(), data.clone()),
            What::Sparse(pieces, size, format) => (pieces, *size, *format),
            _ => return Default::default(),
        };
        let data: Vec<u8> = pieces.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        let number = |n: u64| n.to_string().into_bytes();
        let mut records = Vec::new();
        match format {
            SparseFormat::Old => return (records, old_blocks(pieces), data),
            SparseFormat::Pax00 => {
                records.extend(record(b"GNU.sparse.size", &number(size)));
                records.extend(record(b"GNU.sparse.numblocks", &number(pieces.len() as u64)));
                for (offset, bytes) in pieces {
                    records.extend(record(b"GNU.sparse.offset", &number(*offset)));
                    records.extend(record(b"GNU.sparse.numbytes", &number(bytes.len() as u64)));
                }
            }
            SparseFormat::Pax01 => {
                records.extend(record(b"GNU.sparse.size", &number(size)));
                records.extend(record(b"GNU.sparse.numblocks", &number(pieces.len() as u64)));
                let map: Vec<String> = pieces.iter().map(|(o, b)| format!("{o},{}", b.len())).collect();
                records.extend(record(b"GNU.sparse.map", map.join(",").as_bytes()));
            }
            SparseFormat::Pax10 => {
                for (key, value) in [("major", 1), ("minor", 0), ("realsize", size)] {
                    records.extend(record(format!("GNU.sparse.{key}").as_bytes(), &number(value)));
                }
                records.extend(record(b"GNU.sparse.name", &self.path));
                let mut map = format!("{}\n", pieces.len());
                for (offset, bytes) in pieces {
                    map.push_str(&format!("{offset}\n{}\n", bytes.len()));
                }
                let mut stored = Vec::new();
                pad(&mut stored, map.as_bytes());
                stored.extend(data);
                return (records, Vec::new(), stored);
            }
        }
        (records, Vec::new(), data)
    }
}

/// The archive of some entries.
pub fn tar(items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        item.write(&mut out);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// A pax record: its length counts its own digits.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn time((seconds, nanos): (i64, u32)) -> String {
    if seconds >= 0 || nanos == 0 {
        return format!("{seconds}.{nanos:09}");
    }
    format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos)
}

/// Appends bytes, padded to blocks.
pub fn pad(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn old_blocks(pieces: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let rest = pieces.get(4..).unwrap_or_default();
    let mut out = Vec::new();
    for (i, group) in rest.chunks(21).enumerate() {
        let mut block = Raw([0; 512]);
        for (j, (offset, bytes)) in group.iter().enumerate() {
            block.number(j * 24, 12, *offset);
            block.number(j * 24 + 12, 12, bytes.len() as u64);
        }
        block.0[504] = u8::from((i + 1) * 21 < rest.len());
        out.extend(block.0);
    }
    out
}

/// A header being written.
pub struct Raw(pub [u8; 512]);

/// A ustar header of that name, type and size.
pub fn header(path: &[u8], kind: u8, size: u64) -> Raw {
    let mut raw = Raw([0; 512]);
    raw.text(0, 100, path);
    raw.number(100, 8, 0o644);
    raw.number(124, 12, size);
    raw.0[156] = kind;
    raw.text(257, 8, b"ustar\x0000");
    raw
}

impl Raw {
    pub fn text(&mut self, at: usize, room: usize, text: &[u8]) {
        let length = text.len().min(room);
        self.0[at..at + length].copy_from_slice(&text[..length]);
    }

    /// Octal if it fits, else base 256.
    pub fn number(&mut self, at: usize, room: usize, value: u64) {
        let octal = format!("{value:0width$o}\0", width = room - 1);
        if octal.len() == room {
            self.text(at, room, octal.as_bytes());
            return;
        }
        self.0[at..at + room].fill(0);
        self.0[at + room - 8..at + room].copy_from_slice(&value.to_be_bytes());
        self.0[at] |= 0x80;
    }

    fn old_map(&mut self, pieces: &[(u64, Vec<u8>)], size: u64) {
        for (i, (offset, bytes)) in pieces.iter().take(4).enumerate() {
            self.number(386 + i * 24, 12, *offset);
            self.number(386 + i * 24 + 12, 12, bytes.len() as u64);
        }
        self.0[482] = u8::from(pieces.len() > 4);
        self.number(483, 12, size);
    }

    pub fn finish(mut self, out: &mut Vec<u8>) {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|&byte| u64::from(byte)).sum();
        self.text(148, 8, format!("{sum:06o}\0 ").as_bytes());
        out.extend(self.0);
    }
}

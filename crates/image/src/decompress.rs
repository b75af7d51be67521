//! Decompression of layers and archives: gzip with any number of members, zstd with any number of frames, or
//! none. The bytes tell which it is; media types are often wrong.

use std::io::{self, BufRead, Chain, Cursor, Read};

/// What a stream is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Bytes that tell.
const HEAD: usize = 6;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: u32 = 0xfd2f_b528;
/// Frames a zstd decoder skips have this number in their upper 28 bits.
const ZSTD_SKIPPABLE: u32 = 0x0184_d2a5;
const OTHERS: [(&[u8], &str); 3] = [(b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2"), (b"\x04\x22\x4d\x18", "lz4")];

impl Compression {
    /// Tells by a file's first bytes.
    pub(crate) fn of_file(path: &std::path::Path) -> io::Result<Self> {
        let mut head = Vec::with_capacity(HEAD);
        std::fs::File::open(path)?.take(HEAD as u64).read_to_end(&mut head)?;
        Self::detect(&head)
    }

    /// Tells by the stream's first bytes.
    fn detect(head: &[u8]) -> io::Result<Self> {
        if head.starts_with(GZIP) {
            return Ok(Self::Gzip);
        }
        if let Some(word) = head.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
            && (word == ZSTD || word >> 4 == ZSTD_SKIPPABLE)
        {
            return Ok(Self::Zstd);
        }
        match OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
            Some((_, name)) => {
                let text = format!("compressed with {name}, which is not supported (gzip and zstd are)");
                Err(io::Error::new(io::ErrorKind::Unsupported, text))
            }
            None => Ok(Self::None),
        }
    }
}

type Whole<R> = Chain<Cursor<Vec<u8>>, R>;

/// A stream without its compression.
pub(crate) enum Decompressor<R: BufRead> {
    Plain(Whole<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<Whole<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Whole<R>>>),
}

impl<R: BufRead> Decompressor<R> {
    /// Looks at the first bytes of `source` and sets up what they ask for.
    pub(crate) fn new(mut source: R) -> io::Result<Self> {
        let mut head = Vec::with_capacity(HEAD);
        source.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
        let compression = Compression::detect(&head)?;
        let whole = Cursor::new(head).chain(source);
        Ok(match compression {
            Compression::None => Self::Plain(whole),
            Compression::Gzip => Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(whole))),
            Compression::Zstd => Self::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(whole)?)),
        })
    }
}

impl<R: BufRead> Read for Decompressor<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buf),
            Self::Gzip(reader) => reader.read(buf),
            Self::Zstd(reader) => reader.read(buf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decompressor::new(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn members_frames_and_plain_bytes() {
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let skippable = [&0x184d_2a53u32.to_le_bytes()[..], &3u32.to_le_bytes(), b"abc"].concat();
        assert_eq!(unpack(&[gzip(b"one"), gzip(b""), gzip(b"two")].concat()).unwrap(), b"onetwo");
        assert_eq!(unpack(&[zstd(b"one"), skippable.clone(), zstd(b"two")].concat()).unwrap(), b"onetwo");
        assert_eq!(unpack(&[skippable, zstd(b"x")].concat()).unwrap(), b"x");
        for plain in [&b""[..], b"a", b"plain bytes"] {
            assert_eq!(unpack(plain).unwrap(), plain);
        }
    }

    #[test]
    fn what_is_cut_off_or_unknown_is_an_error() {
        let data = vec![7u8; 100_000];
        for packed in [gzip(&data), zstd::encode_all(&data[..], 1).unwrap()] {
            for cut in [packed.len() - 1, packed.len() / 2, 7] {
                assert!(unpack(&packed[..cut]).is_err(), "cut at {cut}");
            }
        }
        let error = unpack(b"\xfd7zXZ\0...").unwrap_err().to_string();
        assert!(error.contains("xz"), "{error}");
    }
}

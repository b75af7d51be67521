//! The compressions that kernels and their modules come in, undone in this process.

use std::io::{self, Read};

/// No kernel and no module is larger.
const LIMIT: u64 = 512 * 1024 * 1024;
/// Largest piece of the format that kernels use for lz4.
const LZ4_PIECE: usize = 8 * 1024 * 1024;
const LZ4_MAGIC: &[u8] = &[0x02, 0x21, 0x4C, 0x18];

/// Undoes the compression that the first bytes announce; `None` where they announce none that is known.
///
/// # Errors
/// The data is damaged, or larger than any kernel.
pub(crate) fn decompress(data: &[u8]) -> io::Result<Option<Vec<u8>>> {
    Ok(Some(match data {
        [0x1F, 0x8B, ..] => read_all(flate2::read::GzDecoder::new(data))?,
        [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => read_all(lzma_rust2::XzReader::new(data, false))?,
        [0x28, 0xB5, 0x2F, 0xFD, ..] => read_all(zstd::Decoder::new(data)?.single_frame())?,
        _ if data.starts_with(LZ4_MAGIC) => lz4(&data[LZ4_MAGIC.len()..])?,
        _ => return Ok(None),
    }))
}

fn read_all(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return Err(io::Error::other("larger than any kernel"));
    }
    Ok(bytes)
}

/// Pieces, each after its length; a length that cannot be one is the size that the kernel's build appends.
fn lz4(mut data: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; LZ4_PIECE];
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some(compressed) = rest.get(..length) else { break };
        let size = lz4_flex::block::decompress_into(compressed, &mut piece).map_err(io::Error::other)?;
        bytes.extend_from_slice(&piece[..size]);
        if bytes.len() as u64 > LIMIT {
            return Err(io::Error::other("larger than any kernel"));
        }
        data = &rest[length..];
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn tool(command: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new(command)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command} is needed for this test: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
        let output = child.wait_with_output().unwrap().stdout;
        writer.join().unwrap();
        output
    }

    #[test]
    fn undoes_what_the_tools_do_even_with_a_size_appended() {
        let plain: Vec<u8> = (0..200_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let mut cases = vec![
            tool("gzip", &["-c"], &plain),
            tool("xz", &["--check=crc32", "--x86", "--lzma2=dict=1MiB", "-c"], &plain),
            tool("zstd", &["-c"], &plain),
        ];
        cases.push(tool("lz4", &["-l", "-c"], &plain));
        for mut case in cases {
            assert_eq!(decompress(&case).unwrap().as_deref(), Some(&plain[..]));
            case.extend_from_slice(&(plain.len() as u32).to_le_bytes());
            assert_eq!(decompress(&case).unwrap().as_deref(), Some(&plain[..]));
        }
    }

    #[test]
    fn what_is_not_compressed_is_left_to_the_caller() {
        assert!(decompress(b"\x7fELF").unwrap().is_none());
        assert!(decompress(&[0x1F, 0x8B, 1, 2, 3]).is_err());
    }
}

//! Writes the archive format of initramfs images ("newc", Documentation/driver-api/early-userspace/buffer-format.rst).

/// An archive that grows in memory.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const FILE: u32 = 0o100_000;

impl Archive {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    pub fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) {
        self.entry(path, FILE | permissions, (0, 0), contents);
    }

    /// The archive's bytes, with the entry that ends it.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let fields = [
            self.entries,
            mode,
            0, // user
            0, // group
            links,
            0, // modification time: images of the same content are the same
            contents.len() as u32,
            0,
            0,
            device.0,
            device.1,
            path.len() as u32 + 1,
            0, // checksum, unused
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn the_first_header_is_as_documented() {
        let mut archive = Archive::new();
        archive.file("a", 0o755, b"hello");
        let bytes = archive.finish();
        assert!(bytes.starts_with(b"07070100000001000081ED0000000000000000000000010000000000000005"));
        assert_eq!(&bytes[110..120], b"a\0hello\0\0\0");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn the_tool_reads_what_we_write() {
        let mut archive = Archive::new();
        archive.directory("dev");
        archive.character_device("dev/console", 5, 1);
        archive.file("init", 0o755, b"#!/bin/sh\n");
        archive.file("modules/00-x.ko", 0o644, &[7; 4097]);
        let mut child = Command::new("cpio")
            .args(["-itv", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is needed for this test");
        child.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0][0] == "drwxr-xr-x" && lines[0].last() == Some(&"dev"), "{text}");
        assert!(lines[1][0] == "crw-------" && text.contains("5,   1"), "{text}");
        assert!(lines[2][0] == "-rwxr-xr-x" && lines[3][4] == "4097", "{text}");
    }
}

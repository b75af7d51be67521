//! A bounded pipe of blocks between two threads. Blocks go back to the writer when they have been read, so that
//! a stream of any length costs a handful of allocations and stays in the processor's cache.

use std::io::{self, BufRead, Read, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// Bytes of a block: a few fit in a core's second-level cache.
const BLOCK: usize = 128 * 1024;
/// Blocks on their way at once.
const DEPTH: usize = 8;

/// A new pipe.
pub(crate) fn pipe() -> (PipeWriter, PipeReader) {
    let (full_in, full_out) = sync_channel(DEPTH);
    let (free_in, free_out) = channel();
    let writer = PipeWriter { full: full_in, free: free_out, block: Vec::new() };
    (writer, PipeReader { full: full_out, free: free_in, block: Vec::new(), at: 0, ended: false })
}

enum Block {
    Bytes(Vec<u8>),
    End,
}

/// The end that is written. Unless it is finished, the reader gets an error at the end.
pub(crate) struct PipeWriter {
    full: SyncSender<Block>,
    free: Receiver<Vec<u8>>,
    block: Vec<u8>,
}

impl PipeWriter {
    /// Sends what is left and lets the reader see the end.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.full.send(Block::End).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Reads a block from `source` without another copy and returns it; it is sent by the next flush. An empty
    /// block is the end of the source, an error is the source's.
    pub(crate) fn fill(&mut self, source: &mut impl Read) -> io::Result<&[u8]> {
        debug_assert!(self.block.is_empty());
        if self.block.capacity() == 0 {
            self.block = self.free.try_recv().unwrap_or_default();
        }
        self.block.resize(BLOCK, 0);
        let read = read_full(source, &mut self.block);
        self.block.truncate(read.as_ref().map_or(0, |read| *read));
        read.map(|_| self.block.as_slice())
    }
}

/// Reads until the buffer is full or the source ends, so that blocks are worth their hand-over.
fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.block.capacity() == 0 {
            self.block = self.free.try_recv().unwrap_or_default();
            self.block.clear();
            self.block.reserve_exact(BLOCK.saturating_sub(self.block.capacity()));
        }
        let take = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..take]);
        if self.block.len() == BLOCK {
            self.flush()?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = std::mem::take(&mut self.block);
        self.full.send(Block::Bytes(block)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The end that is read.
pub(crate) struct PipeReader {
    full: Receiver<Block>,
    free: Sender<Vec<u8>>,
    block: Vec<u8>,
    at: usize,
    ended: bool,
}

impl BufRead for PipeReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.block.len() && !self.ended {
            match self.full.recv() {
                Ok(Block::Bytes(block)) => {
                    // Its writer may be gone already; the block is then simply dropped.
                    let _ = self.free.send(std::mem::replace(&mut self.block, block));
                    self.at = 0;
                }
                Ok(Block::End) => self.ended = true,
                Err(_) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "stream was cut off")),
            }
        }
        Ok(&self.block[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for PipeReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let block = self.fill_buf()?;
        let take = block.len().min(buf.len());
        buf[..take].copy_from_slice(&block[..take]);
        self.consume(take);
        Ok(take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_in_order_by_either_way_of_writing() {
        let data: Vec<u8> = (0..1_000_003u32).map(|n| (n % 251) as u8).collect();
        let (mut writer, mut reader) = pipe();
        let sent = data.clone();
        let thread = std::thread::spawn(move || {
            let (first, mut second) = sent.split_at(400_001);
            first.chunks(777).for_each(|chunk| writer.write_all(chunk).unwrap());
            writer.flush().unwrap();
            while !writer.fill(&mut second).unwrap().is_empty() {
                writer.flush().unwrap();
            }
            writer.finish().unwrap();
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        thread.join().unwrap();
        assert!(received == data);
    }

    #[test]
    fn a_writer_that_vanishes_is_an_error() {
        let (mut writer, mut reader) = pipe();
        writer.write_all(b"x").unwrap();
        writer.flush().unwrap();
        drop(writer);
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_reader_that_vanishes_stops_the_writer() {
        let (mut writer, reader) = pipe();
        drop(reader);
        let error = writer.write_all(&vec![0; 4 * BLOCK]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}

//! Running programs without a shell, a search or a fork.

use std::ffi::{CStr, CString, NulError, OsStr, c_char};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A null-terminated array of C strings, as `execve(2)` takes it.
#[derive(Debug)]
pub struct StringArray {
    pointers: Vec<*const c_char>,
    _strings: Vec<CString>,
}

impl StringArray {
    /// Copies the strings.
    ///
    /// # Errors
    /// One of them holds a NUL byte.
    pub fn new<S: Into<Vec<u8>>>(strings: impl IntoIterator<Item = S>) -> Result<Self, NulError> {
        let strings = strings.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Ok(Self { pointers, _strings: strings })
    }
}

/// The beginning of a program, in which its headers are.
const HEADERS: usize = 4096;
/// `PT_INTERP`.
const INTERPRETER: u64 = 3;

/// The loader that a 64-bit ELF program names: what the kernel runs beside it. `None` where it names none.
///
/// # Errors
/// The program cannot be read.
pub fn interpreter(program: &Path) -> io::Result<Option<PathBuf>> {
    let mut head = Vec::with_capacity(HEADERS);
    File::open(program)?.take(HEADERS as u64).read_to_end(&mut head)?;
    Ok(named_interpreter(&head).map(|path| PathBuf::from(OsStr::from_bytes(path))))
}

fn named_interpreter(head: &[u8]) -> Option<&[u8]> {
    let number = |at: usize, size: usize| {
        let bytes = head.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    let place = |at: usize| number(at, 8).and_then(|place| usize::try_from(place).ok());
    head.starts_with(b"\x7fELF\x02\x01").then_some(())?;
    let (first, size, count) = (place(32)?, number(54, 2)? as usize, number(56, 2)? as usize);
    let header = (0..count).map(|index| first.saturating_add(index * size));
    let header = header.into_iter().find(|at| number(*at, 4) == Some(INTERPRETER))?;
    let (offset, length) = (place(header + 8)?, place(header + 32)?);
    head.get(offset..offset.checked_add(length)?)?.split(|byte| *byte == 0).next()
}

/// Replaces the program by the one at `path`. Returns only when that fails.
pub fn execve(path: &CStr, args: &StringArray, env: &StringArray) -> io::Error {
    // SAFETY: all three point to NUL-terminated strings and null-terminated arrays that outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces the program by the one that a descriptor is open on. Returns only when that fails.
pub fn execve_fd(fd: BorrowedFd, args: &StringArray, env: &StringArray) -> io::Error {
    // SAFETY: as in `execve`; the empty path with AT_EMPTY_PATH names the descriptor itself.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            args.pointers.as_ptr(),
            env.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_names_its_loader_and_garbage_none() {
        let loader = interpreter(Path::new("/bin/sh")).unwrap().unwrap();
        assert!(loader.is_file() && loader.to_string_lossy().contains("ld-"), "{loader:?}");
        assert!(interpreter(Path::new("/no/such")).is_err());
        let mut head = std::fs::read("/bin/sh").unwrap();
        head.truncate(HEADERS);
        assert!(named_interpreter(&head).is_some());
        // Wherever it ends, and whatever its numbers say, nothing is read beyond its end.
        (0..head.len()).for_each(|length| _ = named_interpreter(&head[..length]));
        head[32..40].fill(0xff);
        assert_eq!((named_interpreter(&head), named_interpreter(b"#!/bin/sh")), (None, None));
    }

    #[test]
    fn a_failure_returns() {
        let none = StringArray::new(Vec::<String>::new()).unwrap();
        assert_eq!(execve(c"/nonexistent", &none, &none).raw_os_error(), Some(libc::ENOENT));
        assert!(StringArray::new(["a\0b"]).is_err());
    }
}

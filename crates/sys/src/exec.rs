//! Running programs without a shell, a search or a fork.

use std::ffi::{CStr, CString, NulError, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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
    fn a_failure_returns() {
        let none = StringArray::new(Vec::<String>::new()).unwrap();
        assert_eq!(execve(c"/nonexistent", &none, &none).raw_os_error(), Some(libc::ENOENT));
        assert!(StringArray::new(["a\0b"]).is_err());
    }
}

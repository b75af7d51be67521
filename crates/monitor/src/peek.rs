//! The little that the monitor reads of messages it passes on.

use serde::Deserialize;

/// What a request asks, without its arguments.
#[derive(Debug, Deserialize)]
pub struct Request {
    /// Its tag, as in `proa_protocol::message::Request`.
    pub op: String,
    /// Of an `exec`: its output is wanted.
    #[serde(default)]
    pub attach: bool,
    /// Of an `exec` or `attach`: input will come.
    #[serde(default)]
    pub stdin: bool,
    /// Of a `signal`: which.
    #[serde(default)]
    pub signal: i32,
    /// Of a `stop`: a user wants it.
    #[serde(default)]
    pub by_user: bool,
    /// Of a `resize`: rows.
    #[serde(default)]
    pub height: u16,
    /// Of a `resize`: columns.
    #[serde(default)]
    pub width: u16,
    /// Of an `exec`: what.
    #[serde(default)]
    pub process: Process,
}

/// The little that is told of a process.
#[derive(Debug, Default, Deserialize)]
pub struct Process {
    /// Program and arguments.
    #[serde(default)]
    pub args: Vec<String>,
}

#[derive(Deserialize)]
struct Answer<'json> {
    answer: &'json str,
}

/// Reads a request frame's payload.
pub fn request(payload: &[u8]) -> Option<Request> {
    serde_json::from_slice(payload).ok()
}

/// The tag of a response frame's payload, as in `proa_protocol::message::Response`.
pub fn answer(payload: &[u8]) -> Option<&str> {
    serde_json::from_slice::<Answer>(payload).ok().map(|answer| answer.answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_protocol::message::{self, ExecConfig, ExitStatus, Response};

    #[test]
    fn tags_are_those_of_the_messages() {
        let tag = |request: &message::Request| super::request(&request.frame(0).payload).unwrap().op;
        let path = || "/x".to_owned();
        assert_eq!(tag(&message::Request::Start), "start");
        assert_eq!(tag(&message::Request::Attach { stdin: true, stdout: true, stderr: true }), "attach");
        assert_eq!(tag(&message::Request::Wait), "wait");
        assert_eq!(tag(&message::Request::Pause), "pause");
        assert_eq!(tag(&message::Request::Resume), "resume");
        assert_eq!(tag(&message::Request::Shutdown), "shutdown");
        assert_eq!(tag(&message::Request::Changes), "changes");
        assert_eq!(tag(&message::Request::Stat { path: path() }), "stat");
        assert_eq!(tag(&message::Request::ArchiveGet { path: path() }), "archive_get");
        assert_eq!(
            tag(&message::Request::ArchivePut { path: path(), no_overwrite_dir: false }),
            "archive_put"
        );
        assert_eq!(tag(&message::Request::Configure(Box::default())), "configure");
        let exec = message::Request::Exec(Box::new(ExecConfig { attach: true, ..ExecConfig::default() }));
        let frame = exec.frame(0);
        let seen = super::request(&frame.payload).unwrap();
        assert_eq!((seen.op.as_str(), seen.attach, seen.stdin), ("exec", true, false));
        let size = proa_oci::runtime::ConsoleSize { height: 3, width: 4 };
        let seen = super::request(&message::Request::Resize(size).frame(0).payload).unwrap();
        assert_eq!((seen.op.as_str(), seen.height, seen.width), ("resize", 3, 4));
        assert_eq!(tag(&message::Request::Discard), "discard");
        let frame = message::Request::Signal { signal: 9, all: true }.frame(0);
        let seen = super::request(&frame.payload).unwrap();
        assert_eq!((seen.op.as_str(), seen.signal), ("signal", 9));
        let seen = super::request(&message::Request::Stop { by_user: true }.frame(0).payload).unwrap();
        assert_eq!((seen.op.as_str(), seen.by_user), ("stop", true));
    }

    #[test]
    fn answers_are_those_of_the_messages() {
        let exited = Response::Exited(ExitStatus::default()).frame(0);
        assert_eq!(answer(&exited.payload), Some("exited"));
        let error = Response::error(message::ErrorKind::Internal, "a \"quoted\" text").frame(0);
        assert_eq!(answer(&error.payload), Some("error"));
        assert_eq!(answer(b"[]"), None);
    }
}

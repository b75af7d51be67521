//! A client that speaks the protocol, blocking, with a limit on every wait.

use std::os::unix::net::UnixStream;

use proa_oci::runtime::Process;
use proa_protocol::frame::{Frame, Kind};
use proa_protocol::message::{ErrorKind, ExecConfig, ExitStatus, Request, Response};

use crate::fixture::LIMIT;

/// One connection.
pub struct Client {
    stream: UnixStream,
    /// Output so far.
    pub stdout: Vec<u8>,
    /// Errors so far.
    pub stderr: Vec<u8>,
    /// Lines for the user so far.
    pub notices: Vec<String>,
}

impl Client {
    /// A client on a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Self { stream, stdout: Vec::new(), stderr: Vec::new(), notices: Vec::new() }
    }

    /// Sends a request and waits for nothing.
    pub fn send(&self, request: &Request) {
        self.frame(Kind::Request, request.frame(0).payload);
    }

    /// Sends any frame.
    pub fn frame(&self, kind: Kind, payload: Vec<u8>) {
        Frame::new(0, kind, payload).write_to(&self.stream).unwrap();
    }

    /// The next frame; `None` at the end of the connection.
    pub fn next(&mut self) -> Option<Frame> {
        Frame::read_from(&self.stream).expect("a frame in time")
    }

    /// The next response; output on the way is kept and credited.
    pub fn response(&mut self) -> Response {
        loop {
            let frame = self.next().expect("a response before the end");
            match frame.kind {
                Kind::Response => match Response::parse(&frame.payload).unwrap() {
                    Response::Notice { message } => self.notices.push(message),
                    response => return response,
                },
                Kind::Stdout => self.stdout.extend(self.consume(frame)),
                Kind::Stderr => self.stderr.extend(self.consume(frame)),
                Kind::Credit => {}
                kind => panic!("a {kind:?} frame in place of a response"),
            }
        }
    }

    /// Credits a stream frame. Its sender may be gone already.
    pub fn consume(&self, frame: Frame) -> Vec<u8> {
        let _ = Frame::credit(0, frame.payload.len() as u32).write_to(&self.stream);
        frame.payload
    }

    /// Asks and returns the answer.
    pub fn ask(&mut self, request: &Request) -> Response {
        self.send(request);
        self.response()
    }

    /// Attaches and starts in one go, as `proa run` does; returns when the program runs.
    pub fn run(&mut self, stdin: bool) {
        self.attach(stdin);
        self.send(&Request::Start);
        assert_eq!(self.response(), Response::Ok);
        self.expect_started();
    }

    /// Asks to be attached.
    pub fn attach(&self, stdin: bool) {
        self.send(&Request::Attach { stdin, stdout: true, stderr: true });
    }

    /// The next response says that something was started.
    pub fn expect_started(&mut self) -> u32 {
        match self.response() {
            Response::Started { pid } => pid,
            other => panic!("{other:?}"),
        }
    }

    /// The next response is an error of this kind.
    pub fn expect_error(&mut self, expected: ErrorKind) -> String {
        match self.response() {
            Response::Error { kind, message } if kind == expected => message,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the end of the process.
    pub fn exited(&mut self) -> ExitStatus {
        match self.response() {
            Response::Exited(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Runs another process attached.
    pub fn exec(&mut self, args: &[&str]) {
        self.send(&exec(args, false));
        self.expect_started();
    }

    /// Waits until the output contains `text`.
    pub fn read_until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            let frame = self.next().unwrap_or_else(|| panic!("the end before {text:?}: {:?}", self.text()));
            if frame.kind == Kind::Stdout {
                let bytes = self.consume(frame);
                self.stdout.extend(bytes);
            }
        }
    }

    /// Output so far, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Ends the first process.
    pub fn kill(&mut self) {
        self.send(&Request::Signal { signal: 9, all: false });
    }
}

/// A request for another process.
pub fn exec(args: &[&str], stdin: bool) -> Request {
    let process = Process {
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        ..Process::default()
    };
    Request::Exec(Box::new(ExecConfig { process, user: String::new(), stdin, attach: true }))
}

//! A small HTTP server for scrapers: one path, one method, one request a connection.
//!
//! ```text
//!   accept ─▶ a thread a connection, a few at most: reads the request, within limits and a time
//!                └─ asks the engine's thread, which looks at the instances, and writes the answer
//! ```
//!
//! Figures younger than a second are given again, so that many scrapers cost no more than one.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use proa_engine::Engine;
use proa_engine::metrics::Sample;

use super::text::{Format, exposition};
use crate::error::Failure;

/// Connections at once; others wait.
const MOST_CONNECTIONS: usize = 16;
/// Bytes of a request.
const MOST_BYTES: usize = 8 * 1024;
const MOST_HEADERS: usize = 64;
/// How long a request may take to come, and an answer to be read.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long figures are given again.
const FRESH: Duration = Duration::from_secs(1);

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `ADDRESS:PORT`
    Tcp(String),
    /// A path.
    Unix(PathBuf),
}

impl Address {
    /// Reads `ADDRESS:PORT` or `unix:PATH`.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            None if text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => {
                Ok(Self::Tcp(text.to_owned()))
            }
            _ => {
                Err(Failure::usage(format!("invalid --listen {text:?}"))
                    .with_hint("ADDRESS:PORT or unix:/PATH"))
            }
        }
    }
}

/// A connection of either sort.
trait Connection: Read + Write + Send {}
impl<T: Read + Write + Send> Connection for T {}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

type Ask = (Format, Sender<String>);

/// Serves until the process is ended. `ready` is called with the address once it listens.
///
/// # Errors
/// It cannot listen there.
pub fn serve(engine: &Engine, address: &Address, ready: impl FnOnce(&str)) -> Result<(), Failure> {
    let (listener, at) = listen(address)?;
    ready(&at);
    let (ask, asked) = channel();
    std::thread::spawn(move || accept(&listener, &ask));
    answer(engine, &asked);
    Ok(())
}

fn listen(address: &Address) -> Result<(Listener, String), Failure> {
    match address {
        Address::Tcp(text) => {
            let failed = |error: io::Error| Failure::new(format!("cannot listen at {text}: {error}"));
            let listener = TcpListener::bind(text).map_err(failed)?;
            let at = listener.local_addr().map_err(failed)?;
            Ok((Listener::Tcp(listener), format!("http://{at}/metrics")))
        }
        Address::Unix(path) => {
            // One that an ended process left; a living one is not taken away.
            if UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
            {
                let _ = std::fs::remove_file(path);
            }
            let listener = UnixListener::bind(path).and_then(|listener| restrict(path).map(|()| listener));
            let listener = listener.map_err(|error| Failure::io("listen at", path, error))?;
            Ok((Listener::Unix(listener), format!("unix:{}", path.display())))
        }
    }
}

/// What instances are called and what they use is nobody else's business.
fn restrict(path: &Path) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

fn accept(listener: &Listener, ask: &Sender<Ask>) {
    let busy = Arc::new(AtomicUsize::new(0));
    loop {
        let connection = match listener {
            Listener::Tcp(listener) => listener.accept().and_then(|(stream, _)| prepared(stream)),
            Listener::Unix(listener) => listener.accept().and_then(|(stream, _)| prepared_unix(stream)),
        };
        // Whoever cannot be accepted comes again; those who are too many are closed.
        let Ok(connection) = connection else { continue };
        if busy.fetch_add(1, Ordering::SeqCst) >= MOST_CONNECTIONS {
            busy.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (ask, busy) = (ask.clone(), busy.clone());
        std::thread::spawn(move || {
            // A scraper that is gone needs no answer.
            let _ = converse(connection, &ask);
            busy.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn prepared(stream: TcpStream) -> io::Result<Box<dyn Connection>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(Box::new(stream))
}

fn prepared_unix(stream: UnixStream) -> io::Result<Box<dyn Connection>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(Box::new(stream))
}

/// What a request asks for, or with which status it is refused.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Metrics {
        format: Format,
        head: bool,
    },
    Refused(&'static str),
    /// More of it is to come.
    Unfinished,
}

fn converse(mut connection: Box<dyn Connection>, ask: &Sender<Ask>) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = Vec::new();
    let asked = loop {
        let mut more = [0; 1024];
        let count = connection.read(&mut more)?;
        bytes.extend_from_slice(&more[..count]);
        match read(&bytes) {
            Asked::Unfinished if count == 0 || Instant::now() > deadline => return Ok(()),
            Asked::Unfinished => {}
            asked => break asked,
        }
    };
    let (status, media_type, body, head) = match asked {
        Asked::Metrics { format, head } => {
            let (answer, answered) = channel();
            let body =
                ask.send((format, answer)).ok().and_then(|()| answered.recv().ok()).unwrap_or_default();
            ("200 OK", format.media_type(), body, head)
        }
        Asked::Refused(status) => (status, "text/plain", format!("{status}\n"), false),
        Asked::Unfinished => return Ok(()),
    };
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    if !head {
        answer.push_str(&body);
    }
    connection.write_all(answer.as_bytes())
}

fn read(bytes: &[u8]) -> Asked {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if bytes.len() < MOST_BYTES => return Asked::Unfinished,
        Ok(httparse::Status::Partial) => return Asked::Refused("431 Request Header Fields Too Large"),
        Err(_) => return Asked::Refused("400 Bad Request"),
    }
    let path = request.path.unwrap_or_default().split('?').next().unwrap_or_default();
    if path != "/metrics" {
        return Asked::Refused("404 Not Found");
    }
    let head = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Asked::Refused("405 Method Not Allowed"),
    };
    let accepts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("accept"));
    let open = accepts
        .into_iter()
        .any(|header| String::from_utf8_lossy(header.value).contains("application/openmetrics-text"));
    Asked::Metrics { format: if open { Format::OpenMetrics } else { Format::Prometheus }, head }
}

fn answer(engine: &Engine, asked: &Receiver<Ask>) {
    let mut last: Option<(Instant, Vec<Sample>)> = None;
    while let Ok((format, answer)) = asked.recv() {
        if last.as_ref().is_none_or(|(at, _)| at.elapsed() > FRESH) {
            match engine.sample() {
                Ok(samples) => last = Some((Instant::now(), samples)),
                // It is said here; the scraper sees that there is nothing.
                Err(error) => {
                    Failure::from(error).print();
                    last = None;
                }
            }
        }
        let samples = last.as_ref().map_or(&[][..], |(_, samples)| samples);
        // A scraper that is gone needs no answer.
        let _ = answer.send(exposition(samples, format));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        let metrics = |format, head| Asked::Metrics { format, head };
        assert_eq!(read(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"), metrics(Format::Prometheus, false));
        assert_eq!(read(b"HEAD /metrics?x=1 HTTP/1.0\r\n\r\n"), metrics(Format::Prometheus, true));
        let open = b"GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text;version=1.0.0,*/*\r\n\r\n";
        assert_eq!(read(open), metrics(Format::OpenMetrics, false));
        assert_eq!(read(b"GET / HTTP/1.1\r\n\r\n"), Asked::Refused("404 Not Found"));
        assert_eq!(read(b"POST /metrics HTTP/1.1\r\n\r\n"), Asked::Refused("405 Method Not Allowed"));
        assert_eq!(read(b"GET /metr"), Asked::Unfinished);
        assert_eq!(read(b"\0\0\0\0"), Asked::Refused("400 Bad Request"));
        let long = [b"GET /metrics HTTP/1.1\r\nx: ".to_vec(), vec![b'a'; MOST_BYTES]].concat();
        assert_eq!(read(&long), Asked::Refused("431 Request Header Fields Too Large"));
    }

    #[test]
    fn addresses() {
        assert_eq!(Address::parse("127.0.0.1:9100").unwrap(), Address::Tcp("127.0.0.1:9100".into()));
        assert_eq!(Address::parse("unix:/x/y").unwrap(), Address::Unix("/x/y".into()));
        for text in ["", "9100", "unix:x", "host:port"] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}

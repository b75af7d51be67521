//! Addresses of names, as the system resolves them.
//!
//! This program is linked statically, for its start's sake, and the system's resolver is a set of libraries that belong
//! to the system's own C library (`nsswitch.conf`: LDAP, mDNS, systemd). So `getent`, which is part of that one, is
//! asked. Where there is none, as in a bare container, files and DNS are all there can be, and those the C library in
//! here knows.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Of what a resolver says, as much is read.
const MOST: u64 = 64 * 1024;
/// Addresses that are tried, the best first.
const TRIED: usize = 16;

/// Asks the system.
#[derive(Debug, Default)]
pub(super) struct SystemNames {
    own: DefaultResolver,
}

impl Resolver for SystemNames {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        // Addresses are none of its business, nor is what it would take for an option.
        if host.is_empty() || host.starts_with('-') || host.parse::<IpAddr>().is_ok() {
            return self.own.resolve(uri, config, timeout);
        }
        let addresses = match ask(host, *timeout.after) {
            Ok(addresses) => addresses,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(ureq::Error::Timeout(timeout.reason));
            }
            Err(_) => return self.own.resolve(uri, config, timeout),
        };
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let addresses = addresses.into_iter().map(|address| SocketAddr::new(address, port));
        let mut resolved = self.empty();
        config.ip_family().keep_wanted(addresses).take(TRIED).for_each(|address| resolved.push(address));
        if resolved.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(resolved) }
    }
}

/// The addresses of a name; none where nobody knows it.
///
/// # Errors
/// There is nobody to ask, or no answer within `limit` ([`io::ErrorKind::TimedOut`]).
fn ask(host: &str, limit: Duration) -> io::Result<Vec<IpAddr>> {
    let mut getent = Command::new("getent");
    getent.args(["ahosts", host]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = getent.spawn()?;
    let said = read(&mut child, limit);
    if said.is_err() {
        // It may have ended meanwhile.
        let _ = child.kill();
    }
    child.wait()?;
    Ok(addresses(&said?))
}

fn read(child: &mut Child, limit: Duration) -> io::Result<String> {
    let deadline = Instant::now().checked_add(limit);
    let mut said = Vec::new();
    let Some(output) = child.stdout.as_mut() else { return Ok(String::new()) };
    let mut output = output.take(MOST);
    let mut bytes = [0; 4096];
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(output.get_ref(), PollFlags::IN)], left.as_ref()) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match output.read(&mut bytes)? {
            0 => return Ok(String::from_utf8_lossy(&said).into_owned()),
            count => said.extend_from_slice(&bytes[..count]),
        }
    }
}

/// Of lines `ADDRESS KIND [NAME]`, those of streams: each address stands there once for each kind.
fn addresses(said: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        (words.next() == Some("STREAM")).then_some(address)
    };
    said.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_streams_are_read() {
        let said = "::1             STREAM localhost\n::1             DGRAM  \n::1             RAW    \n\
                    127.0.0.1       STREAM \n127.0.0.1       DGRAM  \nfe80::1%2 STREAM\nnonsense\n";
        let expected: [IpAddr; 2] = ["::1".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        assert_eq!(addresses(said), expected);
        assert_eq!(addresses(""), Vec::<IpAddr>::new());
    }

    #[test]
    fn the_system_knows_this_host_and_no_other() {
        assert!(ask("localhost", Duration::from_secs(30)).unwrap().iter().all(IpAddr::is_loopback));
        assert!(!ask("localhost", Duration::from_secs(30)).unwrap().is_empty());
        assert!(ask("no-such-host.invalid", Duration::from_secs(30)).unwrap().is_empty());
    }

    #[test]
    fn there_is_a_limit_to_waiting() {
        let spawn = |script| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
        };
        let mut silent = spawn("read line");
        let late = read(&mut silent, Duration::from_millis(1)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        silent.kill().unwrap();
        silent.wait().unwrap();
        let mut quick = spawn("echo 127.0.0.1 STREAM");
        assert_eq!(addresses(&read(&mut quick, Duration::MAX).unwrap()).len(), 1);
        quick.wait().unwrap();
    }

    #[test]
    fn urls_have_ports() {
        let resolve = |url: &str| {
            let (config, uri) = (Config::default(), url.parse().unwrap());
            SystemNames::default().resolve(&uri, &config, NextTimeout::default()).map(|found| found[0].port())
        };
        assert_eq!(resolve("https://localhost/").unwrap(), 443);
        assert_eq!(resolve("http://localhost/").unwrap(), 80);
        assert_eq!(resolve("http://localhost:5000/").unwrap(), 5000);
        assert_eq!(resolve("http://[::1]:5000/").unwrap(), 5000);
        assert!(matches!(resolve("http://no-such-host.invalid/"), Err(ureq::Error::HostNotFound)));
    }
}

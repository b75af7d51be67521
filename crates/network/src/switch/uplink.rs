//! The way out of a user's switch: pasta, which makes sockets of the host of what comes by its tap.
//!
//! Flags that its oldest version (Debian 12) and later ones have. It forwards no ports, since those it would be given at
//! its start once and for all, and hides the host's loopback interface (`--no-map-gw`). What it says last before it ends is
//! what the user is told.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use proa_protocol::network::Interface;
use proa_sys::jail::Jail;
use rustix::event::{Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Switch;
use crate::Error;
use crate::link::{Links, speak_at_once};

const PROGRAMS: [&str; 3] = ["/usr/bin/pasta", "/usr/local/bin/pasta", "/bin/pasta"];
const INTERFACE: &str = "uplink";
/// Link-local addresses, which nobody routes: what leaves is the user's own on the host.
const OWN: &str = "169.254.77.2";
const GATEWAY: &str = "169.254.77.1";
const LENGTH: u8 = 30;
/// Of a prefix that RFC 4193 sets aside.
const OWN_6: &str = "fd70:726f:6100::2";
const GATEWAY_6: &str = "fd70:726f:6100::1";
const LENGTH_6: u8 = 64;
/// pasta takes packets of this size at once, and segments by itself.
const MTU: u32 = 65_520;
const MAC: &str = "02:70:72:6f:61:02";
/// How long pasta may take to make its interface, and how often that is looked for.
const START: Duration = Duration::from_secs(3);
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
/// How long it must have lived to be started again at once, and how long is waited otherwise.
const PAUSE: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(10);

/// pasta, or why there is none.
#[derive(Debug)]
pub(super) enum Uplink {
    Running(Pasta),
    Failed { why: String, again_at: Instant },
}

/// The process, which is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Pasta {
    child: Child,
    pidfd: OwnedFd,
    since: Instant,
}

impl Uplink {
    /// Starts pasta for the namespace that is mounted at `file`, and gives the namespace its way out.
    pub fn start(switch: &Switch, file: &Path) -> Result<Self, Error> {
        let program = PROGRAMS.into_iter().find(|path| Path::new(path).exists()).ok_or(Error::NoPasta)?;
        await_end_of_another(switch)?;
        let is_both = has_default_route_6();
        let mut command = Command::new(program);
        command.args(arguments(is_both)).arg("--netns").arg(file).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let jail = Jail { no_new_privileges: true, ..Jail::default() };
        let child = jail.spawn(command, &[]).map_err(Error::file("run", program))?;
        let mut pasta = Pasta::new(child)?;
        while !switch.inside(|| configure(is_both))? {
            if pasta.since.elapsed() > START || !matches!(pasta.child.try_wait(), Ok(None)) {
                return Ok(Self::failed(pasta, LATER));
            }
            let _ = poll(&mut [], Some(&LOOK));
        }
        Ok(Self::Running(pasta))
    }

    fn failed(mut pasta: Pasta, pause: Duration) -> Self {
        pasta.end();
        let mut said = String::new();
        if let Some(mut errors) = pasta.child.stderr.take() {
            let _ = errors.read_to_string(&mut said);
        }
        Self::Failed { why: last_words(&said), again_at: Instant::now() + pause }
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Running(pasta) => Some(pasta.pidfd.as_fd()),
            Self::Failed { .. } => None,
        }
    }

    /// When it is to be started again.
    pub fn again_at(&self) -> Option<Instant> {
        match self {
            Self::Running(_) => None,
            Self::Failed { again_at, .. } => Some(*again_at),
        }
    }

    /// Looks whether it has ended; it is then to be started again.
    pub fn reap(self) -> Self {
        match self {
            Self::Running(mut pasta) => match pasta.child.try_wait() {
                Ok(None) => Self::Running(pasta),
                _ => {
                    let pause = if pasta.since.elapsed() > PAUSE { Duration::ZERO } else { PAUSE };
                    Self::failed(pasta, pause)
                }
            },
            failed @ Self::Failed { .. } => failed,
        }
    }

    /// What the user is to know.
    pub fn notice(&self) -> String {
        match self {
            Self::Running(_) => String::new(),
            Self::Failed { why, .. } => format!("instances have no way out of this host: pasta: {why}"),
        }
    }
}

impl Pasta {
    fn new(mut child: Child) -> Result<Self, Error> {
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pidfd, since: Instant::now() }),
            Err(errno) => {
                let _ = child.kill();
                Err(Error::call("pidfd_open")(errno))
            }
        }
    }

    fn end(&mut self) {
        // Both fail only for a process that was reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Pasta {
    fn drop(&mut self) {
        self.end();
    }
}

fn arguments(is_both: bool) -> Vec<&'static str> {
    let mut line = vec!["--foreground", "--quiet", "--ns-ifname", INTERFACE, "--no-map-gw"];
    line.extend(["--no-dhcp", "--no-dhcpv6", "--no-ra", "--dns", "none"]);
    for ports in ["--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns"] {
        line.extend([ports, "none"]);
    }
    line.extend(["--address", OWN, "--netmask", "255.255.255.252", "--gateway", GATEWAY]);
    if is_both {
        line.extend(["--address", OWN_6, "--gateway", GATEWAY_6]);
    } else {
        line.push("--ipv4-only");
    }
    line
}

/// The pasta of a resolver that was killed dies with it, but not at once, and its interface is not to be taken for that of
/// the next.
fn await_end_of_another(switch: &Switch) -> Result<(), Error> {
    let since = Instant::now();
    while switch.inside(|| Ok(Links::here()?.index(INTERFACE)?.is_some()))? && since.elapsed() < START {
        let _ = poll(&mut [], Some(&LOOK));
    }
    Ok(())
}

/// Gives pasta's interface its addresses and makes it the way out; false where it is not there yet.
fn configure(is_both: bool) -> Result<bool, Error> {
    let mut links = Links::here()?;
    let Some(index) = links.index(INTERFACE)? else { return Ok(false) };
    let pairs = [(OWN, LENGTH, GATEWAY), (OWN_6, LENGTH_6, GATEWAY_6)];
    let pairs = pairs.into_iter().take(if is_both { 2 } else { 1 });
    let mut interface =
        Interface { name: INTERFACE.into(), mac: MAC.into(), mtu: MTU, ..Interface::default() };
    for (own, length, gateway) in pairs {
        interface.addresses.extend(own.parse().ok().and_then(|own| IpNet::new(own, length).ok()));
        interface.gateways.extend(gateway.parse::<std::net::IpAddr>());
    }
    speak_at_once(INTERFACE)?;
    links.configure(index, &interface)?;
    Ok(true)
}

/// Whether the host knows a way to everywhere by IPv6 (`/proc/net/ipv6_route`: destination, length of its prefix, six
/// more, flags, interface).
fn has_default_route_6() -> bool {
    let text = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    text.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.first().is_some_and(|to| to.bytes().all(|digit| digit == b'0'))
            && fields.get(1) == Some(&"00")
            && fields.last().is_some_and(|interface| *interface != "lo")
    })
}

/// The last line that says why; that it has no system log is not it.
fn last_words(said: &str) -> String {
    let is_telling = |line: &&str| !line.trim().is_empty() && !line.starts_with("Failed to send");
    said.lines().rfind(is_telling).unwrap_or("it ended without a word").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_those_that_tell() {
        let said = "No external routable interface for IPv6\nCouldn't open it\nFailed to send 46 bytes to syslog\n\n";
        assert_eq!(last_words(said), "Couldn't open it");
        assert_eq!(last_words(""), "it ended without a word");
    }
}

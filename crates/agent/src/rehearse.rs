//! A start that is for nobody: what the kernel, and a VMM that translates its instructions, do once and slowly, is done
//! before somebody waits for it.
//!
//! ```text
//!   each network device is set up ─▶ a container of the same kind ─▶ its program: this one, which ends at once ─▶ all of it
//!   is gone again
//! ```
//!
//! It runs nothing of the image's, and has the image's files under a writable layer of its own. What it leaves are numbers of
//! processes that were used, packets that were counted, and random numbers that were drawn; the generator is seeded anew before an
//! instance draws any.

use std::fs;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use proa_oci::runtime::{Capabilities, Mount, Process, Spec};
use proa_protocol::frame::Frame;
use proa_protocol::message::{GuestConfig, Request, Response};
use proa_protocol::network::Interface;
use proa_runtime::Taken;
use proa_supervisor::{PollSet, Supervisor};
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;

use crate::configure;
use crate::error::{At, Error};

/// The first word of the program's command line, and where it is in its container.
pub const PROGRAM: &str = "/.proa-rehearsal";
const OWN_PROGRAM: &str = "/proc/self/exe";
const DIRECTORY: &str = "/run/proa/rehearsal";
/// Some of those that instances have.
const CAPABILITIES: [&str; 3] = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"];
/// It takes some hundred milliseconds.
const LIMIT: Duration = Duration::from_secs(20);
/// The conversations with a supervisor: who starts, and who is told of the output.
const STARTER: u32 = 1;
const READER: u32 = 2;

/// Does all of it, with as many network devices of the instance's.
pub fn rehearse(kind: GuestConfig, interfaces: usize) -> Result<(), Error> {
    (0..interfaces).try_for_each(|device| configure::try_out(device, &interface()))?;
    let told = Request::Configure(Box::new(role(&kind))).frame(STARTER);
    let mut supervisor = supervise(kind)?;
    let ended = supervisor.prepare(&[]).map_err(Error::from).and_then(|()| {
        // Read as it is when it comes from the host.
        if let Ok(Request::Configure(role)) = Request::parse(&told.payload) {
            supervisor.cast(role.id, role.spec, role.launch);
        }
        play(&mut supervisor)
    });
    let deleted = supervisor.delete();
    drop(supervisor);
    let removed = fs::remove_dir_all(DIRECTORY).at("remove", DIRECTORY);
    ended?;
    drop(deleted?);
    removed
}

/// What an interface may be; from blocks that are for examples.
fn interface() -> Interface {
    let network = |address: [u8; 4]| IpNet::new(IpAddr::from(address), 24).ok();
    let network6 = |address: [u16; 8]| IpNet::new(IpAddr::from(address), 64).ok();
    let example6 = [0x2001, 0xdb8, 0, 0, 0, 0, 0, 2];
    Interface {
        name: "eth0".to_owned(),
        mac: "02:00:00:00:00:02".to_owned(),
        addresses: network([192, 0, 2, 2]).into_iter().chain(network6(example6)).collect(),
        gateways: vec![IpAddr::from([192, 0, 2, 1])],
        mtu: 0,
    }
}

/// What an instance of this kind may be.
fn role(kind: &GuestConfig) -> GuestConfig {
    let capabilities: Vec<String> = CAPABILITIES.map(ToOwned::to_owned).to_vec();
    let process = kind.spec.process.clone().unwrap_or_default();
    let spec = Spec {
        process: Some(Process {
            args: vec![PROGRAM.to_owned()],
            env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(), "HOSTNAME=rehearsal".to_owned()],
            capabilities: Some(Capabilities {
                bounding: capabilities.clone(),
                effective: capabilities.clone(),
                permitted: capabilities,
                ..Capabilities::default()
            }),
            ..process
        }),
        hostname: Some("rehearsal".to_owned()),
        ..Spec::default()
    };
    let mut launch = kind.launch.clone();
    launch.files.values_mut().for_each(|text| text.push_str("127.0.0.1 localhost\n"));
    GuestConfig {
        id: "rehearsal".to_owned(),
        spec,
        launch,
        interfaces: vec![interface()],
        ..GuestConfig::default()
    }
}

/// One of a container of this kind that has the layers of the instance's, and all else for itself.
fn supervise(mut kind: GuestConfig) -> Result<Supervisor, Error> {
    kind.id = "rehearsal".to_owned();
    kind.spec.mounts.push(Mount {
        destination: PROGRAM.to_owned(),
        kind: Some("bind".to_owned()),
        source: Some(OWN_PROGRAM.into()),
        options: ["bind", "ro"].map(ToOwned::to_owned).to_vec(),
        ..Mount::default()
    });
    if let Some(process) = &mut kind.spec.process {
        process.args = vec![PROGRAM.to_owned()];
    }
    let lowers = (0..kind.layers).map(configure::layer).collect();
    let taken = vec![Taken { destination: PROGRAM.to_owned(), mount: own_program()? }];
    configure::supervise_at(DIRECTORY, &format!("{DIRECTORY}/files"), kind, lowers, taken)
}

/// A mount of this program, which no path leads to.
fn own_program() -> Result<OwnedFd, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, OWN_PROGRAM, flags).at("take", OWN_PROGRAM)
}

/// Starts it, and waits for its end.
fn play(supervisor: &mut Supervisor) -> Result<(), Error> {
    let attach = Request::Attach { stdin: false, stdout: true, stderr: true };
    supervisor.handle(attach.frame(READER));
    supervisor.handle(Request::Start.frame(STARTER));
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        while let Some(frame) = supervisor.pop() {
            match answer(&frame) {
                Some(Response::Exited(status)) if status.code == 0 => return Ok(()),
                Some(Response::Exited(status)) => {
                    return Err(Error::Configuration(format!(
                        "the rehearsal ended with code {}",
                        status.code
                    )));
                }
                Some(Response::Error { message, .. }) => return Err(Error::Configuration(message)),
                _ => {}
            }
        }
        let mut set = PollSet::new();
        supervisor.poll_fds(&mut set);
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = supervisor.timeout().into_iter().chain([left]).min();
        for (token, _) in set.wait(timeout).at("poll", "a rehearsal")? {
            supervisor.ready(token);
        }
        supervisor.tick();
    }
    Err(Error::Configuration(format!("the rehearsal has not ended within {} s", LIMIT.as_secs())))
}

fn answer(frame: &Frame) -> Option<Response> {
    Response::parse(&frame.payload).ok()
}

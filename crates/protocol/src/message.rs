//! Requests and responses: the closed set of operations on an instance, the same at both levels.
//!
//! | request | answers | then |
//! | --- | --- | --- |
//! | `Start` | `Started` or `Error` | |
//! | `Attach` | `Ok` | streams both ways, `Resize` and `Signal` from the client, `Exited` at the end |
//! | `Exec` | `Started` or `Error` | streams as for `Attach`, `Exited` at the end |
//! | `Wait` | `Exited` when the first process ends | |
//! | `Abort` | none of its own | the `Exited` of its process |
//! | `Watch` | none of its own | `Happened`, as often as something does |
//! | `Prepare`, `Rehearse`, `Freeze`, `Adopt`, `Snapshot` | `Ok` or `Error` | |
//! | `Update`, `UpdateGuest`, `Expand` | `Ok` or `Error` | |
//! | `Signal`, `Stop`, `Discard`, `Resize`, `Pause`, `Resume`, `Rewrite`, `Connect`, `Disconnect`, `Shutdown` | `Ok` or `Error` | on an attach or exec channel: no answer |
//! | `Screenshot` | `Data` frames with a PNG, an empty one last, then `Ok` or `Error` | |
//! | `Stats`, `Processes`, `Changes`, `Stat` | the like-named response | |
//! | `ArchiveGet` | `Stat`, then `Data` frames with a tar stream, an empty one last, then `Ok` or `Error` | |
//! | `ArchivePut` | `Ok` (go on), then the client sends `Data`, an empty one last, then `Ok` or `Error` | |
//!
//! `Notice` may come before any answer: a line for the user's standard error.

use std::collections::BTreeMap;
use std::path::PathBuf;

use proa_oci::runtime::{ConsoleSize, Process, Resources, Spec};
use serde::{Deserialize, Serialize};

use crate::frame::{Frame, Kind, MAX_MESSAGE};
use crate::network::{Endpoint, Interface};

/// How the request that configures a guest begins.
const CONFIGURE: &[u8] = br#"{"op":"configure","#;
/// And one that runs a process in it.
const EXEC: &[u8] = br#"{"op":"exec","#;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// To a guest agent that has not been configured: get ready to be saved as a template, and answer.
    Prepare {
        /// Mount the writable disk; clones will have it as it is then.
        mount: bool,
        /// Number of network devices that are for the instance; the others are spare.
        interfaces: usize,
        /// What its clones will be but for what [`GuestConfig::kind`] leaves out: the container is made, and waits for
        /// that. Its layers are there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kind: Option<Box<GuestConfig>>,
        /// Files one of which is likely to be run.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        programs: Vec<String>,
    },
    /// To a guest agent that is prepared: start once, in a container of its own that is gone when this is answered, an
    /// empty program of the agent's, so that what the kernel and the VMM do at the first time is done before somebody waits.
    Rehearse(Box<GuestConfig>),
    /// To a guest agent, once, first: what the guest is to be.
    Configure(Box<GuestConfig>),
    /// To a guest agent: stop the instance, say all there is to say, answer, and from then on say nothing.
    Freeze,
    /// To a guest agent that is frozen: go on. Has no answer.
    Thaw,
    /// To a guest agent that is frozen and goes on from a snapshot: what the guest is now. Clients of before are gone, and
    /// the instance goes on with the next `Start`, which is answered as its first was.
    Adopt {
        /// As for `Configure`; root and shares are what they were.
        config: Box<GuestConfig>,
        /// It becomes another instance than it was.
        is_fork: bool,
    },
    /// To a monitor: raw copies of a virtual machine as it is at one moment, into an empty directory.
    Snapshot {
        /// The directory.
        directory: PathBuf,
    },
    /// Run the program of the instance's spec.
    Start,
    /// Join the streams of the first process; output from now on. Allowed before `Start`.
    Attach {
        /// Send it standard input.
        stdin: bool,
        /// Receive its standard output.
        stdout: bool,
        /// Receive its standard error.
        stderr: bool,
    },
    /// Run another process in the instance.
    Exec(Box<ExecConfig>),
    /// New size of the terminal of this channel's process (or of the first process).
    Resize(ConsoleSize),
    /// Send a signal to this channel's process (or to the first process).
    Signal {
        /// Signal number of the architecture.
        signal: i32,
        /// To every process of the instance.
        #[serde(default)]
        all: bool,
    },
    /// Kill this channel's process, which `Exec` has made, and its process group.
    Abort,
    /// Answer when the first process has ended.
    Wait,
    /// When the first process ends, do not run it again; where it is about to be run again, end now.
    Stop {
        /// A user wants it down; otherwise the host's next boot starts it as if nothing had been asked.
        by_user: bool,
    },
    /// To a monitor: whatever is on the instance's disk is not needed any more, and its end need not wait for it.
    Discard,
    /// Tell of what happens by itself, as [`Response::Happened`], from now on.
    Watch,
    /// Freeze all processes.
    Pause,
    /// Thaw them.
    Resume,
    /// Other limits, those that are named; device rules are not changed.
    Update(Box<Resources>),
    /// To the monitor of a virtual machine: another size of the guest, as far as that can change while it runs, and other
    /// limits in it.
    UpdateGuest {
        /// What the guest is to have.
        size: GuestSize,
        /// As for `Update`.
        resources: Box<Resources>,
    },
    /// To a guest agent: take what has come.
    Expand {
        /// There is a new device with memory.
        memory: bool,
        /// CPUs that the guest has from now on.
        cpus: u32,
    },
    /// To a monitor: one more place in a network.
    Connect(Box<Endpoint>),
    /// To a monitor: the place in this network is given up.
    Disconnect {
        /// Its id.
        network: String,
    },
    /// Other texts of the files in [`LaunchConfig::files`]; one that the instance has changed is left alone.
    Rewrite {
        /// As there; paths that are not there are passed over.
        files: BTreeMap<String, String>,
    },
    /// To a guest agent: a spare network device becomes an interface of the instance's.
    Plug {
        /// Its place among the guest's network devices, in their order on the bus.
        device: usize,
        /// What it becomes.
        interface: Box<Interface>,
    },
    /// To a guest agent: an interface of the instance's becomes a spare network device again.
    Unplug {
        /// As for `Plug`.
        device: usize,
        /// Name of the interface.
        interface: String,
    },
    /// Resource use now.
    Stats,
    /// The instance's processes.
    Processes,
    /// What differs between the instance's root and its image.
    Changes,
    /// What a path of the instance is.
    Stat {
        /// Absolute path inside the instance.
        path: String,
    },
    /// A file or tree out of the instance as a tar stream.
    ArchiveGet {
        /// Absolute path inside the instance.
        path: String,
    },
    /// A tar stream into a directory of the instance.
    ArchivePut {
        /// Absolute path of an existing directory inside the instance.
        path: String,
        /// Refuse to replace a directory by a file or a file by a directory.
        #[serde(default)]
        no_overwrite_dir: bool,
    },
    /// What is on a machine's screen.
    Screenshot,
    /// End an instance that is held without its first process, or a guest: unmount, sync, exit.
    Shutdown,
}

/// What a guest is told at its start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestConfig {
    /// Instance id.
    pub id: String,
    /// The runtime spec, its bind sources rewritten to guest paths.
    pub spec: Spec,
    /// How to run its first process.
    pub launch: LaunchConfig,
    /// Number of layer disks, serials `layer0` (lowest) upwards.
    pub layers: usize,
    /// virtio-fs tags to mount, each at `/run/proa/shares/<tag>`.
    pub shares: Vec<String>,
    /// What its first network devices become, in the order of their places on the bus; the others are spare.
    pub interfaces: Vec<Interface>,
    /// Bytes from the host's random source for the guest's.
    pub entropy: Vec<u8>,
    /// Host time, nanoseconds since the epoch.
    pub time_ns: i64,
}

impl GuestConfig {
    /// What instances have in common that differ in nothing but id, program, user, host name, and the texts of files
    /// they are given: what a guest can do of this before it knows the rest.
    #[must_use]
    pub fn kind(&self) -> Self {
        let process = |process: &Process| Process {
            terminal: process.terminal,
            cwd: process.cwd.clone(),
            ..Process::default()
        };
        let files = self.launch.files.keys().map(|path| (path.clone(), String::new()));
        let launch = LaunchConfig { user: String::new(), files: files.collect(), ..self.launch.clone() };
        Self {
            id: String::new(),
            spec: Spec {
                process: self.spec.process.as_ref().map(process),
                hostname: self.spec.hostname.as_ref().map(|_| String::new()),
                ..self.spec.clone()
            },
            launch,
            interfaces: Vec::new(),
            entropy: Vec::new(),
            time_ns: 0,
            ..self.clone()
        }
    }

    /// What [`GuestConfig::kind`] leaves out.
    #[must_use]
    pub fn part(&self) -> Self {
        let spec = Spec {
            process: self.spec.process.clone(),
            hostname: self.spec.hostname.clone(),
            ..Spec::default()
        };
        Self { spec, ..self.clone() }
    }
}

/// What a guest is to have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestSize {
    /// Memory that the program may use, bytes; 0 for what a guest has of which nothing is said.
    pub memory: u64,
    /// Virtual CPUs; 0 for one.
    pub cpus: u32,
}

/// What the runtime spec has no field for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LaunchConfig {
    /// Docker's `--user` (`name`, `uid`, `name:group`, …), resolved in the instance's root; empty: the spec's.
    pub user: String,
    /// Keep standard input open for clients; otherwise it is /dev/null.
    pub stdin: bool,
    /// Close standard input when the first attached client closes its own (`docker run -i`).
    pub stdin_once: bool,
    /// Run a minimal init as PID 1 (`--init`).
    pub init: bool,
    /// Every device of the place where it runs (`--privileged`).
    pub all_devices: bool,
    /// Files bound into the root: path and text (`/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`).
    pub files: BTreeMap<String, String>,
}

/// A further process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecConfig {
    /// Program, environment, directory, terminal.
    pub process: Process,
    /// As in [`LaunchConfig::user`].
    pub user: String,
    /// The client sends standard input.
    pub stdin: bool,
    /// The client wants the output and the exit status; otherwise the process runs on alone.
    pub attach: bool,
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    /// Done.
    Ok,
    /// The process runs.
    Started {
        /// Its id where the supervisor runs (host or guest).
        pid: u32,
    },
    /// The process ended.
    Exited(ExitStatus),
    /// Something happened by itself.
    Happened(Happening),
    /// A line for the user.
    Notice {
        /// The line.
        message: String,
    },
    /// See [`Stats`].
    Stats(Box<Stats>),
    /// See [`ProcessInfo`].
    Processes {
        /// One entry a process.
        processes: Vec<ProcessInfo>,
    },
    /// See [`Change`].
    Changes {
        /// Sorted by path.
        changes: Vec<Change>,
    },
    /// See [`PathStat`].
    Stat(PathStat),
    /// It failed.
    Error {
        /// What sort of failure.
        kind: ErrorKind,
        /// What failed, on which path, in one or two lines.
        message: String,
    },
}

/// What happens by itself, to whoever watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Happening {
    /// A further process has ended.
    ExecEnded {
        /// The channel that asked for it.
        channel: u32,
        /// Its id where the supervisor runs, as [`Response::Started`] told it.
        pid: u32,
        /// Its exit code.
        code: i32,
    },
    /// The kernel killed something of the instance for memory.
    OutOfMemory,
}

/// Sorts of failure, mapped to exit codes and HTTP statuses at the edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The program does not exist (exit code 127).
    CommandNotFound,
    /// The program cannot be run (exit code 126).
    CommandNotExecutable,
    /// The request makes no sense.
    InvalidInput,
    /// A path inside the instance does not exist.
    NoSuchPath,
    /// The instance is not in a state that allows it.
    Conflict,
    /// This level, host or kernel cannot do it.
    Unsupported,
    /// Anything else.
    Internal,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExitStatus {
    /// 0 to 255; 128 + n after signal n.
    pub code: i32,
    /// The kernel killed something of the instance for memory.
    pub oom_killed: bool,
    /// Nanoseconds since the epoch.
    pub at_ns: i64,
}

/// Resource use of an instance; fields that the host's cgroups cannot tell are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// When, nanoseconds since the epoch.
    pub at_ns: i64,
    /// CPU time used, ns.
    pub cpu_total_ns: u64,
    /// In user mode, ns.
    pub cpu_user_ns: Option<u64>,
    /// In the kernel, ns.
    pub cpu_system_ns: Option<u64>,
    /// CPUs the instance may use at once.
    pub online_cpus: u32,
    /// Memory charged, bytes.
    pub memory_usage: Option<u64>,
    /// Of which inactive page cache, bytes.
    pub memory_inactive_file: Option<u64>,
    /// Its limit, bytes.
    pub memory_limit: Option<u64>,
    /// All memory of the machine that it runs on, a guest's where that is one, bytes.
    pub memory_total: u64,
    /// Tasks.
    pub pids: Option<u64>,
    /// Limit on tasks.
    pub pids_limit: Option<u64>,
    /// Block bytes read.
    pub io_read_bytes: Option<u64>,
    /// Block bytes written.
    pub io_write_bytes: Option<u64>,
    /// Bytes received by its network interfaces, `lo` excepted.
    pub net_rx_bytes: Option<u64>,
    /// Bytes sent by them.
    pub net_tx_bytes: Option<u64>,
    /// How long tasks waited, where the kernel measures that for a cgroup.
    pub pressure: Option<Pressure>,
}

/// Time that tasks of an instance waited for something, ns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pressure {
    /// For a CPU.
    pub cpu: Waited,
    /// For memory.
    pub memory: Waited,
    /// For block I/O.
    pub io: Waited,
}

/// Time waited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Waited {
    /// By some task at least.
    pub some_ns: u64,
    /// By all tasks at once.
    pub full_ns: u64,
}

/// One process of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessInfo {
    /// User id where the supervisor runs.
    pub uid: u32,
    /// Process id where the supervisor runs.
    pub pid: u32,
    /// Its parent.
    pub ppid: u32,
    /// Start, seconds since the epoch.
    pub start_s: i64,
    /// CPU time used, ms.
    pub cpu_ms: u64,
    /// Controlling terminal, `?` for none.
    pub tty: String,
    /// Resident memory, bytes.
    pub rss: u64,
    /// Command line.
    pub command: String,
    /// Name of the program.
    pub name: String,
    /// Name of the user where the supervisor runs, or its number.
    pub user: String,
    /// Group id.
    pub gid: u32,
    /// Name of the group.
    pub group: String,
    /// Process group.
    pub pgid: u32,
    /// Session.
    pub sid: u32,
    /// State as `ps` writes it, with what is to be said of it: `Ss+`.
    pub state: String,
    /// Nice value.
    pub nice: i32,
    /// The kernel's priority.
    pub priority: i32,
    /// Threads.
    pub threads: u32,
    /// Virtual memory, bytes.
    pub vsz: u64,
    /// Resident memory, thousandths of all that the machine has.
    pub of_memory: u32,
}

/// One difference between an instance's root and its image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Change {
    /// Absolute path.
    pub path: String,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// Sorts of change, with Docker's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// `C`
    Modified = 0,
    /// `A`
    Added = 1,
    /// `D`
    Deleted = 2,
}

/// What a path is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathStat {
    /// Last component.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// `st_mode`: type and permissions.
    pub mode: u32,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Where a symbolic link leads, resolved inside the instance's root; empty for anything else.
    pub link_target: String,
}

impl Request {
    /// The frame that carries it.
    pub fn frame(&self, channel: u32) -> Frame {
        Frame::new(channel, Kind::Request, to_json(self))
    }

    /// Reads the payload of a request frame.
    ///
    /// # Errors
    /// The payload is not a request.
    pub fn parse(payload: &[u8]) -> Result<Self, serde_json::Error> {
        if payload.starts_with(CONFIGURE) {
            // The rest is read twice where the sort of a request is only known when all of it has been read, by code
            // that nothing else in a guest needs: an emulated one pays for each line of it.
            return serde_json::from_slice(payload).map(|config| Self::Configure(Box::new(config)));
        }
        if payload.starts_with(EXEC) {
            return serde_json::from_slice(payload).map(|exec| Self::Exec(Box::new(exec)));
        }
        serde_json::from_slice(payload)
    }
}

impl Response {
    /// The frame that carries it; one that would not fit becomes an error that says so.
    pub fn frame(&self, channel: u32) -> Frame {
        let json = to_json(self);
        if json.len() <= MAX_MESSAGE {
            return Frame::new(channel, Kind::Response, json);
        }
        let message = format!("the answer is {} bytes long, more than the {MAX_MESSAGE} allowed", json.len());
        Self::error(ErrorKind::Internal, message).frame(channel)
    }

    /// An error response.
    pub fn error(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Error { kind, message: message.into() }
    }

    /// Reads the payload of a response frame.
    ///
    /// # Errors
    /// The payload is not a response.
    pub fn parse(payload: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(payload)
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    // These types hold only strings, numbers and string-keyed maps, which always serialize.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way() {
        let request = Request::Exec(Box::new(ExecConfig {
            process: Process { args: vec!["ls".into()], cwd: "/".into(), ..Process::default() },
            user: "nobody".into(),
            stdin: true,
            attach: true,
        }));
        assert_eq!(Request::parse(&request.frame(4).payload).unwrap(), request);
        let response = Response::Exited(ExitStatus { code: 137, oom_killed: true, at_ns: 5 });
        assert_eq!(Response::parse(&response.frame(4).payload).unwrap(), response);
    }

    #[test]
    fn an_answer_too_long_to_send_becomes_an_error() {
        let response = Response::Notice { message: "x".repeat(MAX_MESSAGE) };
        let frame = response.frame(1);
        assert!(matches!(Response::parse(&frame.payload).unwrap(), Response::Error { .. }));
    }
}

//! The commands, one file each: its `Args`, and one `run(context, args)`.

pub mod attach;
pub mod compare;
pub mod confirm;
pub mod container_prune;
pub mod cp;
pub mod create;
pub mod diff;
pub mod events;
pub mod exec;
pub mod image;
pub mod info;
pub mod inspect;
pub mod kernel;
pub mod kill;
pub mod logs;
pub mod machine;
pub mod metrics;
pub mod network;
pub mod pause;
pub mod policy;
pub mod port;
pub mod ps;
pub mod rename;
pub mod restart;
pub mod rm;
pub mod run;
pub mod snapshot;
pub mod start;
pub mod stats;
pub mod stop;
pub mod system;
pub mod template;
pub mod top;
pub mod unpause;
pub mod update;
pub mod version;
pub mod volume;
pub mod wait;

use clap::{ArgMatches, Command};

use crate::context::Context;
use crate::error::Outcome;

/// Under which heading help lists a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// What one does first.
    Run,
    /// Work on instances.
    Instance,
    /// Work on images.
    Image,
    /// Docker's longer names.
    Management,
    /// The rest.
    System,
}

impl Group {
    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Run => "Run",
            Self::Instance => "Instances",
            Self::Image => "Images",
            Self::Management => "Management",
            Self::System => "System",
        }
    }
}

/// One command, or a group of commands.
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// What it does, in a line.
    pub about: &'static str,
    /// Its heading.
    pub group: Group,
    /// Not for people.
    pub hidden: bool,
    /// Its options end at its first argument.
    pub runs_program: bool,
    /// Adds its options to a parser.
    pub parser: fn(Command) -> Command,
    /// Does it.
    pub run: fn(&Context, &ArgMatches) -> Outcome,
    /// The commands of a group.
    pub inner: Option<&'static [Entry]>,
}

/// An entry for the command in a module, with what is unlike the others after it.
macro_rules! entry {
    ($group:ident, $name:literal, $($module:ident)::+, $about:literal $(, $field:ident: $value:expr)*) => {
        Entry {
            $($field: $value,)*
            ..Entry {
                name: $name,
                aliases: &[],
                about: $about,
                group: Group::$group,
                hidden: false,
                runs_program: false,
                parser: <$($module)::+::Args as clap::Args>::augment_args,
                run: |context, matches| {
                    let args = <$($module)::+::Args as clap::FromArgMatches>::from_arg_matches(matches);
                    let args = args.map_err(|error| crate::error::Failure::usage(error.to_string()))?;
                    $($module)::+::run(context, &args)
                },
                inner: None,
            }
        }
    };
}

/// An entry for a group of commands.
macro_rules! group {
    ($name:literal, $about:literal, $inner:expr) => {
        Entry {
            name: $name,
            aliases: &[],
            about: $about,
            group: Group::Management,
            hidden: false,
            runs_program: false,
            parser: |parser| parser,
            run: |_, _| Ok(0),
            inner: Some($inner),
        }
    };
}

/// A pause that any signal ends, as it ends the whole command.
pub fn pause(time: std::time::Duration) {
    let timeout =
        rustix::event::Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    // Interrupted or not, what is next is due.
    let _ = rustix::event::poll(&mut [], Some(&timeout));
}

/// All commands.
pub const ALL: &[Entry] = &[
    entry!(Run, "run", run, "Make an instance of an image and run it", runs_program: true),
    entry!(Run, "exec", exec, "Run a program in a running instance", runs_program: true),
    entry!(Run, "ps", ps, "List instances"),
    entry!(Run, "compare", compare, "Measure what each isolation level costs and gives, here", runs_program: true),
    entry!(Instance, "create", create, "Make an instance without running it", runs_program: true),
    entry!(Instance, "start", start, "Run instances that do not run"),
    entry!(Instance, "stop", stop, "Ask instances to end, then end them"),
    entry!(Instance, "restart", restart, "Stop and start instances"),
    entry!(Instance, "kill", kill, "Send a signal to instances"),
    entry!(Instance, "wait", wait, "Wait until instances end, and print their exit codes"),
    entry!(Instance, "rm", rm, "Remove instances"),
    entry!(Instance, "rename", rename, "Give an instance another name"),
    entry!(Instance, "pause", pause, "Freeze instances"),
    entry!(Instance, "unpause", unpause, "Thaw instances"),
    entry!(Instance, "update", update, "Change the limits of instances"),
    entry!(Instance, "attach", attach, "Join the streams of a running instance"),
    entry!(Instance, "logs", logs, "Print what an instance has written"),
    entry!(Instance, "top", top, "List an instance's processes"),
    entry!(Instance, "port", port, "List where an instance's ports can be reached"),
    entry!(Instance, "stats", stats, "Show what instances use"),
    entry!(Instance, "cp", cp, "Copy files into and out of an instance"),
    entry!(Instance, "diff", diff, "List what differs between an instance's files and its image"),
    entry!(Instance, "inspect", inspect, "Print all about instances or images"),
    entry!(Image, "images", image::images, "List images"),
    entry!(Image, "pull", image::pull, "Download an image from a registry"),
    entry!(Image, "push", image::push, "Upload an image to a registry"),
    entry!(Image, "tag", image::tag, "Give an image another name"),
    entry!(Image, "rmi", image::rmi, "Remove images"),
    entry!(Image, "history", image::history, "Show how an image was made"),
    entry!(Image, "load", image::load, "Load images from an archive"),
    entry!(Image, "save", image::save, "Save images to an archive"),
    entry!(Image, "import", image::import, "Make an image of a root file system's tar"),
    entry!(Image, "login", image::login, "Log in to a registry"),
    entry!(Image, "logout", image::logout, "Log out of a registry"),
    group!("container", "Work on instances", CONTAINER),
    group!("image", "Work on images", IMAGE),
    group!("kernel", "Manage kernels of virtual machines", KERNEL),
    group!("machine", "Boot whole disks as machines", MACHINE),
    group!("network", "Work on networks", NETWORK),
    group!("policy", "Hold instances to the Pod Security Standards", POLICY),
    group!("system", "Work on all of it", SYSTEM),
    group!("snapshot", "Keep, bring back and multiply virtual machines that run", SNAPSHOT),
    group!("template", "See what virtual machines start from", TEMPLATE),
    group!("volume", "Work on volumes", VOLUME),
    entry!(System, "events", events, "Print what happens to instances, images and volumes, as it does"),
    entry!(System, "info", info, "Print what Proa finds on this machine"),
    entry!(System, "metrics", metrics, "Print what running instances use, for monitoring systems"),
    entry!(System, "version", version, "Print the version"),
];

const CONTAINER: &[Entry] = &[
    entry!(Instance, "attach", attach, "Join the streams of a running instance"),
    entry!(Instance, "cp", cp, "Copy files into and out of an instance"),
    entry!(Instance, "create", create, "Make an instance without running it", runs_program: true),
    entry!(Instance, "diff", diff, "List what differs between an instance's files and its image"),
    entry!(Instance, "exec", exec, "Run a program in a running instance", runs_program: true),
    entry!(Instance, "inspect", inspect::container, "Print all about instances"),
    entry!(Instance, "kill", kill, "Send a signal to instances"),
    entry!(Instance, "logs", logs, "Print what an instance has written"),
    entry!(Instance, "ls", ps, "List instances", aliases: &["ps", "list"]),
    entry!(Instance, "pause", pause, "Freeze instances"),
    entry!(Instance, "port", port, "List where an instance's ports can be reached"),
    entry!(Instance, "prune", container_prune, "Remove all instances that do not run"),
    entry!(Instance, "rename", rename, "Give an instance another name"),
    entry!(Instance, "restart", restart, "Stop and start instances"),
    entry!(Instance, "rm", rm, "Remove instances", aliases: &["remove"]),
    entry!(Instance, "run", run, "Make an instance of an image and run it", runs_program: true),
    entry!(Instance, "start", start, "Run instances that do not run"),
    entry!(Instance, "stats", stats, "Show what instances use"),
    entry!(Instance, "stop", stop, "Ask instances to end, then end them"),
    entry!(Instance, "top", top, "List an instance's processes"),
    entry!(Instance, "unpause", unpause, "Thaw instances"),
    entry!(Instance, "update", update, "Change the limits of instances"),
    entry!(Instance, "wait", wait, "Wait until instances end, and print their exit codes"),
];

const IMAGE: &[Entry] = &[
    entry!(Image, "history", image::history, "Show how an image was made"),
    entry!(Image, "import", image::import, "Make an image of a root file system's tar"),
    entry!(Image, "inspect", inspect::image, "Print all about images"),
    entry!(Image, "load", image::load, "Load images from an archive"),
    entry!(Image, "ls", image::images, "List images", aliases: &["list"]),
    entry!(Image, "prune", image::prune, "Remove images that nobody names or uses"),
    entry!(Image, "pull", image::pull, "Download an image from a registry"),
    entry!(Image, "push", image::push, "Upload an image to a registry"),
    entry!(Image, "rm", image::rmi, "Remove images", aliases: &["remove"]),
    entry!(Image, "save", image::save, "Save images to an archive"),
    entry!(Image, "tag", image::tag, "Give an image another name"),
];

const KERNEL: &[Entry] = &[
    entry!(Management, "add", kernel::add, "Keep a kernel under a name"),
    entry!(Management, "build", kernel::build, "Build a lean kernel"),
    entry!(Management, "ls", kernel::ls, "List kernels of virtual machines", aliases: &["list"]),
    entry!(Management, "prune", kernel::prune, "Remove kernels that nothing needs"),
    entry!(Management, "rm", kernel::rm, "Remove kernels that nobody uses", aliases: &["remove"]),
    entry!(Management, "use", kernel::choose, "Choose the kernel of virtual machines that name none"),
];

const MACHINE: &[Entry] = &[
    entry!(Management, "create", machine::create, "Make a machine that boots a disk"),
    entry!(
        Management,
        "import",
        machine::import,
        "Make a disk image of a file, to push or to make machines of"
    ),
    entry!(Management, "ls", machine::ls, "List machines", aliases: &["list"]),
    entry!(Management, "save", machine::save, "Make a disk image of a machine's disk"),
    entry!(Management, "screenshot", machine::screenshot, "Write what is on a machine's screen as a PNG"),
    group!("snapshot", "Keep and bring back what is on a machine's disks", MACHINE_SNAPSHOT),
];

const SNAPSHOT: &[Entry] = &[
    entry!(
        Management,
        "create",
        snapshot::create,
        "Keep a virtual machine as it runs: memory, devices and disk"
    ),
    entry!(Management, "fork", snapshot::fork, "Make instances that go on from where one is, or was"),
    entry!(Management, "ls", snapshot::ls, "List an instance's snapshots", aliases: &["list"]),
    entry!(Management, "restore", snapshot::restore, "Make an instance what it was, running"),
    entry!(Management, "rm", snapshot::rm, "Remove snapshots", aliases: &["remove"]),
];

const MACHINE_SNAPSHOT: &[Entry] = &[
    entry!(Management, "create", machine::snapshot::create, "Keep what is on a machine's disks now"),
    entry!(Management, "ls", machine::snapshot::ls, "List a machine's snapshots", aliases: &["list"]),
    entry!(Management, "restore", machine::snapshot::restore, "Make a machine's disks what they were"),
    entry!(Management, "rm", machine::snapshot::rm, "Remove snapshots", aliases: &["remove"]),
];

const NETWORK: &[Entry] = &[
    entry!(Management, "connect", network::connect, "Give an instance a place in a network"),
    entry!(Management, "create", network::create, "Make a network"),
    entry!(Management, "disconnect", network::disconnect, "Take an instance's place in a network away"),
    entry!(Management, "inspect", network::inspect, "Print all about networks"),
    entry!(Management, "ls", network::ls, "List networks", aliases: &["list"]),
    entry!(Management, "prune", network::prune, "Remove networks that no instance is in"),
    entry!(Management, "rm", network::rm, "Remove networks", aliases: &["remove"]),
];

const POLICY: &[Entry] =
    &[entry!(Management, "check", policy::check, "Check an instance, a run line or a file against a policy")];

const TEMPLATE: &[Entry] = &[
    entry!(Management, "ls", template::ls, "List what virtual machines start from instead of booting", aliases: &["list"]),
    entry!(Management, "rm", template::rm, "Remove templates", aliases: &["remove"]),
];

const VOLUME: &[Entry] = &[
    entry!(Management, "create", volume::create, "Make a volume"),
    entry!(Management, "export", volume::export, "Write a volume's files to a tar"),
    entry!(Management, "import", volume::import, "Fill an empty volume from a tar"),
    entry!(Management, "inspect", volume::inspect, "Print all about volumes"),
    entry!(Management, "ls", volume::ls, "List volumes", aliases: &["list"]),
    entry!(Management, "prune", volume::prune, "Remove volumes that nobody named and no instance has"),
    entry!(Management, "rm", volume::rm, "Remove volumes that no instance has", aliases: &["remove"]),
    entry!(Management, "snapshot", volume::snapshot, "Make a volume that is a copy of another"),
];

const SYSTEM: &[Entry] = &[
    entry!(System, "boot", system::boot, "Start what its restart policies want to run after a boot"),
    entry!(System, "check", system::check, "Find, and repair, what a crash left"),
    entry!(System, "disable", system::disable, "Have nothing started at the host's boot any more"),
    entry!(System, "enable", system::enable, "Have what restart policies want started at the host's boot"),
    entry!(System, "df", system::df, "Show what takes how much of the disk"),
    entry!(System, "events", events, "Print what happens to instances, images and volumes, as it does"),
    entry!(
        System,
        "generate",
        system::generate,
        "Make systemd units of files that name instances, volumes and networks"
    ),
    entry!(System, "info", info, "Print what Proa finds on this machine"),
    entry!(System, "prune", system::prune, "Remove what nobody uses"),
    entry!(System, "reap", system::reap, "Remove an instance that was to go when it ended", hidden: true),
    entry!(System, "stop", system::stop, "End everything of this state directory"),
    entry!(System, "top", system::top, "Show what all instances use, the busiest first"),
];

//! Helper programs that run with as little as they need: a user of their own, their own namespaces, a small
//! view of the file system, the descriptors they were given, and no life beyond their parent's.
//!
//! ```text
//!   fork ─▶ session, namespaces ─▶ view: tmpfs, binds, pivot ─▶ user, no new privileges ─▶ descriptors ─▶ Landlock ─▶ exec
//! ```
//!
//! All that needs memory is made before the fork: between it and the program's start nothing is allocated, so
//! a caller with several threads is safe.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit, Signal};

use crate::landlock::{Domain, Use};
use crate::mount::{self, MountAttr, NODEV, NOSUID, RDONLY};
use crate::{exec, handover};

/// User and groups of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User and group id.
    pub id: u32,
    /// Supplementary groups; `None`: the caller's.
    pub groups: Option<Vec<u32>>,
}

/// A part of the host's file system that the program sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// What is at `source`, and mounts below it.
    Bind {
        /// On the host.
        source: PathBuf,
        /// In the view, relative to its root.
        target: PathBuf,
        /// Whether it may be written to.
        writable: bool,
    },
    /// A device node.
    Device(PathBuf),
    /// A symbolic link.
    Link {
        /// In the view, relative to its root.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
}

/// What the program sees of the file system: a read-only tmpfs with entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// An existing directory that the tmpfs covers, in the program's mount namespace alone.
    pub at: PathBuf,
    /// In the order they are made.
    pub entries: Vec<Entry>,
    /// Make it the program's root, with nothing of the host's left; otherwise it is there beside the rest.
    pub root: bool,
}

/// How a program is confined.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Jail {
    /// Who it is; `None`: who the caller is.
    pub identity: Option<Identity>,
    /// New namespaces (`CLONE_NEW…`); a view needs `CLONE_NEWNS`.
    pub namespaces: u64,
    /// What it sees.
    pub view: Option<View>,
    /// Never gain privileges by running a program.
    pub no_new_privileges: bool,
    /// What it may have at most.
    pub limits: Vec<(Resource, u64)>,
    /// Where the kernel has Landlock: beside what the view shows it, whatever it may come to, it has nothing of the file
    /// system and no TCP, and runs no program but itself. It must forbid new privileges.
    pub landlock: bool,
}

/// What a program gets in the place of the file that it opens.
#[derive(Debug, Clone, Copy)]
pub struct Opened<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// Others have it as well: where the program frees a part of it (`fallocate`), that is said to be done and is not.
    pub is_common: bool,
    /// How long it may take to ask.
    pub limit: Duration,
}

impl Jail {
    fn domain(&self, program: &Path) -> io::Result<Option<Domain>> {
        if !self.landlock {
            return Ok(None);
        }
        let loader = exec::interpreter(program)?;
        let entries = self.view.iter().flat_map(|view| &view.entries).filter_map(|entry| match entry {
            Entry::Bind { source, writable: false, .. } => Some((&**source, Use::Read)),
            Entry::Bind { source, writable: true, .. } => Some((&**source, Use::Write)),
            Entry::Device(path) => Some((&**path, Use::Device)),
            Entry::Link { .. } => None,
        });
        let runs = [Some(program), loader.as_deref()].into_iter().flatten().map(|path| (path, Use::Run));
        Domain::new(entries.chain(runs))
    }

    /// Starts `command` in it. The program inherits, beside its standard streams, the descriptors `keep` under
    /// their numbers and no others, is killed when the calling thread ends, and dumps no core.
    ///
    /// # Errors
    /// A step failed; that the program is missing, or a source of the view, is `NotFound`.
    pub fn spawn(&self, mut command: Command, keep: &[BorrowedFd]) -> io::Result<Child> {
        let mut prepared = Prepared::new(self, Path::new(command.get_program()), keep)?;
        // SAFETY: `enter` makes system calls on what was prepared, allocates nothing and takes no lock.
        unsafe { command.pre_exec(move || prepared.enter()) };
        command.spawn()
    }

    /// The same for a program that opens a file for reading and writing (`O_RDWR` and no other flag), which gets
    /// another in its place; it can open no second one in that way. Waits for that, after `meanwhile`, which is done while
    /// the program is loaded. The jail must forbid new privileges.
    ///
    /// # Errors
    /// As for [`Jail::spawn`]; the program ended without opening a file, or did not in time, or `meanwhile` failed: then
    /// it is killed.
    pub fn spawn_with_file(
        &self,
        mut command: Command,
        keep: &[BorrowedFd],
        opened: &Opened,
        meanwhile: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Child> {
        let channel = handover::Channel::new()?;
        let mut prepared = Prepared::new(self, Path::new(command.get_program()), keep)?;
        prepared.listener_to = Some((channel.child().as_raw_fd(), opened.is_common));
        // SAFETY: as above.
        unsafe { command.pre_exec(move || prepared.enter()) };
        let mut child = command.spawn()?;
        if let Err(error) = meanwhile().and_then(|()| channel.complete(opened.file, opened.limit)) {
            // Both fail only for a process that was reaped already.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        Ok(child)
    }
}

struct Prepared {
    parent: Option<rustix::process::Pid>,
    identity: Option<(u32, Option<Vec<libc::gid_t>>)>,
    namespaces: u64,
    view: Option<PreparedView>,
    no_new_privileges: bool,
    limits: Vec<(Resource, u64)>,
    keep: Vec<RawFd>,
    /// Who is told of the filter that holds the opening of a file, and whether others have that file.
    listener_to: Option<(RawFd, bool)>,
    domain: Option<Domain>,
}

struct PreparedView {
    at: CString,
    root: bool,
    steps: Vec<Step>,
    /// Clones of the sources, taken before the tmpfs covers any of them.
    clones: Vec<Option<OwnedFd>>,
}

enum Step {
    Directory(CString),
    File(CString),
    Link { path: CString, target: CString },
    Mount { source: CString, target: CString, attributes: u64 },
}

impl Prepared {
    fn new(jail: &Jail, program: &Path, keep: &[BorrowedFd]) -> io::Result<Self> {
        Ok(Self {
            parent: Some(rustix::process::getpid()),
            identity: jail.identity.as_ref().map(|who| (who.id, who.groups.clone())),
            namespaces: jail.namespaces,
            view: jail.view.as_ref().map(PreparedView::new).transpose()?,
            no_new_privileges: jail.no_new_privileges,
            limits: jail.limits.clone(),
            keep: keep.iter().map(AsRawFd::as_raw_fd).collect(),
            listener_to: None,
            domain: jail.domain(program)?,
        })
    }

    fn enter(&mut self) -> io::Result<()> {
        // It fails where the child leads a session already, which is as good.
        let _ = rustix::process::setsid();
        crate::process::unshare_namespaces(self.namespaces)?;
        if let Some(view) = &mut self.view {
            view.build()?;
        }
        limit(Resource::Core, 0)?;
        for &(resource, most) in &self.limits {
            limit(resource, most)?;
        }
        if let Some((id, groups)) = &self.identity {
            become_user(*id, groups.as_deref())?;
        }
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true)?;
        }
        // After the change of user, which would clear it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != self.parent {
            return Err(Errno::SRCH.into());
        }
        crate::process::close_on_exec_from(3)?;
        for &fd in &self.keep {
            // SAFETY: the descriptor is open: its owner in the parent is borrowed until the fork is done.
            rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(fd) }, FdFlags::empty())?;
        }
        if let Some((socket, is_common)) = self.listener_to {
            // SAFETY: as above; the parent holds it until the program runs.
            handover::prepare_child(unsafe { BorrowedFd::borrow_raw(socket) }, is_common)?;
        }
        self.domain.as_ref().map_or(Ok(()), Domain::enter)
    }
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    Ok(rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// For the whole process, which has one thread: it was just forked.
fn become_user(id: u32, groups: Option<&[libc::gid_t]>) -> io::Result<()> {
    let check = |result: libc::c_long| if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: a length and that many ids; then three integers each.
    unsafe {
        if let Some(groups) = groups {
            check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        }
        check(libc::syscall(libc::SYS_setresgid, id, id, id))?;
        check(libc::syscall(libc::SYS_setresuid, id, id, id))
    }
}

impl PreparedView {
    fn new(view: &View) -> io::Result<Self> {
        let mut steps = Vec::new();
        for entry in &view.entries {
            match entry {
                Entry::Bind { source, target, writable } => {
                    let attributes = NOSUID | NODEV | if *writable { 0 } else { RDONLY };
                    add_mount(&mut steps, source, target, attributes)?;
                }
                Entry::Device(path) => {
                    let target = path.strip_prefix("/").unwrap_or(path);
                    add_mount(&mut steps, path, target, NOSUID)?;
                }
                Entry::Link { path, target } => {
                    steps.push(Step::Link { path: c_string(path)?, target: c_string(target)? });
                }
            }
        }
        let mounts = steps.iter().filter(|step| matches!(step, Step::Mount { .. })).count();
        let clones = (0..mounts).map(|_| None).collect();
        Ok(Self { at: c_string(&view.at)?, root: view.root, steps, clones })
    }

    fn build(&mut self) -> io::Result<()> {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(c"/", private)?;
        self.clone_sources()?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount(c"view", &*self.at, c"tmpfs", flags, Some(c"mode=755,size=64k"))?;
        rustix::process::chdir(&*self.at)?;
        let mut clones = self.clones.iter();
        for step in &self.steps {
            let clone = if matches!(step, Step::Mount { .. }) { clones.next() } else { None };
            step.run(clone.and_then(Option::as_ref))?;
        }
        let here = rustix::fs::open(c".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        mount::set(here.as_fd(), false, &MountAttr { set: RDONLY, ..MountAttr::default() })?;
        if self.root {
            rustix::process::pivot_root(c".", c".")?;
            rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
        }
        Ok(rustix::process::chdir(c"/")?)
    }

    fn clone_sources(&mut self) -> io::Result<()> {
        let sources = self.steps.iter().filter_map(|step| match step {
            Step::Mount { source, attributes, .. } => Some((source, *attributes)),
            _ => None,
        });
        for (clone, (source, attributes)) in self.clones.iter_mut().zip(sources) {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            let tree: OwnedFd = rustix::mount::open_tree(CWD, &**source, flags)?;
            mount::set(tree.as_fd(), true, &MountAttr { set: attributes, ..MountAttr::default() })?;
            *clone = Some(tree);
        }
        Ok(())
    }
}

impl Step {
    fn run(&self, clone: Option<&OwnedFd>) -> io::Result<()> {
        let mode = Mode::from_raw_mode(0o755);
        let made = match (self, clone) {
            (Self::Directory(path), _) => rustix::fs::mkdir(&**path, mode),
            (Self::File(path), _) => rustix::fs::mknodat(CWD, &**path, FileType::RegularFile, mode, 0),
            (Self::Link { path, target }, _) => rustix::fs::symlink(&**target, &**path),
            (Self::Mount { target, .. }, Some(clone)) => {
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                rustix::mount::move_mount(clone, c"", CWD, &**target, flags)
            }
            (Self::Mount { .. }, None) => Err(Errno::BADF),
        };
        match made {
            Err(Errno::EXIST) => Ok(()),
            other => Ok(other?),
        }
    }
}

/// The directories down to `target`, something to mount on, and the mount.
fn add_mount(steps: &mut Vec<Step>, source: &Path, target: &Path, attributes: u64) -> io::Result<()> {
    let mut parents: Vec<&Path> =
        target.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
    parents.reverse();
    for parent in parents {
        steps.push(Step::Directory(c_string(parent)?));
    }
    let place = c_string(target)?;
    let is_directory = std::fs::metadata(source)?.is_dir();
    steps.push(if is_directory { Step::Directory(place.clone()) } else { Step::File(place.clone()) });
    steps.push(Step::Mount { source: c_string(source)?, target: place, attributes });
    Ok(())
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::Stdio;

    const NEW_MOUNTS: u64 = libc::CLONE_NEWNS as u64;

    fn output(jail: &Jail, script: &str, keep: &[BorrowedFd]) -> String {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = jail.spawn(command, keep).expect("this test needs root");
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        child.wait().unwrap();
        text
    }

    fn system_entries() -> Vec<Entry> {
        let bind = |path: &str| Entry::Bind {
            source: path.into(),
            target: path.trim_start_matches('/').into(),
            writable: false,
        };
        ["/usr", "/lib", "/lib64", "/bin"]
            .into_iter()
            .filter(|path| Path::new(path).exists())
            .map(bind)
            .collect()
    }

    #[test]
    fn a_user_of_its_own_without_privileges_or_descriptors() {
        let jail = Jail {
            identity: Some(Identity { id: 0x7000_0001, groups: Some(Vec::new()) }),
            no_new_privileges: true,
            ..Jail::default()
        };
        let kept = std::fs::File::open("/dev/null").unwrap();
        let script = "id -u; grep -E '^(CapEff|CapPrm|CapAmb|NoNewPrivs):' /proc/self/status; ls /proc/$$/fd; ulimit -c";
        let text = output(&jail, script, &[kept.as_fd()]);
        assert!(text.starts_with("1879048193\n"), "{text}");
        assert!(text.contains("CapEff:\t0000000000000000") && text.contains("NoNewPrivs:\t1"), "{text}");
        let numbers: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("NoNew")).skip(1).collect();
        let own = kept.as_raw_fd().to_string();
        assert!(numbers.contains(&own.as_str()), "{text}");
        let others = numbers.iter().filter(|line| !["0", "1", "2", "10", "255", own.as_str()].contains(line));
        assert_eq!(others.count(), 0, "{text}");
    }

    #[test]
    fn a_file_is_handed_over_once_and_can_only_be_read() {
        let scratch = tempdir("handover");
        let (given, named) = (scratch.join("given"), scratch.join("named"));
        std::fs::write(&given, "given").unwrap();
        std::fs::write(&named, "named").unwrap();
        let file = std::fs::File::open(&given).unwrap();
        let jail = Jail { no_new_privileges: true, ..Jail::default() };
        let run = |script: &str| {
            let mut command = Command::new("/usr/bin/perl");
            command.args(["-e", script]).arg(&named).stdin(Stdio::null()).stdout(Stdio::piped());
            let opened = Opened { file: file.as_fd(), is_common: true, limit: Duration::from_secs(10) };
            jail.spawn_with_file(command, &[], &opened, || Ok(()))
        };
        // By the call itself: Perl's functions open with O_CLOEXEC as well.
        let script = "my $open = sub { syscall(257, -100, $ARGV[0], $_[0]) }; \
                      open(F, '<&=', $open->(2)) or die; print <F>; \
                      open(W, '>&=', fileno(F)); print syswrite(W, 'x') ? 'w' : 'r'; \
                      $open->(2) >= 0 or print $!{ENOSYS} ? ' no ' : ' what '; \
                      open(H, '<&=', $open->(0)) or die; print <H>; \
                      my $punch = sub { syscall(285, $_[0], 3, 0, 4096) == 0 ? ' punched' : ' kept' }; \
                      print $punch->(fileno(F)), $punch->(fileno(H))";
        let mut child = run(script).unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        child.wait().unwrap();
        // A hole is said to be there in the file that was handed over, and in no other.
        assert_eq!(text, "givenr no named punched kept");
        assert_eq!(std::fs::read(&given).unwrap(), b"given");
        assert_eq!(run("exit 0").unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn a_file_of_its_own_is_filled_while_it_is_loaded_and_freed_by_it() {
        let scratch = tempdir("own");
        let given = scratch.join("given");
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&given).unwrap();
        let jail = Jail { no_new_privileges: true, ..Jail::default() };
        let opened = Opened { file: file.as_fd(), is_common: false, limit: Duration::from_secs(10) };
        let run = |meanwhile: fn(&std::path::Path) -> io::Result<()>| {
            let script = "my $path = '/dev/null'; my $fd = syscall(257, -100, $path, 2); open(F, '<&=', $fd) or die; \
                          print -s F; print syscall(285, $fd, 3, 0, 4096) == 0 ? ' punched' : ' kept'";
            let mut command = Command::new("/usr/bin/perl");
            command.args(["-e", script]).stdin(Stdio::null()).stdout(Stdio::piped());
            jail.spawn_with_file(command, &[], &opened, || meanwhile(&given))
        };
        let mut child = run(|path| std::fs::write(path, [b'x'; 4096])).unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        child.wait().unwrap();
        assert_eq!(text, "4096 punched");
        assert_eq!(std::fs::read(&given).unwrap(), [0; 4096]);
        let failed = run(|_| Err(io::Error::other("no room"))).unwrap_err();
        assert_eq!(failed.to_string(), "no room");
    }

    #[test]
    fn the_view_hides_the_host_and_refuses_writes() {
        let scratch = tempdir("view");
        std::fs::write(scratch.join("inside"), "seen").unwrap();
        let mut entries = system_entries();
        entries.push(Entry::Device("/dev/null".into()));
        entries.push(Entry::Bind {
            source: scratch.join("inside"),
            target: "data/file".into(),
            writable: false,
        });
        let view = View { at: scratch.clone(), entries, root: true };
        let jail = Jail { namespaces: NEW_MOUNTS, view: Some(view), ..Jail::default() };
        let script =
            "cat /data/file; echo; ls /; echo x > /data/file; echo y > /new; echo z > /dev/null && echo null";
        let text = output(&jail, script, &[]);
        assert!(text.starts_with("seen\n"), "{text}");
        assert!(
            !text.contains("\nproc\n") && !text.contains("\nhome\n") && text.contains("\ndata\n"),
            "{text}"
        );
        assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
        assert!(text.contains("null"), "{text}");
        assert_eq!(std::fs::read_to_string(scratch.join("inside")).unwrap(), "seen");
        std::fs::remove_dir_all(scratch).unwrap();
    }

    #[test]
    fn a_view_beside_the_host_shows_one_file_only() {
        let scratch = tempdir("beside");
        std::fs::create_dir(scratch.join("dir")).unwrap();
        std::fs::write(scratch.join("dir/one"), "1").unwrap();
        std::fs::write(scratch.join("dir/two"), "2").unwrap();
        let at = scratch.join("at");
        std::fs::create_dir(&at).unwrap();
        let one = Entry::Bind { source: scratch.join("dir/one"), target: "root/file".into(), writable: true };
        let view = View { at: at.clone(), entries: vec![one], root: false };
        let jail = Jail { namespaces: NEW_MOUNTS, view: Some(view), ..Jail::default() };
        let script =
            format!("cd {}/root && ls && echo new > file; echo x > other; ls /etc/passwd", at.display());
        let text = output(&jail, &script, &[]);
        assert!(text.starts_with("file\n/etc/passwd\n") && text.contains("Read-only"), "{text}");
        assert_eq!(std::fs::read_to_string(scratch.join("dir/one")).unwrap(), "new\n");
        assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0, "the host sees no mount");
        std::fs::remove_dir_all(scratch).unwrap();
    }

    #[test]
    fn what_is_missing_is_not_found() {
        let view = View {
            at: "/tmp".into(),
            entries: vec![Entry::Bind { source: "/no/such".into(), target: "x".into(), writable: false }],
            root: false,
        };
        let jail = Jail { namespaces: NEW_MOUNTS, view: Some(view), ..Jail::default() };
        let error = jail.spawn(Command::new("/bin/true"), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn in_its_domain_it_has_what_it_is_shown_and_runs_nothing_else() {
        let scratch = tempdir("domain");
        std::fs::write(scratch.join("shown"), "seen").unwrap();
        std::fs::write(scratch.join("hidden"), "not seen").unwrap();
        let mut entries = system_entries();
        entries.push(Entry::Bind { source: scratch.join("shown"), target: "shown".into(), writable: false });
        // The rest of the host stays in sight, as it would for who has broken out of a view.
        let at = scratch.join("at");
        std::fs::create_dir(&at).unwrap();
        let view = View { at, entries, root: false };
        let jail = Jail {
            namespaces: NEW_MOUNTS,
            view: Some(view),
            no_new_privileges: true,
            landlock: true,
            ..Jail::default()
        };
        let place = scratch.display();
        let script = format!(
            "read line < {place}/shown; echo $line; read other < {place}/hidden || echo kept; \
             echo x > {place}/made || echo none; /bin/true || echo refused; echo y > {place}/shown || echo whole"
        );
        let text = output(&jail, &script, &[]);
        if crate::landlock::abi() > 0 {
            let words: Vec<&str> = text.lines().filter(|line| !line.contains(':')).collect();
            assert_eq!(words, ["seen", "kept", "none", "refused", "whole"], "{text}");
        } else {
            assert!(text.starts_with("seen\n"), "{text}");
        }
        std::fs::remove_dir_all(scratch).unwrap();
    }

    fn tempdir(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("proa-jail-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }
}

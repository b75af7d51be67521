//! Docker's default system call filter, as of 2026.

use crate::runtime::{Seccomp, SeccompArg, SeccompRule};

/// Calls that every container may make. Calls of one architecture only are here too: elsewhere they have no
/// number.
///
/// Of the calls since Linux 6.5, what the newest programs use is here, with its kernel: `cachestat` (6.5),
/// `fchmodat2`, `map_shadow_stack` (6.6), `futex_wake`, `futex_wait`, `futex_requeue` (6.7), `statmount`,
/// `listmount` (6.8), `mseal` (6.10), `uretprobe` (6.11), `*xattrat` (6.13), `file_getattr`, `file_setattr`, `uprobe`
/// (6.17): they do by descriptor or faster what older calls here do already, or act on the caller alone.
///
/// Not here, and why:
///
/// | call | reason |
/// | --- | --- |
/// | `io_uring_*` | runs calls past this filter, and a long line of kernel faults |
/// | `userfaultfd` | stops the kernel in the middle of a copy, which makes races certain |
/// | `keyctl`, `add_key`, `request_key` | the keyrings are no namespace's |
/// | `bpf`, `perf_event_open` | look into the whole kernel (by capability below) |
/// | `kexec_*`, `swapon`, `reboot`, modules, clocks | the host's |
/// | `open_tree_attr` (6.15), `mount*`, `fs*`, `move_mount` | mounts (by capability below) |
/// | `lsm_*` (6.8) | show and set the labels that confine the caller (by capability below) |
/// | `listns` (6.19) | names the namespaces of the host |
const ALWAYS: &str = "\
    _llseek _newselect accept accept4 access adjtimex alarm arch_prctl arm_fadvise64_64 arm_sync_file_range \
    bind breakpoint brk cacheflush cachestat capget capset chdir chmod chown chown32 clock_adjtime \
    clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create \
    epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd \
    eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate \
    fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync \
    fgetxattr file_getattr file_setattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 \
    fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv \
    futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 \
    geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid \
    getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid \
    getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch \
    inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents \
    io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount \
    listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack \
    membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap \
    mmap2 modify_ldt mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 \
    mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock \
    munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open \
    pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 \
    preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 \
    ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 \
    restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
    rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max \
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam \
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send \
    sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address set_tls \
    setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid \
    setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 \
    setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown \
    sigaltstack signalfd signalfd4 sigprocmask sigreturn socketpair splice stat stat64 statfs statfs64 \
    statmount statx symlink symlinkat sync sync_file_range sync_file_range2 syncfs sysinfo tee tgkill time \
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate \
    truncate64 ugetrlimit umask uname unlink unlinkat uprobe uretprobe utime utimensat utimensat_time64 \
    utimes vfork vmsplice wait4 waitid waitpid write writev";

/// Calls that need a capability anyway, allowed to those who have it.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree open_tree_attr \
         perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// The flags of `clone(2)` that make namespaces: mount, cgroup, uts, ipc, user, pid, network.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

/// Docker's default system call filter for a process with these capabilities in its bounding set.
///
/// What it refuses fails with `EPERM`; `clone3` with `ENOSYS`, since its flags cannot be seen by a filter and
/// libraries then use `clone`. `AF_ALG` and `AF_VSOCK` sockets are refused. The multiplexer `socketcall` of
/// 32-bit x86 hides the address family from a filter, so it may not make sockets at all (CVE-2026-31431), but by
/// [`allow_socketcall`] where a security module denies them. (Docker leaves the call open and relies on the module,
/// hence is open where there is none.) 32-bit programs can use `socket`, as newer libraries do. x32 is not among the
/// architectures, hence refused.
pub fn default_seccomp(capabilities: &[String]) -> Seccomp {
    let has = |name: &str| capabilities.iter().any(|capability| capability == name);
    let mut syscalls = vec![allow(ALWAYS, vec![])];
    syscalls
        .extend(BY_CAPABILITY.iter().filter(|(name, _)| has(name)).map(|(_, calls)| allow(calls, vec![])));
    syscalls.extend(socket_rules());
    // Docker's personalities: LINUX, LINUX32, and both with UNAME26; and the query.
    let personalities = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
    syscalls.extend(personalities.map(|value| allow("personality", vec![argument(0, "SCMP_CMP_EQ", value)])));
    if !has("CAP_SYS_ADMIN") {
        syscalls.push(allow("clone", vec![argument(0, "SCMP_CMP_MASKED_EQ", NAMESPACE_FLAGS)]));
        syscalls.push(SeccompRule {
            names: vec!["clone3".to_owned()],
            action: "SCMP_ACT_ERRNO".to_owned(),
            errno_ret: Some(ENOSYS),
            args: vec![],
        });
    }
    Seccomp {
        default_action: "SCMP_ACT_ERRNO".to_owned(),
        default_errno_ret: Some(EPERM),
        architectures: architectures().iter().map(ToString::to_string).collect(),
        syscalls,
        ..Seccomp::default()
    }
}

/// Lets 32-bit programs make sockets by `socketcall`, which hides the address family from a filter: only where
/// something else denies `AF_ALG` and `AF_VSOCK`, as our AppArmor profile does.
pub fn allow_socketcall(seccomp: &mut Seccomp) {
    for rule in &mut seccomp.syscalls {
        if rule.names.iter().any(|name| name == "socketcall") {
            rule.args.clear();
        }
    }
}

fn architectures() -> &'static [&'static str] {
    if cfg!(target_arch = "aarch64") {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    } else {
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    }
}

/// Every address family but `AF_ALG` (38) and `AF_VSOCK` (40), as ranges of powers of two: the kernel looks at
/// the lower half of the register only, so a comparison of all of it (Docker's) would let `38 | 1 << 32` pass.
/// By `socketcall`, everything but `SYS_SOCKET` (1).
fn socket_rules() -> Vec<SeccompRule> {
    let families = [(0, 32), (32, 4), (36, 2), (39, 1), (41, 1), (42, 2), (44, 4)];
    let mut rules: Vec<_> = families
        .iter()
        .map(|&(first, count)| {
            let mask = u64::from(u32::MAX) & !(count - 1);
            let lower_half = SeccompArg { value_two: first, ..argument(0, "SCMP_CMP_MASKED_EQ", mask) };
            allow("socket", vec![lower_half])
        })
        .collect();
    rules.push(allow("socketcall", vec![argument(0, "SCMP_CMP_GT", 1)]));
    rules
}

fn allow(names: &str, args: Vec<SeccompArg>) -> SeccompRule {
    SeccompRule {
        names: names.split_whitespace().map(ToOwned::to_owned).collect(),
        action: "SCMP_ACT_ALLOW".to_owned(),
        errno_ret: None,
        args,
    }
}

fn argument(index: u32, op: &str, value: u64) -> SeccompArg {
    SeccompArg { index, value, value_two: 0, op: op.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(profile: &Seccomp, call: &str) -> bool {
        profile.syscalls.iter().any(|rule| {
            rule.args.is_empty() && rule.action == "SCMP_ACT_ALLOW" && rule.names.iter().any(|n| n == call)
        })
    }

    #[test]
    fn capabilities_open_their_calls() {
        let plain = default_seccomp(&[]);
        for call in
            ["mount", "bpf", "unshare", "clone3", "socketcall", "io_uring_setup", "keyctl", "userfaultfd"]
        {
            assert!(!allows(&plain, call), "{call}");
        }
        assert!(allows(&plain, "openat2") && !allows(&plain, "clone"));
        let admin = default_seccomp(&["CAP_SYS_ADMIN".to_owned()]);
        assert!(allows(&admin, "mount") && allows(&admin, "clone3") && !allows(&admin, "reboot"));
        assert!(!allows(&admin, "io_uring_setup"));
        let mut with_lsm = plain.clone();
        allow_socketcall(&mut with_lsm);
        assert!(allows(&with_lsm, "socketcall") && !allows(&with_lsm, "socket"));
    }

    #[test]
    fn the_list_is_sorted_and_has_no_doubles() {
        let names: Vec<_> = ALWAYS.split_whitespace().collect();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]));
    }
}

//! Docker's rules, one by one.

use proa_oci::image::ExecConfig;
use proa_oci::runtime::{ConsoleSize, Process};

use super::process::ExecRequest;
use super::*;
use crate::config::{DeviceMapping, Ulimit, VmOptions};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn config() -> ContainerConfig {
    ContainerConfig { cmd: Some(strings(&["sh"])), image: "busybox".into(), ..ContainerConfig::default() }
}

fn container(config: &ContainerConfig, host: &HostConfig) -> Result<InstanceConfig> {
    let point = |text: &String| Ok(mounts::point_of_bind(&mounts::parse_bind(text)?));
    let points: Vec<MountPoint> = host.binds.iter().map(point).collect::<Result<_>>()?;
    build(ID, config, host, &points, IsolationLevel::Container)
}

fn process(config: &ContainerConfig, host: &HostConfig) -> Process {
    container(config, host).unwrap().spec.process.unwrap()
}

#[test]
fn entrypoint_and_command() {
    let image =
        ExecConfig { entrypoint: strings(&["/ep", "a"]), cmd: strings(&["c"]), ..ExecConfig::default() };
    let args = |entrypoint: Option<&[&str]>, cmd: Option<&[&str]>| {
        let mut config = ContainerConfig {
            entrypoint: entrypoint.map(strings),
            cmd: cmd.map(strings),
            ..ContainerConfig::default()
        };
        merge(&mut config, &image);
        [config.entrypoint, config.cmd].into_iter().flatten().flatten().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(args(None, None), "/ep a c");
    assert_eq!(args(None, Some(&["x", "y"])), "/ep a x y");
    assert_eq!(args(Some(&["e"]), None), "e");
    assert_eq!(args(Some(&["e"]), Some(&["x"])), "e x");
    assert_eq!(args(Some(&[""]), Some(&["x"])), "x");
    assert_eq!(args(Some(&[""]), None), "");
}

#[test]
fn the_image_fills_what_is_open() {
    let image = ExecConfig {
        user: "app".into(),
        working_dir: "/srv".into(),
        stop_signal: "SIGQUIT".into(),
        env: strings(&["A=image", "B=image"]),
        labels: [("a".to_owned(), "image".to_owned()), ("b".to_owned(), "image".to_owned())].into(),
        ..ExecConfig::default()
    };
    let mut config = ContainerConfig {
        env: strings(&["A=user", "C=user"]),
        labels: [("a".to_owned(), "user".to_owned())].into(),
        working_dir: "/mine".into(),
        ..config()
    };
    merge(&mut config, &image);
    assert_eq!(config.env, ["A=user", "C=user", "B=image"]);
    assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("app", "/mine"));
    assert_eq!(config.stop_signal, "SIGQUIT");
    assert_eq!(config.labels["a"], "user");
    assert_eq!(config.labels["b"], "image");
}

#[test]
fn environment_and_directory() {
    let host = HostConfig { console_size: [30, 100], ..HostConfig::default() };
    let plain = process(&config(), &host);
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(plain.env, [path, "HOSTNAME=0123456789ab"]);
    assert_eq!(plain.cwd, "/");
    assert_eq!((plain.terminal, plain.console_size), (false, None));
    let terminal = process(&ContainerConfig { tty: true, env: strings(&["TERM=vt100"]), ..config() }, &host);
    assert_eq!(terminal.env, [path, "HOSTNAME=0123456789ab", "TERM=vt100"]);
    assert_eq!(terminal.console_size, Some(ConsoleSize { height: 30, width: 100 }));
    let relative = ContainerConfig { working_dir: "x".into(), ..config() };
    assert!(container(&relative, &host).unwrap_err().to_string().contains("absolute"));
    let empty = ContainerConfig { cmd: None, ..config() };
    assert!(container(&empty, &host).unwrap_err().to_string().contains("busybox"));
}

#[test]
fn further_processes_are_as_the_first() {
    let config =
        ContainerConfig { working_dir: "/srv".into(), env: strings(&["A=1"]), tty: true, ..config() };
    let first = process(&config, &HostConfig::default());
    let request = ExecRequest {
        command: strings(&["ls"]),
        env: strings(&["A=2", "HOSTNAME"]),
        ..ExecRequest::default()
    };
    let exec = exec_process(&first, &request).unwrap();
    assert_eq!(exec.args, ["ls"]);
    assert_eq!(exec.cwd, "/srv");
    assert!(!exec.terminal && exec.env.contains(&"A=2".to_owned()));
    assert!(!exec.env.iter().any(|entry| entry.starts_with("HOSTNAME=")));
    assert_eq!(exec.capabilities, first.capabilities);
    assert!(exec_process(&first, &ExecRequest::default()).is_err());
    assert!(exec_process(&first, &ExecRequest { working_dir: "x".into(), ..request }).is_err());
}

#[test]
fn names_and_files() {
    let named = ContainerConfig { hostname: "harbour".into(), domainname: "sea".into(), ..config() };
    let host = HostConfig {
        extra_hosts: strings(&["db:10.0.0.2", "six=[fe80::1]"]),
        dns: strings(&["10.0.0.1"]),
        dns_search: strings(&["sea", "lake"]),
        dns_options: strings(&["ndots:2"]),
        network_mode: "none".into(),
        ..HostConfig::default()
    };
    let instance = container(&named, &host).unwrap();
    assert_eq!(instance.spec.hostname.as_deref(), Some("harbour"));
    let files = &instance.launch.files;
    assert_eq!(files["/etc/hostname"], "harbour\n");
    let hosts = &files["/etc/hosts"];
    for line in ["127.0.0.1\tlocalhost", "127.0.1.1\tharbour.sea harbour", "10.0.0.2\tdb", "fe80::1\tsix"] {
        assert!(hosts.lines().any(|found| found == line), "{line} in {hosts}");
    }
    assert_eq!(files["/etc/resolv.conf"], "search sea lake\nnameserver 10.0.0.1\noptions ndots:2\n");
    let mounted = HostConfig { binds: strings(&["/x:/etc/hosts"]), ..HostConfig::default() };
    assert!(!container(&named, &mounted).unwrap().launch.files.contains_key("/etc/hosts"));
    for wrong in ["db", "db:", ":10.0.0.1", "db:host-gateway", "a b:10.0.0.1"] {
        let network_mode = "none".into();
        let host = HostConfig { extra_hosts: strings(&[wrong]), network_mode, ..HostConfig::default() };
        assert!(container(&named, &host).is_err(), "{wrong}");
    }
    for wrong in ["a b", "ä", &"x".repeat(64)] {
        assert!(
            container(&ContainerConfig { hostname: wrong.into(), ..config() }, &host).is_err(),
            "{wrong}"
        );
    }
}

#[test]
fn capabilities_by_dockers_rules() {
    let of = |add: &[&str], drop: &[&str]| {
        let host = HostConfig { cap_add: strings(add), cap_drop: strings(drop), ..HostConfig::default() };
        container(&config(), &host).map(|instance| instance.spec.process.unwrap().capabilities.unwrap())
    };
    let default = of(&[], &[]).unwrap();
    assert_eq!(default.bounding.len(), 14);
    assert!(default.inheritable.is_empty() && default.ambient.is_empty());
    assert_eq!(of(&["net_bind_service"], &["all"]).unwrap().effective, ["CAP_NET_BIND_SERVICE"]);
    assert!(of(&["SYS_ADMIN"], &[]).unwrap().bounding.contains(&"CAP_SYS_ADMIN".into()));
    assert!(!of(&[], &["CAP_CHOWN"]).unwrap().bounding.contains(&"CAP_CHOWN".into()));
    assert!(!of(&["ALL"], &["chown"]).unwrap().bounding.contains(&"CAP_CHOWN".into()));
    assert!(of(&["FLYING"], &[]).unwrap_err().to_string().contains("FLYING"));
}

#[test]
fn security_options() {
    let with = |options: &[&str]| {
        let host = HostConfig { security_opt: strings(options), ..HostConfig::default() };
        container(&config(), &host).map(|instance| instance.spec)
    };
    assert!(with(&[]).unwrap().linux.unwrap().seccomp.is_some());
    assert!(with(&["seccomp=unconfined"]).unwrap().linux.unwrap().seccomp.is_none());
    assert!(with(&["no-new-privileges"]).unwrap().process.unwrap().no_new_privileges);
    assert!(!with(&["no-new-privileges:false"]).unwrap().process.unwrap().no_new_privileges);
    assert!(with(&["systempaths=unconfined"]).unwrap().linux.unwrap().masked_paths.is_empty());
    assert!(with(&["apparmor=unconfined", "label=disable", "landlock=unconfined"]).is_ok());
    for wrong in ["speed=9", "no-new-privileges=perhaps", "seccomp={", "seccomp={}"] {
        assert!(with(&[wrong]).is_err(), "{wrong}");
    }
}

#[test]
fn privileged_is_everything() {
    let host = |options: &[&str]| HostConfig {
        privileged: true,
        security_opt: strings(options),
        ..HostConfig::default()
    };
    for level in [IsolationLevel::Container, IsolationLevel::Vm] {
        let instance = build(ID, &config(), &host(&[]), &[], level).unwrap();
        assert!(instance.launch.all_devices);
        let process = instance.spec.process.unwrap();
        let bounding = process.capabilities.unwrap().bounding;
        assert!(bounding.contains(&"CAP_SYS_ADMIN".into()) && !process.no_new_privileges);
        assert!(level == IsolationLevel::Container || bounding.len() == 41);
        let linux = instance.spec.linux.unwrap();
        assert!(linux.seccomp.is_none() && linux.masked_paths.is_empty() && linux.readonly_paths.is_empty());
        let rules = linux.resources.unwrap().devices;
        assert!(rules.len() == 1 && rules[0].allow && rules[0].major.is_none());
        let options = |destination: &str| {
            let mount = instance.spec.mounts.iter().find(|mount| mount.destination == destination);
            mount.unwrap().options.clone()
        };
        assert!(options("/dev").contains(&"dev".into()));
        for writable in ["/sys", "/sys/fs/cgroup"] {
            assert!(!options(writable).contains(&"ro".into()), "{writable}");
        }
    }
    let named = host(&[r#"seccomp={"defaultAction":"SCMP_ACT_ALLOW"}"#, "no-new-privileges"]);
    let spec = container(&config(), &named).unwrap().spec;
    assert!(spec.linux.unwrap().seccomp.is_some() && spec.process.unwrap().no_new_privileges);
    let mut shown = host(&[]);
    complete(&mut shown, IsolationLevel::Container).unwrap();
    assert_eq!(shown.security_opt, ["label=disable"]);
}

#[test]
fn users_and_groups() {
    let host = HostConfig { group_add: strings(&["audio", "4242"]), ..HostConfig::default() };
    let instance = container(&config(), &host).unwrap();
    // Docker's default is root by name, with root's groups.
    assert_eq!(instance.launch.user, "0");
    assert_eq!(instance.spec.process.unwrap().user.additional_groups, ["audio", "4242"]);
    let named = ContainerConfig { user: "app".into(), ..config() };
    assert_eq!(container(&named, &host).unwrap().launch.user, "app");
}

#[test]
fn dockers_profile_format() {
    let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,
        "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]},
                   {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]}],
        "syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW"},
                    {"name":"open","action":"SCMP_ACT_ALLOW"},
                    {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
                    {"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_CHOWN"]}},
                    {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
                    {"names":["future"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"999.0"}},
                    {"names":["s390"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["s390x"]}}]}"#;
    let host = HostConfig { security_opt: vec![format!("seccomp={text}")], ..HostConfig::default() };
    let seccomp = container(&config(), &host).unwrap().spec.linux.unwrap().seccomp.unwrap();
    assert_eq!(seccomp.architectures.len(), 2);
    let names: Vec<&str> = seccomp.syscalls.iter().flat_map(|rule| &rule.names).map(String::as_str).collect();
    assert_eq!(names, ["read", "write", "open", "ptrace"]);
}

#[test]
fn limits() {
    let host = HostConfig {
        memory: 96 << 20,
        nano_cpus: 500_000_000,
        pids_limit: Some(6),
        ulimits: vec![Ulimit::parse("nofile=123:456").unwrap(), Ulimit::parse("core=-1").unwrap()],
        shm_size: 1 << 20,
        ..HostConfig::default()
    };
    let instance = container(&config(), &host).unwrap();
    let resources = instance.spec.linux.unwrap().resources.unwrap();
    let memory = resources.memory.unwrap();
    assert_eq!((memory.limit, memory.swap), (Some(96 << 20), Some(192 << 20)));
    let cpu = resources.cpu.unwrap();
    assert_eq!((cpu.period, cpu.quota), (Some(100_000), Some(50_000)));
    assert_eq!(resources.pids.unwrap().limit, 6);
    let rlimits = instance.spec.process.unwrap().rlimits;
    assert_eq!((rlimits[0].kind.as_str(), rlimits[0].soft, rlimits[0].hard), ("RLIMIT_NOFILE", 123, 456));
    assert_eq!(rlimits[1].hard, u64::MAX);
    let shm = instance.spec.mounts.iter().find(|mount| mount.destination == "/dev/shm").unwrap();
    assert!(shm.options.contains(&"size=1048576".into()));
    for wrong in [
        HostConfig { memory: 1024, ..HostConfig::default() },
        HostConfig { memory: 10 << 20, memory_swap: 9 << 20, ..HostConfig::default() },
        HostConfig { memory_swap: 9 << 20, ..HostConfig::default() },
        HostConfig { memory: 10 << 20, memory_reservation: 11 << 20, ..HostConfig::default() },
        HostConfig { nano_cpus: -1, ..HostConfig::default() },
        HostConfig { nano_cpus: i64::MAX, ..HostConfig::default() },
        HostConfig { nano_cpus: 1, ..HostConfig::default() },
        HostConfig { nano_cpus: 1_000_000_000, cpu_quota: 5, ..HostConfig::default() },
        HostConfig { cpuset_cpus: "x".into(), ..HostConfig::default() },
        HostConfig { shm_size: 0, ..HostConfig::default() },
    ] {
        assert!(container(&config(), &wrong).is_err(), "{wrong:?}");
    }
    for wrong in ["", "nofile", "speed=9", "nofile=x", "nofile=5:4", "nofile=-1:4", "nofile=-2"] {
        assert!(Ulimit::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn without_limits_nothing_is_limited() {
    let resources =
        container(&config(), &HostConfig::default()).unwrap().spec.linux.unwrap().resources.unwrap();
    assert!(resources.memory.is_none() && resources.cpu.is_none() && resources.pids.is_none());
}

#[test]
fn devices() {
    let mapping = DeviceMapping::parse("/dev/null:/dev/nothing:rw").unwrap();
    let host = HostConfig { devices: vec![mapping], ..HostConfig::default() };
    let linux = container(&config(), &host).unwrap().spec.linux.unwrap();
    assert_eq!(
        (linux.devices[0].path.as_str(), linux.devices[0].major, linux.devices[0].minor),
        ("/dev/nothing", 1, 3)
    );
    assert_eq!(linux.resources.unwrap().devices.last().unwrap().access.as_deref(), Some("rw"));
    assert_eq!(DeviceMapping::parse("/dev/null:r").unwrap().path_in_container, "/dev/null");
    let rule = |text: &str| {
        let host = HostConfig { device_cgroup_rules: strings(&[text]), ..HostConfig::default() };
        container(&config(), &host).map(|instance| instance.spec.linux.unwrap().resources.unwrap().devices)
    };
    let last = rule("c 42:* rmw").unwrap().pop().unwrap();
    assert_eq!(
        (last.allow, last.major, last.minor, last.access.as_deref()),
        (true, Some(42), None, Some("rmw"))
    );
    for wrong in ["", "c", "c 1:1", "x 1:1 r", "c 1 r", "c 1:1 rwx", "c 1:-1 r", "c 1:1 rwmr", "c  1:1 r"] {
        assert!(rule(wrong).is_err(), "{wrong}");
    }
    for wrong in ["null", "/dev/null:null", "/dev/null:/x:z", "/a:/b:r:w"] {
        assert!(DeviceMapping::parse(wrong).is_err(), "{wrong}");
    }
    let directory =
        HostConfig { devices: vec![DeviceMapping::parse("/dev:/all/:r").unwrap()], ..HostConfig::default() };
    let linux = container(&config(), &directory).unwrap().spec.linux.unwrap();
    let null = linux.devices.iter().find(|device| device.path == "/all/null").unwrap();
    assert_eq!((null.major, null.minor), (1, 3));
    assert!(
        linux.resources.unwrap().devices.iter().rev().take(3).all(|rule| rule.access.as_deref() == Some("r"))
    );
    for path in ["/no/such/device", "/etc/passwd", "/etc"] {
        let host = HostConfig { devices: vec![DeviceMapping::parse(path).unwrap()], ..HostConfig::default() };
        assert!(container(&config(), &host).unwrap_err().to_string().contains(path));
    }
}

#[test]
fn networks() {
    let host = HostConfig { network_mode: "host".into(), ..HostConfig::default() };
    let spec = container(&config(), &host).unwrap().spec;
    assert!(!spec.linux.unwrap().namespaces.iter().any(|namespace| namespace.kind == NamespaceKind::Network));
    let none = container(&config(), &HostConfig::default()).unwrap().spec;
    assert!(none.linux.unwrap().namespaces.iter().any(|namespace| namespace.kind == NamespaceKind::Network));
    let named = HostConfig { network_mode: "mine".into(), ..HostConfig::default() };
    let instance = container(&config(), &named).unwrap();
    // Whose address is written there is known when it has one.
    assert!(!instance.launch.files["/etc/hosts"].contains("127.0.1.1"));
    assert_eq!(instance.spec.linux.unwrap().sysctl["net.ipv4.ip_unprivileged_port_start"], "0");
    let sysctl = |key: &str, network: &str| {
        let sysctls = [(key.to_owned(), "1".to_owned())].into();
        container(&config(), &HostConfig { sysctls, network_mode: network.into(), ..HostConfig::default() })
    };
    assert!(sysctl("net.core.somaxconn", "none").is_ok());
    assert!(sysctl("kernel.shmmax", "none").is_ok());
    for (key, network) in
        [("net.core.somaxconn", "host"), ("kernel.core_pattern", "none"), ("net.x/../../k", "none")]
    {
        assert!(sysctl(key, network).is_err(), "{key}");
    }
}

#[test]
fn what_means_nothing_at_a_level_is_refused() {
    let kernel = VmOptions { kernel: Some("/boot/vmlinuz".into()), ..VmOptions::default() };
    let disk = VmOptions { disk_size: Some(1 << 30), ..VmOptions::default() };
    let boot = VmOptions { no_template: true, ..VmOptions::default() };
    let device = DeviceMapping::parse("/dev/null").unwrap();
    for (level, host, flag) in [
        (IsolationLevel::Container, HostConfig { vm: kernel, ..HostConfig::default() }, "--kernel"),
        (IsolationLevel::Container, HostConfig { vm: disk, ..HostConfig::default() }, "--disk-size"),
        (IsolationLevel::Container, HostConfig { vm: boot, ..HostConfig::default() }, "--no-template"),
        (
            IsolationLevel::Vm,
            HostConfig { network_mode: "host".into(), ..HostConfig::default() },
            "--network host",
        ),
        (IsolationLevel::Vm, HostConfig { devices: vec![device], ..HostConfig::default() }, "--device"),
        (
            IsolationLevel::Vm,
            HostConfig { device_cgroup_rules: strings(&["c 1:1 r"]), ..HostConfig::default() },
            "--device-cgroup-rule",
        ),
        (
            IsolationLevel::Vm,
            HostConfig { cpuset_cpus: "0".into(), ..HostConfig::default() },
            "--cpuset-cpus",
        ),
    ] {
        let error = build(ID, &config(), &host, &[], level).unwrap_err();
        assert!(error.to_string().contains(flag), "{error}");
        let other = if level == IsolationLevel::Vm { IsolationLevel::Container } else { IsolationLevel::Vm };
        let elsewhere = build(ID, &config(), &host, &[], other).map_err(|error| error.to_string());
        assert!(!elsewhere.is_err_and(|error| error.contains("means nothing")), "{flag}");
    }
}

#[test]
fn a_guest_has_whole_cpus() {
    let host = HostConfig { nano_cpus: 1_000_000_001, memory: 256 << 20, ..HostConfig::default() };
    if std::thread::available_parallelism().unwrap().get() < 2 {
        return;
    }
    let vm = build(ID, &config(), &host, &[], IsolationLevel::Vm).unwrap().vm;
    assert_eq!((vm.cpus, vm.memory), (2, 256 << 20));
}

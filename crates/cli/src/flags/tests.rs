//! Options as people write them.

use clap::{Args, Command, FromArgMatches};
use proa_engine::config::HostConfig;
use proa_protocol::instance::IsolationLevel;

use super::*;

fn parse(line: &[&str]) -> Result<ContainerFlags, clap::Error> {
    let command =
        ContainerFlags::augment_args(Command::new("run").no_binary_name(true).disable_help_flag(true));
    let arguments = line.iter().map(Into::into).collect();
    let matches = crate::cli::parse_matches(command, arguments, true)?;
    ContainerFlags::from_arg_matches(&matches)
}

fn read(line: &[&str]) -> Wanted {
    parse(line).unwrap().read(&[], false).unwrap()
}

fn refused(line: &[&str]) -> Failure {
    parse(line).unwrap().read(&[], false).unwrap_err()
}

#[test]
fn options_end_where_the_image_stands() {
    let wanted = read(&["--rm", "-it", "-eA=1", "--name=web", "busybox", "ls", "--name", "-l", "--", "-e"]);
    assert_eq!(wanted.image, "busybox");
    assert_eq!(wanted.config.cmd.unwrap(), ["ls", "--name", "-l", "--", "-e"]);
    assert!(wanted.config.tty && wanted.config.open_stdin && wanted.host_config.auto_remove);
    assert_eq!(wanted.config.env, ["A=1"]);
    let dashes = read(&["--", "busybox", "-x"]);
    assert_eq!(dashes.config.cmd.unwrap(), ["-x"]);
    assert!(parse(&["--rm"]).is_err());
    assert!(parse(&["--no-such-flag", "busybox"]).is_err());
}

#[test]
fn defaults_are_dockers() {
    let wanted = read(&["busybox"]);
    assert_eq!(wanted.level, IsolationLevel::Container);
    let mut expected = HostConfig::default();
    // The driver is the host's to choose.
    expected.log_config.kind.clear();
    assert_eq!(wanted.host_config, expected);
    assert_eq!(wanted.config.cmd, None);
    assert!(wanted.config.attach_stdout && wanted.config.attach_stderr && !wanted.config.attach_stdin);
}

#[test]
fn everything_at_once() {
    let line = [
        "-h",
        "box",
        "-u",
        "nobody",
        "-w",
        "/srv",
        "--entrypoint",
        "",
        "-l",
        "a=1",
        "-l",
        "b",
        "-v",
        "/a:/b:ro",
        "--tmpfs",
        "/t:size=1m",
        "--mount",
        "type=bind,src=/a,dst=/c",
        "-m",
        "96m",
        "--memory-swap",
        "-1",
        "--cpus",
        "1.5",
        "--pids-limit",
        "-1",
        "--ulimit",
        "nofile=1:2",
        "--cap-add",
        "NET_ADMIN",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--network",
        "host",
        "--init",
        "--stop-signal",
        "QUIT",
        "--stop-timeout",
        "-1",
        "--read-only",
        "--shm-size",
        "1m",
        "--add-host",
        "db:10.0.0.1",
        "--dns",
        "10.0.0.2",
        "--log-opt",
        "max-size=1m",
        "--sysctl",
        "net.core.somaxconn=5",
        "--device",
        "/dev/null",
        "--isolation",
        "vm",
        "--restart",
        "no",
        "busybox",
    ];
    let Wanted { config, host_config: host, level, .. } = read(&line);
    assert_eq!(level, IsolationLevel::Vm);
    assert_eq!(
        (config.hostname.as_str(), config.user.as_str(), config.working_dir.as_str()),
        ("box", "nobody", "/srv")
    );
    assert_eq!(config.entrypoint.unwrap(), [""]);
    assert_eq!(config.labels["b"], "");
    assert_eq!(
        (host.memory, host.memory_swap, host.nano_cpus, host.pids_limit),
        (96 << 20, -1, 1_500_000_000, Some(-1))
    );
    assert_eq!(host.tmpfs["/t"], "size=1m");
    assert_eq!((host.binds.len(), host.mounts.len(), host.devices.len(), host.ulimits.len()), (1, 1, 1, 1));
    assert_eq!(config.stop_timeout, Some(-1));
    assert_eq!(host.log_config.config["max-size"], "1m");
    assert!(host.readonly_rootfs && host.init == Some(true));
}

#[test]
fn relative_volumes_are_ours() {
    let here = std::env::current_dir().unwrap();
    let binds = |text| read(&["-v", text, "busybox"]).host_config.binds.remove(0);
    assert_eq!(binds("./x:/b"), format!("{}/x:/b", here.display()));
    assert_eq!(binds(".:/b:ro"), format!("{}:/b:ro", here.display()));
}

#[test]
fn nonsense_is_refused_with_125() {
    for line in [
        &["-m", "lots", "busybox"][..],
        &["--cpus", "-1", "busybox"],
        &["--ulimit", "speed=9", "busybox"],
        &["--isolation", "hope", "busybox"],
        &["--pull", "sometimes", "busybox"],
        &["--network", "container:", "busybox"],
        &["--network", "name=,alias=x", "busybox"],
        &["-p", "80:80/icmp", "busybox"],
        &["-v", "relative", "busybox"],
        &["-e", "=x", "busybox"],
        &["--env-file", "/no/such/file", "busybox"],
        &["--security-opt", "seccomp=/no/such/profile", "busybox"],
        &["--stop-signal", "NOSUCH", "busybox"],
        &["--restart", "always", "--rm", "busybox"],
        &["--restart", "sometimes", "busybox"],
        &["--depends-on", "db:well", "busybox"],
        &["--restart", "always:3", "busybox"],
        &["--health-cmd", "true", "--no-healthcheck", "busybox"],
        &["--health-interval", "-1s", "busybox"],
        &["--health-retries", "-1", "busybox"],
        &["--health-timeout", "long", "busybox"],
        &["--gpus=all", "busybox"],
    ] {
        let failure = refused(line);
        assert_eq!(failure.code(), 125, "{line:?}: {failure:?}");
    }
    assert!(parse(&["--pids-limit", "x", "busybox"]).is_err());
    assert!(parse(&["--oom-score-adj", "1001", "busybox"]).is_err());
}

#[test]
fn what_is_attached() {
    let attached = |attach: &[&str], detached| {
        let attach: Vec<String> = attach.iter().map(ToString::to_string).collect();
        let wanted = parse(&["-i", "busybox"]).unwrap().read(&attach, detached);
        wanted.map(|wanted| {
            (wanted.config.attach_stdin, wanted.config.attach_stdout, wanted.config.attach_stderr)
        })
    };
    assert_eq!(attached(&[], false).unwrap(), (true, true, true));
    assert_eq!(attached(&[], true).unwrap(), (false, false, false));
    assert_eq!(attached(&["STDERR"], false).unwrap(), (false, false, true));
    assert!(attached(&["stdfoo"], false).is_err());
    assert!(attached(&["stdout"], true).is_err());
}

#[test]
fn environment_files() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "# comment\n\nA=1\n  B=two words\nPATH\nNO_SUCH_VARIABLE_HERE\n").unwrap();
    let env = environment(&[file.path().to_owned()], &["A=3".into()]).unwrap();
    assert_eq!(
        (env[0].as_str(), env[1].as_str(), env.last().unwrap().as_str()),
        ("A=1", "B=two words", "A=3")
    );
    assert!(env[2].starts_with("PATH=/"));
    assert_eq!(env.len(), 4);
    std::fs::write(file.path(), "A B=1\n").unwrap();
    assert!(environment(&[file.path().to_owned()], &[]).is_err());
}

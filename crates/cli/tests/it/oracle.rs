//! Debian's Docker as the oracle: the same command lines are run by it and by us, and the answers compared one by one.
//!
//! A line that differs on purpose says why, and must differ: where it no longer does, the table is to be corrected.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::harness::{Output, Proa};
use crate::lan::Lan;

/// A daemon with all its state in a directory of its own, in the caller's network namespace.
struct Docker {
    child: Child,
    directory: tempfile::TempDir,
}

impl Docker {
    fn start(proa: &Proa) -> Self {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let at = |name: &str| directory.path().join(name);
        let log = File::create(at("log")).unwrap();
        let mut command = Command::new("dockerd");
        for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(option).arg(at(name));
        }
        command.arg("--host").arg(format!("unix://{}", at("socket").display()));
        command.args(["--storage-driver=overlay2", "--userland-proxy=false"]).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().expect("dockerd is needed: apt-get install docker.io");
        let docker = Self { child, directory };
        proa.wait_for("dockerd", || docker.run(proa, &["version"]).code == 0);
        let import = [
            "import",
            "--change",
            "CMD [\"sh\"]",
            "--change",
            "ENV PATH=/bin",
            Proa::busybox_tar(),
            "busybox",
        ];
        let imported = docker.run(proa, &import);
        assert_eq!(imported.code, 0, "{imported:?}");
        docker
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.directory.path().join("socket").display())
    }

    fn run(&self, proa: &Proa, words: &[&str]) -> Output {
        let mut command = Command::new("docker");
        command.args(["--host", &self.socket()]).args(words);
        proa.run_command(command, b"")
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // By SIGTERM it ends its containerd and its mounts.
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
        let netns = self.directory.path().join("exec/netns/default");
        let _ = Command::new("umount").arg("-q").arg(Path::new(&netns)).stderr(Stdio::null()).status();
    }
}

/// Lines, a word each but for what is in quotation marks. `$` stands before one that is only there to set the others up,
/// `code` before one of which the exit code alone is compared, `names` before one of which it is the addresses that
/// nslookup has found, and `until LINE = TEXT` is asked again until it prints that.
struct Case {
    lines: &'static [&'static str],
    /// Lines that are different on purpose, with the reason.
    differs: &'static [(&'static str, &'static str)],
}

/// Ports: what is asked for, what is told of it, and what is refused.
const PORTS: Case = Case {
    lines: &[
        "$create --name aa -p 80 busybox",
        "inspect -f '{{json .HostConfig.PortBindings}}' aa",
        "$create --name bb -p 8080:80 -p 127.0.0.1:8081:81 -p 127.0.0.1::82 -p 8082:80/udp busybox",
        "inspect -f '{{json .HostConfig.PortBindings}}' bb",
        "$create --name cc -p 9000-9002:80-82 -p 0.0.0.0:84:84/sctp busybox",
        "inspect -f '{{json .HostConfig.PortBindings}}' cc",
        "inspect -f '{{json .Config.ExposedPorts}}' cc",
        "$create --name ee --expose 7 --expose 10-12/udp busybox",
        "inspect -f '{{json .Config.ExposedPorts}}' ee",
        "$run -d --name dd -p 127.0.0.1:18080:80 -p 127.0.0.1:18081:81/udp -p 127.0.0.1:18090-18091:90-91 busybox sleep 1000",
        "port dd",
        "port dd 80",
        "port dd 81/udp",
        "port dd 81",
        "port dd 99",
        "port nobody",
        "inspect -f '{{json .NetworkSettings.Ports}}' dd",
        "ps --format {{.Ports}}",
        "run --rm -p 127.0.0.1:18080:80 busybox true",
        "run --rm -p [::1]:8383:80 busybox true",
        "run --rm -p 80: busybox true",
        "run --rm -p x busybox true",
        "run --rm -p 70000:80 busybox true",
        "run --rm -p 80/icmp busybox true",
        "run --rm -p 1-3:80-81 busybox true",
        "run --rm -p 203.0.113.1:80:80 busybox true",
        "$stop -t 0 dd",
        "port dd",
        "inspect -f '{{json .NetworkSettings.Ports}}' dd",
    ],
    differs: &[],
};

/// Networks, their names and errors.
const NETWORKS: Case = Case {
    lines: &[
        "$network create --subnet 198.18.5.0/24 --gateway 198.18.5.1 --label a=b net",
        "$network create --internal --subnet 198.18.6.0/24 inside",
        "network ls --filter name=net --format '{{.Name}} {{.Driver}} {{.Scope}}'",
        "network inspect -f '{{.Name}} {{.Driver}} {{.Scope}} {{.Internal}} {{.EnableIPv6}} {{.Attachable}} {{.Ingress}}' net",
        "network inspect -f '{{json .IPAM}}' net",
        "network inspect -f '{{json .Labels}}' net",
        "network inspect -f '{{.Internal}}' inside",
        "network create net",
        "network create --subnet nonsense net2",
        "network rm nobody",
        "network inspect nobody",
        "network connect nobody nobody",
        "$run -d --name one --network net --ip 198.18.5.9 --network-alias web --network-alias front -h first busybox sleep 1000",
        "$run -d --name two --network net -h second busybox sleep 1000",
        "code exec two ping -c 1 -W 5 -q web",
        "names exec two nslookup front",
        "names exec two nslookup one",
        "names exec one nslookup two",
        "names exec one nslookup second",
        "exec one nslookup nobody",
        "inspect -f '{{.NetworkSettings.Networks.net.IPAddress}} {{.NetworkSettings.Networks.net.IPPrefixLen}}' one",
        "inspect -f '{{.NetworkSettings.Networks.net.Gateway}} {{.NetworkSettings.Networks.net.MacAddress}}' one",
        "inspect -f '{{.NetworkSettings.IPAddress}}' one",
        "inspect -f '{{.HostConfig.NetworkMode}}' one",
        "exec one ip route",
        "exec one cat /sys/class/net/eth0/address",
        "run --rm --network net --ip 198.18.5.9 busybox true",
        "run --rm --network net --ip 10.0.0.1 busybox true",
        "run --rm --network nobody busybox true",
        "run --rm --network net --mac-address 02:42:00:00:00:99 busybox cat /sys/class/net/eth0/address",
        "network connect net one",
        "network connect --alias other inside one",
        "exec one ls /sys/class/net",
        "network disconnect inside one",
        "network disconnect inside one",
        "network rm net",
        "network disconnect net nobody",
        "ps --filter network=net --format {{.Names}}",
        "run --rm --network none busybox ls /sys/class/net",
        "run --rm --network none --ip 10.0.0.1 busybox true",
        "run --rm --network container:nobody busybox true",
        "run --rm --network container:one busybox hostname",
        "network prune -f",
        "network ls -q --filter name=inside",
    ],
    differs: &[
        (
            "network create --subnet nonsense net2",
            "a flag that cannot be read is 125, whoever would have looked at it",
        ),
        (
            "run --rm --network net --mac-address 02:42:00:00:00:99 busybox cat /sys/class/net/eth0/address",
            "Docker 20.10 refuses it; newer versions do not",
        ),
    ],
};

/// Volumes, restarts and health.
const LIFE: Case = Case {
    lines: &[
        "run --rm -v filled:/var/www busybox ls /var/www",
        "run --rm -v filled:/elsewhere busybox ls /elsewhere",
        "run --rm -v bare:/var/www:nocopy busybox ls /var/www",
        "run --rm --mount type=volume,src=empty,dst=/var/www,volume-nocopy busybox ls /var/www",
        "run --rm --mount type=volume,src=filled,dst=/var/www,readonly busybox touch /var/www/x",
        "volume ls --format '{{.Driver}} {{.Name}}' --filter name=filled",
        "volume inspect -f '{{.Name}} {{.Driver}} {{.Scope}}' filled",
        "volume rm nobody",
        "$create --name user -v filled:/x busybox",
        "volume rm filled",
        "$rm user",
        "volume rm filled",
        "$run -d --name again --restart on-failure:2 busybox sh -c 'exit 3'",
        "until inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}' again = exited 3 2",
        "inspect -f '{{json .HostConfig.RestartPolicy}}' again",
        "run --restart nonsense busybox true",
        "run --rm --restart always busybox true",
        "$run -d --name ill --health-cmd 'test -f /ok' --health-interval 300ms --health-retries 2 busybox sleep 1000",
        "until inspect -f '{{.State.Health.Status}}' ill = unhealthy",
        "$exec ill touch /ok",
        "until inspect -f '{{.State.Health.Status}} {{.State.Health.FailingStreak}}' ill = healthy 0",
        "inspect -f '{{json .Config.Healthcheck}}' ill",
        "run --rm busybox sh -c 'exit 7'",
        "run --rm busybox nothing",
        "run --rm busybox /etc",
        "exec nobody true",
        "exec ill nothing",
        "stop nobody",
        "kill -s NONSENSE ill",
        "kill again",
        "rm ill",
        "rm -f ill",
        "rm -f nobody",
        "wait again",
        "rename again again",
    ],
    differs: &[("exec ill nothing", "Docker 20.10 says 126; newer versions, as at `run`, 127")],
};

/// Words of a line as a shell would have them, without its expansions.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in line.split('\'').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

/// What is compared: the exit code, and what is printed, JSON without the order of its fields. Errors are each
/// program's own words.
fn told(output: &Output) -> (i32, String) {
    let text = output.stdout.trim_end();
    let json = serde_json::from_str::<Value>(text).map(|value| value.to_string());
    (output.code, if output.code == 0 { json.unwrap_or_else(|_| text.to_owned()) } else { String::new() })
}

/// Runs the lines one after another.
fn answers(proa: &Proa, lines: &[&str], run: &dyn Fn(&[&str]) -> Output) -> Vec<(i32, String)> {
    let run = |line: &str| {
        let words = words(line);
        run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let answer = |line: &&str| {
        if let Some(setup) = line.strip_prefix('$') {
            let output = run(setup);
            assert_eq!(output.code, 0, "{setup}: {output:?}");
            return (0, String::new());
        }
        if let Some(line) = line.strip_prefix("code ") {
            return (run(line).code, String::new());
        }
        if let Some(line) = line.strip_prefix("names ") {
            let output = run(line);
            let found = output.stdout.lines().filter(|line| line.starts_with("Address: "));
            return (output.code, found.collect::<Vec<_>>().join(" "));
        }
        let Some((line, end)) = line.strip_prefix("until ").and_then(|line| line.split_once(" = ")) else {
            return told(&run(line));
        };
        proa.wait_for(line, || run(line).stdout.trim_end() == end);
        (0, end.to_owned())
    };
    lines.iter().map(answer).collect()
}

/// Runs a table by both, each on a host of its own.
fn compare(case: &Case) {
    let proa = Proa::with_busybox();
    let theirs = || {
        let _lan = Lan::enter();
        let docker = Docker::start(&proa);
        answers(&proa, case.lines, &|words| docker.run(&proa, words))
    };
    let theirs = std::thread::scope(|scope| scope.spawn(theirs).join().unwrap());
    let _lan = Lan::enter();
    let ours = answers(&proa, case.lines, &|words| proa.run(words));
    let mut wrong = Vec::new();
    for ((line, theirs), ours) in case.lines.iter().zip(&theirs).zip(&ours) {
        let reason = case.differs.iter().find(|(differs, _)| differs == line);
        match reason {
            None if theirs != ours => wrong.push(format!("{line}\n  docker {theirs:?}\n  proa   {ours:?}")),
            Some((_, reason)) if theirs == ours => {
                wrong.push(format!("{line}: the same now, yet \"{reason}\""))
            }
            _ => {}
        }
    }
    let unknown: BTreeSet<&str> =
        case.differs.iter().map(|(line, _)| *line).filter(|line| !case.lines.contains(line)).collect();
    assert!(unknown.is_empty(), "no line of the table: {unknown:?}");
    assert!(wrong.is_empty(), "{} lines differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn ports_are_as_dockers() {
    compare(&PORTS);
}

#[test]
fn networks_are_as_dockers() {
    compare(&NETWORKS);
}

#[test]
fn volumes_restarts_and_health_are_as_dockers() {
    compare(&LIFE);
}

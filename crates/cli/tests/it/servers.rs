//! Servers of Debian's packages, each at one level and its clients at the other; and what is left of them when the host
//! has lost everything but its disk.

use std::path::Path;
use std::process::Command;

use crate::harness::{Proa, workspace};
use crate::lan::{HOST, Lan};
use crate::network::{get, kill};

/// A tar of a Debian with all of them, made once.
fn image() -> std::path::PathBuf {
    let path = workspace().join("target/test-cache/servers.tar");
    if !path.exists() {
        let fresh = path.with_extension(format!("{}.tar", std::process::id()));
        let made = Command::new("mmdebstrap")
            .args(["--variant=minbase", "--include=busybox,nginx-light,postgresql,redis-server"])
            .args(["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*"])
            .arg("--customize-hook=echo host all all all trust > \"$1/hba\"")
            .args(["--customize-hook=rm -rf \"$1/var/cache/apt\" \"$1/var/lib/apt/lists\"", "bookworm"])
            .arg(&fresh)
            .output();
        let made = made.expect("mmdebstrap is needed: apt-get install mmdebstrap");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::fs::rename(fresh, &path).unwrap();
    }
    path
}

const CACHE: &str = "exec redis-server --bind 0.0.0.0 --protected-mode no --dir /var/lib/redis --appendonly yes \
                     --appendfsync always --logfile ''";
const DATABASE: &str = "exec /usr/lib/postgresql/15/bin/postgres -D /var/lib/postgresql/15/main \
                        -c config_file=/etc/postgresql/15/main/postgresql.conf -c hba_file=/hba \
                        -c listen_addresses='*' -c unix_socket_directories=/tmp -c ssl=off \
                        -c external_pid_file=";

/// A host with the three of them, which are to run after its boot.
struct Servers {
    proa: Proa,
}

impl Servers {
    fn start() -> Self {
        let proa = Proa::with_busybox();
        proa.ok(&["import", image().to_str().unwrap(), "servers"]);
        proa.ok(&["network", "create", "net"]);
        let start = |name: &str, flags: &[&str], command: &str| {
            let run = ["run", "-d", "--restart", "always", "--network", "net", "--name", name, "-h", name];
            proa.ok(&[&run[..], flags, &["servers", "sh", "-c", command]].concat());
        };
        start("web", &["-p", "0.0.0.0:8080:80"], "exec nginx -g 'daemon off;'");
        start("cache", &["-v", "cache:/var/lib/redis", "-u", "redis"], CACHE);
        let at_vm = ["--isolation", "vm", "-u", "postgres"];
        start("database", &[&at_vm[..], &["-v", "data:/var/lib/postgresql"]].concat(), DATABASE);
        start("near", &[], "exec sleep 10000");
        start("far", &["--isolation", "vm"], "exec sleep 10000");
        Self { proa }
    }

    /// A client's command in the container `near` or the virtual machine `far`.
    fn client(&self, name: &str, words: &[&str]) -> crate::harness::Output {
        self.proa.run(&[&["exec", name, "timeout", "20"], words].concat())
    }

    fn sql(&self, text: &str) -> crate::harness::Output {
        self.client("near", &["psql", "-qAt", "-h", "database", "-U", "postgres", "-c", text])
    }

    fn redis(&self, words: &[&str]) -> String {
        self.client("far", &[&["redis-cli", "-h", "cache"], words].concat()).stdout.trim().to_owned()
    }

    /// Until all answer.
    fn await_all(&self) {
        self.proa.wait_for("the database", || self.sql("select 1").stdout == "1\n");
        self.proa.wait_for("the cache", || self.redis(&["ping"]) == "PONG");
        let page = self.client("far", &["busybox", "wget", "-qO-", "http://web/"]);
        assert!(page.stdout.contains("nginx"), "{page:?}");
    }

    /// Kills all that runs, and takes away mounts and rules of the firewall.
    fn lose_everything(&self) {
        let run = self.proa.ok(&["info", "--format", "{{.RunRoot}}"]);
        self.proa.processes_of(&run).into_iter().for_each(kill);
        self.proa.wait_for("all processes to be gone", || self.proa.processes_of(&run).is_empty());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let ours = |point: &&str| {
            Path::new(point).starts_with(&run) || Path::new(point).starts_with(self.proa.root())
        };
        for point in points.filter(ours) {
            assert!(Command::new("umount").args(["-l", point]).status().unwrap().success(), "{point}");
        }
        assert!(Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success());
    }
}

#[test]
fn debians_servers_serve_the_other_level_and_outlive_the_loss_of_all_but_the_disk() {
    // Debian's packages are not on that host's LAN.
    image();
    let lan = Lan::enter();
    let servers = Servers::start();
    servers.await_all();
    let made = servers.sql("create table ships (name text); insert into ships values ('proa')");
    assert_eq!(made.code, 0, "{made:?}");
    assert_eq!(servers.redis(&["set", "ship", "proa"]), "OK");
    servers.lose_everything();
    servers.proa.ok(&["system", "boot"]);
    servers.await_all();
    assert_eq!(servers.sql("select name from ships").stdout, "proa\n");
    assert_eq!(servers.redis(&["get", "ship"]), "proa");
    let page = lan.run(|| get(&format!("{}:8080", HOST[0])));
    assert!(page.contains("nginx"), "{page}");
    let check = servers.proa.run(&["system", "check"]);
    assert_eq!(check.code, 0, "{check:?}");
}

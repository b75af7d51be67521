//! Many instances come to networks and leave them at random, at once: addresses never clash, a name is always its
//! instance's, and nothing stays.
//!
//! The long form (500 instances, ten minutes, or as many seconds as `PROA_TEST_STORM` says):
//! `cargo nextest run -p proa-cli --run-ignored only storm`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::crash::Dice;
use crate::harness::Proa;

const NETWORKS: [&str; 2] = ["lan", "wan"];
const WORKERS: usize = 4;

/// What one worker has; nobody else touches it.
struct Worker<'proa> {
    proa: &'proa Proa,
    dice: Dice,
    number: usize,
    most: usize,
    made: usize,
    names: Vec<String>,
    done: u64,
}

impl Worker<'_> {
    fn step(&mut self) {
        let room = self.names.len() < self.most;
        match self.dice.below(100) {
            0..35 if room => self.start(),
            _ if self.names.len() < 2 => self.start(),
            0..60 => self.remove(),
            60..75 => self.change("connect"),
            75..85 => self.change("disconnect"),
            _ => self.look(),
        }
        self.done += 1;
    }

    fn start(&mut self) {
        let name = format!("storm-{}-{}", self.number, self.made);
        self.made += 1;
        let flags = ["run", "-d", "--name", &name, "--network", NETWORKS[0], "--stop-signal", "KILL"];
        self.proa.ok(&[&flags[..], &["-p", "80", "busybox", "sleep", "10000"]].concat());
        self.names.push(name);
    }

    fn remove(&mut self) {
        let place = self.dice.below(self.names.len() as u64) as usize;
        let name = self.names.swap_remove(place);
        self.proa.ok(&["rm", "-f", &name]);
    }

    fn pick(&mut self) -> String {
        self.names[self.dice.below(self.names.len() as u64) as usize].clone()
    }

    /// Into the second network, or out of it; where it is so already, that is said.
    fn change(&mut self, what: &str) {
        let name = self.pick();
        let output = self.proa.run(&["network", what, NETWORKS[1], &name]);
        assert!(output.code == 0 || output.stderr.contains("network wan"), "{what} {name}: {output:?}");
    }

    /// One instance finds another, at the address that the other has.
    fn look(&mut self) {
        let (from, to) = (self.pick(), self.pick());
        let address = self.proa.ok(&["inspect", "-f", "{{.NetworkSettings.Networks.lan.IPAddress}}", &to]);
        let own = self.proa.ok(&["exec", &to, "ip", "-4", "addr", "show", "eth0"]);
        assert!(own.contains(&format!("{address}/")), "{to}: {own}, not {address}");
        // The resolver hears of a new instance a moment later.
        let mut found = String::new();
        self.proa.wait_for(&format!("{to} to be found by {from} at {address}"), || {
            found = self.proa.run(&["exec", &from, "nslookup", &format!("{to}.lan")]).stdout;
            found.lines().any(|line| line.ends_with(&address))
        });
        let answers = found.lines().filter(|line| line.starts_with("Address") && !line.contains(":53"));
        assert_eq!(answers.count(), 1, "{to} at {address}: {found}");
    }
}

fn tables(proa: &Proa) -> String {
    let run = proa.ok(&["info", "--format", "{{.RunRoot}}"]);
    let name = run.rsplit('/').next().unwrap().replace('-', "_");
    proa.shell_with_input(&format!("nft list table inet {name}; nft list table bridge {name}"), b"")
}

/// No two of those that are in a network now have the same address.
fn assert_no_clash(proa: &Proa, network: &str) -> usize {
    let format = "{{range .Containers}}{{.IPv4Address}} {{end}}";
    let addresses = proa.ok(&["network", "inspect", "-f", format, network]);
    let all: Vec<&str> = addresses.split_whitespace().collect();
    let different: BTreeSet<&str> = all.iter().copied().collect();
    assert_eq!(all.len(), different.len(), "{network}: {addresses}");
    all.len()
}

fn storm(instances: usize, length: Duration) {
    let proa = Proa::with_busybox();
    for network in NETWORKS {
        proa.ok(&["network", "create", network]);
    }
    let before = tables(&proa);
    let end = Instant::now() + length;
    let work = |number| {
        let (proa, most) = (&proa, instances / WORKERS);
        let mut worker = Worker { proa, dice: Dice::new(), number, most, made: 0, names: vec![], done: 0 };
        // Most of the time there are as many as there may be.
        while worker.names.len() < most && Instant::now() < end {
            worker.start();
        }
        while Instant::now() < end {
            worker.step();
        }
        let names: Vec<&str> = worker.names.iter().map(String::as_str).collect();
        names.chunks(50).for_each(|names| drop(proa.ok(&[&["rm", "-f"], names].concat())));
        worker.done
    };
    let (done, most) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|number| scope.spawn(move || work(number))).collect();
        let mut most = 0;
        while !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            most = NETWORKS
                .map(|network| assert_no_clash(&proa, network))
                .into_iter()
                .max()
                .max(Some(most))
                .unwrap();
            std::thread::sleep(Duration::from_millis(500));
        }
        (workers.into_iter().map(|worker| worker.join().unwrap()).sum::<u64>(), most)
    });
    println!("{done} changes and looks, at most {most} instances in a network");
    assert!(done > 0 && most > 0);
    proa.wait_for("the tables to be as before", || tables(&proa) == before);
    assert_eq!(proa.ok(&["ps", "-aq"]), "");
    assert_eq!(proa.run(&["system", "check"]).code, 0);
}

#[test]
fn a_storm_of_changes_leaves_no_trace() {
    storm(24, Duration::from_secs(15));
}

#[test]
#[ignore = "takes ten minutes"]
fn a_long_storm_of_five_hundred_instances_leaves_no_trace() {
    let seconds = std::env::var("PROA_TEST_STORM").map_or(600, |text| text.parse().unwrap());
    storm(500, Duration::from_secs(seconds));
}

//! Debian's Docker and Podman as oracles: the same command lines are run by them and by us, and the answers compared one
//! by one.
//!
//! What Docker answers is right. A line that differs on purpose says why, one that Podman answers otherwise says what
//! Podman does, and both must differ: where they no longer do, the table is to be corrected.

mod docker;
mod podman;
mod tables;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Output, Proa};
use crate::lan::Lan;
use docker::Docker;
use podman::Podman;
use tables::Case;

/// How an image is made of a tar, by all of them.
const IMPORT: &[&str] = &["import", "--change", "CMD [\"sh\"]", "--change", "ENV PATH=/bin"];
/// How long a line that never prints what is expected is asked again.
const NEVER: Duration = Duration::from_secs(2);

/// Whoever answers command lines.
trait Peer {
    /// Runs one to its end.
    fn run(&self, proa: &Proa, words: &[&str]) -> Output;
}

/// We ourselves.
struct Ours;

impl Peer for Ours {
    fn run(&self, proa: &Proa, words: &[&str]) -> Output {
        proa.run(words)
    }
}

/// What one of them says to a line.
#[derive(Debug)]
struct Answer {
    code: i32,
    /// What of the output is compared.
    text: String,
    /// Its own words, for whoever reads of a difference.
    error: String,
}

impl Answer {
    fn new(output: &Output, text: impl FnOnce(&str) -> String) -> Self {
        let told = if output.code == 0 { text(output.stdout.trim_end()) } else { String::new() };
        Self { code: output.code, text: told, error: output.stderr.trim().to_owned() }
    }

    fn tell(&self) -> String {
        format!("{} {:?} ({})", self.code, self.text, self.error.replace('\n', " "))
    }

    fn is_same(&self, other: &Self) -> bool {
        self.code == other.code && self.text == other.text
    }

    /// The same of Podman, which has other codes where it refuses something itself.
    fn is_same_but_for_its_own_code(&self, podman: &Self) -> bool {
        let refuses = [1, 125].contains(&self.code) && [2, 125, 126, 255].contains(&podman.code);
        self.is_same(podman) || refuses
    }
}

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

/// JSON without the order of its fields.
fn plain(text: &str) -> String {
    serde_json::from_str::<Value>(text).map_or_else(|_| text.to_owned(), |value| value.to_string())
}

/// Lines in an order of their own.
fn in_order(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// Numbers and ids are `#`, and columns one space apart.
fn shape(text: &str) -> String {
    let is_id = |word: &str| word.len() >= 12 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let word = |word: &str| match is_id(word) {
        true => "#".to_owned(),
        false => {
            word.split(|c: char| !c.is_ascii_digit()).fold(word.to_owned(), |word, number| match number {
                "" => word,
                number => word.replacen(number, "#", 1),
            })
        }
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Asks again until it prints what is expected: as long as anything may take, or a moment where it is `odd`.
fn until(proa: &Proa, line: &str, odd: bool, run: &dyn Fn(&str) -> Output) -> Answer {
    let (line, end) = line.split_once(" = ").unwrap();
    let holds = || run(line).stdout.trim_end() == end;
    let answer = |text: &str| Answer { code: 0, text: text.to_owned(), error: String::new() };
    if !odd {
        proa.wait_for(line, holds);
        return answer(end);
    }
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > NEVER {
            return answer("never");
        }
    }
    answer(end)
}

fn answer(proa: &Proa, line: &str, odd: bool, run: &dyn Fn(&str) -> Output) -> Answer {
    if let Some(setup) = line.strip_prefix('$') {
        return Answer::new(&run(setup), |_| String::new());
    }
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let first = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    let addresses = |text: &str| {
        let found = text.lines().filter(|line| line.starts_with("Address: "));
        found.collect::<Vec<_>>().join(" ")
    };
    match word {
        "until" => until(proa, rest, odd, run),
        "code" => Answer::new(&run(rest), |_| String::new()),
        "shape" => Answer::new(&run(rest), shape),
        "head" => Answer::new(&run(rest), |text| shape(&first(text))),
        "names" => Answer::new(&run(rest), addresses),
        "sorted" => Answer::new(&run(rest), in_order),
        _ => Answer::new(&run(line), plain),
    }
}

/// Runs the lines one after another.
fn answers(proa: &Proa, case: &Case, peer: &dyn Peer, odd: &[(&str, &str)]) -> Vec<Answer> {
    let run = |line: &str| {
        let words = words(line);
        peer.run(proa, &words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let is_odd = |line: &str| odd.iter().any(|(known, _)| *known == line);
    case.lines.iter().map(|line| answer(proa, line, is_odd(line), &run)).collect()
}

/// What is wrong with somebody's answers against Docker's: lines that differ without a reason, and those that have one and
/// do not differ. A line that is asked several times differs where one of its answers does.
fn wrong(
    case: &Case,
    docker: &[Answer],
    name: &str,
    theirs: &[Answer],
    odd: &[(&str, &str)],
    is_same: fn(&Answer, &Answer) -> bool,
) -> Vec<String> {
    let differing = |line: &str| {
        let asked = case.lines.iter().zip(docker.iter().zip(theirs));
        asked
            .filter(|(known, _)| **known == line)
            .map(|(_, pair)| pair)
            .find(|(one, other)| !is_same(one, other))
    };
    let lines: BTreeSet<&str> = case.lines.iter().copied().collect();
    let unknown = odd.iter().filter(|(line, _)| !lines.contains(line));
    let mut wrong: Vec<String> = unknown.map(|(line, _)| format!("no line of the table: {line}")).collect();
    for line in lines {
        let reason = odd.iter().find(|(known, _)| *known == line);
        match (differing(line), reason) {
            (Some((docker, theirs)), None) => {
                wrong.push(format!("{line}\n  docker {}\n  {name} {}", docker.tell(), theirs.tell()));
            }
            (None, Some((_, reason))) => {
                wrong.push(format!("{line}: {name} says the same now, yet \"{reason}\""));
            }
            _ => {}
        }
    }
    wrong
}

/// Removes a cgroup in which others were made, unless somebody has one in it; from how many hierarchies.
pub fn remove_cgroup(name: &str) -> usize {
    let mount = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(mount).into_iter().flatten().flatten().map(|entry| entry.path());
    hierarchies
        .chain([mount.to_owned()])
        .filter(|hierarchy| {
            let cgroup = hierarchy.join(name);
            // Podman leaves one of its own there.
            for below in std::fs::read_dir(&cgroup).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(below.path());
            }
            std::fs::remove_dir(cgroup).is_ok()
        })
        .count()
}

/// Runs a table by all of them, each on a host of its own.
fn compare(case: &Case) {
    let proa = Proa::with_busybox();
    let on_a_host = |ask: &(dyn Fn() -> Vec<Answer> + Sync)| {
        let work = || {
            let _lan = Lan::enter();
            ask()
        };
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    };
    let docker = on_a_host(&|| answers(&proa, case, &Docker::start(&proa), &[]));
    for (line, answer) in case.lines.iter().zip(&docker) {
        assert!(!line.starts_with('$') || answer.code == 0, "docker {line}: {answer:?}");
    }
    let podman = on_a_host(&|| answers(&proa, case, &Podman::start(&proa), case.podman));
    let ours = on_a_host(&|| answers(&proa, case, &Ours, case.differs));
    remove_cgroup("proa-oracle");
    let mut all = wrong(case, &docker, "proa", &ours, case.differs, Answer::is_same);
    all.extend(wrong(case, &docker, "podman", &podman, case.podman, Answer::is_same_but_for_its_own_code));
    assert!(all.is_empty(), "{} lines differ:\n{}", all.len(), all.join("\n"));
}

/// Makes a test of each table.
macro_rules! tables {
    ($($name:ident: $table:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                compare(&tables::$table);
            }
        )+
    };
}

tables!(
    ports_are_as_dockers: PORTS,
    networks_are_as_dockers: NETWORKS,
    names_are_as_dockers: NAMES,
    volumes_are_as_dockers: VOLUMES,
    restarts_and_health_are_as_dockers: LIFE,
    ends_are_as_dockers: ENDS,
    what_is_shown_is_as_dockers: SHOWN,
    namespaces_are_as_dockers: NAMESPACES,
);

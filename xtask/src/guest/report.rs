//! What the guest tells, and what is told of it.
//!
//! ```text
//!   guest <text>                 what it is, for the reader
//!   start <number>               a test begins
//!   pass|fail|slow <number> <seconds>
//!   | <text>                     output of the test that failed (or was killed for being slow)
//!   done
//! ```
//!
//! Anything else is shown as it is.

use std::collections::BTreeMap;
use std::time::Instant;

use super::selection::Planned;

/// How far the tests of one guest are.
pub struct Report {
    titles: Vec<String>,
    running: BTreeMap<usize, Instant>,
    passed: usize,
    failures: Vec<String>,
    done: bool,
    started: Instant,
}

impl Report {
    pub fn new(tests: &[&Planned]) -> Self {
        Self {
            titles: tests.iter().map(|test| test.title.clone()).collect(),
            running: BTreeMap::new(),
            passed: 0,
            failures: Vec::new(),
            done: false,
            started: Instant::now(),
        }
    }

    /// Takes a line of the guest's.
    pub fn line(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["start", number] => {
                if let Some(number) = self.number(number) {
                    self.running.insert(number, Instant::now());
                }
            }
            [outcome @ ("pass" | "fail" | "slow"), number, seconds] => {
                if let Some(number) = self.number(number) {
                    self.ended(outcome, number, seconds);
                }
            }
            ["done"] => self.done = true,
            _ => println!("        {line}"),
        }
    }

    fn number(&self, word: &str) -> Option<usize> {
        word.parse().ok().filter(|number| *number < self.titles.len())
    }

    fn ended(&mut self, outcome: &str, number: usize, seconds: &str) {
        self.running.remove(&number);
        let label = match outcome {
            "pass" => "PASS",
            "slow" => "TIMEOUT",
            _ => "FAIL",
        };
        println!("{label:>12} [{seconds:>7}s] {}", self.titles[number]);
        match outcome {
            "pass" => self.passed += 1,
            _ => self.failures.push(self.titles[number].clone()),
        }
    }

    /// Whether the guest has said that all tests have ended.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The guest is of no use any more: what ran has failed, and what did not run, too.
    pub fn give_up(&mut self, why: &str) {
        println!("       ABORT {why}");
        for number in std::mem::take(&mut self.running).into_keys() {
            println!("     ABORTED while it ran: {}", self.titles[number]);
            self.failures.push(self.titles[number].clone());
        }
    }

    /// Tests that were planned.
    pub fn planned(&self) -> usize {
        self.titles.len()
    }

    /// Tests that failed, and those that were planned and never heard of.
    pub fn failed(&self) -> usize {
        self.planned() - self.passed
    }

    /// As nextest does it.
    pub fn print_summary(&self, guest: &str) {
        println!("------------");
        let (planned, seconds) = (self.planned(), self.started.elapsed().as_secs_f64());
        let (passed, failed) = (self.passed, self.failed());
        println!(
            "    In guest [{seconds:>8.3}s] {planned} tests run with {guest}: {passed} passed, {failed} failed"
        );
        self.failures.iter().for_each(|title| println!("        FAIL {title}"));
        let missing = self.planned() - self.passed - self.failures.len();
        if missing > 0 {
            println!("        FAIL {missing} tests that did not run");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let test = |name: &str| Planned { title: name.into(), program: "/p".into(), name: name.into() };
        Report::new(&[&test("a"), &test("b"), &test("c")])
    }

    #[test]
    fn what_did_not_end_has_failed() {
        let mut report = report();
        for line in ["guest 6.1", "start 0", "start 1", "pass 0 0.10", "| text", "start 99", "pass x 1"] {
            report.line(line);
        }
        assert_eq!((report.is_done(), report.failed()), (false, 2));
        report.give_up("it panicked");
        assert_eq!((report.failed(), report.failures), (2, vec!["b".to_owned()]));
    }

    #[test]
    fn a_guest_that_skips_a_test_fails() {
        let mut report = report();
        ["start 0", "pass 0 1", "start 1", "fail 1 2", "done"].iter().for_each(|line| report.line(line));
        assert!(report.is_done());
        assert_eq!(report.failed(), 2);
    }
}

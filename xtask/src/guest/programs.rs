//! Builds the test programs and finds out where cargo put them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::output_of;
use super::selection::SUITES;
use crate::{cargo, dist};

/// What was built.
pub struct Programs {
    /// Test programs, by package.
    pub tests: Vec<TestProgram>,
    /// The programs that tests start, where their tests look for them.
    pub binaries: Vec<PathBuf>,
}

/// A program with tests.
pub struct TestProgram {
    pub package: String,
    /// `it`, or the library's name for its unit tests.
    pub target: String,
    pub path: PathBuf,
    /// The names of its tests.
    pub names: Vec<String>,
}

/// Builds the test programs of the suites, and the three binaries if they are not there yet.
pub fn build() -> Result<Programs> {
    let dist = cargo::root().join("target/dist");
    if !dist.join("proa").exists() {
        dist::run(dist::Profile::Dev)?;
    }
    // As nextest builds them, so that what it has built is used.
    let words =
        ["test", "--workspace", "--locked", "--no-run", "--message-format", "json-render-diagnostics"];
    let mut command = cargo::command(&words);
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", output.status);
    let mut programs = Programs { tests: Vec::new(), binaries: Vec::new() };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        programs.add(&serde_json::from_str(line).context("cargo writes lines of JSON")?)?;
    }
    for name in ["proa", "proa-monitor", "proa-resolver", "proa-agent"] {
        programs.binaries.push(dist.join(name));
    }
    Ok(programs)
}

impl Programs {
    /// Takes note of a message of cargo's that tells of a program.
    fn add(&mut self, message: &Value) -> Result<()> {
        let Some(path) = message["executable"].as_str().map(PathBuf::from) else { return Ok(()) };
        if message["profile"]["test"] != true {
            if ["proa-monitor", "proa-runtime"].iter().any(|name| message["target"]["name"] == *name) {
                self.binaries.push(path);
            }
            return Ok(());
        }
        let target = message["target"]["name"].as_str().unwrap_or_default().to_owned();
        let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
        let directory = manifest.parent().and_then(Path::file_name).unwrap_or_default();
        let package = format!("proa-{}", directory.to_string_lossy());
        if SUITES.iter().any(|suite| suite.package == package && suite.target == target) {
            let names = list(&path)?;
            self.tests.push(TestProgram { package, target, path, names });
        }
        Ok(())
    }
}

fn list(program: &Path) -> Result<Vec<String>> {
    let text = output_of(std::process::Command::new(program).args(["--list", "--format", "terse"]))?;
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

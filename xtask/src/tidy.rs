//! What lints cannot check: lengths of functions and files, dependency arrows, banned calls.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::{arrows, cargo};

/// Most lines of a function, its signature included.
const MAX_FUNCTION: usize = 80;
/// Most lines of a file.
const MAX_FILE: usize = 900;
/// Most bytes of a line of code.
const MAX_LINE: usize = 200;

/// Programs and tests: what the environment says is theirs to read.
const EDGES: &[&str] = &["crates/cli/src", "crates/oci-runtime/src", "xtask/", "bench/", "/tests/"];

/// Calls that have no place in some crates: the path's last two parts, where it is allowed, why not elsewhere.
const BANNED_CALLS: &[(&str, &[&str], &str)] = &[
    ("env::var", EDGES, "libraries read no environment"),
    ("env::var_os", EDGES, "libraries read no environment"),
    ("process::exit", &["/main.rs", "crates/cli/src", "bench/", "init"], "only a program's edge ends it"),
    (
        "thread::sleep",
        &["kvm.rs", "wait.rs", "harness", "/tests/", "bench/", "registry"],
        "wait for the event, not for time",
    ),
];

/// Checks the whole workspace and prints what it finds.
pub fn run() -> Result<()> {
    let root = cargo::root();
    let mut files = Vec::new();
    for directory in ["crates", "xtask", "bench", "fuzz/fuzz_targets"] {
        collect(&root.join(directory), &mut files)?;
    }
    let mut problems = arrows::check()?;
    for file in &files {
        let name = file.strip_prefix(&root).unwrap_or(file).display().to_string();
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
        check_file(&name, &text, &mut problems)?;
    }
    for problem in &problems {
        println!("{problem}");
    }
    if !problems.is_empty() {
        bail!("tidy: {} problems in {} files", problems.len(), files.len());
    }
    println!("tidy: {} files in order", files.len());
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

fn check_file(name: &str, text: &str, problems: &mut Vec<String>) -> Result<()> {
    let lines = text.lines().count();
    if lines > MAX_FILE {
        problems.push(format!("{name}: {lines} lines, more than {MAX_FILE}: split it by purpose"));
    }
    for (number, line) in text.lines().enumerate() {
        if line.len() > MAX_LINE {
            problems.push(format!("{name}:{}: a line of {} bytes", number + 1, line.len()));
        }
        let unexplained = line.contains("TODO") && !line.contains("TODO(");
        if unexplained && !name.starts_with("xtask/") {
            problems.push(format!("{name}:{}: a TODO without a reason", number + 1));
        }
    }
    let file = syn::parse_file(text).with_context(|| format!("cannot parse {name}"))?;
    Visitor { name, problems }.visit_file(&file);
    Ok(())
}

struct Visitor<'a> {
    name: &'a str,
    problems: &'a mut Vec<String>,
}

impl Visitor<'_> {
    fn length(&mut self, function: &syn::Signature, block: &syn::Block) {
        let first = function.span().start().line;
        let lines = block.span().end().line + 1 - first;
        if lines > MAX_FUNCTION {
            let (name, function) = (self.name, &function.ident);
            self.problems
                .push(format!("{name}:{first}: {function} has {lines} lines, more than {MAX_FUNCTION}"));
        }
    }
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.length(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.length(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_expr_path(&mut self, path: &'ast syn::ExprPath) {
        let parts: Vec<String> = path.path.segments.iter().map(|part| part.ident.to_string()).collect();
        let tail = parts[parts.len().saturating_sub(2)..].join("::");
        for (call, allowed, why) in BANNED_CALLS {
            if tail == *call && !allowed.iter().any(|place| self.name.contains(place)) {
                let line = path.span().start().line;
                self.problems.push(format!("{}:{line}: {call} is banned here: {why}", self.name));
            }
        }
        visit::visit_expr_path(self, path);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        let allows = attribute.path().is_ident("allow") || attribute.path().is_ident("expect");
        let tokens = match &attribute.meta {
            syn::Meta::List(list) => list.tokens.to_string(),
            _ => String::new(),
        };
        if allows && !tokens.contains("reason") {
            let line = attribute.span().start().line;
            self.problems.push(format!("{}:{line}: an allow without a reason", self.name));
        }
        visit::visit_attribute(self, attribute);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(name: &str, text: &str) -> Vec<String> {
        let mut problems = Vec::new();
        check_file(name, text, &mut problems).unwrap();
        problems
    }

    #[test]
    fn a_long_function_is_found() {
        let long = format!("fn f() {{\n{}}}\n", "    g();\n".repeat(MAX_FUNCTION));
        assert_eq!(problems("crates/a/src/lib.rs", &long).len(), 1);
        assert!(problems("crates/a/src/lib.rs", "fn f() {\n    g();\n}\n").is_empty());
    }

    #[test]
    fn banned_calls_are_found_only_where_they_are_banned() {
        let text = "fn f() { std::env::var(\"A\"); }";
        assert_eq!(problems("crates/image/src/lib.rs", text).len(), 1);
        assert!(problems("crates/cli/src/main.rs", text).is_empty());
    }

    #[test]
    fn an_allow_needs_a_reason() {
        assert_eq!(problems("crates/a/src/lib.rs", "#[allow(dead_code)]\nfn f() {}\n").len(), 1);
        let reasoned = "#[allow(dead_code, reason = \"read by tests\")]\nfn f() {}\n";
        assert!(problems("crates/a/src/lib.rs", reasoned).is_empty());
    }
}

//! Fetches the distribution's kernel package and unpacks it, without installing it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::VmError;

/// What stands for "the current kernel" in Debian and Ubuntu, the leanest first.
const CURRENT: &[&str] =
    &["linux-image-cloud-amd64", "linux-image-amd64", "linux-image-virtual", "linux-image-generic"];

/// A package unpacked into a directory.
pub(crate) struct Unpacked {
    /// Its name and version, for the record.
    pub origin: String,
    /// The kernel.
    pub image: PathBuf,
    /// Where its modules may be.
    pub modules: Vec<PathBuf>,
}

/// Downloads a kernel into `scratch` (an empty directory) and unpacks it there.
///
/// # Errors
/// No package manager that we know, no such package, no network.
pub(crate) fn fetch(scratch: &Path, notice: &mut dyn FnMut(String)) -> Result<Unpacked, VmError> {
    let packages = current_packages()?;
    notice(format!("fetching the guest kernel {} (once)", packages[0]));
    // The empty sandbox user: apt's own may not write here, and apt says so at length.
    let mut download = tool("apt-get");
    download.args(["-q", "-o", "APT::Sandbox::User=root", "download"]).args(&packages);
    run(download.current_dir(scratch))?;
    let root = scratch.join("root");
    for package in files(scratch, ".deb")? {
        run(tool("dpkg-deb").arg("-x").arg(&package).arg(&root))?;
        fs::remove_file(&package).map_err(VmError::io(&package))?;
    }
    let image = files(&root.join("boot"), "")?
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz-")))
        .ok_or_else(|| no_kernel(format!("{} holds no kernel", packages[0])))?;
    let modules = ["lib/modules", "usr/lib/modules"].map(|path| root.join(path)).to_vec();
    Ok(Unpacked { origin: packages[0].clone(), image, modules })
}

/// The packages behind the name that stands for the current kernel: its image, and its modules where they are
/// packaged apart.
fn current_packages() -> Result<Vec<String>, VmError> {
    for name in CURRENT {
        let text = run(tool("apt-cache").args(["--no-all-versions", "show", name]))?;
        let packages = kernel_dependencies(&text);
        if let Some(image) = packages.first() {
            let text = run(tool("apt-cache").args(["--no-all-versions", "show", image]))?;
            let modules =
                kernel_dependencies(&text).into_iter().filter(|name| name.starts_with("linux-modules-"));
            let modules: Vec<String> = modules.collect();
            return Ok([packages, modules].concat());
        }
    }
    Err(no_kernel("apt knows no kernel package (try apt-get update)".to_owned()))
}

/// Packages named in the `Depends` fields that hold a kernel or its modules; the image first.
fn kernel_dependencies(text: &str) -> Vec<String> {
    let fields = text.lines().filter_map(|line| line.strip_prefix("Depends:"));
    let words = fields.flat_map(|list| list.split(',')).filter_map(|item| item.split_whitespace().next());
    let versioned = |name: &&str| {
        name.strip_prefix("linux-image-")
            .or_else(|| name.strip_prefix("linux-modules-"))
            .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    let mut packages: Vec<String> = words.filter(versioned).map(str::to_owned).collect();
    packages.sort();
    packages.dedup();
    packages
}

fn files(directory: &Path, suffix: &str) -> Result<Vec<PathBuf>, VmError> {
    let entries = fs::read_dir(directory).map_err(VmError::io(directory))?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.to_string_lossy().ends_with(suffix)).collect())
}

fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    // The monitor may run with no environment at all, and messages are looked at below.
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs a program to its end and gives its output; a package that does not exist gives none.
fn run(command: &mut Command) -> Result<String, VmError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => no_kernel(format!("{program} is not on this host")),
        _ => VmError::Spawn { program: PathBuf::from(&program), source: error },
    })?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let absent = program == "apt-cache" && errors.contains("No packages found");
    if output.status.success() || absent {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let reason = errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given").trim();
    Err(no_kernel(format!("{program}: {reason}")))
}

fn no_kernel(reason: String) -> VmError {
    VmError::NoKernel { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_found_among_dependencies() {
        let debian =
            "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-13-cloud-amd64 (= 6.1.55-1)\n";
        assert_eq!(kernel_dependencies(debian), ["linux-image-6.1.0-13-cloud-amd64"]);
        let image = "Depends: kmod, linux-base (>= 4.5ubuntu1~16.04.1), linux-modules-6.8.0-31-generic\n";
        assert_eq!(kernel_dependencies(image), ["linux-modules-6.8.0-31-generic"]);
        assert!(kernel_dependencies("Depends: linux-image-generic, initramfs-tools\n").is_empty());
    }
}

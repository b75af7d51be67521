//! Pulling an image of four layers and many files, about 500 MB unpacked, from a registry on this machine.
//!
//! Every pull goes into a fresh store: deleting one just before would slow the next on most file systems.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::measure::{Contender, output, print, time};
use crate::setup::{Docker, Setup, installed};

const ADDRESS: &str = "127.0.0.1:5057";
const LAYERS: usize = 4;
const LAYER_BYTES: u64 = 125 * 1000 * 1000;

/// Runs the comparison.
pub fn bench(setup: &Setup, rounds: usize) -> Result<()> {
    if !installed("umoci") || !installed("skopeo") || !installed("docker-registry") {
        eprintln!("bench: pull needs umoci, skopeo and docker-registry; left out");
        return Ok(());
    }
    make_image(setup)?;
    let registry = Registry::start(setup)?;
    let reference = format!("{ADDRESS}/bench:1");
    let source = format!("oci:{}:1", setup.text("layout"));
    output(&["skopeo", "copy", "-q", "--dest-tls-verify=false", &source, &format!("docker://{reference}")])?;
    let mut contenders =
        ["proa", "podman", "docker", "skopeo (no unpacking)"].map(|name| Contender::new(name, &[]));
    for round in 0..rounds {
        for contender in &mut contenders {
            if let Some(spent) = pull(setup, &contender.name, &reference, round)? {
                contender.times.push(spent);
            }
        }
    }
    drop(registry);
    let ran: Vec<Contender> =
        contenders.into_iter().filter(|contender| !contender.times.is_empty()).collect();
    print("pull of 500 MB in 4 layers, many files", &ran);
    Ok(())
}

fn pull(setup: &Setup, name: &str, reference: &str, round: usize) -> Result<Option<Duration>> {
    let fresh = setup.text(&format!("pull-{}-{round}", name.split(' ').next().unwrap_or(name)));
    // What earlier steps wrote must not be charged to this one.
    output(&["sync"])?;
    let own = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let remote = format!("docker://{reference}");
    Ok(match name {
        "proa" => Some(time(&own(&[&setup.proa, "--root", &fresh, "pull", "-q", reference]))?),
        "podman" if installed("podman") => {
            let runroot = format!("{fresh}-run");
            let stores = ["podman", "--root", &fresh, "--runroot", &runroot];
            Some(time(&own(&[&stores[..], &["pull", "-q", "--tls-verify=false", reference]].concat()))?)
        }
        "docker" => match Docker::start(Path::new(&fresh))? {
            Some(docker) => Some(time(&docker.argv(&["pull", "-q", reference]))?),
            None => None,
        },
        name if name.starts_with("skopeo") => {
            let copy = ["skopeo", "copy", "-q", "--src-tls-verify=false", &remote, &format!("dir:{fresh}")];
            Some(time(&own(&copy))?)
        }
        _ => None,
    })
}

/// Fills an OCI layout with layers of real files from this machine's `/usr`.
fn make_image(setup: &Setup) -> Result<()> {
    let layout = setup.text("layout");
    let image = format!("{layout}:1");
    output(&["umoci", "init", "--layout", &layout])?;
    output(&["umoci", "new", "--image", &image])?;
    let listing = output(&["find", "/usr/share", "/usr/lib", "-xdev", "-type", "f", "-printf", "%s %p\\n"])?;
    let mut files = listing.lines().filter_map(|line| line.split_once(' '));
    for layer in 0..LAYERS {
        let mut names = String::new();
        let mut bytes = 0;
        while bytes < LAYER_BYTES {
            let Some((size, name)) = files.next() else { break };
            // One huge file would make it another kind of image.
            let size: u64 = size.parse().unwrap_or(u64::MAX);
            if size < 4_000_000 {
                bytes += size;
                names.push_str(name);
                names.push('\n');
            }
        }
        let list = setup.path("files");
        fs::write(&list, names)?;
        // The packer's own walk over a tree ends its archives too early; it takes finished ones as they are.
        let tar = setup.text("layer.tar");
        let place = format!("--transform=s,^,layer{layer}/,");
        output(&["tar", "-C", "/", "--no-recursion", &place, "-cf", &tar, "-T", &setup.text("files")])?;
        output(&["umoci", "raw", "add-layer", "--image", &image, &tar])?;
        fs::remove_file(&tar)?;
    }
    Ok(())
}

struct Registry(Child);

impl Registry {
    fn start(setup: &Setup) -> Result<Self> {
        let config = setup.path("registry.yml");
        let storage = setup.text("registry");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {storage}\nhttp:\n  addr: {ADDRESS}\n"
        );
        fs::write(&config, text)?;
        let child = Command::new("docker-registry")
            .args(["serve".as_ref(), config.as_os_str()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start docker-registry")?;
        let registry = Self(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(ADDRESS).is_err() {
            if Instant::now() > deadline {
                bail!("docker-registry does not listen on {ADDRESS}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

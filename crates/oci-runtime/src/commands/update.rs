//! `update`: other limits for a container that runs, those that are named.

use std::io::Read;

use proa_oci::runtime::{BlockIo, Cpu, Memory, Pids, Resources};

use crate::args::{Opt, Parsed, value};
use crate::error::{Failure, Result};
use crate::global::Global;
use crate::store::{Saved, Status};

/// Its options.
pub const OPTIONS: &[Opt] = &[
    value("resources").or('r'),
    value("blkio-weight"),
    value("cpu-period"),
    value("cpu-quota"),
    value("cpu-burst"),
    value("cpu-share"),
    value("cpu-rt-period"),
    value("cpu-rt-runtime"),
    value("cpuset-cpus"),
    value("cpuset-mems"),
    value("cpu-idle"),
    value("memory"),
    value("memory-reservation"),
    value("memory-swap"),
    value("kernel-memory"),
    value("kernel-memory-tcp"),
    value("pids-limit"),
    value("l3-cache-schema"),
    value("mem-bw-schema"),
];

/// Runs it.
///
/// # Errors
/// The container does not run, or a limit cannot be set.
pub fn run(global: &Global, parsed: &Parsed) -> Result<u8> {
    let entry = global.store.open(parsed.id()?)?;
    let resources = match parsed.get("resources") {
        Some(path) => read(path)?,
        None => named(parsed)?,
    };
    let lock = entry.lock()?;
    // Whoever puts processes into the cgroup is to have done so.
    let _cgroup = entry.lock_cgroup()?;
    let saved = entry.saved()?;
    let status = entry.status(saved.as_ref(), Some(&lock))?;
    let (container, spec) = entry.container(saved.as_ref())?;
    let Some(mut container) = container.filter(|_| status != Status::Stopped) else {
        return Err(Failure::new(format!("container '{}' is not running", entry.id)));
    };
    global.warn(&container.update(&resources)?);
    let cgroup = Saved::cgroup_of(saved.as_ref());
    Ok(proa_runtime::update_scope(&entry.id, &spec, cgroup, &resources).map(|()| 0)?)
}

/// The resources of a spec, from a file or with `-` from standard input.
fn read(path: &str) -> Result<Resources> {
    let text = if path == "-" {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text).map_err(|error| Failure::at("standard input", error))?;
        text
    } else {
        std::fs::read(path).map_err(|error| Failure::at(path, error))?
    };
    serde_json::from_slice(&text).map_err(|error| Failure::new(format!("{path}: {error}")))
}

fn named(parsed: &Parsed) -> Result<Resources> {
    for (option, why) in [
        ("kernel-memory", "Linux has no such limit any more"),
        ("kernel-memory-tcp", "use --resources"),
        ("l3-cache-schema", "Intel RDT is not supported"),
        ("mem-bw-schema", "Intel RDT is not supported"),
    ] {
        if parsed.get(option).is_some_and(|value| !matches!(value, "" | "0")) {
            return Err(Failure::usage(format!("--{option}: {why}")));
        }
    }
    let text = |name: &str| parsed.get(name).filter(|text| !text.is_empty()).map(ToOwned::to_owned);
    let memory = Memory {
        limit: parsed.number("memory")?,
        reservation: parsed.number("memory-reservation")?,
        swap: parsed.number("memory-swap")?,
        ..Memory::default()
    };
    let cpu = Cpu {
        shares: parsed.number("cpu-share")?,
        quota: parsed.number("cpu-quota")?,
        burst: parsed.number("cpu-burst")?,
        period: parsed.number("cpu-period")?,
        realtime_runtime: parsed.number("cpu-rt-runtime")?,
        realtime_period: parsed.number("cpu-rt-period")?,
        cpus: text("cpuset-cpus"),
        mems: text("cpuset-mems"),
        idle: parsed.number("cpu-idle")?,
    };
    let block = BlockIo { weight: parsed.number("blkio-weight")?, ..BlockIo::default() };
    Ok(Resources {
        memory: (memory != Memory::default()).then_some(memory),
        cpu: (cpu != Cpu::default()).then_some(cpu),
        block_io: (block != BlockIo::default()).then_some(block),
        pids: parsed.number("pids-limit")?.map(|limit| Pids { limit }),
        ..Resources::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Words;

    fn read(line: &str) -> Result<Resources> {
        let mut parsed = Parsed::default();
        parsed.read(line.split_whitespace().map(Into::into).collect(), &[OPTIONS], Words::Most(1))?;
        named(&parsed)
    }

    #[test]
    fn only_what_is_named_is_changed() {
        let resources = read("--memory 1048576 --cpu-share 7 --pids-limit -1 --cpuset-cpus 0 id").unwrap();
        assert_eq!(resources.memory.unwrap().limit, Some(1_048_576));
        let cpu = resources.cpu.unwrap();
        assert_eq!((cpu.shares, cpu.quota, cpu.cpus.as_deref()), (Some(7), None, Some("0")));
        assert_eq!(resources.pids, Some(Pids { limit: -1 }));
        assert!(resources.block_io.is_none());
        assert_eq!(read("id").unwrap(), Resources::default());
    }

    #[test]
    fn what_there_is_no_more_is_refused() {
        for line in [
            "--kernel-memory 5 id",
            "--l3-cache-schema L3:0=f id",
            "--memory x id",
            "--blkio-weight 70000 id",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}

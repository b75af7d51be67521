//! A kernel's modules: which are needed, in which order, and their bytes as the guest shall get them.
//!
//! The order comes from the modules themselves (`.modinfo`), not from `modules.dep`: that is made when a kernel
//! is installed, and ours is only unpacked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::decompress::decompress;
use super::elf::Elf;
use crate::VmError;

const SIGNED: &[u8] = b"~Module signature appended~\n";
/// Descriptions of types, for tracing programs.
const TYPES: &str = ".BTF";
/// `struct module_signature` without the signature itself.
const SIGNATURE_HEADER: usize = 12;

/// The modules of one kernel release.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

/// A module as it goes into the initramfs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    pub name: String,
    pub bytes: Vec<u8>,
}

impl Modules {
    /// Lists a directory such as `/lib/modules/<release>`.
    pub fn read(directory: &Path) -> Result<Self, VmError> {
        let mut modules = Self::default();
        modules.walk(&directory.join("kernel"))?;
        let list = directory.join("modules.builtin");
        let list = fs::read_to_string(&list).map_err(VmError::io(list))?;
        modules.built_in = list.lines().filter_map(|line| module_name(Path::new(line))).collect();
        Ok(modules)
    }

    fn walk(&mut self, directory: &Path) -> Result<(), VmError> {
        for entry in fs::read_dir(directory).map_err(VmError::io(directory))? {
            let entry = entry.map_err(VmError::io(directory))?;
            let kind = entry.file_type().map_err(VmError::io(directory))?;
            if kind.is_dir() {
                self.walk(&entry.path())?;
            } else if let Some(name) = module_name(&entry.path()) {
                self.files.insert(name, entry.path());
            }
        }
        Ok(())
    }

    /// The first of `names` that is neither a module nor built in.
    pub fn missing<'n>(&self, names: &[&'n str]) -> Option<&'n str> {
        names.iter().copied().find(|&name| !self.files.contains_key(name) && !self.built_in.contains(name))
    }

    /// The modules among `names`, each after those it needs. Names that are built in, or that the kernel lacks,
    /// are left out. Signatures are kept where the kernel insists on them.
    pub fn load_order(&self, names: &[&str], keep_signatures: bool) -> Result<Vec<Module>, VmError> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.add(name, &mut order, &mut seen)?;
        }
        if !keep_signatures {
            order.iter_mut().for_each(|module| lighten(&mut module.bytes));
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<Module>, seen: &mut BTreeSet<String>) -> Result<(), VmError> {
        let Some(path) = self.files.get(name) else { return Ok(()) };
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let bytes = fs::read(path).map_err(VmError::io(path))?;
        let bytes = decompress(&bytes).map_err(VmError::io(path))?.unwrap_or(bytes);
        let bad = || VmError::BadKernel { path: path.clone(), reason: "it is no module".to_owned() };
        let needs = Elf::parse(&bytes).and_then(|elf| elf.section(".modinfo")).map(needs).ok_or_else(bad)?;
        for needed in needs {
            self.add(&needed, order, seen)?;
        }
        order.push(Module { name: name.to_owned(), bytes });
        Ok(())
    }
}

/// What a module's information says must be, or had better be, loaded before it.
fn needs(modinfo: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for field in modinfo.split(|&byte| byte == 0).filter_map(|field| std::str::from_utf8(field).ok()) {
        if let Some(list) = field.strip_prefix("depends=") {
            names.extend(list.split(',').filter(|name| !name.is_empty()).map(normal_name));
        } else if let Some(list) = field.strip_prefix("softdep=pre:") {
            names.extend(list.split_whitespace().take_while(|&word| word != "post:").map(normal_name));
        }
    }
    names
}

/// `virtio-rng.ko.xz` is the module `virtio_rng`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|suffix| file.strip_suffix(suffix))?;
    Some(normal_name(stem))
}

fn normal_name(name: &str) -> String {
    name.replace('-', "_")
}

/// Leaves out what costs the guest time and gives it nothing.
fn lighten(bytes: &mut Vec<u8>) {
    strip_signature(bytes);
    // The kernel knows sections by name. What it does not know it does not parse.
    if let Some(at) = Elf::parse(bytes).and_then(|elf| elf.section_name(TYPES)) {
        bytes[at] = b'-';
    }
}

/// Checking a signature costs the guest time and proves nothing to it: the module came with its kernel.
fn strip_signature(bytes: &mut Vec<u8>) {
    let Some(rest) = bytes.strip_suffix(SIGNED) else { return };
    let Some((_, header)) = rest.split_last_chunk::<SIGNATURE_HEADER>() else { return };
    let length = u32::from_be_bytes([header[8], header[9], header[10], header[11]]) as usize;
    let trailer = SIGNATURE_HEADER + usize::from(header[3]) + usize::from(header[4]) + length;
    if let Some(end) = rest.len().checked_sub(trailer) {
        bytes.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_come_from_dependencies_and_soft_dependencies() {
        let info = b"name=x\0depends=virtio,virtio-ring\0softdep=pre: crc32c post: late\0license=GPL\0";
        assert_eq!(needs(info), ["virtio", "virtio_ring", "crc32c"]);
        assert!(needs(b"depends=\0").is_empty());
    }

    #[test]
    fn names_are_normalized() {
        assert_eq!(module_name(Path::new("a/virtio-rng.ko.xz")).as_deref(), Some("virtio_rng"));
        assert_eq!(module_name(Path::new("kernel/fs/ext4/ext4.ko")).as_deref(), Some("ext4"));
        assert_eq!(module_name(Path::new("modules.order")), None);
    }

    #[test]
    fn a_signature_is_cut_off_and_garbage_is_left_alone() {
        let mut bytes = b"module".to_vec();
        bytes.extend_from_slice(b"SIGNATURE");
        bytes.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        bytes.extend_from_slice(SIGNED);
        strip_signature(&mut bytes);
        assert_eq!(bytes, b"module");
        let mut short = [&[0xFF; 12][..], SIGNED].concat();
        let before = short.clone();
        strip_signature(&mut short);
        assert_eq!(short, before);
    }

    /// A relocatable ELF file with a `.modinfo` section and nothing else.
    fn module(modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        let info_at = elf.len() as u64;
        elf.extend_from_slice(modinfo);
        let names_at = elf.len() as u64;
        elf.extend_from_slice(names);
        let table = elf.len() as u64;
        for (name, at, size) in
            [(0_u32, 0, 0), (1, info_at, modinfo.len() as u64), (10, names_at, names.len() as u64)]
        {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&at.to_le_bytes());
            header[32..40].copy_from_slice(&size.to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf[40..48].copy_from_slice(&table.to_le_bytes());
        elf[58..64].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
        elf
    }

    #[test]
    fn a_lightened_module_has_no_types_and_all_else() {
        let mut bytes = module(b"depends=\0");
        let names = bytes.windows(10).position(|part| part == b"\0.modinfo\0").unwrap();
        bytes[names + 1..names + 9].copy_from_slice(b".BTF\0\0\0\0");
        assert!(Elf::parse(&bytes).unwrap().section(".BTF").is_some());
        lighten(&mut bytes);
        let elf = Elf::parse(&bytes).unwrap();
        assert!(elf.section(".BTF").is_none() && elf.section("-BTF").is_some());
    }

    #[test]
    fn load_order_puts_needs_first_once_and_survives_circles() {
        let scratch = tempfile::tempdir().unwrap();
        let kernel = scratch.path().join("kernel/drivers");
        fs::create_dir_all(&kernel).unwrap();
        let write = |name: &str, info: &[u8]| fs::write(kernel.join(name), module(info)).unwrap();
        write("virtio.ko", b"depends=virtio_ring\0");
        write("virtio_ring.ko", b"depends=\0");
        write("virtio-pci.ko", b"depends=virtio,virtio_ring,built_in\0");
        write("a.ko", b"depends=b\0");
        write("b.ko", b"depends=a\0");
        fs::write(scratch.path().join("modules.builtin"), "kernel/fs/built-in.ko\n").unwrap();
        let modules = Modules::read(scratch.path()).unwrap();
        let order = modules.load_order(&["virtio_pci", "virtio", "absent", "a"], false).unwrap();
        let names: Vec<&str> = order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["virtio_ring", "virtio", "virtio_pci", "b", "a"]);
        assert_eq!(modules.missing(&["virtio", "built_in"]), None);
        assert_eq!(modules.missing(&["virtio", "erofs"]), Some("erofs"));
    }
}

//! Machines: whole disks that boot by themselves, as the engine describes them, the monitor runs them, and both keep
//! their files.
//!
//! ```text
//!   <root>/instances/<id>/      beside what every instance has
//!     machine/                  what the guest has written, which the host never reads:
//!       disk0.img disk1.img …     its own disks, raw and sparse
//!       vars.fd                   variables of UEFI
//!     seed.iso                  what cloud-init is to do
//!     snapshots/<name>/         a copy of `machine/`; a name that begins with a dot is of one that is not whole
//!   <run>/instances/<id>/
//!     vnc.sock                  the screen, for as long as it runs
//! ```
//!
//! A disk is in one format of ours from its import on, and the format is said to whoever opens it: what a guest writes
//! into its first sectors makes nothing else of it. Files of others are read once, by a process that has them and nothing
//! else: [`DiskImport`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Memory where the user names none, bytes.
pub const DEFAULT_MEMORY: u64 = 1 << 30;
/// What the guest writes, in the instance's directory.
pub const MEDIA: &str = "machine";
/// Variables of UEFI, in [`MEDIA`].
pub const VARS_FILE: &str = "vars.fd";
/// The seed of cloud-init, in the instance's directory.
pub const SEED_FILE: &str = "seed.iso";
/// Where snapshots are, in the instance's directory.
pub const SNAPSHOTS: &str = "snapshots";
/// The socket of the screen, in the instance's runtime directory.
pub const SCREEN_SOCKET: &str = "vnc.sock";
/// How a process that imports a disk is called: the second word of its command line, before a [`DiskImport`].
pub const IMPORT_ARGUMENT: &str = "--import-disk";
/// Where distributions keep UEFI's firmware: code, variables, and the same for secure boot with Microsoft's keys.
pub const FIRMWARE: &str = "/usr/share/OVMF";

/// Most disks of a machine.
const MOST_DISKS: usize = 8;

/// Name of the numbered disk in [`MEDIA`].
pub fn disk_file(number: usize) -> String {
    format!("disk{number}.img")
}

/// What makes an instance a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineConfig {
    /// How many disks it has.
    pub disks: usize,
    /// What starts it.
    pub firmware: Firmware,
    /// Its board.
    pub chipset: Chipset,
    /// What its disks are plugged into.
    pub disk_bus: DiskBus,
    /// What its network devices are.
    pub nic: NicModel,
    /// A disc in its drive: a file of the user's, never written to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cdrom: Option<PathBuf>,
    /// It has a seed.
    pub seed: bool,
}

impl MachineConfig {
    /// Why there can be no such machine, if there cannot.
    pub fn refusal(&self) -> Option<&'static str> {
        let drives = self.disks + usize::from(self.cdrom.is_some());
        match self {
            Self { disk_bus: DiskBus::Ide, chipset: Chipset::Q35, .. } => {
                Some("the q35 board has no IDE: use --disk-bus sata, or --chipset i440fx")
            }
            Self { firmware: Firmware::SecureBoot, chipset: Chipset::I440fx, .. } => {
                Some("secure boot needs a board that protects the firmware's variables: use --chipset q35")
            }
            Self { disk_bus: DiskBus::Ide, .. } if drives > 4 => Some("an IDE board has four drives at most"),
            Self { disk_bus: DiskBus::Sata, .. } if drives > 6 => Some("a SATA board has six drives at most"),
            _ if self.disks > MOST_DISKS => Some("a machine has at most 8 disks"),
            _ => None,
        }
    }
}

/// What starts a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// BIOS.
    #[default]
    Bios,
    /// UEFI.
    Uefi,
    /// UEFI that starts only what is signed by a key that it knows.
    SecureBoot,
}

/// A machine's board.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Chipset {
    /// Of 2009: PCI Express, SATA.
    #[default]
    Q35,
    /// Of 1996: PCI, IDE.
    I440fx,
}

/// What disks are plugged into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskBus {
    /// Virtio: quick, and needs a driver.
    #[default]
    Virtio,
    /// SATA.
    Sata,
    /// IDE: of the old board alone.
    Ide,
}

/// What network devices are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NicModel {
    /// Virtio: quick, and needs a driver.
    #[default]
    Virtio,
    /// Intel's of 2000, which all systems know.
    E1000,
}

/// Forms of disk images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's bytes.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Virtual PC's and Hyper-V's first.
    Vhd,
    /// Hyper-V's second.
    Vhdx,
}

impl DiskFormat {
    /// All of them, as users name them.
    pub const ALL: [(&str, Self); 6] = [
        ("raw", Self::Raw),
        ("qcow2", Self::Qcow2),
        ("vmdk", Self::Vmdk),
        ("vdi", Self::Vdi),
        ("vhd", Self::Vhd),
        ("vhdx", Self::Vhdx),
    ];

    /// The one with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }
}

/// One import: a file of whatever form becomes a raw disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskImport {
    /// Whose it is to be; names the user that reads the file.
    pub id: String,
    /// Where processes that read it see nothing of the host: an existing directory.
    pub view: PathBuf,
    /// The file.
    pub source: PathBuf,
    /// Its form; without it, its first bytes say so.
    pub format: Option<DiskFormat>,
    /// The disk, which is there when all of it is.
    pub target: PathBuf,
    /// Bytes that the disk is to have at least.
    pub size: u64,
}

impl DiskImport {
    /// The disk while it is made.
    pub fn partial(&self) -> PathBuf {
        self.target.with_extension("new")
    }
}

/// What an import found: its one line on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskImported {
    /// The file's form.
    pub format: DiskFormat,
    /// The disk's bytes.
    pub size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_frozen() {
        let config = MachineConfig {
            disks: 1,
            firmware: Firmware::SecureBoot,
            chipset: Chipset::I440fx,
            disk_bus: DiskBus::Ide,
            nic: NicModel::E1000,
            cdrom: Some("/c".into()),
            seed: true,
        };
        let text = r#"{"disks":1,"firmware":"secureboot","chipset":"i440fx","disk_bus":"ide","nic":"e1000","cdrom":"/c","seed":true}"#;
        assert_eq!(serde_json::to_string(&config).unwrap(), text);
        assert_eq!(serde_json::from_str::<MachineConfig>(text).unwrap(), config);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let ide = MachineConfig { disk_bus: DiskBus::Ide, ..MachineConfig::default() };
        assert!(ide.refusal().unwrap().contains("no IDE"));
        let old = MachineConfig { chipset: Chipset::I440fx, disks: 4, ..ide };
        assert_eq!(old.refusal(), None);
        assert!(MachineConfig { cdrom: Some("/c".into()), ..old.clone() }.refusal().is_some());
        assert!(MachineConfig { firmware: Firmware::SecureBoot, ..old }.refusal().is_some());
        assert!(MachineConfig { disks: 9, ..MachineConfig::default() }.refusal().is_some());
    }

    #[test]
    fn formats_have_names() {
        for (name, format) in DiskFormat::ALL {
            assert_eq!((DiskFormat::parse(name), format.as_str()), (Some(format), name));
        }
        assert_eq!(DiskFormat::parse("qed"), None);
    }
}

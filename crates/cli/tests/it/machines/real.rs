//! Systems that others have written.

use super::{Bed, debian};
use crate::harness::{Proa, Terminal};

/// Where Debian's packages have them.
const IPXE_ISO: &str = "/usr/lib/ipxe/ipxe.iso";
const IPXE_EFI: &str = "/boot/ipxe.efi";
const MEMTEST_ISO: &str = "/usr/lib/memtest86+/memtest86+x64.iso";
const MEMTEST_EFI: &str = "/boot/memtest86+x64.efi";

/// Logs in at Debian's console.
fn log_in(bed: &Bed, name: &str, host: &str) -> Terminal {
    // The prompt follows it, and is no whole line, which logs wait for.
    bed.expect_slowly(name, &format!("Debian GNU/Linux 12 {host} ttyS0"));
    let mut terminal = bed.attach(name);
    terminal.send("\n");
    terminal.expect("login:");
    terminal.send("root\n");
    terminal.expect("Password:");
    terminal.send("machine\n");
    terminal.expect(":~#");
    terminal
}

/// Debian's disk, on its way through VMware's and Microsoft's forms, with a seed and a network, by BIOS.
#[test]
fn debian_boots_by_bios_and_cloud_init_does_what_its_seed_says() {
    let bed = Bed::of(Proa::with_busybox());
    let disk = debian();
    bed.sh(&format!(
        "qemu-img convert -f raw -O vmdk {disk} d.vmdk && qemu-img convert -f vmdk -O vhdx d.vmdk d.vhdx"
    ));
    let image = bed.path("d.vhdx");
    bed.ok(&[
        "machine",
        "create",
        "--disk",
        &image,
        "--hostname",
        "node1",
        "--user",
        "ada",
        "--disk-size",
        "2g",
        "deb",
    ]);
    bed.ok(&["start", "deb"]);
    let mut terminal = log_in(&bed, "deb", "node1");
    terminal.send(
        "cloud-init status --wait; id ada; hostname; ip -4 -o addr show eth0; lsblk -dno SIZE /dev/vda\n",
    );
    terminal.expect("uid=");
    terminal.expect("(ada)");
    terminal.expect("node1");
    let address =
        bed.ok(&["inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "deb"]);
    terminal.expect(&address);
    terminal.expect("2G");
    terminal.send("\x10\x11");
    terminal.wait();
    // Others in its network find it by its name.
    bed.ok(&["run", "--rm", "busybox", "ping", "-c", "1", "-w", "30", "deb"]);
    // Its system shuts down, and then its power is off.
    bed.ok(&["stop", "deb"]);
    assert_eq!(bed.state("deb"), "exited 0");
    bed.ok(&["rm", "deb"]);
}

#[test]
fn debian_boots_by_uefi_with_secure_boot() {
    let bed = Bed::new();
    bed.ok(&["network", "create", "--subnet", "10.253.41.0/24", "lan"]);
    bed.ok(&[
        "machine",
        "create",
        "--disk",
        &debian(),
        "--secure-boot",
        "--network",
        "lan",
        "--ip",
        "10.253.41.77",
        "deb",
    ]);
    bed.ok(&["start", "deb"]);
    let mut terminal = log_in(&bed, "deb", "unset");
    terminal.send("dmesg | grep -i 'secure boot enabled'; ls -d /sys/firmware/efi\n");
    terminal.expect("Secure boot enabled");
    terminal.expect("/sys/firmware/efi");
    // It has no seed: by DHCP it learns all that there is to know.
    terminal.send("printf '[Match]\\nName=e*\\n[Network]\\nDHCP=ipv4\\n[DHCPv4]\\nUseDomains=yes\\n' >/etc/systemd/network/all.network\n");
    terminal
        .send("systemctl start systemd-networkd; /lib/systemd/systemd-networkd-wait-online --timeout=60\n");
    terminal.send("networkctl status -n 0 --no-pager | cat; ip -4 route\n");
    terminal.expect("Address: 10.253.41.77 on");
    terminal.expect("DNS: 10.253.41.1");
    terminal.expect("Search Domains: lan");
    terminal.expect("default via 10.253.41.1 dev");
    terminal.expect("proto dhcp src 10.253.41.77");
    terminal.send("poweroff\n");
    assert_eq!(terminal.wait(), 0);
    assert_eq!(bed.state("deb"), "exited 0");
    bed.ok(&["rm", "deb"]);
}

/// Not Linux, by BIOS from a disc and by UEFI from a disk.
#[test]
fn what_is_not_linux_boots_by_bios_and_by_uefi() {
    let bed = Bed::new();
    let efi_disk = |name: &str, program: &str| {
        bed.sh(&format!(
            "mkfs.vfat -C {name} 8192 >/dev/null && export MTOOLS_SKIP_CHECK=1 && \
             mmd -i {name} ::EFI ::EFI/BOOT && mcopy -i {name} {program} ::EFI/BOOT/BOOTX64.EFI"
        ));
        bed.path(name)
    };
    let (ipxe, memtest) = (efi_disk("ipxe.img", IPXE_EFI), efi_disk("memtest.img", MEMTEST_EFI));
    let small = ["machine", "create", "-m", "256m"];
    bed.ok(
        &[&small[..], &["--cdrom", IPXE_ISO, "--chipset", "i440fx", "--nic", "e1000", "ipxe-bios"]].concat()
    );
    bed.ok(&[&small[..], &["--cdrom", MEMTEST_ISO, "--network", "none", "memtest-bios"]].concat());
    bed.ok(&[&small[..], &["--disk", &ipxe, "--uefi", "ipxe-uefi"]].concat());
    bed.ok(&[&small[..], &["--disk", &memtest, "--uefi", "--network", "none", "memtest-uefi"]].concat());
    for name in ["ipxe-bios", "memtest-bios", "ipxe-uefi", "memtest-uefi"] {
        bed.ok(&["start", name]);
    }
    bed.expect("ipxe-bios", "iPXE");
    bed.expect("ipxe-uefi", "iPXE");
    // Its first thought is to boot from its network.
    for name in ["ipxe-bios", "ipxe-uefi"] {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = bed.ok(&["inspect", "--format", format, name]);
        bed.expect_slowly(name, &format!("net0: {address}/"));
    }
    // It writes to the screen alone, and that it counts is seen there.
    for name in ["memtest-bios", "memtest-uefi"] {
        let picture = || {
            let path = bed.path("screen.png");
            bed.ok(&["machine", "screenshot", "-o", &path, name]);
            std::fs::read(path).unwrap()
        };
        bed.proa.wait_for("a picture of memtest86+", || picture().len() > 3000);
        let first = picture();
        bed.proa.wait_for("another picture", || picture() != first);
    }
    for name in ["ipxe-bios", "memtest-bios", "ipxe-uefi", "memtest-uefi"] {
        bed.ok(&["rm", "-f", name]);
    }
}

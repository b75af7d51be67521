//! The first bytes of a foreign disk image: whatever they say, what QEMU would look elsewhere for is refused.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use proa_protocol::machine::DiskFormat;
use proa_vm::import::judge;

fn has(data: &[u8], words: &[u8]) -> bool {
    data.windows(words.len()).any(|part| part == words)
}

fuzz_target!(|data: &[u8]| {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(data).unwrap();
    let (format, refusal) = judge(&file, None).unwrap();
    let number = |at: usize, length: usize| data[at..at + length].iter().any(|byte| *byte != 0);
    match format {
        DiskFormat::Qcow2 if refusal.is_none() => {
            assert!(data.len() >= 72 && !number(8, 8) && !number(16, 4) && !number(32, 4));
            // Of version 3: data in another file.
            assert!(data[7] == 2 || data.get(79).is_none_or(|features| features & 4 == 0));
        }
        DiskFormat::Vmdk if refusal.is_none() && data.starts_with(b"KDMV") => {
            // As QEMU reads it: twenty sectors, to the first zero.
            let start = u64::from_le_bytes(data[28..36].try_into().unwrap()).saturating_mul(512) as usize;
            let description = data.iter().skip(start).take(20 * 512).take_while(|byte| **byte != 0);
            assert!(!has(&description.copied().collect::<Vec<u8>>(), b"parentFileNameHint"));
        }
        _ => {}
    }
    // Whatever it is said to be, it is judged.
    for named in [DiskFormat::Qcow2, DiskFormat::Vmdk, DiskFormat::Vdi, DiskFormat::Vhd, DiskFormat::Vhdx] {
        judge(&file, Some(named)).unwrap();
    }
});

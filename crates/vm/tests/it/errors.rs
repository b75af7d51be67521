//! What is missing is said, and how to get it.

use std::fs;

use proa_vm::{VmError, VmExit};

use crate::fixture::{Guest, Setup, store};

fn refusal(setup: &Setup) -> VmError {
    match Guest::start(&setup.spec) {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

#[test]
fn a_kernel_that_is_missing_or_none_is_named() {
    let mut setup = Setup::new("true");
    setup.spec.kernel = Some("/no/such/vmlinuz".into());
    let error = refusal(&setup).to_string();
    assert_eq!(error, "missing kernel /no/such/vmlinuz: No such file or directory (os error 2)");
    let path = setup.scratch.path().join("text");
    fs::write(&path, "not a kernel").unwrap();
    setup.spec.kernel = Some(path.clone());
    let error = refusal(&setup).to_string();
    assert!(
        error.contains(&*path.to_string_lossy()) && error.contains("neither a vmlinux nor a bzImage"),
        "{error}"
    );
    assert!(!setup.spec.rw_disk.exists(), "a disk was made for nothing");
}

#[test]
fn a_kernel_without_a_driver_is_refused_by_name() {
    let mut setup = Setup::new("true");
    // A kernel that was used before, beside a directory of modules that lacks them.
    drop(Guest::start(&setup.spec).unwrap());
    let kernels = fs::read_dir(store().join("kernels")).unwrap().flatten();
    let known = kernels.map(|entry| entry.path()).find(|path| path.join("kernel.json").exists()).unwrap();
    let text = fs::read_to_string(known.join("kernel.json")).unwrap();
    let release = text.split("\"release\": \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let boot = setup.scratch.path().join("boot");
    fs::create_dir(&boot).unwrap();
    fs::copy(known.join("image"), boot.join("vmlinux")).unwrap();
    // What is kept of that file is of no use to others.
    setup.spec.store = setup.scratch.path().join("vm");
    setup.spec.kernel = Some(boot.join("vmlinux"));
    let modules = setup.scratch.path().join("lib/modules").join(release);
    fs::create_dir_all(modules.join("kernel")).unwrap();
    fs::write(modules.join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
    let error = refusal(&setup).to_string();
    assert!(error.contains("lacks virtio_pci") && error.contains(&*modules.to_string_lossy()), "{error}");
    // Without any directory of modules it may have everything built in. This one has not, which shows in the guest.
    fs::remove_dir_all(setup.scratch.path().join("lib")).unwrap();
    let mut guest = Guest::start(&setup.spec).unwrap();
    guest.await_end();
    let error = guest.vm.died(VmExit::Code(0)).to_string();
    assert!(error.contains("no virtio-serial port") && error.contains("driver"), "{error}");
}

#[test]
fn an_agent_or_layer_that_is_missing_is_named() {
    let mut setup = Setup::new("true");
    setup.spec.layers.push("/no/such/layer.erofs".into());
    let error = refusal(&setup).to_string();
    assert_eq!(error, "/no/such/layer.erofs: No such file or directory (os error 2)");
    setup.spec.layers.clear();
    assert_eq!(refusal(&setup).to_string(), "the image has no layers");
    setup.spec.layers.push("/dev/null".into());
    setup.spec.agent = "/no/such/agent".into();
    assert!(refusal(&setup).to_string().starts_with("/no/such/agent: "));
}

#[test]
fn a_layer_that_is_no_image_is_an_answer_of_the_guest() {
    let mut setup = Setup::new("true");
    let path = setup.scratch.path().join("broken.erofs");
    fs::write(&path, vec![0x5A; 8192]).unwrap();
    setup.spec.layers.push(path);
    let error = setup.boot_refused();
    assert!(error.contains("guest: cannot mount") && error.contains("/dev/vd"), "{error}");
}

//! Host directories and files in a guest.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use crate::fixture::Setup;

#[test]
fn directories_and_files_are_shared_as_asked() {
    let mut setup = Setup::new(
        "exec 2>&1; cat /rw/hello /ro/hello /file; echo back > /rw/answer; echo no > /ro/answer; \
         echo changed > /file; busybox ls /run/proa/shares 2>/dev/null; busybox ls -la /rw; echo end",
    );
    let host = tempfile::tempdir().unwrap();
    for directory in ["rw", "ro", "dir"] {
        fs::create_dir(host.path().join(directory)).unwrap();
    }
    fs::write(host.path().join("rw/hello"), "one\n").unwrap();
    fs::write(host.path().join("ro/hello"), "two\n").unwrap();
    fs::write(host.path().join("dir/file"), "three\n").unwrap();
    fs::write(host.path().join("dir/secret"), "secret\n").unwrap();
    setup.bind(&host.path().join("rw"), "/rw", &["rbind"]);
    setup.bind(&host.path().join("ro"), "/ro", &["rbind", "ro"]);
    setup.bind(&host.path().join("dir/file"), "/file", &["bind"]);
    let mut guest = setup.boot();
    let (output, _) = guest.run();
    assert!(output.starts_with("one\ntwo\nthree\n") && output.ends_with("end\n"), "{output}");
    assert_eq!(output.matches("Read-only file system").count(), 1, "{output}");
    assert!(!output.contains("secret"), "{output}");
    guest.shut_down();
    assert_eq!(fs::read_to_string(host.path().join("rw/answer")).unwrap(), "back\n");
    assert_eq!(fs::read_to_string(host.path().join("dir/file")).unwrap(), "changed\n");
    assert!(!host.path().join("ro/answer").exists());
    assert_eq!(fs::read_to_string(host.path().join("dir/secret")).unwrap(), "secret\n");
}

#[test]
fn a_share_leads_nowhere_else() {
    let mut setup = Setup::new(
        "cat /rw/out /rw/../../secret /rw/absolute; busybox mknod /rw/device c 1 3; \
         busybox ln -s ../secret /rw/made; cat /rw/made; busybox touch /rw/setuid; busybox chmod 4755 /rw/setuid; echo end",
    );
    let host = tempfile::tempdir().unwrap();
    let shared = host.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(host.path().join("secret"), "secret\n").unwrap();
    symlink("../secret", shared.join("out")).unwrap();
    symlink(host.path().join("secret"), shared.join("absolute")).unwrap();
    setup.bind(&shared, "/rw", &["rbind"]);
    // The right to make nodes in the guest is no right to make them on the host.
    setup.grant(&["CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID"]);
    let mut guest = setup.boot();
    let (output, _) = guest.run();
    assert!(output.ends_with("end\n") && !output.contains("secret\n"), "{output}");
    guest.shut_down();
    if let Ok(metadata) = fs::symlink_metadata(shared.join("device")) {
        assert!(!metadata.file_type().is_char_device(), "a device node was made on the host");
    }
    let setuid = fs::metadata(shared.join("setuid")).unwrap();
    assert_eq!((setuid.permissions().mode() & 0o7777, setuid.uid()), (0o4755, 0));
}

#[test]
fn servers_end_with_their_guest() {
    let mut setup = Setup::new("true");
    let host = tempfile::tempdir().unwrap();
    setup.bind(host.path(), "/rw", &["rbind"]);
    let mut guest = setup.boot();
    let pids = guest.vm.helper_pids();
    assert_eq!(pids.len(), 1);
    guest.run();
    guest.shut_down();
    crate::fixture::await_gone(&pids);
}

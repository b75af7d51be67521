//! Confinement by the kernel's security modules, where it has them; the refusal where it has not.
//!
//! The guest of `cargo xtask guest-suite` has AppArmor, or SELinux with the policy of `xtask/src/guest/policy.cil`:
//! `container_t` reaches `container_file_t` of its own categories, and nothing without a label.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio as Pipe};

use proa_oci::runtime::Mount;
use proa_runtime::Stdio;
use rustix::fs::XattrFlags;

use crate::support::{Fixture, fd, process, read_all, read_until};

crate::tests![
    an_apparmor_profile_confines,
    an_apparmor_profile_confines_exec,
    an_apparmor_profile_that_is_not_loaded_is_refused,
    an_selinux_label_confines,
    selinux_categories_keep_containers_apart,
    an_selinux_label_that_the_policy_lacks_is_refused
];

const LABEL: &str = "system_u:system_r:container_t:s0:c1,c2";
const FILES: &str = "system_u:object_r:container_file_t:s0:c1,c2";

fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// A profile that allows everything but to write one file, loaded while this lives.
struct Profile(String);

impl Profile {
    fn load() -> Self {
        let profile = Self(format!("proa-test-{}", std::process::id()));
        assert!(profile.parser("--replace"), "the profile is loaded");
        profile
    }

    fn parser(&self, action: &str) -> bool {
        let text = format!(
            "profile {} flags=(attach_disconnected,mediate_deleted) {{
                file, capability, network, mount, remount, umount, pivot_root, signal, ptrace, unix,
                deny /denied w,
            }}",
            self.0
        );
        let mut parser = Command::new("apparmor_parser")
            .args(["--skip-cache", action])
            .stdin(Pipe::piped())
            .spawn()
            .expect("this test needs apparmor_parser");
        parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        parser.wait().unwrap().success()
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        // The test's own failure is the one to report.
        assert!(self.parser("--remove") || std::thread::panicking());
    }
}

const TRY_BOTH: &str = "cat /proc/self/attr/current; echo x > /allowed && echo allowed; \
                        (echo x > /denied) 2>/dev/null || echo denied";

fn with_profile(script: &str, profile: &str) -> Fixture {
    Fixture::shell(script).with(|spec| process(spec).apparmor_profile = Some(profile.into()))
}

fn an_apparmor_profile_confines() {
    if !has_apparmor() {
        return assert_refused(&with_profile("true", "proa-test"), "AppArmor");
    }
    let profile = Profile::load();
    let outcome = with_profile(TRY_BOTH, &profile.0).run();
    assert_eq!(outcome.stdout, format!("{} (enforce)\nallowed\ndenied\n", profile.0), "{outcome:?}");
    let free = with_profile(TRY_BOTH, "unconfined").run();
    assert_eq!(free.stdout, "unconfined\nallowed\n", "{free:?}");
}

fn an_apparmor_profile_confines_exec() {
    if !has_apparmor() {
        return assert_refused(&with_profile("true", "proa-test"), "AppArmor");
    }
    let profile = Profile::load();
    let fixture = with_profile("echo up; exec sleep 100", &profile.0);
    let (mut container, handles) = fixture.start();
    read_until(fd(&handles.stdout), "up\n");
    let mut spec = fixture.spec.clone();
    process(&mut spec).args = ["sh", "-c", TRY_BOTH].map(Into::into).to_vec();
    let (child, out) =
        container.exec(spec.process.as_ref().unwrap(), "", Stdio::Pipes { stdin: false }).unwrap();
    assert_eq!(read_all(out.stdout.unwrap()), format!("{} (enforce)\nallowed\ndenied\n", profile.0));
    drop(child);
    container.delete().unwrap();
}

fn an_apparmor_profile_that_is_not_loaded_is_refused() {
    let part = if has_apparmor() { "no-such-profile" } else { "AppArmor" };
    assert_refused(&with_profile("echo ran", "no-such-profile"), part);
}

/// A container under SELinux with what it may and may not reach bound into it.
fn labelled(script: &str, label: &str) -> Fixture {
    let fixture = Fixture::shell(script);
    let shared = fixture.dir.path().join("shared");
    for name in ["unlabelled", "own", "others"] {
        fs::create_dir_all(shared.join(name)).unwrap();
        fs::write(shared.join(name).join("file"), format!("{name}\n")).unwrap();
    }
    if has_selinux() {
        set_label(&shared.join("own"), FILES);
        set_label(&shared.join("others"), "system_u:object_r:container_file_t:s0:c3");
        // Overlayfs may map the layer's own file, which each container must be able to read.
        set_label(&fixture.lower().join("bin/busybox"), "system_u:object_r:container_file_t:s0");
    }
    let source = shared.to_str().unwrap().to_owned();
    fixture.with(|spec| {
        spec.linux_mut().mount_label = Some(FILES.into());
        process(spec).selinux_label = Some(label.into());
        for name in ["unlabelled", "own", "others"] {
            spec.mounts.push(Mount {
                destination: format!("/{name}"),
                kind: Some("bind".into()),
                source: Some(format!("{source}/{name}")),
                options: vec!["bind".into()],
                ..Mount::default()
            });
        }
    })
}

/// Labels a directory and the file in it, or a file.
fn set_label(path: &Path, label: &str) {
    let inside = path.join("file");
    for path in [path, &inside].into_iter().filter(|path| path.exists()) {
        rustix::fs::setxattr(path, "security.selinux", label.as_bytes(), XattrFlags::empty()).unwrap();
    }
}

fn an_selinux_label_confines() {
    let script = "tr -d '\\000' < /proc/self/attr/current; echo; echo x > /mine && echo written; \
                  cat /own/file; cat /unlabelled/file 2>/dev/null || echo denied";
    let fixture = labelled(script, LABEL);
    if !has_selinux() {
        return assert_refused(&fixture, "SELinux");
    }
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, format!("{LABEL}\nwritten\nown\ndenied\n"), "{outcome:?}");
}

fn selinux_categories_keep_containers_apart() {
    let script = "cat /own/file 2>/dev/null || echo denied; cat /others/file 2>/dev/null || echo denied";
    if !has_selinux() {
        return assert_refused(&labelled(script, LABEL), "SELinux");
    }
    let outcome = labelled(script, LABEL).run();
    assert_eq!(outcome.stdout, "own\ndenied\n", "{outcome:?}");
    let all = labelled(script, "system_u:system_r:container_t:s0:c1,c2,c3").run();
    assert_eq!(all.stdout, "own\nothers\n", "{all:?}");
}

fn an_selinux_label_that_the_policy_lacks_is_refused() {
    let label = "system_u:system_r:no_such_type_t:s0";
    let part = if has_selinux() { label } else { "SELinux" };
    assert_refused(&labelled("echo ran", label), part);
}

/// The container is not made, and the error tells why.
fn assert_refused(fixture: &Fixture, part: &str) {
    let error = fixture.fails().to_string();
    assert!(error.contains(part), "{error}");
}

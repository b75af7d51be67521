//! Seccomp: flags, and calls that somebody outside answers.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use proa_oci::runtime::{Seccomp, SeccompRule};
use proa_oci::state::ContainerProcessState;
use proa_runtime::Stdio;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::support::{Fixture, fd, process, read_until, wait_readable};

crate::tests![
    a_listener_gets_the_descriptor_and_the_state,
    flags_are_taken,
    what_a_listener_cannot_do_is_refused,
];

fn notify(names: &[&str], path: &str) -> Seccomp {
    Seccomp {
        default_action: "SCMP_ACT_ALLOW".into(),
        flags: vec!["SECCOMP_FILTER_FLAG_LOG".into()],
        listener_path: Some(path.into()),
        listener_metadata: Some("of the test".into()),
        syscalls: vec![SeccompRule {
            names: names.iter().map(ToString::to_string).collect(),
            action: "SCMP_ACT_NOTIFY".into(),
            ..SeccompRule::default()
        }],
        ..Seccomp::default()
    }
}

/// What comes to the listener: the message and the descriptor.
fn receive(listener: &UnixListener) -> (ContainerProcessState, OwnedFd) {
    wait_readable(listener.as_fd());
    let (stream, _) = listener.accept().unwrap();
    wait_readable(stream.as_fd());
    let mut buffer = vec![0; 8192];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message =
        recvmsg(&stream, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let fd = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let text = String::from_utf8(buffer[..message.bytes].to_vec()).unwrap();
    (serde_json::from_str(&text).unwrap(), fd.unwrap())
}

fn a_listener_gets_the_descriptor_and_the_state() {
    for no_new_privileges in [false, true] {
        let fixture = Fixture::shell("echo up; mkdir /notified; sleep 100");
        let path = fixture.dir.path().join("seccomp.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let fixture = fixture.with(|spec| {
            process(spec).no_new_privileges = no_new_privileges;
            spec.linux_mut().seccomp = Some(notify(&["mkdir", "mkdirat"], path.to_str().unwrap()));
        });
        let (mut container, handles) = fixture.start();
        let (state, notifications) = receive(&listener);
        assert_eq!((state.pid, state.state.pid), (container.pid(), container.pid()));
        assert_eq!((state.fds[0].as_str(), state.metadata.as_str()), ("seccompFd", "of the test"));
        assert_eq!(state.state.id, fixture.id);
        read_until(fd(&handles.stdout), "up\n");
        // The call of the program waits for an answer.
        wait_readable(notifications.as_fd());
        assert!(!fixture.upper().join("notified").exists());
        // A process that joins has a listener of its own.
        let mut program = process(&mut fixture.spec.clone()).clone();
        program.args = ["/bin/mkdir", "/x"].map(ToOwned::to_owned).to_vec();
        let (child, _) = container.exec(&program, "", Stdio::Null).unwrap();
        let (state, notifications) = receive(&listener);
        assert_eq!((state.pid, state.state.pid), (child.pid, container.pid()));
        wait_readable(notifications.as_fd());
        container.delete().unwrap();
    }
}

fn flags_are_taken() {
    let fixture = Fixture::shell("grep ^Seccomp: /proc/self/status").with(|spec| {
        let seccomp = spec.linux_mut().seccomp.as_mut().unwrap();
        let names = ["TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV"];
        seccomp.flags = names.map(|name| format!("SECCOMP_FILTER_FLAG_{name}")).to_vec();
    });
    assert_eq!(fixture.run().stdout, "Seccomp:\t2\n");
    let fixture = Fixture::shell("true").with(|spec| {
        spec.linux_mut().seccomp.as_mut().unwrap().flags = vec!["SECCOMP_FILTER_FLAG_X".into()];
    });
    assert!(fixture.fails().to_string().contains("flag 'SECCOMP_FILTER_FLAG_X' is not known"));
}

fn what_a_listener_cannot_do_is_refused() {
    let fails = |seccomp: Seccomp| {
        let fixture = Fixture::shell("true").with(|spec| spec.linux_mut().seccomp = Some(seccomp));
        fixture.fails().to_string()
    };
    // There is a listener, so that nothing else is wrong.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("listener");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(fails(notify(&["sendmsg"], path.to_str().unwrap())).contains("sendmsg"));
    let error = fails(notify(&["mkdir"], "/nonexistent"));
    assert!(error.contains("seccomp listener: /nonexistent: no such file"), "{error}");
    assert!(fails(Seccomp { listener_path: None, ..notify(&["mkdir"], "") }).contains("listenerPath"));
    let default = Seccomp { default_action: "SCMP_ACT_NOTIFY".into(), ..notify(&[], path.to_str().unwrap()) };
    assert!(fails(default).contains("default action"));
}

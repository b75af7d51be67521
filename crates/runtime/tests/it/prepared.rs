//! Containers that are set up before it is known what runs in them.

use proa_oci::runtime::ConsoleSize;
use proa_protocol::message::ErrorKind;
use proa_runtime::{Container, Part, Stdio};

use crate::support::{Fixture, finish, process, read_until};

crate::tests![
    a_prepared_container_plays_its_part,
    it_has_a_terminal_of_the_size_that_comes_with_its_part,
    a_part_that_cannot_be_played_is_refused,
    an_init_or_hooks_cannot_wait,
];

fn part(fixture: &Fixture, args: &[&str]) -> Part {
    let mut process = fixture.spec.process.clone().unwrap();
    process.args = args.iter().map(ToString::to_string).collect();
    Part { process, user: String::new(), hostname: None, size: ConsoleSize::default() }
}

fn a_prepared_container_plays_its_part() {
    let mut fixture = Fixture::program(&["/never"]).file("/etc/passwd", "web:x:33:33::/var/www:/bin/sh\n");
    let (mut container, mut handles) = Container::prepare(fixture.config()).unwrap();
    container.read_ahead(&["/no/such".to_owned(), "/bin/sh".to_owned()]);
    process(&mut fixture.spec).env.push("ONE=1".to_owned());
    let script = "echo $$ $ONE; id -u; hostname; pwd; grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; \
                  ls /proc/self/fd | wc -l; exit 7";
    let played = Part {
        user: "web".to_owned(),
        hostname: Some("box".to_owned()),
        ..part(&fixture, &["/bin/sh", "-c", script])
    };
    container.play(&played, &mut handles).unwrap();
    let outcome = finish(container, handles);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines[..4], ["1 1", "33", "box", "/"], "{outcome:?}");
    assert!(lines.contains(&"Seccomp:\t2"), "{outcome:?}");
    // Its streams, and the directory that `ls` reads.
    assert_eq!((lines.last(), outcome.code), (Some(&"4"), 7), "{outcome:?}");
}

fn it_has_a_terminal_of_the_size_that_comes_with_its_part() {
    let mut fixture = Fixture::program(&["/never"]);
    process(&mut fixture.spec).terminal = true;
    fixture.stdio = Stdio::Terminal(ConsoleSize::default());
    let (mut container, mut handles) = Container::prepare(fixture.config()).unwrap();
    let size = ConsoleSize { height: 40, width: 100 };
    let played = Part { size, ..part(&fixture, &["/bin/sh", "-c", "stty size; tty; read end"]) };
    container.play(&played, &mut handles).unwrap();
    let terminal = handles.terminal.take().unwrap();
    let said = read_until(std::os::fd::AsFd::as_fd(&terminal), "/dev/");
    assert!(said.contains("40 100"), "{said}");
    container.delete().unwrap();
}

fn a_part_that_cannot_be_played_is_refused() {
    let fixture = Fixture::program(&["/never"]);
    for (args, user, kind) in [
        (&["/no/such"][..], "", ErrorKind::CommandNotFound),
        (&["/etc"], "", ErrorKind::CommandNotExecutable),
        (&["/bin/true"], "nobody-here", ErrorKind::InvalidInput),
    ] {
        let (mut container, mut handles) = Container::prepare(fixture.config()).unwrap();
        let played = Part { user: user.to_owned(), ..part(&fixture, args) };
        let error = container.play(&played, &mut handles).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        container.delete().unwrap();
    }
}

fn an_init_or_hooks_cannot_wait() {
    let mut fixture = Fixture::program(&["/bin/true"]);
    fixture.init = true;
    assert_eq!(Container::prepare(fixture.config()).unwrap_err().kind(), ErrorKind::Unsupported);
    fixture.init = false;
    fixture.spec.hooks = Some(proa_oci::runtime::Hooks::default());
    assert_eq!(Container::prepare(fixture.config()).unwrap_err().kind(), ErrorKind::Unsupported);
}

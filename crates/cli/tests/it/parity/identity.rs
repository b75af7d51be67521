//! Who and where the process thinks it is: kernel, host name, users, network, process view.

use super::{Bed, at_both_levels};

at_both_levels!(kernel, names, users, unknown_users, process_view, network);

fn kernel(bed: &Bed) {
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let seen = bed.run_ok(&[], &["uname", "-r"]);
    assert_eq!(seen == host.trim(), !bed.is_vm(), "{seen}");
}

fn names(bed: &Bed) {
    assert_eq!(bed.run_ok(&["--hostname", "harbour"], &["hostname"]), "harbour");
    let files = bed.run_ok(&["--hostname", "harbour"], &["sh", "-c", "cat /etc/hostname /etc/hosts"]);
    assert!(files.starts_with("harbour\n"), "{files}");
    assert!(files.lines().any(|line| line.starts_with("127.0.0.1") && line.contains("localhost")), "{files}");
    let id = bed.detach("named", &[], &["sleep", "1000"]);
    assert_eq!(bed.ok(&["exec", "named", "hostname"]), id[..12]);
    bed.ok(&["rm", "-f", "named"]);
}

fn users(bed: &Bed) {
    assert_eq!(bed.run_ok(&[], &["id", "-u"]), "0");
    let nobody = bed.run_ok(&["-u", "nobody"], &["sh", "-c", "id -u; id -g; echo $HOME"]);
    assert_eq!(nobody, "65534\n65534\n/");
    assert_eq!(bed.run_ok(&["-u", "1234:56"], &["sh", "-c", "id -u; id -g"]), "1234\n56");
    let privileges = bed.run_ok(&["-u", "nobody"], &["grep", "CapEff", "/proc/self/status"]);
    assert_eq!(privileges.split_whitespace().last(), Some("0000000000000000"));
}

fn unknown_users(bed: &Bed) {
    for user in ["stranger", "4294967296", "-1", "root:strangers"] {
        let output = bed.run(&[&format!("--user={user}")], &["id"]);
        assert!([125, 126].contains(&output.code), "{user}: {output:?}");
        assert!(output.stdout.is_empty(), "{user}: {output:?}");
    }
}

fn process_view(bed: &Bed) {
    let seen = bed.run_ok(&[], &["sh", "-c", "ls -d /proc/[0-9]* | wc -l; echo $$"]);
    let (count, own) = seen.split_once('\n').unwrap();
    assert_eq!(own, "1");
    assert!(count.trim().parse::<u32>().unwrap() <= 3, "{seen}");
}

fn network(bed: &Bed) {
    let seen = bed.run_ok(&["--network", "none"], &["ls", "/sys/class/net"]);
    assert_eq!(seen, "lo");
    let up = bed.run_ok(&[], &["sh", "-c", "ip addr show lo | grep -c 127.0.0.1"]);
    assert_eq!(up, "1");
}

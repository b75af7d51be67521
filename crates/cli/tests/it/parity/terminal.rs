//! Terminals: size, resize, interrupt, detach keys.

use super::{Bed, at_both_levels};
use crate::harness::Terminal;

at_both_levels!(shell, resize, interrupt, detach_and_attach, exec_terminal);

fn start(bed: &Bed, arguments: &[&str]) -> Terminal {
    Terminal::start(&bed.proa, arguments, 30, 100)
}

fn shell(bed: &Bed) {
    let mut terminal = start(bed, &["run", "--rm", "-it", "--isolation", bed.level, "busybox", "sh"]);
    terminal.send("echo $((6*7)) $TERM; tty; stty size\n");
    terminal.expect("42 xterm");
    terminal.expect("/dev/pts/0");
    terminal.expect("30 100");
    terminal.send("exit 6\n");
    assert_eq!(terminal.wait(), 6);
}

fn resize(bed: &Bed) {
    let mut terminal = start(bed, &["run", "--rm", "-it", "--isolation", bed.level, "busybox", "sh"]);
    terminal.send("stty size\n");
    terminal.expect("30 100");
    terminal.resize(44, 132);
    terminal.send("until [ \"$(stty size)\" = '44 132' ]; do :; done; echo re''sized\n");
    terminal.expect("resized");
    terminal.send("exit\n");
    assert_eq!(terminal.wait(), 0);
}

fn interrupt(bed: &Bed) {
    let mut terminal = start(bed, &["run", "--rm", "-it", "--isolation", bed.level, "busybox", "sh"]);
    // The inner shell writes when it has the terminal; before that the outer one would get the interrupt.
    terminal.send("sh -c 'echo st''arted; exec sleep 1000'\n");
    terminal.expect("started");
    terminal.send("\x03");
    terminal.send("echo ali''ve\n");
    terminal.expect("alive");
    // The shell reads the end of input as a key, and only at its prompt.
    terminal.expect("# ");
    terminal.send("\x04");
    terminal.wait();
}

fn detach_and_attach(bed: &Bed) {
    let mut terminal =
        start(bed, &["run", "-it", "--name", "kept", "--isolation", bed.level, "busybox", "sh"]);
    terminal.send("echo fi''rst\n");
    terminal.expect("first");
    terminal.send("\x10\x11");
    terminal.wait();
    assert_eq!(bed.ok(&["inspect", "--format", "{{.State.Status}}", "kept"]), "running");
    let mut terminal = start(bed, &["attach", "kept"]);
    terminal.send("echo sec''ond\n");
    terminal.expect("second");
    terminal.send("exit 2\n");
    assert_eq!(terminal.wait(), 2);
    bed.ok(&["rm", "kept"]);
}

fn exec_terminal(bed: &Bed) {
    bed.detach("house", &[], &["sleep", "1000"]);
    let mut terminal = start(bed, &["exec", "-it", "house", "sh"]);
    terminal.send("tty; stty size\n");
    terminal.expect("/dev/pts/");
    terminal.expect("30 100");
    terminal.send("exit 8\n");
    assert_eq!(terminal.wait(), 8);
    bed.ok(&["rm", "-f", "house"]);
}

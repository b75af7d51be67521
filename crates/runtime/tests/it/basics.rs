//! Each step's effect, seen from inside.

use crate::support::Fixture;

crate::tests![output_and_exit_code];

fn output_and_exit_code() {
    let outcome = Fixture::shell("echo out; echo err >&2; exit 7").run();
    assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (7, "out\n", "err\n"));
}

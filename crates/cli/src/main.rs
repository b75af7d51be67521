//! The proa command line.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the program that speaks with people")]

mod cli;
mod commands;
mod compare;
mod context;
mod error;
mod flags;
mod format;
mod metrics;
mod progress;
mod relay;
mod template;
mod terminal;
mod top;
mod units;

fn main() {
    if std::env::args_os().next().is_some_and(|name| name == proa_engine::rootless::HOLDER_NAME) {
        // Nobody reads what it says: whoever finds it gone starts another.
        std::process::exit(i32::from(proa_engine::rootless::hold().is_err()));
    }
    // A reader that has seen enough, as in `proa ps | head`, is no error of ours.
    proa_sys::signalfd::end_on_broken_pipe();
    let code = match cli::run(std::env::args_os().skip(1).collect()) {
        Ok(code) => code,
        Err(failure) => {
            failure.print();
            failure.code()
        }
    };
    // Nothing is left to drop that the kernel does not take back faster.
    std::process::exit(code);
}

//! The program inside a session: `bai-runner sandbox` builds the sandbox around it, `bai-runner serve` does without one
//! (for containers, which are sandboxes already), and [`session`] is what both then do.

mod batch;
mod command;
mod container;
mod control;
mod descriptors;
mod door;
mod hook;
mod jupyter;
mod lang;
mod languages;
mod outbox;
mod output;
mod process;
mod query;
mod sandbox;
mod scratch;
mod serve;
mod service;
mod session;
mod stdin;
mod strays;
mod terminal;

use std::process::ExitCode;

use nix::sys::signal::{SigHandler, Signal, signal};

fn main() -> ExitCode {
    heed_signals();
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_ref().and_then(|name| name.to_str()) {
        Some("sandbox") => sandbox::run(),
        Some("serve") => serve::run(arguments),
        Some("container") => container::run(arguments),
        Some("languages") => languages::run(),
        _ => ExitCode::from(2),
    }
}

/// Takes signals as they are meant. A shell has whatever it starts in the background ignore some, and so would every program
/// of the session then: nobody could interrupt them.
#[expect(unsafe_code, reason = "signal")]
fn heed_signals() {
    for each in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        // SAFETY: there is one thread, and the default is no code of ours.
        _ = unsafe { signal(each, SigHandler::SigDfl) };
    }
}

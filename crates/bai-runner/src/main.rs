//! The program inside a session: `bai-runner sandbox` builds the sandbox around it, [`session`] is what it then does.

mod batch;
mod child;
mod lang;
mod outbox;
mod query;
mod sandbox;
mod session;

fn main() -> std::process::ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("sandbox") => sandbox::run(),
        _ => std::process::ExitCode::from(2),
    }
}

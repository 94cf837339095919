//! Several managers on one PostgreSQL, etcd and Redis: who does what, and what happens when something is away.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(
    clippy::print_stdout,
    reason = "how fast work moved is for those who read the log"
)]

mod faults;
mod load;
mod processes;
mod site;
mod takeover;

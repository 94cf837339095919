//! Several managers on one PostgreSQL, etcd and Redis: who does what, and what happens when something is away.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::print_stdout, reason = "what is skipped is told and counted")]

mod agents;
mod faults;
mod freeze;
mod limits;
mod load;
mod processes;
mod site;
mod status;
mod takeover;

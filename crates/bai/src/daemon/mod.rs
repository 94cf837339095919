//! What makes a process a daemon: its log, its PID file, as whom it runs, where it listens, how much it may open, TLS, and
//! what it tells the service manager. A file each; `cmd/gateway.rs` and `cmd/agent.rs` put them in order.
//!
//! Not here: anything of the system that it serves (`wire`).

pub mod account;
pub mod end;
pub mod life;
pub mod limit;
pub mod listen;
pub mod lock;
pub mod log;
pub mod notify;
pub mod pid_file;
pub mod rotate;
pub mod tls;

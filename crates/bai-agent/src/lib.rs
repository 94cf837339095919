//! Runs one host: discovers its resources, allocates them to kernels, runs the kernels in sandboxes or containers,
//! executes code in them, keeps their files and tells the manager what happens.
//!
//! Invariants: what an agent holds about a kernel is on disk before the kernel runs, so that an agent that was killed
//! finds its kernels again; slots and ports are given back exactly once.
//!
//! Not here: users, quotas, sessions as clients see them (`bai-core`), and how code is run (`bai-runner`).

mod agent;
mod image;
mod kernel;
pub mod resource;
pub mod runtime;

pub use agent::{Agent, AgentOptions};

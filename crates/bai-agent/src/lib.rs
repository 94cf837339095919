//! Runs one host: discovers its resources, allocates them to kernels, runs the kernels in sandboxes or containers,
//! executes code in them, keeps their files and tells the manager what happens.
//!
//! [`Agent`] is the whole: it implements `bai_proto::agent::AgentRpc` and sends `bai_proto::event::AgentEvent`s. Below
//! it, `kernel` knows kernels and their runs, `resource` who holds what, `image` what the host offers, `runtime` how
//! processes are started.
//!
//! Invariants: what an agent holds about a kernel is on disk before the kernel runs, so that an agent that was killed
//! finds its kernels again; slots and ports are given back exactly once; work that a caller asked for is finished
//! although the caller goes away.
//!
//! Not here: users, quotas, sessions as clients see them (`bai-core`), and how code is run (`bai-runner`).

mod agent;
mod error;
mod heartbeat;
mod host;
mod idle;
pub mod image;
mod kernel;
pub mod resource;
mod rpc;
pub mod runtime;
mod stats;
mod tasks;
#[cfg(test)]
mod tests;

pub use agent::{Agent, AgentOptions, StartError};
pub use heartbeat::Identity;
pub use image::Images;
pub use kernel::memory::DEFAULT_SIZE as DEFAULT_MEMORY_SCRATCH;

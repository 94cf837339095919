//! Kernels: their state on disk and in memory, their lives, runs and files.

mod beneath;
mod client;
mod config_dir;
mod console;
mod drive;
pub(crate) mod files;
mod forward;
mod inherit;
pub(crate) mod lifecycle;
mod listen;
pub(crate) mod logs;
pub(crate) mod memory;
mod output;
mod plan;
pub(crate) mod registry;
pub(crate) mod run;
mod state;
mod terminal;
mod trash;
pub(crate) mod window;
mod wire;

#[cfg(test)]
pub(crate) use forward::MAX_CONNECTIONS;

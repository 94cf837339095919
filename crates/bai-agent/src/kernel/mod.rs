//! Kernels: their state on disk and in memory, their lives, runs and files.

mod beneath;
mod client;
mod config_dir;
mod console;
mod drive;
pub(crate) mod files;
pub(crate) mod lifecycle;
pub(crate) mod logs;
mod output;
mod plan;
pub(crate) mod registry;
pub(crate) mod run;
mod state;
mod trash;

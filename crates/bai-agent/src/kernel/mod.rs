//! One kernel: its record, the connection to its runner, its files.

pub mod client;
pub mod console;
pub mod files;
pub mod logs;
pub mod state;

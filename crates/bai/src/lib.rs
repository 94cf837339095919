//! The executable `bai`, as a library so that tests start what users start.
//!
//! [`wire`] builds a running system out of the crates below, in one readable order; [`cmd`] holds a file for each
//! command; [`client`] speaks the public API for the commands that need a server.
//!
//! Not here: anything that two commands or a test could not share.

pub mod cli;
pub mod client;
pub mod cmd;
pub mod credentials;
pub mod output;
pub mod runner;
pub mod seed;
pub mod sessions;
pub mod system;
pub mod wire;

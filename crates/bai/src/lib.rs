//! The executable `bai`, as a library so that tests start what users start.
//!
//! [`wire`] builds a running system out of the crates below, in one readable order, on the services of a [`site`], which
//! [`config`] may describe; [`node`] an agent of one, and [`simulation`] many agents that run nothing; [`daemon`] is what a
//! process is beside; [`cmd`] holds a file for each command; [`client`] speaks the public API for the commands that need a
//! server.
//!
//! Not here: anything that two commands or a test could not share.

pub mod cli;
pub mod client;
pub mod cmd;
pub mod config;
pub mod credentials;
pub mod daemon;
pub mod node;
pub mod output;
pub mod runner;
pub mod seed;
pub mod sessions;
pub mod simulation;
pub mod site;
pub mod system;
pub mod wire;

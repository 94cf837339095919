//! Sandbox and session as a user inside and an agent outside experience them, started by root and by an ordinary user.
//!
//! Not here: cgroups and adoption (`bai-agent`, `tests/runtime`).

#![expect(
    clippy::print_stdout,
    reason = "tests say what they skip and what they measure"
)]

mod batch;
mod confinement;
mod harness;
mod hook;
mod jupyter;
mod lifecycle;
mod programs;
mod protocol;
mod python;
mod shell;

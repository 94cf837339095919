//! The sandbox as a user inside and an agent outside experience it, started by root and by an ordinary user.
//!
//! Not here: cgroups and adoption (`bai-agent`, `process_runtime`), the languages (`session`).

#![expect(
    clippy::print_stdout,
    reason = "tests say what they skip and what they measure"
)]

mod confinement;
mod harness;
mod lifecycle;
mod programs;

//! The runtimes with the real runner: what both must do (`conform`), and what is each one's own.
#![expect(
    clippy::print_stdout,
    reason = "tests say what they skip and what they measure"
)]

mod conform;
mod docker;
mod images;
mod original;
mod process;
mod reach;
mod site;
mod whole;

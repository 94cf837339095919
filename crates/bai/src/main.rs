//! `bai`: see `bai --help`.

use std::process::ExitCode;

/// A quarter of what a manager of a busy site did was the system's allocator (`docs/adr/0017-memory-allocator.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    bai::cli::main()
}

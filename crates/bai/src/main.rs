//! `bai`: see `bai --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    bai::cli::main()
}

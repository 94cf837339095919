//! `bai-runner serve SOCKET RUNTIME-TYPE [RUNTIME-PATH]`: the session program in the surroundings that it finds, with
//! their environment and folder. The socket's folder must not be writable for others, because whoever connects is the agent.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use bai_proto::sandbox::Network;

use crate::door::Door;
use crate::lang::Runtime;

pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let (socket, runtime_type, path) = match arguments.as_slice() {
        [socket, runtime_type] => (socket, runtime_type, None),
        [socket, runtime_type, path] => (socket, runtime_type, path.to_str()),
        _ => {
            complain("usage: bai-runner serve SOCKET RUNTIME-TYPE [RUNTIME-PATH]");
            return ExitCode::from(2);
        }
    };
    let text = |text: OsString| text.into_string().ok();
    let environ: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((text(name)?, text(value)?)))
        .collect();
    let runtime = Runtime::new(&runtime_type.to_string_lossy(), path, &environ);
    match Door::open(Path::new(socket)) {
        Ok(door) => match u8::try_from(crate::session::serve(door, runtime, Network::Host)) {
            Ok(code) => ExitCode::from(code),
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            complain(&format!("cannot listen on {}: {error}", socket.display()));
            ExitCode::FAILURE
        }
    }
}

fn complain(text: &str) {
    // Without a stderr there is nobody to tell.
    _ = writeln!(io::stderr(), "bai-runner: {text}");
}

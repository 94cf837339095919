//! `bai-runner container UID GID SOCKET NETWORK RUNTIME-TYPE [RUNTIME-PATH]`: the first process of a container of any image.
//! NETWORK is `own` or `host`.
//!
//! It is started as the container's root, with no more capabilities than becoming somebody else takes, opens the agent's
//! socket in a folder that only root may enter, becomes the session's user for good, and serves.
//!
//! Invariants: no code of a user runs before the identity is given up; the socket's folder is not reachable for that
//! user, so the session can neither replace the socket nor connect to it; nothing of the image is executed on the way.
//!
//! Not here: namespaces, limits, mounts (the container engine), and what is served (`crate::session`).

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use bai_proto::sandbox::Network;
use nix::sys::prctl::set_no_new_privs;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chdir, setgroups, setresgid, setresuid};

use crate::door::Door;
use crate::lang::Runtime;
use crate::sandbox::init;

const USAGE: &str = "usage: bai-runner container UID GID SOCKET own|host RUNTIME-TYPE [RUNTIME-PATH]";
const NAME: &str = "work";
const HOME: &str = "/home/work";

/// The `container` command. Must be called before the program has started a thread.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Option<Vec<String>> = arguments.map(|word| word.into_string().ok()).collect();
    let arguments = arguments.unwrap_or_default();
    let [uid, gid, socket, network, runtime_type, path @ ..] = arguments.as_slice() else {
        return fail(USAGE);
    };
    let (Ok(uid), Ok(gid)) = (uid.parse::<u32>(), gid.parse::<u32>()) else {
        return fail(USAGE);
    };
    let network = match network.as_str() {
        "own" => Network::Isolated,
        "host" => Network::Host,
        _ => return fail(USAGE),
    };
    let door = match open(Path::new(socket), uid, gid) {
        Ok(door) => door,
        Err(error) => return fail(&error),
    };
    let environ = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let runtime = Runtime::new(runtime_type, path.first().map(String::as_str), &environ);
    match init::supervise(None, move || crate::session::serve(door, runtime, network)) {
        Ok(code) => u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from),
        Err(fatal) => fail(&fatal.0),
    }
}

/// Opens the socket and becomes the session's user.
fn open(socket: &Path, uid: u32, gid: u32) -> Result<Door, String> {
    // An agent that is not root has to reach the socket, too; its folder keeps everybody else away.
    let mask = umask(Mode::empty());
    let door =
        Door::open(socket).map_err(|error| format!("cannot listen on {}: {error}", socket.display()))?;
    umask(mask);
    introduce(uid, gid);
    become_user(uid, gid).map_err(|error| format!("cannot become user {uid}: {error}"))?;
    chdir(HOME).map_err(|error| format!("cannot enter {HOME}: {error}"))?;
    Ok(door)
}

/// Gives up root, for good: no set-user-id program of the image brings it back.
fn become_user(uid: u32, gid: u32) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_no_new_privs()?;
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    // From here on the process has no capability, and cannot be traced by the session that it starts.
    setresuid(uid, uid, uid)
}

/// Gives the user a name, where the image's files can take one: some programs want to know whose home they are in.
fn introduce(uid: u32, gid: u32) {
    let is_there = |file: &str, id: u32| {
        let field = id.to_string();
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().any(|line| line.split(':').nth(2) == Some(&field))
    };
    for (file, id, line) in [
        (
            "/etc/passwd",
            uid,
            format!("{NAME}:x:{uid}:{gid}::{HOME}:/bin/sh\n"),
        ),
        ("/etc/group", gid, format!("{NAME}:x:{gid}:\n")),
    ] {
        if !is_there(file, id) {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o644)
                .open(file);
            // An image without such files, or with files that are not to be written: the number has to do.
            _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
        }
    }
}

/// To the container's log.
fn fail(why: &str) -> ExitCode {
    _ = writeln!(io::stderr(), "bai-runner: {why}");
    ExitCode::FAILURE
}

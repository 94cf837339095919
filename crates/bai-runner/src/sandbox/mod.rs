//! Builds a session's sandbox on the process runtime and becomes the session: `bai-runner sandbox`.
//!
//! Three processes, of which one stays:
//!
//! - the *outer* one, started by the agent, enters the cgroups, opens what needs the agent's rights (the runner's socket
//!   and log, and, as root, the mounts) and enters the namespaces;
//! - a *scribe*, its child, stays outside for a moment to write the outer one's user map;
//! - the *first* one, pid 1 of the new namespaces and a child of the agent, builds the root, confines itself, reports,
//!   waits for the agent's word, and starts the runner proper (`init`).
//!
//! Invariants: exactly one report goes to the agent; no code of a user runs before the agent has said so; if the agent
//! goes away before, nothing is left; every protection that is refused is in the report, none is skipped silently.
//!
//! Not here: the limits of the cgroups (the agent), what the runner does (`crate::session`).

mod cgroup;
mod confine;
mod control;
mod identity;
pub mod init;
mod root;
mod seccomp;
mod sys;
mod tree;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use bai_proto::sandbox::{Network, SandboxSpec};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, sethostname, setsid};

use self::control::{Control, Fatal, Ledger, OrFatal};
use self::identity::Identity;
use self::sys::Side;
use self::tree::Item;
use crate::door::Door;

/// A log that has grown beyond this is started anew with the next start of the session.
const MAX_LOG: u64 = 256 << 10;

/// The `sandbox` command. Must be called before the program has started a thread.
pub fn run() -> ExitCode {
    let control = sys::close_from(3).and_then(|()| Control::from_stdin());
    let Ok(control) = control else {
        return ExitCode::from(2);
    };
    sys::clear_environment();
    match control.read_spec().and_then(|spec| outer(&control, &spec)) {
        Ok(code) => ExitCode::from(code),
        Err(fatal) => {
            control.report_fatal(0, fatal);
            ExitCode::FAILURE
        }
    }
}

/// What the first process inherits from the outer one.
struct Inheritance {
    door: Door,
    /// The mounts, where they had to be opened with root's rights.
    items: Option<Vec<Item>>,
    ledger: Ledger,
}

fn outer(control: &Control, spec: &SandboxSpec) -> Result<u8, Fatal> {
    // Fails only for the leader of a process group, which is as far from the agent's terminal.
    let _ = setsid();
    let mut ledger = Ledger::default();
    cgroup::enter(&spec.cgroups, &mut ledger)?;
    let door = prepare_socket_dir(&spec.socket_dir)?;
    let identity = Identity::establish(spec, &mut ledger)?;
    let items = if identity.privileged {
        Some(tree::open_all(spec)?)
    } else {
        None
    };
    if !enter_user_namespace(control, identity)? {
        return Ok(1);
    }
    ledger.enforced("user namespace");
    enter_namespaces(control, spec, Inheritance { door, items, ledger }).map(|()| 0)
}

/// Becomes `work` of a user namespace of its own. False when the scribe has failed, and said so.
fn enter_user_namespace(control: &Control, identity: Identity) -> Result<bool, Fatal> {
    let outer = nix::unistd::getpid();
    let (mut here, mut there) = UnixStream::pair().or_fatal("make a socket pair")?;
    let scribe = match sys::fork().or_fatal("start the scribe")? {
        Side::Parent(scribe) => scribe,
        Side::Child => {
            drop(here);
            if there.read_exact(&mut [0]).is_ok() {
                match identity.write_maps(outer) {
                    Ok(()) => drop(there.write_all(&[0])),
                    Err(fatal) => control.report_fatal(0, fatal),
                }
            }
            sys::exit_now(0)
        }
    };
    drop(there);
    let entered = unshare(CloneFlags::CLONE_NEWUSER).map_err(io::Error::from);
    let mapped = entered.is_ok()
        && here
            .write_all(&[0])
            .and_then(|()| here.read_exact(&mut [0]))
            .is_ok();
    drop(here);
    let _ = waitpid(scribe, None);
    entered.map_err(|error| identity::explain_user_namespace(&error))?;
    if mapped {
        identity.assume()?;
    }
    Ok(mapped)
}

/// Opens the runner's sockets and log, and makes the log this process's output.
///
/// Done by name relative to the directory: the path of a unix socket may not be longer than 107 bytes.
fn prepare_socket_dir(path: &str) -> Result<Door, Fatal> {
    chdir(path).or_fatal(format!("enter {path}"))?;
    let redirect = || -> io::Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open("runner.log")?;
        if log.metadata()?.len() > MAX_LOG {
            log.set_len(0)?;
        }
        dup2_stdin(File::open("/dev/null")?)?;
        dup2_stdout(&log)?;
        Ok(dup2_stderr(&log)?)
    };
    redirect().or_fatal(format!("open {path}/runner.log"))?;
    Door::open(Path::new("runner.sock")).or_fatal(format!("listen on {path}/runner.sock"))
}

fn enter_namespaces(
    control: &Control,
    spec: &SandboxSpec,
    mut inheritance: Inheritance,
) -> Result<(), Fatal> {
    let ledger = &mut inheritance.ledger;
    let enter = |namespaces| unshare(namespaces).map_err(io::Error::from);
    let needed = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    enter(needed).map_err(|error| identity::explain_user_namespace(&error))?;
    for name in [
        "mount namespace",
        "pid namespace",
        "ipc namespace",
        "uts namespace",
    ] {
        ledger.enforced(name);
    }
    let network = isolate_network(spec.network, ledger);
    ledger.note("cgroup namespace", enter(CloneFlags::CLONE_NEWCGROUP));
    // Only this process learns the number that the first one has outside.
    let (mut name, mut naming) = io::pipe().or_fatal("make a pipe")?;
    match sys::fork_sibling().or_fatal("start the first process")? {
        Side::Parent(first) => naming
            .write_all(&first.as_raw().to_ne_bytes())
            .or_fatal("name the first process"),
        Side::Child => {
            drop(naming);
            let mut pid = [0; 4];
            name.read_exact(&mut pid)
                .or_fatal("learn the first process's name")?;
            drop(name);
            let pid = i32::from_ne_bytes(pid);
            if let Err(fatal) = first(control, spec, network, inheritance, pid) {
                control.report_fatal(pid, fatal);
            }
            sys::exit_now(1)
        }
    }
}

fn isolate_network(wanted: Network, ledger: &mut Ledger) -> Network {
    if wanted == Network::Host {
        return Network::Host;
    }
    let isolated = unshare(CloneFlags::CLONE_NEWNET)
        .map_err(io::Error::from)
        .and_then(|()| sys::loopback_up());
    match isolated {
        Ok(()) => {
            ledger.enforced("network namespace");
            Network::Isolated
        }
        Err(error) => {
            ledger.refused(
                "network namespace",
                format!("{error}; the session uses the host's network"),
            );
            Network::Host
        }
    }
}

fn first(
    control: &Control,
    spec: &SandboxSpec,
    network: Network,
    inheritance: Inheritance,
    pid: i32,
) -> Result<(), Fatal> {
    let Inheritance {
        door,
        items,
        mut ledger,
    } = inheritance;
    let _ = setsid();
    sethostname(&spec.hostname).or_fatal("set the host name")?;
    let items = items.map_or_else(|| tree::open_all(spec), Ok)?;
    root::build(spec, items, network, &mut ledger)?;
    confine::confine(spec, &mut ledger)?;
    control.report(&ledger.into_report(pid));
    if !control.wait_for_go() {
        return Ok(());
    }
    if !spec.dies_with_agent {
        control.hang_up();
    }
    let leash = spec.dies_with_agent.then_some(control);
    let code = init::supervise(leash, move || crate::session::serve(door, spec.into(), network))?;
    sys::exit_now(code)
}

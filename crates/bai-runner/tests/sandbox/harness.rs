//! Starts the built runner as an agent would, as root and as an ordinary user, and runs commands inside.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bai_proto::runner::{Frame, Record, Request};
use bai_proto::sandbox::{GO, Limits, Network, SandboxReport, SandboxSpec};
use nix::poll::{PollFd, PollFlags, poll};

/// Whoever starts the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starter {
    /// Root, which maps another user of the host.
    Root,
    /// An ordinary user, which maps itself.
    User,
}

const NOBODY: u32 = 65534;
const MAPPED: u32 = 600_100_007;

/// The starters that this test run can play.
pub fn starters() -> Vec<Starter> {
    if nix::unistd::geteuid().is_root() {
        vec![Starter::Root, Starter::User]
    } else {
        println!("SKIPPED: the sandbox as started by root, because the tests do not run as root");
        vec![Starter::User]
    }
}

/// The runner to test: another one, as the static one that `bai` embeds, if `BAI_TEST_RUNNER` names it.
pub fn runner() -> String {
    std::env::var("BAI_TEST_RUNNER").unwrap_or_else(|_| env!("CARGO_BIN_EXE_bai-runner").to_owned())
}

/// A directory of one kernel and what is needed to start it.
pub struct Kernel {
    starter: Starter,
    dir: Arc<tempfile::TempDir>,
    pub spec: SandboxSpec,
    /// A command that puts the runner into other surroundings, and what a shell is to do there before.
    pub surroundings: Option<(&'static [&'static str], &'static str)>,
}

impl Kernel {
    pub fn new(starter: Starter) -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("a directory"));
        let is_root = nix::unistd::geteuid().is_root();
        let (uid, gid) = match starter {
            Starter::Root => (MAPPED, MAPPED),
            Starter::User if is_root => (NOBODY, NOBODY),
            Starter::User => (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()),
        };
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        let (built, runner) = (runner(), dir.path().join("bai-runner"));
        fs::hard_link(&built, &runner)
            .or_else(|_| fs::copy(&built, &runner).map(drop))
            .expect("a copy of the runner");
        let sub = |name: &str| make_dir(dir.path(), name, uid, gid);
        let spec = SandboxSpec {
            kernel_id: "00000000-0000-0000-0000-000000000001".to_owned(),
            hostname: "kernel".to_owned(),
            work_dir: sub("work"),
            config_dir: sub("config"),
            socket_dir: sub("run"),
            binds: Vec::new(),
            host_uid: uid,
            host_gid: gid,
            cgroups: Vec::new(),
            environ: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
            limits: Limits {
                open_files: 1024,
                processes: Some(64),
                tmp_size: Some(64 << 20),
                ..Limits::default()
            },
            network: Network::Isolated,
            runtime_type: "shell".to_owned(),
            runtime_path: None,
            dies_with_agent: true,
        };
        fs::write(dir.path().join("config/environ.txt"), "A=b\n").expect("a file");
        Self {
            starter,
            dir,
            spec,
            surroundings: None,
        }
    }

    /// A kernel of a language, started by whoever comes first.
    pub fn of(runtime_type: &str, runtime_path: Option<&str>) -> Self {
        let mut kernel = Self::new(starters()[0]);
        kernel.spec.runtime_type = runtime_type.to_owned();
        kernel.spec.runtime_path = runtime_path.map(str::to_owned);
        kernel.spec.limits.processes = Some(1024);
        kernel
    }

    /// The host directory, which a session must never see.
    pub fn dir(&self) -> &str {
        self.dir.path().to_str().expect("a plain path")
    }

    /// Makes the starter the root of an ordinary user's user namespace.
    pub fn start_as_root_of_a_user(&mut self, script: &'static str) {
        const PREFIX: &[&str] = &[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
        ];
        self.surroundings = Some((PREFIX, script));
        (self.spec.host_uid, self.spec.host_gid) = (0, 0);
        for name in ["work", "config", "run"] {
            chown(self.path(name), Some(NOBODY), Some(NOBODY)).expect("an owner");
        }
    }

    /// Makes the starter one that ignores signals, as a shell has what it starts in the background do.
    pub fn start_in_the_background(&mut self) {
        self.surroundings = Some((&["env"], "trap '' INT QUIT HUP"));
    }

    /// One more folder that belongs to the session's user.
    pub fn make_dir(&self, name: &str) -> String {
        make_dir(self.dir.path(), name, self.spec.host_uid, self.spec.host_gid)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the sandbox up to its report.
    pub fn launch(&self) -> Launched {
        let (mut control, theirs) = UnixStream::pair().expect("a socket pair");
        let mut command = match self.surroundings {
            None => Command::new(self.path("bai-runner")),
            Some((prefix, script)) => {
                let mut command = Command::new(prefix[0]);
                command
                    .args(&prefix[1..])
                    .args(["sh", "-c", &format!("{script}; exec \"$0\" \"$@\"")]);
                command.arg(self.path("bai-runner"));
                command
            }
        };
        command
            .arg("sandbox")
            .env("SECRET", "of the agent")
            .stdin(Stdio::from(OwnedFd::from(theirs)));
        let is_root = nix::unistd::geteuid().is_root();
        if self.starter == Starter::User && is_root && self.surroundings.is_none() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let begun = Instant::now();
        let mut outer = loop {
            match command.spawn() {
                // Another test forked while it held its copy open for writing.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    std::thread::yield_now()
                }
                outer => break outer.expect("the runner starts"),
            }
        };
        drop(command);
        let mut line = serde_json::to_vec(&self.spec).expect("JSON");
        line.push(b'\n');
        control.write_all(&line).expect("the specification is read");
        control
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
        let mut line = String::new();
        BufReader::new(control.try_clone().expect("a descriptor"))
            .read_line(&mut line)
            .expect("a report");
        let report: SandboxReport = serde_json::from_str(&line).unwrap_or_else(|error| {
            let log = fs::read_to_string(self.path("run/runner.log")).unwrap_or_default();
            panic!("no report: {error}: {line:?}; log: {log}")
        });
        let took = begun.elapsed();
        reap(&mut outer);
        Launched {
            control: Some(control),
            report,
            took,
            _dir: Arc::clone(&self.dir),
        }
    }

    /// Starts the sandbox and its session.
    pub fn start(&self) -> Session {
        let mut launched = self.launch();
        assert_eq!(launched.report.fatal, None);
        launched.say(GO);
        Session {
            stream: connect(&self.path("run/runner.sock")),
            launched,
        }
    }
}

/// As an agent does.
pub fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("the runner accepts");
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a timeout");
    stream
}

fn make_dir(parent: &Path, name: &str, uid: u32, gid: u32) -> String {
    let path = parent.join(name);
    fs::create_dir(&path).expect("a directory");
    if nix::unistd::geteuid().is_root() {
        chown(&path, Some(uid), Some(gid)).expect("an owner");
    }
    path.to_str().expect("a plain path").to_owned()
}

fn reap(child: &mut Child) {
    child.wait().expect("the outer process ends");
}

pub struct Launched {
    pub control: Option<UnixStream>,
    pub report: SandboxReport,
    pub took: Duration,
    _dir: Arc<tempfile::TempDir>,
}

impl Launched {
    pub fn say(&mut self, word: u8) {
        self.control
            .as_mut()
            .expect("connected")
            .write_all(&[word])
            .expect("heard");
    }

    /// Drops the agent's end of the control socket, as its death would.
    pub fn forsake(&mut self) {
        self.control = None;
    }

    pub fn has(&self, protection: &str) -> bool {
        self.report
            .enforced
            .iter()
            .any(|name| name.starts_with(protection))
    }

    /// Waits until the session's first process is gone and reaps it.
    pub fn wait_gone(&self) {
        let pid = nix::unistd::Pid::from_raw(self.report.pid);
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG)) {
                Ok(nix::sys::wait::WaitStatus::StillAlive) => {}
                Ok(_) => return,
                Err(error) => panic!("the session's first process is not a child of the agent: {error}"),
            }
            assert!(Instant::now() < deadline, "the session does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.report.pid);
        if self.report.pid > 1 && is_our_sandbox(self.report.pid) {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(pid, None);
        }
    }
}

fn is_our_sandbox(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.contains(&format!("PPid:\t{}\n", std::process::id()))
}

pub struct Session {
    pub stream: UnixStream,
    pub launched: Launched,
}

/// What a run said.
#[derive(Debug, Default)]
pub struct Said {
    pub out: String,
    pub err: String,
    pub html: Vec<String>,
    pub media: Vec<(String, String)>,
    /// Each question, and whether it was for a password.
    pub asked: Vec<Option<bool>>,
    pub code: Option<i32>,
}

/// Follows a run to its end, answering each question with the next answer.
pub fn follow(stream: &mut UnixStream, answers: &[&str]) -> Said {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (mut said, mut answers) = (Said::default(), answers.iter());
    loop {
        match next(stream) {
            Record::Stdout(bytes) => out.extend(bytes),
            Record::Stderr(bytes) => err.extend(bytes),
            Record::Html(text) => said.html.push(text),
            Record::Media { mime, data } => said.media.push((mime, data)),
            Record::WaitingInput { is_password } => {
                said.asked.push(is_password);
                let answer = answers
                    .next()
                    .unwrap_or_else(|| panic!("nobody answers: {said:?}"));
                let answer = Request::Input((*answer).to_owned());
                answer.to_frame().write_to(stream).expect("the session reads");
            }
            Record::Finished { exit_code } => {
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                (said.out, said.err, said.code) = (text(out), text(err), exit_code);
                return said;
            }
            _ => {}
        }
    }
}

pub fn next(stream: &mut UnixStream) -> Record {
    let frame = Frame::read_from(stream).expect("a frame");
    Record::from_frame(frame.expect("the session lives"))
}

impl Session {
    /// Runs a shell command inside.
    pub fn sh(&mut self, command: &str) -> Said {
        self.send(&Request::Exec(command.to_owned()));
        follow(&mut self.stream, &[])
    }

    /// Runs code in query mode.
    pub fn code(&mut self, code: &str) -> Said {
        self.code_with(code, &[])
    }

    /// Runs code in query mode and answers its questions.
    pub fn code_with(&mut self, code: &str, answers: &[&str]) -> Said {
        self.send(&Request::Code(code.to_owned()));
        follow(&mut self.stream, answers)
    }

    /// Runs code, and interrupts it when it has printed something.
    pub fn interrupt(&mut self, code: &str) -> Said {
        self.send(&Request::Code(code.to_owned()));
        while !matches!(
            next(&mut self.stream),
            Record::Stdout(_) | Record::WaitingInput { .. }
        ) {}
        self.interrupt_now();
        follow(&mut self.stream, &[])
    }

    /// Interrupts what runs, as users do: again if nothing happens, because a shell that is just starting a program may
    /// miss the signal.
    pub fn interrupt_now(&mut self) {
        loop {
            self.send(&Request::Interrupt);
            let mut polled = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
            if poll(&mut polled, 2000u16).expect("polled") > 0 {
                return;
            }
        }
    }

    pub fn complete(&mut self, request: &str) -> String {
        self.send(&Request::Complete(request.to_owned()));
        loop {
            if let Record::Completion(names) = next(&mut self.stream) {
                return names;
            }
        }
    }

    pub fn send(&mut self, request: &Request) {
        request
            .to_frame()
            .write_to(&mut self.stream)
            .expect("the session reads");
    }

    /// The trimmed output of a command that must succeed.
    pub fn ok(&mut self, command: &str) -> String {
        let said = self.sh(command);
        assert_eq!(said.code, Some(0), "{command}: {said:?}");
        said.out.trim().to_owned()
    }

    /// Asserts that a command fails.
    pub fn fails(&mut self, command: &str) -> Said {
        let said = self.sh(command);
        assert_ne!(said.code, Some(0), "{command} must not succeed: {said:?}");
        said
    }

    /// Whether the stream has ended.
    pub fn ended(&mut self) -> bool {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).is_ok()
    }
}

/// Whether any process of the host runs the given unique command line.
pub fn is_running(marker: &str) -> bool {
    let Ok(entries) = fs::read_dir("/proc") else {
        return false;
    };
    entries.flatten().any(|entry| {
        let path: &Path = &entry.path();
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        entry.file_name().to_string_lossy() != std::process::id().to_string()
            && String::from_utf8_lossy(&line).contains(marker)
    })
}

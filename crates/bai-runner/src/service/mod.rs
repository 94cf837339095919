//! Services of a session (`agent-protocol.md` 6.7): programs that listen on a port of it, started when they are asked for.
//!
//! Invariants: the thread that hears the agent never waits for a service; a request is answered within [`START_LIMIT`],
//! with the service's last words if it failed; `running` is what listens now, not what was started once; a service that
//! ends is reported, and started anew by the next request. What services print is in the session's log and in no run.
//!
//! Not here: which command a service is ([`command`]), how its port is reached from outside (`crate::descriptors`).

mod command;
mod pty;

use std::collections::BTreeMap;
use std::io::{self, PipeReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bai_proto::runner::{Record, ServiceRequest, ServiceResult};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use self::command::Program;
use crate::lang::Runtime;
use crate::outbox::Outbox;

/// How long a service may take until it listens. Shorter than what an agent waits for an answer.
const START_LIMIT: Duration = Duration::from_secs(25);
/// Between two looks whether it listens.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// What listens on the session's own loopback accepts at once, or its queue is full.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// Bytes of what a service printed last, in the reason of its failure.
const LAST_WORDS: usize = 2048;
const CHUNK: usize = 4096;

/// All services of the session.
#[derive(Clone, Debug)]
pub struct Services {
    runtime: Arc<Runtime>,
    outbox: Outbox,
    states: Arc<Mutex<BTreeMap<String, State>>>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Whoever asks now gets the same answer.
    Starting,
    /// Its processes are this group; none if it is a terminal service, which is ours.
    Started(Option<Pid>),
}

impl Services {
    pub fn new(runtime: Arc<Runtime>, outbox: Outbox) -> Self {
        Self {
            runtime,
            outbox,
            states: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the service that an agent asks for. The answer comes as a record.
    pub fn start(&self, json: &str) {
        let request: ServiceRequest = match serde_json::from_str(json) {
            Ok(request) => request,
            Err(error) => {
                let why = format!("the request is malformed: {error}");
                return self.tell(&ServiceResult::failed("", why));
            }
        };
        let name = request.name.clone();
        let before = self.lock().insert(name.clone(), State::Starting);
        let former = match before {
            Some(State::Starting) => return,
            Some(State::Started(group)) => group,
            None => None,
        };
        let services = self.clone();
        let started = thread::Builder::new().spawn(move || services.run(&request, former));
        if let Err(error) = started {
            self.lock().remove(&name);
            let why = format!("the session has no thread left for it: {error}");
            self.tell(&ServiceResult::failed(&name, why));
        }
    }

    fn tell(&self, result: &ServiceResult) {
        self.outbox
            .answer(&Record::ServiceResult(serde_json::json!(result).to_string()));
    }

    /// Starts a service, answers, and stays with it.
    fn run(&self, request: &ServiceRequest, former: Option<Pid>) {
        let name = &request.name;
        if listens(request.port) {
            // Started earlier, by us or by the user.
            self.lock().insert(name.clone(), State::Started(former));
            return self.tell(&ServiceResult::running(name));
        }
        if let Some(group) = former {
            // What is left of one that does not listen any more.
            _ = killpg(group, Signal::SIGKILL);
        }
        let outcome = match command::of(request, &self.runtime) {
            Ok(Program::Listening(command)) => self.launch(request, command),
            Ok(Program::OnTerminal(command)) => pty::serve(request.port, command)
                .map(|()| {
                    self.lock().insert(name.clone(), State::Started(None));
                    self.tell(&ServiceResult::started(name));
                })
                .map_err(|error| format!("port {} cannot be listened on: {error}", request.port)),
            Err(why) => Err(why),
        };
        if let Err(why) = outcome {
            self.lock().remove(name);
            self.tell(&ServiceResult::failed(name, why));
        }
    }

    /// Runs a program that listens, to its end. The error is why it did not begin to.
    fn launch(&self, request: &ServiceRequest, command: Command) -> Result<(), String> {
        let name = &request.name;
        let mut service = Service::spawn(command, self.outbox.clone()).map_err(|error| error.to_string())?;
        service.wait_for(request.port)?;
        let group = service.group;
        self.lock().insert(name.clone(), State::Started(Some(group)));
        self.tell(&ServiceResult::started(name));
        let end = service.follow();
        // First the news, so that they are not taken for an answer to a request that comes now.
        self.tell(&ServiceResult::ended(name, end));
        let mut states = self.lock();
        if matches!(states.get(name), Some(State::Started(Some(now))) if *now == group) {
            states.remove(name);
        }
        Ok(())
    }
}

/// Whether something accepts connections on a port of the session.
fn listens(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, CONNECT_LIMIT).is_ok()
}

/// A program that is to listen, with what it prints.
struct Service {
    child: Child,
    group: Pid,
    printed: PipeReader,
    last_words: Vec<u8>,
    outbox: Outbox,
}

impl Service {
    fn spawn(mut command: Command, outbox: Outbox) -> io::Result<Self> {
        let (printed, print) = io::pipe()?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(print.try_clone()?)
            .stderr(print)
            .spawn()?;
        // The command keeps its end of the pipe, which then had no end.
        drop(command);
        let group = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
        Ok(Self {
            child,
            group,
            printed,
            last_words: Vec::new(),
            outbox,
        })
    }

    /// Waits until it listens. The error is why it does not.
    fn wait_for(&mut self, port: u16) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            if listens(port) {
                return Ok(());
            }
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_none() && begun.elapsed() < START_LIMIT {
                self.pass_on(LOOK_PAUSE);
                continue;
            }
            _ = killpg(self.group, Signal::SIGKILL);
            _ = self.child.wait();
            while self.pass_on(Duration::ZERO) {}
            let why = match ended {
                Some(status) => format!("it ended ({status}) before it listened on port {port}"),
                None => format!(
                    "it did not listen on port {port} within {} s",
                    START_LIMIT.as_secs()
                ),
            };
            return Err(match String::from_utf8_lossy(&self.last_words).trim() {
                "" => why,
                words => format!("{why}; it said: {words}"),
            });
        }
    }

    /// Stays with it until it has ended; how it did.
    fn follow(mut self) -> String {
        // What runs on in its name holds the pipe, too.
        while self.pass_on(Duration::MAX) {}
        match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Passes on what it prints next, if that comes in time. False at the end.
    fn pass_on(&mut self, limit: Duration) -> bool {
        let mut polled = [PollFd::new(self.printed.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit.as_millis()).unwrap_or(PollTimeout::NONE);
        if !poll(&mut polled, limit).is_ok_and(|ready| ready > 0) {
            // In time for another look; without a limit, a signal came in between.
            return limit != PollTimeout::ZERO;
        }
        let mut chunk = [0; CHUNK];
        match self.printed.read(&mut chunk) {
            Ok(0) | Err(_) => {
                if limit != PollTimeout::NONE {
                    // It has closed its output; its end is not told by the pipe.
                    thread::sleep(LOOK_PAUSE);
                }
                false
            }
            Ok(count) => {
                self.last_words.extend_from_slice(&chunk[..count]);
                let surplus = self.last_words.len().saturating_sub(LAST_WORDS);
                self.last_words.drain(..surplus);
                self.outbox.send(&Record::ServiceOutput(chunk[..count].to_vec()));
                true
            }
        }
    }
}

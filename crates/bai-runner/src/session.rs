//! The session program: takes requests of one agent after another over a unix socket and runs them (`agent-protocol.md`
//! 6.3, 6.4).
//!
//! Threads: one accepts agents, one hears the present agent, one writes records to it, one runs the steps in order,
//! one passes on what background processes print, one gives out descriptors
//! (`crate::descriptors`), one for each service stays with it (`crate::service`).
//! Invariants: steps run strictly one at a time; the thread that hears the agent never waits for anything else, so that
//! input and interrupts always arrive; no request, however malformed, ends the session; records that no agent has read
//! wait in [`Outbox`] for the next one.
//!
//! Not here: the sandbox around the session (`sandbox`), and how each language is run (`lang`).

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use bai_proto::runner::{Frame, FrameError, Record, Request};
use bai_proto::sandbox::Network;

use crate::batch::Batch;
use crate::control::Control;
use crate::descriptors;
use crate::door::Door;
use crate::hook;
use crate::lang::Runtime;
use crate::outbox::Outbox;
use crate::query::Query;
use crate::service::Services;
use crate::strays::Strays;
use crate::terminal::Terminal;

/// Steps that may wait for the one that runs. An agent sends three for a run, and one run at a time.
const MAX_STEPS: usize = 64;

/// One thing to run.
#[derive(Debug)]
enum Step {
    Clean(String),
    Build(String),
    Exec(String),
    Code(String),
    Complete(String),
}

/// Serves the agent behind `door`, for ever. Returns the exit code if that is impossible. `network` is what the session is in:
/// programs can ask for input at a port of a network of its own.
pub fn serve(door: Door, runtime: Runtime, network: Network) -> i32 {
    match try_serve(door, runtime, network) {
        Ok(()) => 0,
        Err(error) => {
            // The log of the sandbox, or of the container.
            _ = writeln!(io::stderr(), "bai-runner: the session cannot be served: {error}");
            1
        }
    }
}

fn try_serve(door: Door, runtime: Runtime, network: Network) -> io::Result<()> {
    let runtime = Arc::new(runtime);
    let (outbox, control) = (Outbox::default(), Control::default());
    if network == Network::Isolated {
        // Without it programs read their standard input, as almost all do.
        _ = hook::start(outbox.clone(), control.clone());
    }
    let (steps, queue) = mpsc::sync_channel(MAX_STEPS);
    let (wake, waker) = io::pipe()?;
    let terminal = Terminal::new(runtime.clone());
    thread::Builder::new().spawn(move || descriptors::serve(&door.descriptors, terminal))?;
    let services = Services::new(runtime.clone(), outbox.clone());
    let worker = Worker::new(runtime, &outbox, &control, &Strays::start()?);
    thread::Builder::new().spawn(move || worker.work(&queue, wake))?;
    let writer = outbox.clone();
    thread::Builder::new().spawn(move || writer.deliver())?;
    let session = Session {
        outbox: outbox.clone(),
        control,
        services,
        steps,
        waker: Arc::new(waker),
        started: Instant::now(),
    };
    let mut ear: Option<JoinHandle<()>> = None;
    loop {
        let (stream, _) = door.runs.accept()?;
        outbox.cut_off();
        if let Some(ear) = ear.take() {
            // It ends with the connection, and has told how that ended.
            _ = ear.join();
        }
        let reader = stream.try_clone()?;
        outbox.connect(stream);
        let session = session.clone();
        // Without a thread to hear it (the session has too many processes), an agent is turned away.
        match thread::Builder::new().spawn(move || session.hear(reader)) {
            Ok(thread) => ear = Some(thread),
            Err(_) => outbox.disconnect(true),
        }
    }
}

/// What hears the agent.
#[derive(Clone, Debug)]
struct Session {
    outbox: Outbox,
    control: Control,
    services: Services,
    steps: mpsc::SyncSender<Step>,
    /// One byte for each step.
    waker: Arc<PipeWriter>,
    started: Instant,
}

impl Session {
    /// Handles the requests of an agent until it goes away or talks nonsense.
    fn hear(&self, mut agent: UnixStream) {
        let was_reset = loop {
            match Frame::read_from(&mut agent) {
                Ok(Some(frame)) => self.handle(Request::from_frame(frame)),
                Ok(None) => break false,
                // What it had not read by then goes to the next one.
                Err(FrameError::Io(error)) => break error.kind() != io::ErrorKind::UnexpectedEof,
                Err(_) => break true,
            }
        };
        self.outbox.disconnect(was_reset);
    }

    fn handle(&self, request: Request) {
        let step = match request {
            Request::Clean(command) => Step::Clean(command),
            Request::Build(command) => Step::Build(command),
            Request::Exec(command) => Step::Exec(command),
            Request::Code(code) => Step::Code(code),
            Request::Complete(_) if self.control.is_busy() => {
                return self.outbox.answer(&Record::Completion("[]".to_owned()));
            }
            Request::Complete(json) => Step::Complete(json),
            Request::Input(text) => {
                if let Err(why) = self.control.input(text) {
                    self.outbox.answer(&Record::Stderr(why.as_bytes().to_vec()));
                }
                return;
            }
            Request::Interrupt => return self.control.interrupt(),
            Request::Status => return self.outbox.answer(&Record::Status(self.status())),
            Request::StartService(json) => return self.services.start(&json),
            Request::Unknown(_) => return,
        };
        if let Err(mpsc::TrySendError::Full(step)) = self.steps.try_send(step) {
            return self.outbox.answer(&step.finished(-1));
        }
        // The pipe has room for more bytes than there can be steps.
        _ = (&*self.waker).write_all(&[0]);
    }

    /// `{"started_at": <seconds>}` in msgpack.
    fn status(&self) -> Vec<u8> {
        let mut bytes = vec![0x81, 0xaa];
        bytes.extend_from_slice(b"started_at");
        bytes.push(0xcb);
        bytes.extend_from_slice(&self.started.elapsed().as_secs_f64().to_be_bytes());
        bytes
    }
}

impl Step {
    /// The record that ends it.
    fn finished(&self, exit_code: i32) -> Record {
        let exit_code = Some(exit_code);
        match self {
            Self::Clean(_) => Record::CleanFinished { exit_code },
            Self::Build(_) => Record::BuildFinished { exit_code },
            Self::Exec(_) | Self::Code(_) => Record::Finished { exit_code },
            Self::Complete(_) => Record::Completion("[]".to_owned()),
        }
    }
}

/// Runs steps in their order.
#[derive(Debug)]
struct Worker {
    batch: Batch,
    query: Query,
    outbox: Outbox,
    /// An exec step after a failed build is not run.
    has_build_failed: bool,
}

impl Worker {
    fn new(runtime: Arc<Runtime>, outbox: &Outbox, control: &Control, strays: &Strays) -> Self {
        Self {
            batch: Batch::new(runtime.clone(), outbox.clone(), control.clone(), strays.clone()),
            query: Query::new(runtime, outbox.clone(), control.clone(), strays.clone()),
            outbox: outbox.clone(),
            has_build_failed: false,
        }
    }

    /// Ends when nobody can send steps any more.
    fn work(mut self, queue: &mpsc::Receiver<Step>, mut wake: PipeReader) {
        // The interpreter starts before it is asked for: the first run finds it warm.
        self.query.warm_up();
        loop {
            self.query.idle_until(wake.as_fd());
            match (wake.read(&mut [0]), queue.try_recv()) {
                (Ok(1..), Ok(step)) => {
                    let finished = self.run(&step);
                    self.outbox.send(&finished);
                }
                _ => return,
            }
        }
    }

    fn run(&mut self, step: &Step) -> Record {
        let exit_code = match step {
            Step::Clean(command) => self.batch.clean(command),
            Step::Build(command) => {
                let exit_code = self.batch.build(command);
                self.has_build_failed = exit_code != 0;
                exit_code
            }
            Step::Exec(_) if std::mem::take(&mut self.has_build_failed) => 127,
            Step::Exec(command) => self.batch.exec(command),
            Step::Code(code) => match self.query.run(code) {
                Some(exit_code) => exit_code,
                None => self.batch.query_by_file(code),
            },
            Step::Complete(json) => return Record::Completion(self.query.complete(json)),
        };
        step.finished(exit_code)
    }
}

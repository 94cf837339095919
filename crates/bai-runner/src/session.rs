//! The session program: takes requests of one agent after another over a unix socket and runs them (`agent-protocol.md`
//! 6.3, 6.4).
//!
//! Threads: one accepts agents, one per agent reads its requests, one writes records to whichever agent is connected,
//! one runs the steps in order. Invariants: steps run strictly one at a time; input, interrupts and the like are handled
//! while a step runs; no request, however malformed, ends the session; records that no agent has taken wait in
//! [`Outbox`] for the next one.
//!
//! Not here: the sandbox around the session (`sandbox`), and how each language is run (`lang`).

use std::os::unix::net::UnixListener;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use bai_proto::runner::{Frame, Record, Request};
use bai_proto::sandbox::SandboxSpec;

use crate::batch::Batch;
use crate::lang::Language;
use crate::outbox::Outbox;
use crate::query::Query;

/// One thing to run.
#[derive(Debug)]
enum Step {
    Clean(String),
    Build(String),
    Exec(String),
    Code(String),
    Complete(String),
}

/// Serves the runner protocol on `listener`, which the sandbox has bound before user code could. Returns the exit code.
pub fn serve(listener: UnixListener, spec: &SandboxSpec) -> i32 {
    let language = Language::of(&spec.runtime_type);
    let outbox = Outbox::new();
    let environ = crate::lang::environ(&spec.environ);
    let batch = Arc::new(Batch::new(
        language,
        spec.runtime_path.clone(),
        environ.clone(),
        outbox.clone(),
    ));
    let query = Arc::new(Query::new(
        language,
        spec.runtime_path.clone(),
        environ,
        outbox.clone(),
    ));
    let (steps, queue) = mpsc::channel();
    let session = Session {
        outbox: outbox.clone(),
        batch: batch.clone(),
        query: query.clone(),
        steps,
        started: Instant::now(),
    };
    let worker = outbox.clone();
    thread::spawn(move || work(&queue, &batch, &query, &worker));
    let writer = outbox.clone();
    thread::spawn(move || writer.deliver());
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let Ok(mut reader) = stream.try_clone() else {
            continue;
        };
        outbox.connect(stream);
        let session = session.clone();
        thread::spawn(move || {
            while let Ok(Some(frame)) = Frame::read_from(&mut reader) {
                session.handle(Request::from_frame(frame));
            }
        });
    }
    0
}

/// What the threads that read requests share.
#[derive(Clone, Debug)]
struct Session {
    outbox: Outbox,
    batch: Arc<Batch>,
    query: Arc<Query>,
    steps: mpsc::Sender<Step>,
    started: Instant,
}

impl Session {
    fn handle(&self, request: Request) {
        let step = match request {
            Request::Clean(command) => Step::Clean(command),
            Request::Build(command) => Step::Build(command),
            Request::Exec(command) => Step::Exec(command),
            Request::Code(code) => Step::Code(code),
            Request::Complete(_) if self.query.is_busy() || self.batch.is_busy() => {
                return self.outbox.send(&Record::Completion("[]".to_owned()));
            }
            Request::Complete(json) => Step::Complete(json),
            Request::Input(text) => {
                if !self.batch.input(&text) {
                    self.query.input(text);
                }
                return;
            }
            Request::Interrupt => {
                self.batch.interrupt();
                self.query.interrupt();
                return;
            }
            Request::Status => return self.outbox.send(&Record::Status(self.status())),
            Request::StartService(_) => {
                let answer = r#"{"status": "failed", "error": "unsupported service"}"#;
                return self.outbox.send(&Record::ServiceResult(answer.to_owned()));
            }
            Request::Unknown(_) => return,
        };
        // The worker never ends before the process does.
        _ = self.steps.send(step);
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

/// Runs steps in their order, for ever.
fn work(queue: &mpsc::Receiver<Step>, batch: &Batch, query: &Query, outbox: &Outbox) {
    // The interpreter starts before it is asked for: the first run finds it warm.
    query.warm_up();
    let mut build_failed = false;
    for step in queue {
        match step {
            Step::Clean(command) => {
                let exit_code = Some(batch.clean(&command));
                outbox.send(&Record::CleanFinished { exit_code });
            }
            Step::Build(command) => {
                let exit_code = batch.build(&command);
                build_failed = exit_code != 0;
                outbox.send(&Record::BuildFinished {
                    exit_code: Some(exit_code),
                });
            }
            Step::Exec(command) => {
                let exit_code = if build_failed { 127 } else { batch.exec(&command) };
                build_failed = false;
                outbox.send(&Record::Finished {
                    exit_code: Some(exit_code),
                });
            }
            Step::Code(code) => {
                let exit_code = match batch.query_by_file(&code) {
                    Some(exit_code) => exit_code,
                    None => query.run(&code),
                };
                outbox.send(&Record::Finished {
                    exit_code: Some(exit_code),
                });
            }
            Step::Complete(json) => outbox.send(&Record::Completion(query.complete(&json))),
        }
    }
}

//! A kernel of the fake runtime: runs steps, and keeps records until somebody takes them.

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bai_model::KernelId;
use bai_proto::runner::{Frame, Record, Request, ServiceRequest, ServiceResult};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::super::KernelSpec;
use crate::tasks::Tasks;

/// Records that wait for the agent before the kernel's program has to.
const OUTBOX: usize = 16;
const STREAM: usize = 4096;
const WORDS: [&str; 12] = [
    "print", "error", "bytes", "media", "html", "flood", "input", "sleep", "wait", "file", "exit", "die",
];

#[derive(Debug)]
pub(super) struct FakeKernel {
    pub id: KernelId,
    spec: KernelSpec,
    steps: mpsc::UnboundedSender<Request>,
    inputs: mpsc::UnboundedSender<String>,
    interrupts: watch::Sender<u64>,
    state: Mutex<State>,
    changed: Notify,
    gates: watch::Receiver<HashSet<String>>,
    end: watch::Sender<Option<String>>,
    is_paused: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    outbox: VecDeque<Frame>,
    sent: usize,
    connection: CancellationToken,
}

impl FakeKernel {
    pub fn start(tasks: &Tasks, spec: KernelSpec, gates: watch::Receiver<HashSet<String>>) -> Arc<Self> {
        let (steps, queue) = mpsc::unbounded_channel();
        let (inputs, typed) = mpsc::unbounded_channel();
        let kernel = Arc::new(Self {
            id: spec.kernel,
            spec,
            steps,
            inputs,
            interrupts: watch::Sender::new(0),
            state: Mutex::default(),
            changed: Notify::new(),
            gates,
            end: watch::Sender::new(None),
            is_paused: watch::Sender::new(false),
        });
        let working = Arc::clone(&kernel);
        drop(tasks.spawn("fake kernel", async move {
            tokio::select! {
                () = working.work(queue, typed) => {}
                _ = working.ended() => {}
            }
        }));
        kernel
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_alive(&self) -> bool {
        self.end.borrow().is_none()
    }

    pub fn die(&self, reason: &str) {
        self.end.send_if_modified(|end| {
            let is_first = end.is_none();
            end.get_or_insert_with(|| reason.to_owned());
            is_first
        });
        self.disconnect();
    }

    pub async fn ended(&self) -> String {
        let mut end = self.end.subscribe();
        // The sender is in self.
        end.wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|reason| reason.clone())
            .unwrap_or_default()
    }

    pub fn records_sent(&self) -> usize {
        self.lock().sent
    }

    /// From now on it hears and says nothing, or does again.
    pub fn pause(&self, is_paused: bool) {
        self.is_paused.send_replace(is_paused);
    }

    async fn moves(&self) {
        // The sender is in self.
        _ = self.is_paused.subscribe().wait_for(|is_paused| !is_paused).await;
    }

    pub fn disconnect(&self) {
        self.lock().connection.cancel();
    }

    /// The agent's end of a new connection; an older one breaks.
    pub fn connect(self: &Arc<Self>, tasks: &Tasks) -> DuplexStream {
        let (agent_end, own_end) = tokio::io::duplex(STREAM);
        let connection = CancellationToken::new();
        std::mem::replace(&mut self.lock().connection, connection.clone()).cancel();
        let kernel = Arc::clone(self);
        drop(tasks.spawn("fake connection", async move {
            let (mut reader, mut writer) = tokio::io::split(own_end);
            let reading = async {
                while let Ok(Some(frame)) = Frame::read_async(&mut reader).await {
                    kernel.moves().await;
                    kernel.take(Request::from_frame(frame));
                }
            };
            let writing = async {
                loop {
                    let frame = kernel.next_frame().await;
                    kernel.moves().await;
                    if writer.write_all(&frame.encode()).await.is_err() {
                        return;
                    }
                    kernel.lock().outbox.pop_front();
                    kernel.changed.notify_waiters();
                }
            };
            tokio::select! {
                () = reading => {}
                () = writing => {}
                () = connection.cancelled() => {}
                _ = kernel.ended() => {}
            }
        }));
        agent_end
    }

    fn take(&self, request: Request) {
        match request {
            Request::StartService(json) => {
                if let Ok(ServiceRequest { name, .. }) = serde_json::from_str(&json) {
                    let started = serde_json::json!(ServiceResult::started(&name)).to_string();
                    self.answer(&Record::ServiceResult(started));
                }
            }
            Request::Status => self.answer(&Record::Status(vec![0x80])),
            Request::Interrupt => self.interrupts.send_modify(|count| *count += 1),
            Request::Input(text) => _ = self.inputs.send(text),
            step => _ = self.steps.send(step),
        }
    }

    /// At once, whatever is executed.
    fn answer(&self, record: &Record) {
        self.lock().outbox.push_back(record.to_frame());
        self.changed.notify_waiters();
    }

    async fn next_frame(&self) -> Frame {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(frame) = self.lock().outbox.front() {
                return frame.clone();
            }
            changed.await;
        }
    }

    async fn send(&self, record: Record) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if state.outbox.len() < OUTBOX {
                    state.outbox.push_back(record.to_frame());
                    state.sent += 1;
                    break;
                }
            }
            changed.await;
        }
        self.changed.notify_waiters();
    }

    async fn work(
        &self,
        mut steps: mpsc::UnboundedReceiver<Request>,
        mut inputs: mpsc::UnboundedReceiver<String>,
    ) {
        let mut build_failed = false;
        while let Some(step) = steps.recv().await {
            let record = match step {
                Request::Clean(line) => Record::CleanFinished {
                    exit_code: Some(self.step(&line, &mut inputs).await),
                },
                Request::Build(line) => {
                    let exit_code = self.step(&line, &mut inputs).await;
                    build_failed = exit_code != 0;
                    Record::BuildFinished {
                        exit_code: Some(exit_code),
                    }
                }
                Request::Exec(_) if std::mem::take(&mut build_failed) => {
                    Record::Finished { exit_code: Some(127) }
                }
                Request::Exec(code) | Request::Code(code) => Record::Finished {
                    exit_code: Some(self.step(&code, &mut inputs).await),
                },
                Request::Complete(json) => Record::Completion(complete(&json)),
                _ => continue,
            };
            self.send(record).await;
        }
    }

    /// Executes lines; the exit code.
    async fn step(&self, code: &str, inputs: &mut mpsc::UnboundedReceiver<String>) -> i32 {
        let mut interrupts = self.interrupts.subscribe();
        interrupts.mark_unchanged();
        for line in code
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && *line != "*")
        {
            let outcome = tokio::select! {
                outcome = self.line(line, inputs) => outcome,
                _ = interrupts.changed() => {
                    self.send(Record::Stderr(b"interrupted\n".to_vec())).await;
                    Some(130)
                }
            };
            if let Some(exit_code) = outcome {
                return exit_code;
            }
        }
        0
    }

    /// Executes a line; an exit code if it ends the run.
    async fn line(&self, line: &str, inputs: &mut mpsc::UnboundedReceiver<String>) -> Option<i32> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let text = |text: &str| format!("{text}\n").into_bytes();
        match word {
            "print" => self.send(Record::Stdout(text(rest))).await,
            "error" => self.send(Record::Stderr(text(rest))).await,
            "bytes" => self.send(Record::Stdout(from_hex(rest))).await,
            "html" => self.send(Record::Html(rest.to_owned())).await,
            "media" => {
                let (mime, data) = rest.split_once(' ').unwrap_or((rest, ""));
                self.send(Record::Media {
                    mime: mime.to_owned(),
                    data: data.to_owned(),
                })
                .await;
            }
            "flood" => {
                for number in 0..rest.parse().unwrap_or(0_u64) {
                    self.send(Record::Stdout(text(&number.to_string()))).await;
                }
            }
            "input" => {
                self.send(Record::Stdout(rest.as_bytes().to_vec())).await;
                self.send(Record::WaitingInput {
                    is_password: Some(false),
                })
                .await;
                let typed = inputs.recv().await?;
                self.send(Record::Stdout(text(&format!("got {typed}")))).await;
            }
            "sleep" => tokio::time::sleep(Duration::from_millis(rest.parse().unwrap_or(0))).await,
            // An error says that the runtime is gone, and this kernel with it.
            "wait" => _ = self.gates.clone().wait_for(|open| open.contains(rest)).await,
            "file" => {
                let (path, content) = rest.split_once(' ').unwrap_or((rest, ""));
                if let Err(error) = write(&self.spec.scratch.join("work").join(path), content).await {
                    self.send(Record::Stderr(text(&error.to_string()))).await;
                    return Some(1);
                }
            }
            "env" => {
                let value = self.spec.environ.get(rest).map_or("", String::as_str);
                self.send(Record::Stdout(text(value))).await;
            }
            "exit" => return Some(rest.parse().unwrap_or(0)),
            "die" => self.die("self-terminated"),
            _ => {
                self.send(Record::Stderr(text(&format!("unknown: {line}")))).await;
                return Some(127);
            }
        }
        None
    }
}

async fn write(path: &Path, content: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    tokio::fs::write(path, content).await
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks_exact(2)
        .map(|pair| (pair[0] * 16 + pair[1]) as u8)
        .collect()
}

/// The words that begin as the code in `json` does.
fn complete(json: &str) -> String {
    let payload: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let code = payload["code"].as_str().unwrap_or_default();
    let words: Vec<&str> = WORDS.into_iter().filter(|word| word.starts_with(code)).collect();
    serde_json::Value::from(words).to_string()
}

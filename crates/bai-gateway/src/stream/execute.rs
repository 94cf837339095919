//! `GET /stream/kernel/{session}/execute`: one socket, one run (`http-api.md` 4.9.2, `clients.md` 8).
//!
//! Invariants: the socket is read even while the run produces output, so that closes and pings are answered at once, and
//! what is typed before it is asked for is kept; when the client goes away before the end, or is sent away, the run is
//! interrupted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bai_core::Error;
use bai_core::session::{BatchOptions, ConsoleItem, ExecuteMode, ExecuteReply, RunStatus, SessionExecute};
use bai_core::stream::{SessionStream, StreamEnd};
use bai_model::RunId;
use bai_model::random::Random;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::socket::{End, Handshake, Received, Receiver, Sender, Socket};
use crate::Gateway;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};
use crate::rest::batch_options;

/// How long output is gathered before a frame.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);
const RUN_ID_DIGITS: usize = 16;
/// How long a client may take to say what it wants.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes that may be typed before they are asked for.
const TYPED_AHEAD: usize = 64 << 10;

pub(crate) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let session = super::session(&call);
    let handshake = Handshake::of(&mut call.parts);
    let opened = call.gateway.manager.session_open_stream(&call.op, &session);
    let stream = opened.await?;
    let gateway = Arc::clone(&call.gateway);
    Ok(handshake?.accept(move |socket| serve(gateway, stream, socket)))
}

async fn serve(gateway: Arc<Gateway>, stream: SessionStream, mut socket: Socket) {
    let run = Run {
        random: gateway.random.as_ref(),
        stream: &stream,
        sender: &mut socket.sender,
        client: Client {
            receiver: &mut socket.receiver,
            typed: VecDeque::new(),
        },
    };
    let end = tokio::select! {
        end = run.converse() => end,
        () = gateway.stopping.cancelled() => say_restarting(&mut socket.sender, End::stopping()).await,
    };
    if matches!(end, End::Closed | End::Gone | End::Close(CloseCode::Policy, _))
        && let Err(error) = stream.interrupt().await
    {
        tracing::debug!(%error, "the run of a client that is gone could not be interrupted");
    }
    socket.end(end).await;
}

/// What the original says when it stops, and also when the session does.
async fn say_restarting(sender: &mut Sender, end: End) -> End {
    let text = "The API server is going to restart for maintenance. \
                Please connect again with the same run ID.";
    let frame = json!({ "status": "server-restarting", "msg": text });
    sender.text(frame.to_string()).await.err().unwrap_or(end)
}

struct Run<'a> {
    random: &'a dyn Random,
    stream: &'a SessionStream,
    sender: &'a mut Sender,
    client: Client<'a>,
}

impl Run<'_> {
    async fn converse(mut self) -> End {
        match self.all().await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn all(&mut self) -> Result<End, End> {
        let mut request = match tokio::time::timeout(FIRST_FRAME_TIMEOUT, self.client.first_text()).await {
            Ok(Ok(text)) => match self.first_request(&text) {
                Ok(request) => request,
                Err(text) => return self.refuse(&format!("Invalid API parameters: {text}")).await,
            },
            Ok(Err(end)) => return Err(end),
            Err(_) => {
                let text =
                    "Invalid API parameters: no request arrived in time; send it right after connecting";
                return self.refuse(text).await;
            }
        };
        loop {
            let reply = match self.execute(request.clone()).await? {
                Ok(reply) => reply,
                // The session went away under the run.
                Err(Error::KernelNotFound) => return Ok(say_restarting(self.sender, End::done()).await),
                Err(error) => return self.refuse(&format!("BackendError: {error}")).await,
            };
            request = SessionExecute {
                mode: ExecuteMode::Continue,
                code: String::new(),
                batch: BatchOptions::default(),
                ..request
            };
            let Some(reply) = reply else {
                // With nothing to tell, agents on other hosts say nothing; and when their session is not what it was.
                if !self.stream.is_unchanged().await {
                    return Ok(say_restarting(self.sender, End::done()).await);
                }
                tokio::time::sleep(FLUSH_TIMEOUT).await;
                continue;
            };
            let status = reply.status;
            self.sender.text(view(&reply).to_string()).await?;
            if status.is_final() {
                return Ok(End::done());
            }
            if status == RunStatus::WaitingInput {
                let ended = self.stream.ended();
                (request.mode, request.code) = tokio::select! {
                    typed = self.client.next_text() => (ExecuteMode::Input, typed?),
                    end = ended => return match end {
                        StreamEnd::Session => Ok(say_restarting(self.sender, End::done()).await),
                        StreamEnd::ShutOut => Err(End::of(end, CloseCode::Normal)),
                    },
                };
            }
        }
    }

    /// Says what is wrong, and ends.
    async fn refuse(&mut self, text: &str) -> Result<End, End> {
        let frame = json!({ "status": "error", "msg": text });
        self.sender.text(frame.to_string()).await?;
        Ok(End::done())
    }

    /// Waits for the agent, the client and the end of the session at once.
    async fn execute(&mut self, request: SessionExecute) -> Result<Result<Option<ExecuteReply>, Error>, End> {
        let answer = self.stream.execute(request);
        tokio::pin!(answer);
        tokio::select! {
            // Who has an answer is told it, though the session may have ended since.
            biased;
            answer = &mut answer => Ok(answer),
            end = self.client.keep_typed() => Err(end),
            end = self.stream.ended() => match end {
                StreamEnd::Session => Ok(Err(Error::KernelNotFound)),
                StreamEnd::ShutOut => Err(End::of(end, CloseCode::Normal)),
            },
        }
    }

    /// The run that the first frame asks for, or what is wrong with it in the original's words.
    fn first_request(&self, text: &str) -> Result<SessionExecute, String> {
        let assertion = |text: &str| format!("AssertionError('{text}',)");
        let frame: Value =
            serde_json::from_str(text).map_err(|error| format!("JSONDecodeError('{error}',)"))?;
        let mode = match frame.get("mode").and_then(Value::as_str) {
            None | Some("") => return Err(assertion("mode is missing or empty!")),
            Some("query") => ExecuteMode::Query,
            Some("batch") => ExecuteMode::Batch,
            Some(_) => return Err(assertion("mode has an invalid value.")),
        };
        Ok(SessionExecute {
            run_id: Some(RunId::generate(self.random, RUN_ID_DIGITS)),
            mode,
            code: frame
                .get("code")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            batch: batch_options(frame.get("options").unwrap_or(&Value::Null)),
            flush_timeout: Some(FLUSH_TIMEOUT),
        })
    }
}

/// What comes from the client.
struct Client<'a> {
    receiver: &'a mut Receiver,
    /// What was typed and not asked for yet.
    typed: VecDeque<String>,
}

impl Client<'_> {
    /// The first message, which must be a text.
    async fn first_text(&mut self) -> Result<String, End> {
        loop {
            match self.receiver.next().await? {
                Received::Text(text) => return Ok(text.as_str().to_owned()),
                Received::Binary(_) => return Err(End::done()),
                Received::Ping => {}
            }
        }
    }

    /// What the user types, who may take their time.
    async fn next_text(&mut self) -> Result<String, End> {
        loop {
            if let Some(text) = self.typed.pop_front() {
                return Ok(text);
            }
            if let Received::Text(text) = self.receiver.next().await? {
                self.typed.push_back(text.as_str().to_owned());
            }
        }
    }

    /// Keeps what is typed until the socket ends.
    async fn keep_typed(&mut self) -> End {
        loop {
            match self.receiver.next().await {
                Ok(Received::Text(text)) => {
                    let kept: usize = self.typed.iter().map(String::len).sum();
                    if kept + text.len() > TYPED_AHEAD {
                        let reason =
                            format!("only {TYPED_AHEAD} bytes may be typed before they are asked for");
                        return End::Close(CloseCode::Policy, reason.into());
                    }
                    self.typed.push_back(text.as_str().to_owned());
                }
                Ok(Received::Binary(_) | Received::Ping) => {}
                Err(end) => return end,
            }
        }
    }
}

fn view(reply: &ExecuteReply) -> Value {
    json!({
        "status": reply.status.as_str(),
        "console": reply.console.iter().map(ConsoleItem::to_json).collect::<Vec<_>>(),
        "exitCode": reply.exit_code,
        "options": reply.options,
        "files": reply.files,
    })
}

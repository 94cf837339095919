//! `GET /stream/kernel/{session}/execute`: one socket, one run (`http-api.md` 4.9.2, `clients.md` 8).
//!
//! Invariants: the socket is read even while the run produces output, so that closes and pings are answered at once;
//! when the client goes away before the end, the run is interrupted.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use bai_core::session::{
    BatchOptions, ConsoleItem, ExecuteMode, ExecuteReply, RunStatus, SessionExecute, SessionRef,
};
use bai_model::RunId;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::error::Problem;
use crate::pipeline::{Answer, Call};
use crate::rest::batch_options;

/// How long output is gathered before a frame.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);
const RUN_ID_DIGITS: usize = 16;
/// The largest message of a client (`http-api.md` 1.1).
const MAX_MESSAGE: usize = 4 << 20;
/// How long a client may take to say what it wants.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a stream that waits for its user looks whether session and client are still there.
const CHECK_PERIOD: Duration = Duration::from_secs(30);
/// How long a client may take to read a frame.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the closing handshake may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    // Streams mean the requester's own sessions.
    let session = SessionRef {
        name: call.parameter.clone().unwrap_or_default(),
        owner: None,
    };
    call.gateway
        .manager
        .session_open_stream(&call.op, &session)
        .await?;
    let upgrade = WebSocketUpgrade::from_request_parts(&mut call.parts, &()).await;
    let upgrade = upgrade
        .map_err(|_| Problem::bad_request(None))?
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE);
    Ok(upgrade.on_upgrade(move |socket| async move {
        Stream {
            call,
            session,
            socket,
        }
        .run()
        .await;
    }))
}

struct Stream {
    call: Call,
    session: SessionRef,
    socket: WebSocket,
}

/// Why the loop of a stream ends.
enum End {
    /// The run is over, or an error was told: close normally.
    Done,
    ClientGone,
}

impl Stream {
    async fn run(mut self) {
        let stopping = self.call.gateway.stopping.clone();
        let end = tokio::select! {
            end = self.converse() => end,
            () = stopping.cancelled() => {
                self.say_restarting().await
            }
        };
        if let End::ClientGone = end {
            return;
        }
        let frame = CloseFrame {
            code: close_code::NORMAL,
            reason: "".into(),
        };
        let closing = async {
            if self.socket.send(Message::Close(Some(frame))).await.is_ok() {
                while let Some(Ok(_)) = self.socket.recv().await {}
            }
        };
        // A client that does not answer the close is left alone.
        _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
    }

    async fn converse(&mut self) -> End {
        let first = match tokio::time::timeout(FIRST_FRAME_TIMEOUT, self.next_text()).await {
            Ok(Ok(Some(text))) => text,
            Ok(Ok(None)) => return End::Done,
            Ok(Err(end)) => return end,
            Err(_) => {
                let message =
                    "Invalid API parameters: no request arrived in time; send it right after connecting";
                return self.send(&json!({ "status": "error", "msg": message })).await;
            }
        };
        let mut request = match self.first_request(&first) {
            Ok(request) => request,
            Err(text) => {
                let message = format!("Invalid API parameters: {text}");
                return self.send(&json!({ "status": "error", "msg": message })).await;
            }
        };
        loop {
            let reply = match self.execute(request.clone()).await {
                Ok(reply) => reply,
                Err(end) => return end,
            };
            request = SessionExecute {
                mode: ExecuteMode::Continue,
                code: String::new(),
                batch: BatchOptions::default(),
                ..request
            };
            // The session went away under the run.
            let Some(reply) = reply else {
                return self.say_restarting().await;
            };
            let status = reply.status;
            if let End::ClientGone = self.send(&view(&reply)).await {
                return self.interrupt().await;
            }
            if status.is_final() {
                return End::Done;
            }
            if status == RunStatus::WaitingInput {
                match self.next_input().await {
                    Ok(Some(text)) => (request.mode, request.code) = (ExecuteMode::Input, text),
                    Ok(None) => {}
                    Err(_) => return self.interrupt().await,
                }
            }
        }
    }

    /// Waits for the agent and the client at once. `Ok(None)` says that the session went away.
    async fn execute(&mut self, request: SessionExecute) -> Result<Option<ExecuteReply>, End> {
        let manager = self.call.gateway.manager.clone();
        let (op, session) = (self.call.op.clone(), self.session.clone());
        let answer = async move { manager.session_execute_in_stream(&op, &session, request).await };
        tokio::pin!(answer);
        let result = loop {
            tokio::select! {
                result = &mut answer => break result,
                message = self.socket.recv() => match message {
                    // Pings are answered by the library; stray messages mean nothing while the run goes on.
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(self.interrupt().await),
                    Some(Ok(_)) => {}
                },
            }
        };
        match result {
            Ok(reply) => Ok(reply),
            Err(error) => {
                let message = format!("BackendError: {error}");
                Err(self.send(&json!({ "status": "error", "msg": message })).await)
            }
        }
    }

    async fn interrupt(&mut self) -> End {
        if let Err(error) = self
            .call
            .gateway
            .manager
            .session_interrupt(&self.call.op, &self.session)
            .await
        {
            tracing::debug!(%error, "the run of a vanished client could not be interrupted");
        }
        End::ClientGone
    }

    /// The next text of the client; `Ok(None)` for anything else that is not its end.
    async fn next_text(&mut self) -> Result<Option<String>, End> {
        loop {
            match self.socket.recv().await {
                Some(Ok(Message::Text(text))) => return Ok(Some(text.as_str().to_owned())),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Binary(_))) => return Ok(None),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(End::ClientGone),
            }
        }
    }

    /// What the user types, who may take their time as long as the session is there. `Ok(None)` lets the agent say what
    /// became of the run.
    async fn next_input(&mut self) -> Result<Option<String>, End> {
        loop {
            if let Ok(text) = tokio::time::timeout(CHECK_PERIOD, self.next_text()).await {
                return text;
            }
            let manager = self.call.gateway.manager.clone();
            if let Ok(false) = manager.session_exists(&self.call.op, &self.session).await {
                return Ok(None);
            }
            // A peer that is gone without a word is found out by writing to it.
            if self.write(Message::Ping(Bytes::new())).await.is_err() {
                return Err(End::ClientGone);
            }
        }
    }

    /// What the original says when it stops, and also when the session does.
    async fn say_restarting(&mut self) -> End {
        let text = "The API server is going to restart for maintenance. \
                    Please connect again with the same run ID.";
        self.send(&json!({ "status": "server-restarting", "msg": text }))
            .await
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
            run_id: Some(RunId::generate(self.call.gateway.random.as_ref(), RUN_ID_DIGITS)),
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

    async fn send(&mut self, frame: &Value) -> End {
        match self.write(Message::Text(frame.to_string().into())).await {
            Ok(()) => End::Done,
            Err(()) => End::ClientGone,
        }
    }

    /// A client that does not read is one that is gone.
    async fn write(&mut self, message: Message) -> Result<(), ()> {
        match tokio::time::timeout(WRITE_TIMEOUT, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(()),
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

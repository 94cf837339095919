//! `GET /stream/kernel/{session}/pty` (`http-api.md` 4.9.1): a terminal. Keys, output, and commands about it in JSON.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bai_core::session::{BatchOptions, ExecuteMode, SessionExecute};
use bai_core::stream::{Screen, SessionStream, TerminalStream};
use bai_model::RunId;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::socket::{End, Handshake, Received, Receiver, Sender, Socket};
use crate::Gateway;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};
use crate::stall::STALL_LIMIT;

/// Commands that may wait for those before.
const BACKLOG: usize = 16;
const RUN_ID_DIGITS: usize = 16;

pub(crate) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let session = super::session(&call);
    let handshake = Handshake::of(&mut call.parts);
    let opened = call.gateway.manager.session_open_terminal(&call.op, &session);
    let terminal = opened.await?;
    let gateway = Arc::clone(&call.gateway);
    Ok(handshake?.accept(move |socket| serve(gateway, terminal, socket)))
}

/// What a client may say.
#[derive(Debug, PartialEq)]
enum Said {
    Keys(Bytes),
    Resize { rows: u16, columns: u16 },
    Ping,
    Restart,
    Other,
}

/// Something that takes a while, during which keys go on.
#[derive(Debug)]
enum Command {
    /// To the session, in the words that runners of 19.06 know.
    Run(String),
    Restart,
}

async fn serve(gateway: Arc<Gateway>, terminal: TerminalStream, mut socket: Socket) {
    let TerminalStream {
        stream,
        keyboard,
        screen,
    } = terminal;
    let (commands, to_do) = mpsc::channel(BACKLOG);
    let is_restarting = AtomicBool::new(false);
    let listener = Listener {
        stream: &stream,
        keyboard,
        commands,
        is_restarting: &is_restarting,
    };
    let end = tokio::select! {
        end = listener.listen(&mut socket.receiver) => end,
        end = show(screen, &mut socket.sender) => end,
        end = carry_out(&gateway, &stream, to_do, &is_restarting) => end,
        end = stream.ended() => End::of(end, CloseCode::Normal),
        () = gateway.stopping.cancelled() => End::stopping(),
    };
    socket.end(end).await;
}

struct Listener<'a> {
    stream: &'a SessionStream,
    keyboard: mpsc::Sender<Bytes>,
    commands: mpsc::Sender<Command>,
    is_restarting: &'a AtomicBool,
}

impl Listener<'_> {
    async fn listen(&self, receiver: &mut Receiver) -> End {
        loop {
            let text = match receiver.next().await {
                Ok(Received::Text(text)) => text,
                Ok(Received::Binary(_) | Received::Ping) => continue,
                Err(end) => return end,
            };
            match parse(&text) {
                Ok(said) => match tokio::time::timeout(STALL_LIMIT, self.heed(said)).await {
                    Ok(Ok(())) => {}
                    // Whoever attends to the terminal says why, on the screen.
                    Ok(Err(_)) => return std::future::pending().await,
                    Err(_) => {
                        tracing::info!(kernel.id = %self.stream.kernel(), limit = ?STALL_LIMIT, "a terminal does not read; it is closed");
                        return End::Close(CloseCode::Error, "the terminal does not read".into());
                    }
                },
                Err(reason) => return End::Close(CloseCode::Policy, reason.into()),
            }
        }
    }

    async fn heed(&self, said: Said) -> Result<(), mpsc::error::SendError<Bytes>> {
        match said {
            Said::Keys(keys) => {
                self.stream.keep_busy();
                self.keyboard.send(keys).await?;
            }
            Said::Resize { rows, columns } => self.run(format!("%resize {rows} {columns}")),
            Said::Ping => self.run("%ping".to_owned()),
            Said::Restart => {
                if !self.is_restarting.swap(true, Ordering::Relaxed) {
                    // There is room for it: nothing else holds this flag.
                    _ = self.commands.send(Command::Restart).await;
                }
            }
            Said::Other => self.stream.note_use(),
        }
        Ok(())
    }

    fn run(&self, code: String) {
        self.stream.note_use();
        if self.commands.try_send(Command::Run(code)).is_err() {
            tracing::debug!(kernel.id = %self.stream.kernel(), "a terminal is told more than it can do");
        }
    }
}

/// What a text asks for, or what is wrong with it.
fn parse(text: &str) -> Result<Said, &'static str> {
    let message: Value = serde_json::from_str(text).map_err(|_| "a message must be JSON")?;
    let Some(kind) = message.get("type").and_then(Value::as_str) else {
        return Err("a message must be an object with a type");
    };
    let size = |name| {
        let value = message.get(name).and_then(Value::as_u64);
        value
            .and_then(|value| u16::try_from(value).ok())
            .filter(|value| *value > 0)
            .ok_or("resize must have rows and cols, from 1 to 65535")
    };
    Ok(match kind {
        "stdin" => {
            let chars = message.get("chars").and_then(Value::as_str);
            let keys = chars.and_then(|chars| BASE64.decode(chars).ok());
            Said::Keys(keys.ok_or("stdin must have chars in base64")?.into())
        }
        "resize" => Said::Resize {
            rows: size("rows")?,
            columns: size("cols")?,
        },
        "ping" => Said::Ping,
        "restart" => Said::Restart,
        _ => Said::Other,
    })
}

async fn show(mut screen: Screen, sender: &mut Sender) -> End {
    while let Some(printed) = screen.recv().await {
        let bytes = match printed {
            Ok(bytes) => bytes,
            Err(error) => return End::Close(CloseCode::Error, error.to_string().into()),
        };
        let frame = json!({ "type": "out", "data": BASE64.encode(&bytes) });
        if let Err(end) = sender.text(frame.to_string()).await {
            return end;
        }
    }
    // The session has ended, or the server stops, which is noticed elsewhere.
    std::future::pending().await
}

async fn carry_out(
    gateway: &Gateway,
    stream: &SessionStream,
    mut to_do: mpsc::Receiver<Command>,
    is_restarting: &AtomicBool,
) -> End {
    while let Some(command) = to_do.recv().await {
        match command {
            Command::Run(code) => {
                let request = SessionExecute {
                    run_id: Some(RunId::generate(gateway.random.as_ref(), RUN_ID_DIGITS)),
                    mode: ExecuteMode::Query,
                    code,
                    batch: BatchOptions::default(),
                    flush_timeout: None,
                };
                // A terminal of the wrong size is better than none.
                if let Err(error) = stream.execute(request).await {
                    tracing::debug!(kernel.id = %stream.kernel(), %error, "a terminal did not do as it was told");
                }
            }
            Command::Restart => {
                let restarted = stream.restart().await;
                is_restarting.store(false, Ordering::Relaxed);
                if let Err(error) = restarted {
                    tracing::debug!(kernel.id = %stream.kernel(), %error, "a session was not restarted by its terminal");
                    return End::Close(CloseCode::Error, "the session could not be restarted".into());
                }
            }
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_say_is_understood() {
        for (text, said) in [
            (r#"{"type": "stdin", "chars": "bHMK"}"#, Said::Keys("ls\n".into())),
            (r#"{"type": "stdin", "chars": ""}"#, Said::Keys(Bytes::new())),
            (
                r#"{"type": "resize", "rows": 24, "cols": 80}"#,
                Said::Resize {
                    rows: 24,
                    columns: 80,
                },
            ),
            (r#"{"type": "ping"}"#, Said::Ping),
            (r#"{"type": "restart"}"#, Said::Restart),
            (r#"{"type": "set"}"#, Said::Other),
        ] {
            assert_eq!(parse(text), Ok(said), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, reason) in [
            ("{", "JSON"),
            ("[]", "type"),
            (r#"{"type": 3}"#, "type"),
            (r#"{"type": "stdin"}"#, "chars"),
            (r#"{"type": "stdin", "chars": "%"}"#, "base64"),
            (r#"{"type": "resize", "rows": 24}"#, "cols"),
            (r#"{"type": "resize", "rows": 0, "cols": 80}"#, "rows"),
            (r#"{"type": "resize", "rows": 24, "cols": "80; rm"}"#, "cols"),
            (r#"{"type": "resize", "rows": 24, "cols": 70000}"#, "cols"),
        ] {
            assert!(parse(text).is_err_and(|text| text.contains(reason)), "{text}");
        }
    }
}

//! Terminals of a session (`http-api.md` 4.9.1, `agent-protocol.md` 6.8): a keyboard and a screen that stay while the session
//! restarts and moves to other ports.
//!
//! What is typed waits until the terminal listens, also after a restart. Nothing is gathered without bound: a keyboard that
//! is not read makes its typist wait, and a screen that is not read holds the terminal's output back, of which the agent
//! drops what is too much.

use std::sync::Arc;
use std::time::Duration;

use bai_proto::pty::{Terminal, TerminalInput, TerminalOutput};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::{Place, SessionStream};
use crate::session::SessionRef;
use crate::{Error, Manager, Op, Result};

/// Messages that may wait in either direction: 4 KiB each, as terminals read.
const BACKLOG: usize = 64;
/// How long a terminal may take to listen.
const READY_DEADLINE: Duration = Duration::from_secs(10);

/// What a terminal printed. Ends with the session; an error is the last.
pub type Screen = mpsc::Receiver<Result<Bytes>>;

/// A stream to a session's terminal.
#[derive(Debug)]
pub struct TerminalStream {
    /// The session's side of it.
    pub stream: SessionStream,
    /// What is typed goes here.
    pub keyboard: mpsc::Sender<Bytes>,
    /// What is printed comes from here.
    pub screen: Screen,
}

impl Manager {
    /// Opens a stream to a session's terminal.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`]; [`Error::AppNotFound`] when the session has no terminal; [`Error::QuotaExceeded`] when
    /// too many streams are open.
    pub async fn session_open_terminal(
        self: &Arc<Self>,
        op: &Op,
        session: &SessionRef,
    ) -> Result<TerminalStream> {
        let row = self.find_session(op, session).await?;
        // Agents of 19.06 have them for few images; while a session is being made nobody knows.
        if row.stdin_port == 0 || row.stdout_port == 0 {
            return Err(Error::AppNotFound(format!("{}:pty", session.name)));
        }
        let stream = self.open_stream(op, session, &row)?;
        let (keyboard, typed) = mpsc::channel(BACKLOG);
        let (printed, screen) = mpsc::channel(BACKLOG);
        let (manager, place) = (Arc::clone(self), stream.place.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = manager.stopping.cancelled() => {}
                () = Attendant { typed, printed, place, waiting: None }.attend(&manager) => {}
            }
        });
        Ok(TerminalStream {
            stream,
            keyboard,
            screen,
        })
    }
}

/// Carries keys and output between a stream and wherever the terminal is.
struct Attendant {
    typed: mpsc::Receiver<Bytes>,
    printed: mpsc::Sender<Result<Bytes>>,
    place: watch::Receiver<Option<Place>>,
    /// What was typed and not yet sent.
    waiting: Option<Bytes>,
}

impl Attendant {
    /// Until the session or its stream has ended.
    async fn attend(mut self, manager: &Manager) {
        loop {
            let Some(place) = self.place.borrow_and_update().clone() else {
                return;
            };
            let random = Arc::clone(&manager.random);
            let terminal = Terminal::connect(&place.host, place.stdin_port, place.stdout_port, random);
            let mut place = self.place.clone();
            tokio::select! {
                // A session that has restarted has another terminal, though it may be at the same ports.
                moved = place.changed() => if moved.is_err() { return },
                () = self.carry(terminal) => return,
            }
        }
    }

    async fn carry(&mut self, terminal: Terminal) {
        if tokio::time::timeout(READY_DEADLINE, terminal.ready())
            .await
            .is_err()
        {
            let text = "the session's terminal does not answer; try again shortly";
            // Whoever does not listen need not know.
            _ = self
                .printed
                .send(Err(Error::ServiceUnavailable(text.to_owned())))
                .await;
            return;
        }
        let (input, output) = terminal.split();
        tokio::select! {
            () = enter(&mut self.typed, &mut self.waiting, &input) => {}
            () = show(output, &self.printed) => {}
        }
    }
}

async fn enter(typed: &mut mpsc::Receiver<Bytes>, waiting: &mut Option<Bytes>, input: &TerminalInput) {
    loop {
        if waiting.is_none() {
            *waiting = typed.recv().await;
        }
        let Some(keys) = waiting else { return };
        input.send(keys.clone()).await;
        *waiting = None;
    }
}

async fn show(mut output: TerminalOutput, printed: &mpsc::Sender<Result<Bytes>>) {
    while let Some(bytes) = output.recv().await {
        if printed.send(Ok(bytes)).await.is_err() {
            return;
        }
    }
}

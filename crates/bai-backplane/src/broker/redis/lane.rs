//! The connection to one database, which many callers share.
//!
//! Invariants: a call ends within its deadline, connecting included. A connection that failed or did not answer in time is
//! used by nobody after that. While the server cannot be reached, one caller at a time tries to, with growing pauses, and
//! the others are told at once.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult,
    ServerErrorKind,
};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::address::Server;
use super::script::Script;
use crate::error::Service;
use crate::{Error, Result, Terminal};

/// Pauses between attempts to connect.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Whether a call may be sent again when the connection broke before its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    Yes,
    No,
}

/// What is sent in one go.
#[derive(Clone, Copy)]
enum Question<'a> {
    Command(&'a Cmd),
    Commands(&'a Pipeline),
}

impl Question<'_> {
    async fn put_to<T: FromRedisValue>(self, connection: &mut MultiplexedConnection) -> RedisResult<T> {
        match self {
            Self::Command(command) => command.query_async(connection).await,
            Self::Commands(commands) => commands.query_async(connection).await,
        }
    }
}

#[derive(Debug)]
pub(super) struct Lane {
    server: Arc<Server>,
    client: Client,
    slot: Mutex<Slot>,
}

struct Slot {
    connection: Option<MultiplexedConnection>,
    /// Tells connections apart, so that a late failure of an old one does not drop its successor.
    number: u64,
    /// No attempt to connect before this moment, and why the last one failed.
    closed: Option<(Instant, Error)>,
    pause: Duration,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot")
            .field("number", &self.number)
            .field("connected", &self.connection.is_some())
            .finish_non_exhaustive()
    }
}

impl Lane {
    pub fn new(server: Arc<Server>, database: i64) -> Result<Self> {
        Ok(Self {
            client: server.client(database)?,
            server,
            slot: Mutex::new(Slot {
                connection: None,
                number: 0,
                closed: None,
                pause: BACK_OFF.0,
            }),
        })
    }

    /// One command, one answer.
    pub async fn ask<T: FromRedisValue>(&self, repeat: Repeat, command: &Cmd) -> Result<T> {
        self.answer(repeat, Question::Command(command)).await
    }

    /// Several commands that are sent together, and their answers.
    pub async fn ask_all<T: FromRedisValue>(&self, repeat: Repeat, commands: &Pipeline) -> Result<T> {
        self.answer(repeat, Question::Commands(commands)).await
    }

    async fn answer<T: FromRedisValue>(&self, repeat: Repeat, question: Question<'_>) -> Result<T> {
        let answer = self.attempt(repeat, question).await;
        answer.map_err(|failure| failure.into_error(&self.server.service))
    }

    /// One script, one answer; the script is sent along when the server does not know it.
    pub async fn run<T: FromRedisValue>(
        &self,
        repeat: Repeat,
        script: &Script,
        key: &str,
        arguments: &[String],
    ) -> Result<T> {
        let by_hash = script.by_hash(key, arguments);
        match self.attempt(repeat, Question::Command(&by_hash)).await {
            Err(Failure::Said(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.ask(repeat, &script.by_text(key, arguments)).await
            }
            answer => answer.map_err(|failure| failure.into_error(&self.server.service)),
        }
    }

    async fn attempt<T: FromRedisValue>(
        &self,
        repeat: Repeat,
        question: Question<'_>,
    ) -> std::result::Result<T, Failure> {
        let deadline = self.server.deadline;
        let end = Instant::now() + deadline;
        let mut again = repeat == Repeat::Yes;
        loop {
            let (mut connection, number) = match timeout_at(end, self.connection()).await {
                Ok(connected) => connected.map_err(Failure::Unreachable)?,
                Err(_) => return Err(Failure::Silent(deadline)),
            };
            match timeout_at(end, question.put_to(&mut connection)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if breaks_connection(&error) => {
                    self.drop_connection(number).await;
                    if !again {
                        return Err(Failure::Said(error));
                    }
                    again = false;
                }
                Ok(Err(error)) => return Err(Failure::Said(error)),
                Err(_) => {
                    self.drop_connection(number).await;
                    return Err(Failure::Silent(deadline));
                }
            }
        }
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64)> {
        let mut slot = self.slot.lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((connection.clone(), slot.number));
        }
        if let Some((until, why)) = &slot.closed
            && Instant::now() < *until
        {
            return Err(why.clone());
        }
        match connect(&self.server, &self.client).await {
            Ok(connection) => {
                slot.connection = Some(connection.clone());
                slot.number += 1;
                slot.closed = None;
                slot.pause = BACK_OFF.0;
                Ok((connection, slot.number))
            }
            Err(error) => {
                slot.closed = Some((Instant::now() + slot.pause, error.clone()));
                slot.pause = (slot.pause * 2).min(BACK_OFF.1);
                Err(error)
            }
        }
    }

    async fn drop_connection(&self, number: u64) {
        let mut slot = self.slot.lock().await;
        if slot.number == number {
            slot.connection = None;
        }
    }
}

/// A new connection, within half the server's deadline: whoever waits for it, for a call of their own, shall learn why
/// there is none.
pub(super) async fn connect(server: &Server, client: &Client) -> Result<MultiplexedConnection> {
    // The deadlines are ours; those of the library are shorter than some answers may take.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None);
    let connecting = client.get_multiplexed_async_connection_with_config(&config);
    within(server, server.deadline / 2, connecting).await
}

/// Waits for an answer of the server, but not longer than `limit`.
pub(super) async fn within<T>(
    server: &Server,
    limit: Duration,
    answer: impl Future<Output = RedisResult<T>>,
) -> Result<T> {
    let failure = match timeout(limit, answer).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => Failure::Said(error),
        Err(_) => Failure::Silent(limit),
    };
    Err(failure.into_error(&server.service))
}

enum Failure {
    /// There is no connection.
    Unreachable(Error),
    Silent(Duration),
    /// The server or the library says what is wrong.
    Said(RedisError),
}

impl Failure {
    fn into_error(self, service: &Service) -> Error {
        match self {
            Self::Unreachable(error) => error,
            Self::Silent(deadline) => service.unavailable(format!("did not answer within {deadline:?}")),
            Self::Said(error) => said(&error, service),
        }
    }
}

fn said(error: &RedisError, service: &Service) -> Error {
    let text = error.detail().unwrap_or(error.category());
    match (error.kind(), error.code()) {
        (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => {
            service.refuses(text)
        }
        // While it connects, the library keeps the text of a refusal only.
        _ if text.contains("Authentication required") => service.refuses(text),
        _ if text.contains("DB index") => service.unavailable("has too few databases: 5 are needed"),
        (_, Some("WRONGTYPE")) | (ErrorKind::Parse | ErrorKind::UnexpectedReturnType, _) => {
            Terminal::Unusable(format!(
                "a key in Redis at {} holds something else: {text}",
                service.address
            ))
            .into()
        }
        (ErrorKind::Server(ServerErrorKind::ResponseError), Some("ERR") | None) => Error::invalid(text),
        (ErrorKind::Io, _) => service.unavailable(format!("cannot be reached: {error}")),
        (_, Some(code)) => service.unavailable(format!("cannot serve: {code} {text}")),
        (_, None) => service.unavailable(format!("cannot be used: {error}")),
    }
}

/// A connection that is of no use after this error: it is broken, or leads to a server that is no longer the right one.
fn breaks_connection(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_unrecoverable_error()
        || matches!(
            error.kind(),
            ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
        )
}

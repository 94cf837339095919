//! Streams (`stream:…`): Redis streams whose entries have one field.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamReadReply};
use redis::{Client, Cmd};

use super::RedisBroker;
use super::lane::{Repeat, connect, within};
use crate::broker::{EntryId, StreamEntry, Streams};
use crate::{Error, Result, Terminal};

/// The one field of an entry.
const FIELD: &str = "p";
/// Connections of followers that are kept for the next ones.
const IDLE: usize = 16;

/// Connections that wait on the server, which is why nobody else may share them.
pub(super) struct Followers {
    client: Client,
    idle: Mutex<Vec<MultiplexedConnection>>,
}

impl std::fmt::Debug for Followers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Followers").finish_non_exhaustive()
    }
}

impl Followers {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            idle: Mutex::default(),
        }
    }

    fn take(&self) -> Option<MultiplexedConnection> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn give_back(&self, connection: MultiplexedConnection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE {
            idle.push(connection);
        }
    }
}

#[async_trait]
impl Streams for RedisBroker {
    async fn append(&self, stream: &str, payloads: &[Bytes], max_len: usize) -> Result<Vec<EntryId>> {
        if payloads.is_empty() {
            return Ok(Vec::new());
        }
        let mut append = redis::pipe();
        for payload in payloads {
            append
                .cmd("XADD")
                .arg(key(stream))
                .arg("MAXLEN")
                .arg("=")
                .arg(max_len)
                .arg("*")
                .arg(FIELD)
                .arg(&payload[..]);
        }
        let ids: Vec<String> = self.own.ask_all(Repeat::No, &append).await?;
        ids.iter().map(|id| entry_id(id)).collect()
    }

    async fn read(&self, stream: &str, after: EntryId, limit: usize) -> Result<Vec<StreamEntry>> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        entries(
            self.own
                .ask(Repeat::Yes, &read(stream, after, limit, None))
                .await?,
        )
    }

    async fn follow(&self, stream: &str, after: EntryId, limit: usize) -> Result<Vec<StreamEntry>> {
        // The server holds its answer back while there is nothing new, but not so long that it would seem dead.
        let wait = read(stream, after, limit.max(1), Some(self.server.deadline / 2));
        // What was left idle may have died meanwhile; what was just made has no such excuse.
        let mut kept = self.followers.take();
        loop {
            let (mut connection, is_kept) = match kept.take() {
                Some(connection) => (connection, true),
                None => (connect(&self.server, &self.followers.client).await?, false),
            };
            loop {
                match within(
                    &self.server,
                    self.server.deadline,
                    wait.query_async(&mut connection),
                )
                .await
                {
                    Ok(reply) => {
                        let found = entries(reply)?;
                        if !found.is_empty() {
                            self.followers.give_back(connection);
                            return Ok(found);
                        }
                    }
                    Err(error) if is_kept && error.is_retryable() => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }

    async fn drop_stream(&self, stream: &str) -> Result<()> {
        let mut delete = Cmd::new();
        delete.arg("DEL").arg(key(stream));
        let _: u64 = self.own.ask(Repeat::Yes, &delete).await?;
        Ok(())
    }
}

fn key(stream: &str) -> String {
    format!("stream:{stream}")
}

fn read(stream: &str, after: EntryId, limit: usize, block: Option<Duration>) -> Cmd {
    let mut read = Cmd::new();
    read.arg("XREAD").arg("COUNT").arg(limit);
    if let Some(block) = block {
        read.arg("BLOCK").arg(super::millis(block));
    }
    read.arg("STREAMS").arg(key(stream)).arg(after.to_string());
    read
}

/// The entries of one stream; no reply at all means that there are none.
fn entries(reply: Option<StreamReadReply>) -> Result<Vec<StreamEntry>> {
    let streams = reply.map(|reply| reply.keys).unwrap_or_default();
    let ids = streams.into_iter().flat_map(|stream| stream.ids);
    ids.map(|entry: StreamId| {
        let payload: Option<Vec<u8>> = entry.get(FIELD);
        Ok(StreamEntry {
            id: entry_id(&entry.id)?,
            payload: payload.unwrap_or_default().into(),
        })
    })
    .collect()
}

fn entry_id(text: &str) -> Result<EntryId> {
    let parts = text.split_once('-');
    let id = parts.and_then(|(millis, sequence)| {
        Some(EntryId {
            millis: millis.parse().ok()?,
            sequence: sequence.parse().ok()?,
        })
    });
    id.ok_or_else(|| Error::from(Terminal::Unusable(format!("Redis names a stream entry {text:?}"))))
}

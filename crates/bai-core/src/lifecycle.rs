//! What becomes of sessions, told to whoever listens at any manager: `GET /stream/kernel/{name}/events`, and the streams of
//! a session, which look at its record when they hear of it.
//!
//! Whoever has recorded a change announces it. Announcements get names from the records and go to one stream of the broker,
//! which every manager follows.
//!
//! Invariants: to announce never waits and never fails; an event may be missing (a manager that was killed after the
//! record, a broker that forgot), so that nothing is decided by events alone.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bai_backplane::broker::EntryId;
use bai_model::{AccessKey, KernelId};
use bai_store::kernel::NewKernel;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc};

use crate::session::SessionRef;
use crate::stream::{OpenStream, Rights, SessionStream, StreamEnd};
use crate::{Manager, Op, Result};

/// The stream of the broker.
const STREAM: &str = "session-events";
/// Events that are kept for those who come again ([`SessionEventsRequest::after`]), and kernels whose names are known.
const KEPT: usize = 4096;
/// Events that are read, or looked up, at once.
const BATCH: usize = 256;
/// Announcements that may wait, and events that a listener may be behind.
const BACKLOG: usize = 1024;
/// Before a broker that failed is followed again.
const FOLLOW_PAUSE: Duration = Duration::from_millis(500);
/// How long the event of a session's end is waited for when the session is known to have ended.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What became of a session. Named as agents name their events (`agent-protocol.md` 3.2), where they have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifecycle {
    /// It is recorded and has its place.
    #[serde(rename = "kernel_preparing")]
    Preparing,
    /// Its agent fetches the image.
    #[serde(rename = "kernel_pulling")]
    Pulling,
    /// Its agent makes it.
    #[serde(rename = "kernel_creating")]
    Creating,
    /// It runs, for the first time or again.
    #[serde(rename = "kernel_started")]
    Started,
    /// Its processes are being replaced.
    #[serde(rename = "kernel_restarting")]
    Restarting,
    /// It is being ended.
    #[serde(rename = "kernel_terminating")]
    Terminating,
    /// It could not be restarted, and waits to be ended.
    #[serde(rename = "kernel_failed")]
    Failed,
    /// It has ended; nothing comes after.
    #[serde(rename = "kernel_terminated")]
    Terminated,
}

impl Lifecycle {
    /// The event's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "kernel_preparing",
            Self::Pulling => "kernel_pulling",
            Self::Creating => "kernel_creating",
            Self::Started => "kernel_started",
            Self::Restarting => "kernel_restarting",
            Self::Terminating => "kernel_terminating",
            Self::Failed => "kernel_failed",
            Self::Terminated => "kernel_terminated",
        }
    }
}

/// An event of a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionEvent {
    /// Its place among all events: who comes again says it.
    #[serde(skip)]
    pub id: String,
    pub event: Lifecycle,
    pub kernel: KernelId,
    /// The session's name.
    pub session: String,
    pub owner: AccessKey,
    /// Why, in a few words; empty when nobody said.
    pub reason: String,
}

/// Which events are wanted.
#[derive(Clone, Debug, Default)]
pub struct SessionEventsRequest {
    /// Of the session of this name, until it has ended; of all of the owner's sessions, without an end, if `None`.
    pub session: Option<String>,
    /// Whose sessions; the requester's if `None`.
    pub owner: Option<AccessKey>,
    /// Only of the session with this name or this kernel's id.
    pub only: Option<String>,
    /// Those too that came after the event with this id, as far as they are kept.
    pub after: Option<String>,
}

/// Something to be told to those who listen.
#[derive(Debug)]
pub(crate) struct Announcement {
    kernel: KernelId,
    event: Lifecycle,
    reason: String,
    /// Where they need not be looked for.
    names: Option<Names>,
}

/// A session's name, and whose it is: the same as long as there is its kernel.
type Names = (String, AccessKey);

/// Where events come in and go out.
#[derive(Debug)]
pub(crate) struct EventHub {
    announced: mpsc::Sender<Announcement>,
    heard: broadcast::Sender<Arc<(EntryId, SessionEvent)>>,
}

impl EventHub {
    /// The hub, and what is announced to it.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Announcement>) {
        let (announced, announcements) = mpsc::channel(BACKLOG);
        let heard = broadcast::Sender::new(BACKLOG);
        (Self { announced, heard }, announcements)
    }
}

impl Manager {
    /// Tells what was recorded of a kernel.
    pub(crate) fn announce(&self, kernel: KernelId, event: Lifecycle, reason: &str) {
        self.tell(Announcement {
            kernel,
            event,
            reason: reason.to_owned(),
            names: None,
        });
    }

    /// Tells that a kernel was recorded.
    pub(crate) fn announce_new(&self, kernel: &NewKernel) {
        self.tell(Announcement {
            kernel: kernel.id,
            event: Lifecycle::Preparing,
            reason: String::new(),
            names: Some((kernel.sess_id.clone(), kernel.access_key.clone())),
        });
    }

    fn tell(&self, announcement: Announcement) {
        let (kernel, event) = (announcement.kernel, announcement.event);
        if self.events.announced.try_send(announcement).is_err() {
            tracing::warn!(kernel.id = %kernel, event = event.as_str(), "too many events at once; this one is not told");
        }
    }

    /// Gives announcements their names, and to the broker.
    pub(crate) async fn publish_events(self: Arc<Self>, mut announced: mpsc::Receiver<Announcement>) {
        let mut batch = Vec::new();
        // What was told of lately, of which more will be told soon.
        let mut known: HashMap<KernelId, Names> = HashMap::new();
        loop {
            let count = tokio::select! {
                () = self.stopping.cancelled() => return,
                count = announced.recv_many(&mut batch, BATCH) => count,
            };
            if count == 0 {
                return;
            }
            let published: Result<()> = async {
                let told = batch.iter_mut();
                known.extend(
                    told.filter_map(|announcement| Some((announcement.kernel, announcement.names.take()?))),
                );
                let kernels = batch.iter().map(|announcement| announcement.kernel);
                let unknown: Vec<KernelId> = kernels.filter(|kernel| !known.contains_key(kernel)).collect();
                known.extend(self.store.reader().session_names(&unknown).await?);
                let payloads = batch.drain(..).filter_map(|announcement| {
                    let (session, owner) = known.get(&announcement.kernel)?.clone();
                    let event = SessionEvent {
                        id: String::new(),
                        event: announcement.event,
                        kernel: announcement.kernel,
                        session,
                        owner,
                        reason: announcement.reason,
                    };
                    Some(Bytes::from(serde_json::to_vec(&event).unwrap_or_default()))
                });
                let payloads: Vec<Bytes> = payloads.collect();
                self.broker.append(STREAM, &payloads, KEPT).await?;
                Ok(())
            }
            .await;
            if let Err(error) = published {
                tracing::warn!(events = count, %error, "events of sessions could not be told");
                batch.clear();
            }
            if known.len() > KEPT {
                known.clear();
            }
        }
    }

    /// Hears what all managers announce.
    pub(crate) async fn follow_events(self: Arc<Self>) {
        let mut after = None;
        loop {
            let followed = self.follow_events_from(&mut after);
            tokio::select! {
                () = self.stopping.cancelled() => return,
                ended = followed => if let Err(error) = ended {
                    tracing::debug!(%error, "events of sessions cannot be heard at the moment");
                }
            }
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(FOLLOW_PAUSE) => {}
            }
        }
    }

    /// Until the broker fails. What was before the first call is nobody's business.
    async fn follow_events_from(&self, after: &mut Option<EntryId>) -> Result<()> {
        let mut last = match after {
            Some(after) => *after,
            None => {
                let mut last = EntryId::START;
                while let Some(entry) = self.broker.read(STREAM, last, KEPT).await?.pop() {
                    last = entry.id;
                }
                last
            }
        };
        loop {
            *after = Some(last);
            for entry in self.broker.follow(STREAM, last, BATCH).await? {
                last = entry.id;
                let Some(event) = parse(entry.id, &entry.payload) else {
                    continue;
                };
                self.streams.look_at(event.kernel);
                // Nobody need listen.
                _ = self.events.heard.send(Arc::new((entry.id, event)));
            }
        }
    }

    /// The events of sessions that the requester may see: their own or, for administrators, somebody else's
    /// (`http-api.md` 1.14).
    ///
    /// # Errors
    /// [`crate::Error::KernelNotFound`], [`crate::Error::Forbidden`]; [`crate::Error::InvalidParameters`] for an id that is
    /// none; [`crate::Error::QuotaExceeded`] for too many streams.
    pub async fn session_events(
        self: &Arc<Self>,
        op: &Op,
        request: SessionEventsRequest,
    ) -> Result<SessionEvents> {
        let owner = op.owner(request.owner.as_ref())?.clone();
        let after = request.after.as_deref().map(entry_id).transpose()?;
        // Before the past is read, so that nothing is missed in between.
        let live = self.events.heard.subscribe();
        let (session, open) = match request.session {
            Some(name) => {
                let session = SessionRef {
                    name,
                    owner: Some(owner.clone()),
                };
                (Some(self.session_open_stream(op, &session).await?), None)
            }
            None => {
                let requester = &op.identity()?.access_key;
                let needs = Rights::for_sessions_of(&owner, requester);
                (None, Some(self.streams.open_for(requester, needs)?))
            }
        };
        let mut events = SessionEvents {
            owner,
            only: request.only,
            session,
            past: VecDeque::new(),
            live,
            last: after.unwrap_or(EntryId::START),
            is_over: false,
            open,
        };
        if let Some(after) = after {
            events.recall(self, after).await?;
        }
        Ok(events)
    }
}

/// The events of a listener, in their order.
#[derive(Debug)]
pub struct SessionEvents {
    owner: AccessKey,
    only: Option<String>,
    session: Option<SessionStream>,
    past: VecDeque<SessionEvent>,
    live: broadcast::Receiver<Arc<(EntryId, SessionEvent)>>,
    /// The last one that was looked at.
    last: EntryId,
    is_over: bool,
    /// Where it is of no single session.
    open: Option<OpenStream>,
}

/// The listener was so slow that events are lost to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too slow: some events are lost")]
pub struct TooSlow;

impl SessionEvents {
    async fn recall(&mut self, manager: &Manager, mut after: EntryId) -> Result<()> {
        loop {
            let entries = manager.broker.read(STREAM, after, BATCH).await?;
            let Some(entry) = entries.last() else {
                return Ok(());
            };
            (after, self.last) = (entry.id, entry.id);
            let parsed = entries.iter().filter_map(|entry| parse(entry.id, &entry.payload));
            let wanted: Vec<_> = parsed.filter(|event| self.wants(event)).collect();
            self.past.extend(wanted);
        }
    }

    fn wants(&self, event: &SessionEvent) -> bool {
        event.owner == self.owner
            && self
                .session
                .as_ref()
                .is_none_or(|session| session.kernel() == event.kernel)
            && self
                .only
                .as_ref()
                .is_none_or(|only| *only == event.session || *only == event.kernel.to_string())
    }

    /// The next event; nothing after the end of a single session, after an error, and for who is shut out.
    ///
    /// # Errors
    /// [`TooSlow`].
    pub async fn next(&mut self) -> Option<std::result::Result<SessionEvent, TooSlow>> {
        if self.is_over {
            return None;
        }
        let event = match self.past.pop_front() {
            Some(event) => event,
            None => match self.next_live().await? {
                Ok(event) => event,
                Err(error) => {
                    self.is_over = true;
                    return Some(Err(error));
                }
            },
        };
        self.is_over = self.session.is_some() && event.event == Lifecycle::Terminated;
        Some(Ok(event))
    }

    async fn next_live(&mut self) -> Option<std::result::Result<SessionEvent, TooSlow>> {
        let ended = async {
            if let Some(session) = &self.session
                && session.ended().await == StreamEnd::Session
            {
                // The record is seen at once, and the event comes by way of the broker.
                tokio::time::sleep(LAST_WORDS).await;
            }
            if let Some(open) = &self.open {
                open.shut_out().await;
            }
        };
        tokio::pin!(ended);
        loop {
            let heard = tokio::select! {
                biased;
                heard = self.live.recv() => heard,
                // The event of its end got lost, or the listener is shut out.
                () = &mut ended => return None,
            };
            match heard {
                Ok(heard) if heard.0 > self.last => {
                    self.last = heard.0;
                    if self.wants(&heard.1) {
                        return Some(Ok(heard.1.clone()));
                    }
                }
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => return Some(Err(TooSlow)),
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// What another manager wrote, perhaps of another version.
fn parse(id: EntryId, payload: &[u8]) -> Option<SessionEvent> {
    let mut event: SessionEvent = serde_json::from_slice(payload).ok()?;
    event.id = id.to_string();
    Some(event)
}

/// An event's id as it was given out.
fn entry_id(text: &str) -> Result<EntryId> {
    let parsed = text.split_once('-').and_then(|(millis, sequence)| {
        Some(EntryId {
            millis: millis.parse().ok()?,
            sequence: sequence.parse().ok()?,
        })
    });
    parsed.ok_or_else(|| crate::Error::invalid("Last-Event-ID is no event's id; leave it out"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_written_by_their_names() {
        for event in [
            Lifecycle::Preparing,
            Lifecycle::Pulling,
            Lifecycle::Creating,
            Lifecycle::Started,
            Lifecycle::Restarting,
            Lifecycle::Terminating,
            Lifecycle::Failed,
            Lifecycle::Terminated,
        ] {
            assert_eq!(serde_json::to_value(event).ok(), Some(event.as_str().into()));
        }
    }

    #[test]
    fn ids_are_read_back() {
        let id = EntryId {
            millis: 1_563_194_096_000,
            sequence: 3,
        };
        assert_eq!(entry_id(&id.to_string()).ok(), Some(id));
        for text in ["", "3", "-", "a-b", "1-2-3", "18446744073709551616-0"] {
            assert!(entry_id(text).is_err(), "{text}");
        }
    }
}

//! A watch that goes on over lost connections, restarts, compactions and lost data.
//!
//! Invariants: nothing is read ahead, so a slow reader costs the server's history and no memory here; an event is given
//! out when all of its revision is there. After an interruption the watch resumes from the revision after the last one
//! given out. Where that is no longer possible (compacted, or the store is not the one it was) the reader gets a resync.
//!
//! Not here: which server is asked (`link.rs`).

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::time::sleep;
use tonic::Streaming;

use super::super::{Change, Revision, Watch, WatchEvent};
use super::link::{Link, Method};
use super::proto::event::EventType;
use super::proto::watch_request::RequestUnion;
use super::proto::{self, Event, ResponseHeader, WatchResponse};
use super::{span, text};
use crate::Result;

/// Waits between attempts to resume.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A place in the store's history.
struct Watcher {
    link: Arc<Link>,
    prefix: String,
    next: Revision,
    /// The latest that we know of the store's progress: going back behind it means that data was lost.
    seen: ResponseHeader,
    answers: Option<Streaming<WatchResponse>>,
    /// Parts of an answer whose rest is yet to come.
    partial: Vec<Event>,
    /// What comes next was compacted away.
    compacted: bool,
    /// Before the next attempt; grows with each that leads to nothing.
    pause: Duration,
}

/// Begins a watch with the commit `from`, or the next one. Fails when no server answers.
pub(super) async fn begin(link: Arc<Link>, prefix: &str, from: Option<Revision>) -> Result<Watch> {
    let seen = link.head(prefix).await?;
    let watcher = Watcher {
        link,
        prefix: prefix.to_owned(),
        // Zero would mean "from now on".
        next: from.unwrap_or(Revision(seen.revision).next()).max(Revision(1)),
        seen,
        answers: None,
        partial: Vec::new(),
        compacted: false,
        pause: Duration::ZERO,
    };
    let batches = stream::unfold(watcher, |mut watcher| async move {
        let events = watcher.next_events().await;
        Some((stream::iter(events), watcher))
    });
    Ok(batches.flatten().boxed())
}

impl Watcher {
    async fn next_events(&mut self) -> Vec<WatchEvent> {
        loop {
            let answer = match &mut self.answers {
                Some(answers) => answers.message().await,
                None => {
                    sleep(self.pause).await;
                    match self.resume().await {
                        Ok(Some(resync)) => return vec![resync],
                        Ok(None) => {}
                        Err(error) => self.lose(&error.to_string()),
                    }
                    continue;
                }
            };
            match answer {
                Ok(Some(answer)) if answer.canceled => self.canceled(&answer),
                Ok(Some(answer)) => {
                    let events = self.take(answer);
                    if !events.is_empty() {
                        return events;
                    }
                }
                Ok(None) => self.lose("it was closed"),
                Err(status) => self.lose(status.message()),
            }
        }
    }

    /// Asks for what comes next; gives a resync instead when the store went back behind what we have seen.
    async fn resume(&mut self) -> Result<Option<WatchEvent>> {
        let head = self.link.head(&self.prefix).await?;
        let went_back = head.revision < self.seen.revision || head.raft_term < self.seen.raft_term;
        if went_back || self.compacted {
            tracing::warn!(prefix = %self.prefix, went_back, "a watch has a gap; its prefix is read again");
            return Ok(Some(self.resync(head)));
        }
        self.seen = head;
        let (key, range_end) = span(&self.prefix);
        let request = proto::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(proto::WatchCreateRequest {
                key,
                range_end,
                start_revision: self.next.0,
                progress_notify: true,
                fragment: true,
            })),
        };
        self.answers = Some(self.link.open(Method::WATCH, request).await?);
        Ok(None)
    }

    /// What an answer says; nothing while parts are missing.
    fn take(&mut self, answer: WatchResponse) -> Vec<WatchEvent> {
        if answer.created {
            return Vec::new();
        }
        self.pause = Duration::ZERO;
        let header = answer.header.unwrap_or_default();
        if answer.events.is_empty() && self.partial.is_empty() {
            // A sign of progress: everything up to this revision has been told.
            self.next = self.next.max(Revision(header.revision).next());
        }
        self.partial.extend(answer.events);
        if answer.fragment {
            return Vec::new();
        }
        self.seen.revision = self.seen.revision.max(header.revision);
        self.seen.raft_term = self.seen.raft_term.max(header.raft_term);
        let events = by_revision(std::mem::take(&mut self.partial));
        if let Some(WatchEvent::Changes { revision, .. }) = events.last() {
            self.next = revision.next();
        }
        events
    }

    fn canceled(&mut self, answer: &WatchResponse) {
        if answer.compact_revision > 0 {
            self.compacted = true;
        } else {
            // Most likely the token: this call is not refused, but answered with a cancellation.
            self.link.forget_token();
        }
        self.lose(&answer.cancel_reason);
    }

    /// Goes on after everything that the store has now.
    fn resync(&mut self, head: ResponseHeader) -> WatchEvent {
        let revision = Revision(head.revision);
        self.seen = head;
        self.next = revision.next();
        self.compacted = false;
        WatchEvent::Resync { revision }
    }

    fn lose(&mut self, why: &str) {
        // Once: what follows are attempts of the same interruption.
        if self.pause.is_zero() {
            tracing::warn!(prefix = %self.prefix, why, "a watch was interrupted and will resume");
        }
        self.answers = None;
        self.partial.clear();
        self.pause = (self.pause * 2).clamp(BACK_OFF.0, BACK_OFF.1);
    }
}

/// One event for each revision, with its changes in their order.
fn by_revision(events: Vec<Event>) -> Vec<WatchEvent> {
    let mut grouped: Vec<(Revision, Vec<Change>)> = Vec::new();
    for event in events {
        let kind = event.r#type();
        let Some(kv) = event.kv else { continue };
        let revision = Revision(kv.mod_revision);
        let key = text(&kv.key);
        let change = match kind {
            EventType::Put => Change::Put {
                key,
                value: text(&kv.value),
            },
            EventType::Delete => Change::Delete { key },
        };
        match grouped.last_mut() {
            Some((last, changes)) if *last == revision => changes.push(change),
            _ => grouped.push((revision, vec![change])),
        }
    }
    grouped
        .into_iter()
        .map(|(revision, changes)| WatchEvent::Changes { revision, changes })
        .collect()
}

//! Streams of a session (`http-api.md` 4.9): what stays open between a client and a session for a long time.
//!
//! Every stream is registered while it lives, under its session and its requester, which bounds how many there are. One
//! task looks at the records of all sessions that have streams, when something is told of them ([`crate::lifecycle`]) and
//! every two seconds, so that a stream ends with its session and hears that it moved, whichever manager did it.
//! Another one looks at the requesters, so that a stream ends when its requester would not get it any more.
//!
//! Not here: websockets, frames and close codes, which are the gateway's.

mod service;
mod terminal;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bai_model::{AccessKey, AgentId, KernelId, KernelStatus};
use bai_proto::agent::{ExecuteReply, ExecuteRequest};
use bai_proto::zmtp::Endpoint;
use bai_store::kernel::KernelRow;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub use service::ServiceStream;
pub use terminal::{Screen, TerminalStream};

use crate::agents::AGENT_DEADLINE;
use crate::auth::Credential;
use crate::session::{SessionExecute, SessionRef, can_execute, within};
use crate::{Error, Manager, Op, Result};

/// Streams of one session at once.
const STREAMS_OF_SESSION: usize = 1024;
/// Streams of one requester at once.
const STREAMS_OF_REQUESTER: usize = 4096;
/// How often the sessions of streams are looked at without being told to.
const LOOK_PERIOD: Duration = Duration::from_secs(2);
/// How often it is looked at who has streams. Credentials are believed for two seconds
/// ([`crate::auth::CREDENTIAL_TTL`]), which comes on top.
const RIGHTS_PERIOD: Duration = Duration::from_secs(2);
/// Use of a stream is told to the agent at most so often for each session (`http-api.md` 4.9.3).
const REFRESH_PERIOD: Duration = Duration::from_secs(2);
/// How long that may take.
const REFRESH_DEADLINE: Duration = Duration::from_secs(10);

/// Where a session runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    container: Option<String>,
    host: String,
    stdin_port: u16,
    stdout_port: u16,
}

impl Place {
    fn of(row: &KernelRow) -> Self {
        Self {
            container: row.container_id.clone(),
            host: host_of(row),
            stdin_port: row.stdin_port,
            stdout_port: row.stdout_port,
        }
    }
}

/// The host of a kernel's ports: its own, or its agent's.
fn host_of(row: &KernelRow) -> String {
    let own = row.kernel_host.as_deref().filter(|host| !host.is_empty());
    own.map_or_else(|| host_of_agent(&row.agent_addr), str::to_owned)
}

/// The host in `tcp://10.0.0.5:6001`; an agent in this process is on this host.
fn host_of_agent(address: &str) -> String {
    let endpoint: std::result::Result<Endpoint, _> = address.parse();
    endpoint.map_or_else(|_| "127.0.0.1".to_owned(), |endpoint| endpoint.host)
}

/// Whose sessions somebody may see, each including those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rights {
    /// They get in nowhere any more.
    Nobodys,
    Own,
    Anybodys,
}

impl Rights {
    /// Of a keypair, as [`Op::owner`] has it.
    fn of(credential: Option<&Credential>) -> Self {
        match credential {
            None => Self::Nobodys,
            Some(credential) if credential.identity.is_admin => Self::Anybodys,
            Some(_) => Self::Own,
        }
    }

    /// What `requester` needs for sessions of `owner`.
    pub(crate) fn for_sessions_of(owner: &AccessKey, requester: &AccessKey) -> Self {
        if owner == requester {
            Self::Own
        } else {
            Self::Anybodys
        }
    }
}

/// Why the manager ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// Its session has ended.
    Session,
    /// Its requester would not get it any more: the keypair, its user or its domain is no longer active, or is no
    /// administrator's.
    ShutOut,
}

/// All streams of this manager.
#[derive(Debug)]
pub(crate) struct Streams {
    open: Arc<Mutex<Open>>,
    /// A session with streams was told of.
    told: Notify,
    since: Instant,
}

#[derive(Debug, Default)]
struct Open {
    sessions: HashMap<KernelId, OfSession>,
    requesters: HashMap<AccessKey, OfRequester>,
}

/// What the streams of one requester share.
#[derive(Debug)]
struct OfRequester {
    count: usize,
    /// As they were last seen.
    rights: watch::Sender<Rights>,
}

/// What the streams of one session share.
#[derive(Debug)]
struct OfSession {
    count: usize,
    /// `None` once it has ended.
    place: watch::Sender<Option<Place>>,
    /// When its use was last told, in milliseconds of [`Streams::since`], and one more; 0 is never.
    refreshed: Arc<AtomicU64>,
}

/// A stream among the others until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenStream {
    open: Arc<Mutex<Open>>,
    requester: AccessKey,
    kernel: Option<KernelId>,
    rights: watch::Receiver<Rights>,
    /// What it takes.
    needs: Rights,
}

impl OpenStream {
    /// Waits until its requester would not get it any more.
    pub(crate) async fn shut_out(&self) {
        let mut rights = self.rights.clone();
        // The sender goes when the requester's last stream has gone, which this is not.
        _ = rights.wait_for(|rights| *rights < self.needs).await;
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        if let Some(of_requester) = open.requesters.get_mut(&self.requester) {
            of_requester.count -= 1;
            if of_requester.count == 0 {
                open.requesters.remove(&self.requester);
            }
        }
        let Some(kernel) = self.kernel else { return };
        if let Some(of_session) = open.sessions.get_mut(&kernel) {
            of_session.count -= 1;
            if of_session.count == 0 {
                open.sessions.remove(&kernel);
            }
        }
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    // Counts may be one too high after a panic, which is on the safe side.
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self {
            open: Arc::default(),
            told: Notify::new(),
            since: Instant::now(),
        }
    }

    /// A stream of no single session, for a requester who has shown the rights that it needs.
    pub(crate) fn open_for(&self, requester: &AccessKey, needs: Rights) -> Result<OpenStream> {
        let mut open = lock(&self.open);
        let of_requester = open
            .requesters
            .entry(requester.clone())
            .or_insert_with(|| OfRequester {
                count: 0,
                rights: watch::Sender::new(needs),
            });
        if of_requester.count >= STREAMS_OF_REQUESTER {
            return Err(Error::QuotaExceeded(format!(
                "{STREAMS_OF_REQUESTER} streams are open at once; close some"
            )));
        }
        of_requester.count += 1;
        of_requester.rights.send_if_modified(|rights| {
            let has_more = *rights < needs;
            *rights = needs.max(*rights);
            has_more
        });
        Ok(OpenStream {
            open: Arc::clone(&self.open),
            requester: requester.clone(),
            kernel: None,
            rights: of_requester.rights.subscribe(),
            needs,
        })
    }

    fn open_session(
        &self,
        requester: &AccessKey,
        needs: Rights,
        kernel: KernelId,
        place: Place,
    ) -> Result<(OpenStream, watch::Receiver<Option<Place>>, Arc<AtomicU64>)> {
        let mut stream = self.open_for(requester, needs)?;
        let mut open = lock(&self.open);
        let of_session = open.sessions.entry(kernel).or_insert_with(|| OfSession {
            count: 0,
            place: watch::Sender::new(Some(place)),
            refreshed: Arc::default(),
        });
        let shared = (of_session.place.subscribe(), Arc::clone(&of_session.refreshed));
        let is_full = of_session.count >= STREAMS_OF_SESSION;
        if !is_full {
            of_session.count += 1;
            stream.kernel = Some(kernel);
        }
        // The stream may be dropped below, which locks.
        drop(open);
        if is_full {
            return Err(Error::QuotaExceeded(format!(
                "{STREAMS_OF_SESSION} streams of this session are open at once; close some"
            )));
        }
        Ok((stream, shared.0, shared.1))
    }

    /// Has a session's record looked at, if it has streams.
    pub(crate) fn look_at(&self, kernel: KernelId) {
        if lock(&self.open).sessions.contains_key(&kernel) {
            self.told.notify_one();
        }
    }

    fn kernels(&self) -> Vec<KernelId> {
        lock(&self.open).sessions.keys().copied().collect()
    }

    fn requesters(&self) -> Vec<AccessKey> {
        lock(&self.open).requesters.keys().cloned().collect()
    }

    /// Tells the streams of a requester what they may see.
    fn tell_rights(&self, requester: &AccessKey, now: Rights) {
        if let Some(of_requester) = lock(&self.open).requesters.get(requester) {
            of_requester
                .rights
                .send_if_modified(|rights| std::mem::replace(rights, now) != now);
        }
    }

    /// Tells the streams of `asked` what their records say.
    fn tell(&self, asked: &[KernelId], rows: Vec<KernelRow>) {
        let rows: HashMap<KernelId, KernelRow> = rows.into_iter().map(|row| (row.id, row)).collect();
        let open = lock(&self.open);
        for kernel in asked {
            let Some(of_session) = open.sessions.get(kernel) else {
                continue;
            };
            let row = rows.get(kernel);
            let row = row.filter(|row| row.status.is_some_and(KernelStatus::is_alive));
            of_session.place.send_if_modified(|place| {
                // The end is the end; between two lives it has not moved yet.
                let is_news = match row {
                    None => place.is_some(),
                    Some(row) => {
                        row.status == Some(KernelStatus::Running)
                            && place.as_ref().is_some_and(|place| *place != Place::of(row))
                    }
                };
                if is_news {
                    *place = row.map(Place::of);
                }
                is_news
            });
        }
    }

    /// Whether a session's use should be told now, which is noted.
    fn is_refresh_due(&self, refreshed: &AtomicU64) -> bool {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let last = refreshed.load(Ordering::Relaxed);
        let period = u64::try_from(REFRESH_PERIOD.as_millis()).unwrap_or(u64::MAX);
        let is_due = last == 0 || now.saturating_sub(last) >= period;
        // Of several who find it due, one does it.
        is_due
            && refreshed
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl Manager {
    /// Opens a stream of a session, which counts as one use of it: what every stream does before it upgrades.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`]; [`Error::QuotaExceeded`] when too many are open.
    pub async fn session_open_stream(
        self: &Arc<Self>,
        op: &Op,
        session: &SessionRef,
    ) -> Result<SessionStream> {
        let row = self.find_session(op, session).await?;
        self.open_stream(op, session, &row)
    }

    fn open_stream(
        self: &Arc<Self>,
        op: &Op,
        session: &SessionRef,
        row: &KernelRow,
    ) -> Result<SessionStream> {
        let requester = &op.identity()?.access_key;
        let needs = Rights::for_sessions_of(op.owner(session.owner.as_ref())?, requester);
        let (open, place, refreshed) = self
            .streams
            .open_session(requester, needs, row.id, Place::of(row))?;
        let stream = SessionStream {
            manager: Arc::clone(self),
            op: op.clone(),
            session: session.clone(),
            kernel: row.id,
            agent: row.agent.clone(),
            container: row.container_id.clone(),
            place,
            refreshed,
            open,
        };
        stream.note_use();
        Ok(stream)
    }

    /// Looks at the records of sessions that have streams.
    pub(crate) async fn watch_streams(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = self.streams.told.notified() => {}
                () = tokio::time::sleep(LOOK_PERIOD) => {}
            }
            let kernels = self.streams.kernels();
            match self.store.reader().kernels(&kernels).await {
                Ok(rows) => self.streams.tell(&kernels, rows),
                // Streams go on while the database is away.
                Err(error) => tracing::debug!(%error, "the sessions of streams cannot be looked at"),
            }
        }
    }

    /// Looks at who has streams, one after the other: there is no hurry, and requests come first.
    pub(crate) async fn watch_requesters(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(RIGHTS_PERIOD) => {}
            }
            for requester in self.streams.requesters() {
                match self.credential(&requester).await {
                    Ok(credential) => self
                        .streams
                        .tell_rights(&requester, Rights::of(credential.as_ref())),
                    // Streams go on while the database is away.
                    Err(error) => {
                        tracing::debug!(%error, "who has streams cannot be looked at");
                        break;
                    }
                }
            }
        }
    }
}

/// An open stream of a session.
#[derive(Debug)]
pub struct SessionStream {
    manager: Arc<Manager>,
    op: Op,
    session: SessionRef,
    kernel: KernelId,
    agent: Option<AgentId>,
    /// What ran when it was opened.
    container: Option<String>,
    place: watch::Receiver<Option<Place>>,
    refreshed: Arc<AtomicU64>,
    open: OpenStream,
}

impl SessionStream {
    /// The session's kernel.
    pub fn kernel(&self) -> KernelId {
        self.kernel
    }

    /// Waits until the session has ended, or the requester is shut out of it.
    pub async fn ended(&self) -> StreamEnd {
        let mut place = self.place.clone();
        tokio::select! {
            biased;
            // The sender goes when the last stream has gone, which this is not.
            _ = place.wait_for(Option::is_none) => StreamEnd::Session,
            () = self.open.shut_out() => StreamEnd::ShutOut,
        }
    }

    /// Whether the session still runs what it ran when the stream was opened.
    pub async fn is_unchanged(&self) -> bool {
        self.row()
            .await
            .is_ok_and(|row| row.status == Some(KernelStatus::Running) && row.container_id == self.container)
    }

    /// Starts, feeds or polls a run (`http-api.md` 4.9.2). `None` is what agents say when a run went away.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`] when the session has ended, [`Error::KernelExecutionFailed`].
    pub async fn execute(&self, request: SessionExecute) -> Result<Option<ExecuteReply>> {
        let row = self.row().await?;
        can_execute(&row)?;
        let agent = self.manager.agent_of(&row).await?;
        within(
            AGENT_DEADLINE,
            agent.execute(row.id, ExecuteRequest::from(request)),
        )
        .await
    }

    /// Interrupts what the session runs.
    ///
    /// # Errors
    /// As [`SessionStream::execute`].
    pub async fn interrupt(&self) -> Result<()> {
        let row = self.row().await?;
        let agent = self.manager.agent_of(&row).await?;
        within(AGENT_DEADLINE, agent.interrupt_kernel(row.id)).await
    }

    /// Restarts the session.
    ///
    /// # Errors
    /// As [`Manager::session_restart`].
    pub async fn restart(&self) -> Result<()> {
        self.manager.session_restart(&self.op, &self.session).await
    }

    /// Counts one more use of the session.
    pub fn note_use(&self) {
        if let Ok(owner) = self.op.owner(self.session.owner.as_ref()) {
            self.manager.usage.note_session_use(owner, &self.session.name);
        }
    }

    /// Postpones the session's idle time-out (`agent-protocol.md` 5.10). May be called for every byte: the agent hears of
    /// it every two seconds.
    pub fn keep_busy(&self) {
        if !self.manager.streams.is_refresh_due(&self.refreshed) {
            return;
        }
        let Some(agent) = self.agent.clone() else {
            return;
        };
        let (manager, kernel) = (Arc::clone(&self.manager), self.kernel);
        self.manager.tasks.spawn(async move {
            // An agent that is not there finds nothing idle either.
            let Ok(Some(agent)) = manager.agent(&agent).await else {
                return;
            };
            if let Err(error) = within(REFRESH_DEADLINE, agent.refresh_idle(kernel)).await {
                tracing::warn!(kernel.id = %kernel, %error, "the use of a session could not be told to its agent; it may find it idle");
            }
        });
    }

    /// The record, unless the session has ended; another one of the same name is not it.
    async fn row(&self) -> Result<KernelRow> {
        let row = self.manager.find_session(&self.op, &self.session).await?;
        if row.id == self.kernel {
            Ok(row)
        } else {
            Err(Error::KernelNotFound)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_an_agent_is_in_its_address() {
        for (address, host) in [
            ("tcp://10.0.0.5:6001", "10.0.0.5"),
            ("tcp://[fe80::1]:6001", "fe80::1"),
            ("tcp://agent.example:6001", "agent.example"),
            ("inproc://i-local", "127.0.0.1"),
            ("", "127.0.0.1"),
        ] {
            assert_eq!(host_of_agent(address), host, "{address}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn use_is_told_once_in_two_seconds() {
        let streams = Streams::new();
        let refreshed = AtomicU64::new(0);
        assert!(streams.is_refresh_due(&refreshed));
        for _ in 0..1000 {
            assert!(!streams.is_refresh_due(&refreshed));
        }
        tokio::time::advance(REFRESH_PERIOD - Duration::from_millis(1)).await;
        assert!(!streams.is_refresh_due(&refreshed));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(streams.is_refresh_due(&refreshed));
        assert!(!streams.is_refresh_due(&refreshed));
    }

    #[test]
    fn a_requester_has_so_many_streams() {
        let streams = Streams::new();
        let (one, other) = (AccessKey("ONE".into()), AccessKey("OTHER".into()));
        let mut open: Vec<_> = (0..STREAMS_OF_REQUESTER)
            .map(|_| streams.open_for(&one, Rights::Own).expect("room"))
            .collect();
        assert!(matches!(
            streams.open_for(&one, Rights::Own),
            Err(Error::QuotaExceeded(_))
        ));
        assert!(streams.open_for(&other, Rights::Own).is_ok());
        open.pop();
        assert!(streams.open_for(&one, Rights::Own).is_ok());
        drop(open);
        assert!(lock(&streams.open).requesters.is_empty());
    }

    #[tokio::test]
    async fn a_requester_who_is_shut_out_of_sessions_loses_the_streams_of_these() {
        use futures_util::FutureExt as _;

        let streams = Streams::new();
        let key = AccessKey("ONE".into());
        let open = |needs| streams.open_for(&key, needs).expect("room");
        let ended = |stream: &OpenStream| stream.shut_out().now_or_never().is_some();
        let (own, others) = (open(Rights::Own), open(Rights::Anybodys));
        let both = || (ended(&own), ended(&others));
        for (now, expected) in [
            (Rights::Anybodys, (false, false)),
            (Rights::Own, (false, true)),
            (Rights::Nobodys, (true, true)),
        ] {
            streams.tell_rights(&key, now);
            assert_eq!(both(), expected, "{now:?}");
        }
        // Who has just shown that they may is believed.
        assert!(!ended(&open(Rights::Own)));
        streams.tell_rights(&AccessKey("OTHER".into()), Rights::Nobodys);
        assert_eq!(both(), (false, true));
    }

    #[test]
    fn a_session_has_so_many_streams() {
        let streams = Streams::new();
        let place = Place {
            container: None,
            host: "127.0.0.1".into(),
            stdin_port: 0,
            stdout_port: 0,
        };
        let (one, other) = (AccessKey("ONE".into()), AccessKey("OTHER".into()));
        let open = |requester: &AccessKey, number: u128| {
            let kernel = KernelId(uuid::Uuid::from_u128(number));
            streams.open_session(requester, Rights::Own, kernel, place.clone())
        };
        let mut all: Vec<_> = (0..STREAMS_OF_SESSION)
            .map(|_| open(&one, 1).expect("room"))
            .collect();
        for requester in [&one, &other] {
            assert!(matches!(open(requester, 1), Err(Error::QuotaExceeded(_))));
        }
        assert!(open(&one, 2).is_ok());
        all.pop();
        assert!(open(&other, 1).is_ok());
        drop(all);
        let open = lock(&streams.open);
        assert!(open.sessions.is_empty() && open.requesters.is_empty());
    }
}

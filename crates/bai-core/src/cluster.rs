//! Which of several managers does what (`docs/adr/0009-several-managers.md`).
//!
//! Each manager keeps one lease in the database, and claims work under it: the site's timers, the comparison of one agent
//! with the records, the work with one kernel. A claim lives as long as its lease, so that the work of a manager that died
//! or was paused goes to whoever asks next, and every unit of work that a claim guards begins with [`Manager::fence`], so
//! that one who was late writes nothing.
//!
//! Invariants: work without a living claim is anybody's; one who could not renew the own lease takes nothing from others
//! until it has renewed for as long as a lease lives, because then not they were away.
//!
//! A manager whose database is its own is alone: it has no lease and claims nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bai_model::random::Random;
use bai_model::{AgentId, KernelId};
use bai_store::claim::Claim;
use bai_store::lease::Lease;
use bai_store::{Store, Tx};
use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::{Manager, Result};

/// How long a manager that says nothing is believed to live. The clocks of managers must differ by less.
const LEASE_TTL: Duration = Duration::from_secs(2);
/// How often a manager renews its lease, and looks for work that somebody has left.
const LOOK_PERIOD: Duration = Duration::from_millis(500);
/// Leases that ended so long ago are forgotten.
const LEASE_MEMORY: Duration = Duration::from_secs(3600);
/// The beginning of the names of leases.
const LEASE_PREFIX: &str = "manager/";
/// Where managers tell each other that there is work to look at. What is said there is of no importance.
const CHANNEL: &str = "managers";

/// A piece of work that one manager at a time does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Duty {
    /// What is done once for the whole site: finding agents that are lost, forgetting managers that are gone.
    Timers,
    /// Comparing an agent with the records.
    Agent(AgentId),
    /// Making a kernel what its record says.
    Kernel(KernelId),
}

impl std::fmt::Display for Duty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Timers => f.write_str("timers"),
            Self::Agent(agent) => write!(f, "agent/{agent}"),
            Self::Kernel(kernel) => write!(f, "kernel/{kernel}"),
        }
    }
}

/// This manager among the others; nothing when it is alone.
#[derive(Debug)]
pub(crate) struct Cluster(Option<Member>);

#[derive(Debug)]
struct Member {
    /// Of the lease; nobody else's, not even a former process's on this host.
    name: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    lease: Option<Lease>,
    renewed: Instant,
    /// Since when the lease was never left to end.
    since: Instant,
    /// Kernels whose claims are to be given back when nothing goes on with them.
    held: HashSet<KernelId>,
    /// Kernels that were claimed when they were recorded, until the work with them begins, and the token of the lease.
    new: HashMap<KernelId, i64>,
}

impl Cluster {
    pub(crate) fn new(store: &Store, random: &dyn Random) -> Self {
        if !store.is_shared() {
            return Self(None);
        }
        let mut id = [0; 8];
        random.fill(&mut id);
        Self(Some(Member {
            name: format!("{LEASE_PREFIX}{:016x}", u64::from_be_bytes(id)),
            state: Mutex::new(State {
                lease: None,
                renewed: Instant::now(),
                since: Instant::now(),
                held: HashSet::new(),
                new: HashMap::new(),
            }),
        }))
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.0.is_none()
    }
}

impl Member {
    fn state(&self) -> MutexGuard<'_, State> {
        // Valid after any panic: every change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self) -> Option<Lease> {
        self.state().lease.clone()
    }

    /// The moment at which others must have been alive to keep what they claimed.
    fn others_end(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        if self.state().since.elapsed() >= LEASE_TTL {
            now
        } else {
            DateTime::UNIX_EPOCH
        }
    }

    /// Whether a kernel was claimed with its record, and nobody can have taken it since. Says so once.
    fn takes_up(&self, kernel: KernelId) -> bool {
        let mut state = self.state();
        let token = state.new.remove(&kernel);
        let lives = state.renewed.elapsed() < LEASE_TTL;
        let is_ours = lives && token.is_some() && token == state.lease.as_ref().map(|lease| lease.token);
        if is_ours {
            state.held.insert(kernel);
        }
        is_ours
    }

    fn has_renewed(&self, lease: Lease, at: Instant) {
        let mut state = self.state();
        if at.duration_since(state.renewed) > LEASE_TTL {
            tracing::warn!("this manager was away; others may have taken its work over");
            state.since = at;
        }
        state.renewed = at;
        state.lease = Some(lease);
    }
}

impl Manager {
    /// What other managers know this one by: the name of its lease. Nothing when it is alone.
    pub fn name(&self) -> Option<&str> {
        self.cluster.0.as_ref().map(|member| member.name.as_str())
    }

    /// Takes its place among the managers, or renews it.
    pub(crate) async fn join(&self) -> Result<()> {
        let Some(member) = &self.cluster.0 else {
            return Ok(());
        };
        // Before the database is asked: the lease ends no later than others think.
        let (now, at) = (self.clock.now(), Instant::now());
        let expires_at = now + LEASE_TTL;
        let mut tx = self.store.begin().await?;
        if let Some(mut lease) = member.lease()
            && tx.renew_lease(&mut lease, expires_at).await?
        {
            tx.commit().await?;
            member.has_renewed(lease, at);
            return Ok(());
        }
        let lease = tx
            .acquire_lease(&member.name, &member.name, now, expires_at)
            .await?;
        tx.commit().await?;
        if let Some(lease) = lease {
            member.has_renewed(lease, at);
        }
        Ok(())
    }

    /// Renews the lease, and looks for work that was left behind, until the manager has left.
    pub(crate) async fn take_part(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.leaving.cancelled() => return,
                () = tokio::time::sleep(LOOK_PERIOD) => {}
            }
            if let Err(error) = self.look_around().await {
                tracing::warn!(%error, "this manager could not renew its lease; others take its work over until it can");
            }
        }
    }

    async fn look_around(&self) -> Result<()> {
        let Some(member) = &self.cluster.0 else {
            return Ok(());
        };
        self.join().await?;
        let idle: Vec<KernelId> = {
            let state = member.state();
            let held = state.held.iter().copied();
            held.filter(|kernel| !self.in_flight.contains(*kernel)).collect()
        };
        for kernel in idle {
            self.give_back(kernel).await;
        }
        let ended = member.others_end(self.clock.now());
        if self.store.reader().has_abandoned_claims(ended).await? {
            self.nudge_reconcilers();
        }
        Ok(())
    }

    /// Leaves the other managers, who take at once what is left.
    pub(crate) async fn leave(&self) {
        self.leaving.cancel();
        let Some(lease) = self.cluster.0.as_ref().and_then(Member::lease) else {
            return;
        };
        let left: Result<()> = async {
            let mut tx = self.store.begin().await?;
            tx.release_lease(&lease, self.clock.now()).await?;
            tx.commit().await?;
            Ok(())
        }
        .await;
        match left {
            Ok(()) => self.call_others().await,
            Err(error) => {
                tracing::warn!(%error, "the lease of this manager could not be given back; it ends by itself")
            }
        }
    }

    /// Claims work within a unit of work. False when another manager has it.
    pub(crate) async fn claim_in(&self, tx: &mut Tx, duty: &Duty) -> bai_store::Result<bool> {
        let Some(member) = &self.cluster.0 else {
            return Ok(true);
        };
        let Some(lease) = member.lease() else {
            return Ok(false);
        };
        let ended = member.others_end(self.clock.now());
        tx.claim(&duty.to_string(), &lease, ended).await
    }

    /// Claims work, for long: the claim stays until it is given back, lost, or the manager ends. False when another
    /// manager has it.
    pub(crate) async fn claim(&self, duty: &Duty) -> Result<bool> {
        let Some(member) = &self.cluster.0 else {
            return Ok(true);
        };
        if let Duty::Kernel(kernel) = duty
            && member.takes_up(*kernel)
        {
            return Ok(true);
        }
        if !self.has_claimed(duty).await? {
            let mut tx = self.store.begin().await?;
            if !self.claim_in(&mut tx, duty).await? {
                return Ok(false);
            }
            tx.commit().await?;
            tracing::debug!(%duty, "claimed");
        }
        if let Duty::Kernel(kernel) = duty {
            member.state().held.insert(*kernel);
        }
        Ok(true)
    }

    /// Commits a unit of work that records kernels, which are claimed with it.
    pub(crate) async fn claim_and_commit(&self, mut tx: Tx, kernels: Vec<KernelId>) -> bai_store::Result<()> {
        let member = self.cluster.0.as_ref();
        let Some((member, lease)) = member.and_then(|member| Some((member, member.lease()?))) else {
            return tx.commit().await;
        };
        let duties: Vec<Duty> = kernels.iter().copied().map(Duty::Kernel).collect();
        tx.claim_new(&names(&duties), &lease).await?;
        tx.commit().await?;
        let new = kernels.into_iter().map(|kernel| (kernel, lease.token));
        member.state().new.extend(new);
        Ok(())
    }

    /// Whether this manager was the last to claim the work.
    pub(crate) async fn has_claimed(&self, duty: &Duty) -> Result<bool> {
        let Some(member) = &self.cluster.0 else {
            return Ok(true);
        };
        let (claim, lease) = (
            self.store.reader().claim_on(&duty.to_string()).await?,
            member.lease(),
        );
        let is_ours =
            |(claim, lease): (Claim, Lease)| (claim.lease, claim.token) == (lease.name, lease.token);
        Ok(claim.zip(lease).is_some_and(is_ours))
    }

    /// Makes a unit of work one that only the manager that has claimed the work can commit. To come first in it.
    pub(crate) async fn fence(&self, tx: &mut Tx, duty: &Duty) -> Result<()> {
        let duties = std::slice::from_ref(duty);
        match self.under_lease(duties)? {
            Some((names, lease)) => Ok(tx.fence_claims(&names, &lease).await?),
            None => Ok(()),
        }
    }

    /// As [`Manager::fence`], of a unit of work that ends the work: the claims are given back with it. To be committed by
    /// [`Manager::commit_end`].
    pub(crate) async fn fence_end(&self, tx: &mut Tx, duties: &[Duty]) -> Result<()> {
        match self.under_lease(duties)? {
            Some((names, lease)) => Ok(tx.end_claims(&names, &lease).await?),
            None => Ok(()),
        }
    }

    /// The claims on this work, and the lease; nothing for a manager that is alone.
    fn under_lease(&self, duties: &[Duty]) -> Result<Option<(Vec<String>, Lease)>> {
        let Some(member) = &self.cluster.0 else {
            return Ok(None);
        };
        let names = names(duties);
        match (member.lease(), names.first()) {
            (Some(lease), _) => Ok(Some((names, lease))),
            (None, Some(name)) => Err(bai_store::Error::Fenced { name: name.clone() }.into()),
            (None, None) => Ok(None),
        }
    }

    /// Commits a unit of work that gave claims back.
    pub(crate) async fn commit_end(&self, tx: Tx, duties: &[Duty]) -> Result<()> {
        tx.commit().await?;
        if let Some(member) = &self.cluster.0 {
            let mut state = member.state();
            for duty in duties {
                if let Duty::Kernel(kernel) = duty {
                    state.held.remove(kernel);
                }
            }
        }
        Ok(())
    }

    /// Gives back the claim on work, if it is there.
    async fn release(&self, duty: &Duty) -> Result<()> {
        let duties = std::slice::from_ref(duty);
        let mut tx = self.store.begin().await?;
        if let Some(lease) = self.cluster.0.as_ref().and_then(Member::lease) {
            tx.release_claims(&names(duties), &lease).await?;
        }
        self.commit_end(tx, duties).await
    }

    /// Gives back the claim of a kernel if it is still held. What fails is tried again.
    pub(crate) async fn give_back(&self, kernel: KernelId) {
        let Some(member) = &self.cluster.0 else { return };
        if !member.state().held.contains(&kernel) {
            return;
        }
        if let Err(error) = self.release(&Duty::Kernel(kernel)).await {
            tracing::warn!(kernel.id = %kernel, %error, "a claim could not be given back; it will be tried again");
        }
    }

    /// Gives back the claims of work that goes on for ever, so that others begin with it at once.
    pub(crate) async fn hand_over(&self, duties: Vec<Duty>) {
        if self.cluster.is_alone() {
            return;
        }
        for duty in duties {
            self.give_back_duty(&duty).await;
        }
        self.call_others().await;
    }

    /// Gives back the claim of work that is done for now.
    pub(crate) async fn give_back_duty(&self, duty: &Duty) {
        if self.cluster.is_alone() {
            return;
        }
        if let Err(error) = self.release(duty).await {
            tracing::warn!(%duty, %error, "work could not be handed over; others take it when this manager has ended");
        }
    }

    /// Forgets managers that are gone.
    pub(crate) async fn forget_managers(&self) -> Result<()> {
        let mut tx = self.store.begin().await?;
        self.fence(&mut tx, &Duty::Timers).await?;
        tx.forget_leases(LEASE_PREFIX, self.clock.now() - LEASE_MEMORY)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Tells the other managers that there is work. Who does not hear it finds it at the next look.
    pub(crate) async fn call_others(&self) {
        if self.cluster.is_alone() {
            return;
        }
        let call = self.broker.publish(CHANNEL, bytes::Bytes::from_static(b"look"));
        if let Ok(Err(error)) = tokio::time::timeout(LOOK_PERIOD, call).await {
            tracing::debug!(%error, "other managers could not be called");
        }
    }

    /// Looks when another manager calls.
    pub(crate) async fn hear_others(self: Arc<Self>) {
        if self.cluster.is_alone() {
            return;
        }
        loop {
            let heard = async {
                match self.broker.subscribe(CHANNEL).await {
                    Ok(mut calls) => {
                        while calls.next().await.is_some() {
                            self.nudge_reconcilers();
                        }
                    }
                    Err(error) => tracing::debug!(%error, "calls of other managers cannot be heard"),
                }
            };
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = heard => {}
            }
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(LOOK_PERIOD) => {}
            }
        }
    }
}

fn names(duties: &[Duty]) -> Vec<String> {
    duties.iter().map(Duty::to_string).collect()
}

//! An agent's id belongs to one host at a time (Q-S12): two hosts with one id would seem one to managers, which would end the
//! sessions of both.
//!
//! A host says under a lease that it has the id, with a random name of its own that stays in its data folder. Agents of 19.06
//! say nothing of the kind; the address that they leave is compared instead, and a difference logged.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bai_backplane::config::{Config, Scope};
use bai_backplane::kv::Presence;
use bai_model::random::Random;
use tokio::time::{Instant, sleep};

/// How long an id stays with a host that says nothing.
const LEASE: Duration = Duration::from_secs(15);
/// Between two looks at who has it.
const LOOK: Duration = Duration::from_secs(5);
/// Holds this host's name for itself.
const FILE: &str = "identity";

/// The id, for as long as this lives.
#[derive(Debug)]
pub struct Claim {
    presence: Presence,
    key: String,
    value: String,
}

impl Claim {
    /// Takes the id for this host, which is called at `address`. The id of a host that has just vanished is waited for.
    ///
    /// # Errors
    /// When another host has it, or the configuration store or the data folder cannot be written.
    pub async fn take(
        site: &Config,
        id: &str,
        address: &str,
        data_dir: &Path,
        random: &dyn Random,
    ) -> Result<Self> {
        let own = identity(data_dir, random)?;
        let key = format!("nodes/agents/{id}/host");
        let value = format!("{own} {address}");
        let deadline = Instant::now() + LEASE + LOOK;
        while let Some(other) = holder(site, &key)
            .await?
            .filter(|holder| !holder.starts_with(&own))
        {
            let at = other.split(' ').nth(1).unwrap_or("another address").to_owned();
            if Instant::now() >= deadline {
                bail!(
                    "another host has the agent id {id}: its agent is at {at}. Give one of them another agent.id, or end \
                     that agent"
                );
            }
            tracing::warn!("the agent id {id} is with {at}; waiting for it to be free");
            sleep(LOOK).await;
        }
        let before = site
            .get("ip")
            .await
            .context("cannot read this agent's own keys")?;
        let host = address.trim_start_matches("tcp://");
        if let Some(before) = before.filter(|before| !host.starts_with(before.as_str())) {
            tracing::warn!(
                "an agent with the id {id} was at {before} before: if it still runs there, give one of them another agent.id"
            );
        }
        let presence = site.announce(&[(&key, &value)], LEASE).await;
        Ok(Self {
            presence: presence.context("cannot claim the agent's id in the configuration store")?,
            key,
            value,
        })
    }

    /// Looks whether the id is still this host's, and says so in the log when it is not. Never ends.
    pub fn guard(&self, site: Config) -> impl Future<Output = ()> + Send + use<> {
        let (key, value) = (self.key.clone(), self.value.clone());
        async move {
            let mut was_told = false;
            loop {
                sleep(LOOK).await;
                let Ok(Some(holder)) = holder(&site, &key).await else {
                    continue;
                };
                let is_other = holder != value;
                if is_other && !was_told {
                    tracing::error!(
                        holder,
                        "another host uses this agent's id: managers take both for one. Give one of them another agent.id"
                    );
                }
                was_told = is_other;
            }
        }
    }

    /// Gives the id up.
    pub async fn release(self) {
        self.presence.withdraw().await;
    }
}

async fn holder(site: &Config, key: &str) -> Result<Option<String>> {
    let found = site.get(key).await;
    found.with_context(|| format!("cannot read {key} from the configuration store"))
}

/// Notes how far the agent's start has come (`agent-protocol.md` 4.2).
///
/// # Errors
/// When the configuration store does not take it.
pub async fn note_status(site: &Config, status: &str) -> Result<()> {
    let noted = site.put_in(Scope::Node, "", status).await;
    noted.context("cannot note the agent's status in the configuration store")
}

/// This host's name for itself: made once, and found again after every restart.
fn identity(data_dir: &Path, random: &dyn Random) -> Result<String> {
    let file = data_dir.join(FILE);
    let is_name = |text: &str| text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Ok(text) = fs::read_to_string(&file)
        && is_name(text.trim())
    {
        return Ok(text.trim().to_owned());
    }
    let mut bytes = [0; 16];
    random.fill(&mut bytes);
    let name = hex::encode(bytes);
    let temporary = data_dir.join("identity.new");
    let write = || {
        let mut opened = fs::File::create(&temporary)?;
        opened.write_all(name.as_bytes())?;
        opened.sync_all()?;
        fs::rename(&temporary, &file)
    };
    write().with_context(|| format!("cannot write {}", file.display()))?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bai_backplane::kv;

    use super::*;
    use crate::system::{SystemClock, SystemRandom};

    #[tokio::test]
    async fn an_id_is_with_one_host_and_comes_back_to_it() {
        let kv = kv::open("memory:", Arc::new(SystemClock)).await.expect("memory");
        let site = Config::new(kv, "local").for_agent("default", "i-a");
        let (one, other) = (
            tempfile::tempdir().expect("a folder"),
            tempfile::tempdir().expect("a folder"),
        );
        let take = async |folder: &Path, address: &str| {
            Claim::take(&site, "i-a", address, folder, &SystemRandom).await
        };
        let first = take(one.path(), "tcp://10.0.0.1:6001").await.expect("it is free");
        // The same host after a kill: its name is the same, and nobody waits.
        drop(first);
        let again = take(one.path(), "tcp://10.0.0.1:6001").await.expect("it is ours");
        tokio::time::pause();
        let refused = take(other.path(), "tcp://10.0.0.2:6001")
            .await
            .expect_err("it is taken");
        assert!(
            refused
                .to_string()
                .contains("its agent is at tcp://10.0.0.1:6001"),
            "{refused}"
        );
        again.release().await;
        take(other.path(), "tcp://10.0.0.2:6001")
            .await
            .expect("it was given up");
    }
}

//! Claims: pieces of work that the holder of a lease has set out to do, for as long as that lease lives.
//!
//! A process renews one lease, whatever the number of its claims. When the lease ends, each of them goes to whoever asks
//! first; to a holder whose claim went so, [`Tx::fence_claims`] says it before anything is written.
//!
//! Not here: which work there is, and when somebody may take it from others (`bai-core`).

use std::collections::HashSet;

use chrono::{DateTime, Utc};

use crate::driver::{Param, Row, params};
use crate::lease::Lease;
use crate::store::places;
use crate::{Error, Reader, Result, Tx};

/// A lease under which work is claimed, whether it lives or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The name of the lease.
    pub lease: String,
    /// Its token when the claim was made.
    pub token: i64,
}

impl Reader {
    /// Who claimed a piece of work last.
    pub async fn claim_on(&self, name: &str) -> Result<Option<Claim>> {
        let sql = "SELECT lease, token FROM bai_claim WHERE name = $1";
        let read = |row: &Row| {
            Ok(Claim {
                lease: row.get("lease")?,
                token: row.get("token")?,
            })
        };
        self.first(sql, params![name], read).await
    }

    /// Whether there is work whose lease had ended at `now`.
    pub async fn has_abandoned_claims(&self, now: DateTime<Utc>) -> Result<bool> {
        let sql = "SELECT count(*) AS n FROM bai_claim c WHERE NOT EXISTS (SELECT 1 FROM bai_lease l \
                   WHERE l.name = c.lease AND l.token = c.token AND l.expires_at > $1)";
        Ok(self.count(sql, params![now]).await? > 0)
    }
}

impl Tx {
    /// Claims a piece of work under a lease. False means that it is claimed under another one, which had not ended at
    /// `now`. To be committed before the work begins.
    ///
    /// # Errors
    /// [`Error::Contention`].
    pub async fn claim(&mut self, name: &str, lease: &Lease, now: DateTime<Utc>) -> Result<bool> {
        let sql = "INSERT INTO bai_claim (name, lease, token) VALUES ($1, $2, $3) \
                   ON CONFLICT (name) DO UPDATE SET lease = excluded.lease, token = excluded.token \
                   WHERE (bai_claim.lease = excluded.lease AND bai_claim.token = excluded.token) \
                   OR NOT EXISTS (SELECT 1 FROM bai_lease l WHERE l.name = bai_claim.lease \
                   AND l.token = bai_claim.token AND l.expires_at > $4)";
        let params = params![name, &lease.name, lease.token, now];
        Ok(self.execute(sql, params).await? > 0)
    }

    /// Claims pieces of work that nobody else can know of yet, under a lease.
    ///
    /// # Errors
    /// [`Error::Conflict`] when one is claimed.
    pub async fn claim_new(&mut self, names: &[String], lease: &Lease) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let params = names
            .iter()
            .flat_map(|name| [name.into(), (&lease.name).into(), lease.token.into()])
            .collect();
        let rows = places(names.len(), 3);
        self.execute(
            format!("INSERT INTO bai_claim (name, lease, token) VALUES {rows}"),
            params,
        )
        .await?;
        Ok(())
    }

    /// Makes this unit of work one that can be committed only while all of this work is claimed under the lease. To come
    /// before anything else in it that locks.
    ///
    /// # Errors
    /// [`Error::Fenced`] with the first piece that somebody else has claimed, or whose claim was given back.
    pub async fn fence_claims(&mut self, names: &[String], lease: &Lease) -> Result<()> {
        let (condition, params) = of_lease(names, lease);
        let sql = format!(
            "SELECT name FROM bai_claim WHERE {condition} ORDER BY name{}",
            self.for_share()
        );
        all_of(names, self.list(sql, params, |row| row.get("name")).await?)
    }

    /// Gives claims back with this unit of work, which is fenced by them as by [`Tx::fence_claims`].
    ///
    /// # Errors
    /// The same.
    pub async fn end_claims(&mut self, names: &[String], lease: &Lease) -> Result<()> {
        let (condition, params) = of_lease(names, lease);
        let sql = format!("DELETE FROM bai_claim WHERE {condition} RETURNING name");
        all_of(names, self.list(sql, params, |row| row.get("name")).await?)
    }

    /// Gives claims back. Those that have gone already are left alone.
    pub async fn release_claims(&mut self, names: &[String], lease: &Lease) -> Result<()> {
        let (condition, params) = of_lease(names, lease);
        self.execute(format!("DELETE FROM bai_claim WHERE {condition}"), params)
            .await?;
        Ok(())
    }
}

/// Whether all that was named is there.
fn all_of(names: &[String], found: Vec<String>) -> Result<()> {
    let found: HashSet<String> = found.into_iter().collect();
    match names.iter().find(|name| !found.contains(*name)) {
        None => Ok(()),
        Some(name) => Err(Error::Fenced { name: name.clone() }),
    }
}

/// The condition of these claims under a lease. At least one must be named.
fn of_lease(names: &[String], lease: &Lease) -> (String, Vec<Param>) {
    let mut params = params![&lease.name, lease.token];
    params.extend(names.iter().map(Param::from));
    let places: Vec<String> = (3..3 + names.len()).map(|place| format!("${place}")).collect();
    let condition = format!("lease = $1 AND token = $2 AND name IN ({})", places.join(", "));
    (condition, params)
}

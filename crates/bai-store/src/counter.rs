//! Counts of what has happened to the site as a whole: who decided by what was before finds out that it is no longer so.

use crate::driver::{Row, params};
use crate::{Reader, Result, Tx};

/// How often all sessions were told to end at once.
const ENDINGS: &str = "endings";

impl Reader {
    /// How often all sessions were told to end at once.
    pub async fn session_endings(&self) -> Result<i64> {
        let sql = "SELECT value FROM bai_counter WHERE name = $1";
        let value = self
            .first(sql, params![ENDINGS], |row: &Row| row.get("value"))
            .await?;
        Ok(value.unwrap_or(0))
    }
}

impl Tx {
    /// Counts that all sessions are told to end in this unit of work, which has locked placement
    /// ([`Tx::lock_placement`]): what is recorded after it sees the new count.
    pub async fn count_session_ending(&mut self) -> Result<()> {
        let sql = "INSERT INTO bai_counter (name, value) VALUES ($1, 1) \
                   ON CONFLICT (name) DO UPDATE SET value = bai_counter.value + 1";
        self.execute(sql, params![ENDINGS]).await?;
        Ok(())
    }
}

//! The cluster's configuration as administrators read and write it over the API (`http-api.md` 4.3, 5.5, 5.6).
//!
//! Invariants: only superadmins get at keys, because registry passwords are among them; what the managers and agents
//! need to find each other cannot be wiped out by a prefix.
//!
//! Not here: what the keys mean.

use std::collections::BTreeMap;

use bai_backplane::config::flatten;
use bai_backplane::kv::{MAX_TXN_OPS, Txn};
use bai_backplane::{Error as ConfigError, Terminal};
use bai_model::SlotTypes;
use bai_model::image_ref::unquote;
use serde_json::{Map, Value};

use crate::image::REGISTRIES;
use crate::manager_status::{ManagerStatus, STATUS_KEY};
use crate::{Error, Manager, Op, Result};

/// Keys that one update may write.
const MAX_UPDATE: usize = 16;
/// Below this managers and agents say that they are there.
const NODES: &str = "nodes/";

/// What is written at a key.
#[derive(Clone, Debug)]
pub enum ConfigValue {
    Text(String),
    /// A key for each leaf; the member `""` is the place itself.
    Tree(Map<String, Value>),
}

impl Manager {
    /// The slot types that the cluster knows. For everybody.
    ///
    /// # Errors
    /// When the configuration store cannot tell.
    pub async fn config_resource_slots(&self, _op: &Op) -> Result<SlotTypes> {
        self.slot_types().await
    }

    /// The kinds of virtual folders (`clients.md` 11.3, item 8). For whoever signs.
    ///
    /// # Errors
    /// [`Error::Unauthorized`].
    pub fn config_vfolder_types(&self, op: &Op) -> Result<[&'static str; 2]> {
        op.identity()?;
        Ok(["user", "group"])
    }

    /// The configured image registries: names and addresses, without what is needed to get in. For whoever signs.
    ///
    /// # Errors
    /// [`Error::Unauthorized`].
    pub async fn config_docker_registries(&self, op: &Op) -> Result<BTreeMap<String, String>> {
        op.identity()?;
        let registries = self.config.children(REGISTRIES).await?.into_iter();
        Ok(registries
            .filter_map(|(name, url)| Some((unquote(&name), without_credentials(&url?))))
            .collect())
    }

    /// The value of a key. For superadmins.
    ///
    /// # Errors
    /// [`Error::Unauthorized`].
    pub async fn config_get(&self, op: &Op, key: &str) -> Result<Option<String>> {
        op.superadmin()?;
        self.config.get(key).await.map_err(refused)
    }

    /// The nested object of all keys that start with these bytes. For superadmins.
    ///
    /// # Errors
    /// [`Error::Unauthorized`].
    pub async fn config_get_prefix(&self, op: &Op, prefix: &str) -> Result<Value> {
        op.superadmin()?;
        self.config.subtree(prefix).await.map_err(refused)
    }

    /// Writes a key, or several in one transaction. For superadmins.
    ///
    /// # Errors
    /// [`Error::Unauthorized`]; [`Error::InvalidParameters`] for more than 16 keys, for values without a text (null,
    /// lists), and for a status of the managers that is none.
    pub async fn config_set(&self, op: &Op, key: &str, value: ConfigValue) -> Result<()> {
        op.superadmin()?;
        let pairs = match value {
            ConfigValue::Text(text) => vec![(key.to_owned(), text)],
            ConfigValue::Tree(tree) => flatten(key, &tree).map_err(refused)?,
        };
        if pairs.len() > MAX_UPDATE {
            return Err(Error::invalid(
                "Too large update! Split into smaller key-value pair sets.",
            ));
        }
        for (key, value) in &pairs {
            if logical(key) == STATUS_KEY {
                value.parse::<ManagerStatus>()?;
            }
        }
        self.config.put_all(&pairs).await.map_err(refused)?;
        self.forget_configuration();
        let keys: Vec<&str> = pairs.iter().map(|(key, _)| key.as_str()).collect();
        tracing::info!(request.id = op.request_id, ?keys, "configuration written");
        Ok(())
    }

    /// Deletes a key; one that does not exist is deleted already. For superadmins.
    ///
    /// # Errors
    /// [`Error::Unauthorized`]; [`Error::InvalidParameters`] for the managers' status.
    pub async fn config_delete(&self, op: &Op, key: &str) -> Result<()> {
        op.superadmin()?;
        if logical(key) == STATUS_KEY {
            return Err(Error::invalid(format!(
                "{STATUS_KEY} cannot be deleted; set it with PUT /manager/status"
            )));
        }
        self.config.delete(key).await.map_err(refused)?;
        self.forget_configuration();
        tracing::info!(request.id = op.request_id, key, "configuration deleted");
        Ok(())
    }

    /// Deletes all keys that start with these bytes, except the managers' status and what is below `nodes/`. For
    /// superadmins.
    ///
    /// # Errors
    /// [`Error::Unauthorized`]; [`Error::InvalidParameters`] for a prefix that means nothing but what is kept.
    pub async fn config_delete_prefix(&self, op: &Op, prefix: &str) -> Result<()> {
        op.superadmin()?;
        let prefix = logical(prefix);
        if is_kept(prefix) {
            return Err(Error::invalid(format!(
                "{STATUS_KEY} and what is below {NODES} belong to the managers and agents; name single keys to delete there"
            )));
        }
        if [STATUS_KEY, NODES].iter().any(|kept| kept.starts_with(prefix)) {
            let keys = self.config.prefix(prefix).await.map_err(refused)?;
            let keys: Vec<String> = keys
                .into_iter()
                .map(|(key, _)| key)
                .filter(|key| !is_kept(key))
                .collect();
            for keys in keys.chunks(MAX_TXN_OPS) {
                let txn = keys.iter().fold(Txn::new(), |txn, key| txn.delete(key));
                self.config.transact(txn).await.map_err(refused)?;
            }
        } else {
            self.config.delete_prefix(prefix).await.map_err(refused)?;
        }
        self.forget_configuration();
        tracing::info!(request.id = op.request_id, prefix, "configuration deleted");
        Ok(())
    }

    /// Whoever wrote sees it at once.
    fn forget_configuration(&self) {
        self.forget_status();
        self.slot_types.forget();
        self.catalogue.forget();
    }
}

/// A key without the one leading `/` that does not count.
fn logical(key: &str) -> &str {
    key.strip_prefix('/').unwrap_or(key)
}

fn is_kept(key: &str) -> bool {
    key == STATUS_KEY || key.starts_with(NODES)
}

/// What the store does not take is the requester's to change.
fn refused(error: ConfigError) -> Error {
    match error {
        ConfigError::Terminal(Terminal::Invalid(why)) => Error::invalid(why),
        other => other.into(),
    }
}

/// `https://user:password@host/path` as `https://host/path`.
fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_credentials() {
        for (url, shown) in [
            ("https://a:b@registry:5000/v2@x", "https://registry:5000/v2@x"),
            ("https://registry", "https://registry"),
            ("registry", "registry"),
        ] {
            assert_eq!(without_credentials(url), shown);
        }
    }
}

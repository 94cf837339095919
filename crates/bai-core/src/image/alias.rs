//! Names for images (`http-api.md` 5.9).
//!
//! Invariant: written keys are quoted; what older hands wrote unquoted is read and removed too.

use std::collections::BTreeMap;

use bai_model::image_ref::{quote, unquote};

use super::{Catalogue, MAX_ALIAS_HOPS, check_administrator, parse};
use crate::{Error, Op, Result};

const ALIASES: &str = "images/_aliases/";
/// Characters of an alias or a target, as of an image reference in the database.
const MAX_LENGTH: usize = 512;

/// An alias that was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    pub name: String,
    /// As given; may be a short reference or another alias.
    pub target: String,
    /// What the alias meant before.
    pub previous: Option<String>,
    /// The canonical reference that it leads to.
    pub image: String,
    /// Whether the catalogue has that image.
    pub is_known: bool,
}

/// Where an alias is kept.
pub(super) fn key(name: &str) -> String {
    format!("{ALIASES}{}", quote(name))
}

/// Where an alias was looked for by the original.
pub(super) fn raw_key(name: &str) -> String {
    format!("{ALIASES}{name}")
}

impl Catalogue {
    /// Makes `alias` mean `target`, a reference or another alias. The image need not be there yet. For superadmins.
    ///
    /// # Errors
    /// [`Error::InvalidParameters`] when the target leads nowhere, with the reason.
    pub async fn image_alias(&self, op: &Op, alias: &str, target: &str) -> Result<Alias> {
        let pair = [(alias.to_owned(), target.to_owned())];
        let aliases = self.image_update_aliases(op, &pair, false).await?;
        let alias = aliases.into_iter().next();
        alias.ok_or_else(|| Error::Internal("an alias was lost".to_owned()))
    }

    /// Removes an alias; says whether there was one. For superadmins.
    ///
    /// # Errors
    /// [`Error::Forbidden`] for others.
    pub async fn image_dealias(&self, op: &Op, alias: &str) -> Result<bool> {
        check_administrator(op)?;
        check_length(alias)?;
        let quoted = self.config.delete(&key(alias)).await?;
        let raw = self.config.delete(&raw_key(alias)).await?;
        self.forget();
        Ok(quoted || raw)
    }

    /// Sets many aliases (`http-api.md` 5.8, image-aliases.yml), or none when one of them is wrong. A dry run only says
    /// what would be set. For superadmins.
    ///
    /// # Errors
    /// [`Error::InvalidParameters`] when a name is empty or a target leads nowhere, with the alias and the reason.
    pub async fn image_update_aliases(
        &self,
        op: &Op,
        pairs: &[(String, String)],
        dry_run: bool,
    ) -> Result<Vec<Alias>> {
        check_administrator(op)?;
        let previous = self.aliases().await?;
        let mut aliases = previous.clone();
        for (name, target) in pairs {
            check_length(name)?;
            check_length(target)?;
            aliases.insert(name.clone(), target.clone());
        }
        let registries = self.known_registries().await?;
        let mut set = Vec::new();
        for (name, target) in pairs {
            let reference = follow(target, &aliases)
                .and_then(|text| parse(text, &registries))
                .map_err(|error| Error::invalid(format!("The alias {name} cannot mean {target}: {error}")))?;
            set.push(Alias {
                name: name.clone(),
                target: target.clone(),
                previous: previous.get(name).cloned(),
                image: reference.canonical(),
                is_known: self.config.get(&reference.tag_path()).await?.is_some(),
            });
        }
        if !dry_run {
            let entries: Vec<_> = pairs
                .iter()
                .map(|(name, target)| (key(name), target.clone()))
                .collect();
            self.config.put_all(&entries).await?;
            self.forget();
        }
        Ok(set)
    }

    /// All aliases with their targets.
    pub(super) async fn aliases(&self) -> Result<BTreeMap<String, String>> {
        let mut aliases = BTreeMap::new();
        for (key, target) in self.config.prefix(ALIASES).await? {
            if let Some(name) = key.strip_prefix(ALIASES) {
                // The quoted key, which counts, comes before the one of older hands.
                aliases.entry(unquote(name)).or_insert(target);
            }
        }
        Ok(aliases)
    }
}

/// The reference that a target leads to through other aliases.
fn follow<'a>(target: &'a str, aliases: &'a BTreeMap<String, String>) -> Result<&'a str> {
    let mut text = target;
    // The alias whose target this is was the first hop.
    for _ in 1..=MAX_ALIAS_HOPS {
        match aliases.get(text) {
            Some(next) => text = next,
            None => return Ok(text),
        }
    }
    Err(Error::invalid(format!(
        "it leads through more than {MAX_ALIAS_HOPS} aliases, or to itself"
    )))
}

fn check_length(text: &str) -> Result<()> {
    if text.is_empty() || text.chars().count() > MAX_LENGTH {
        return Err(Error::invalid(format!(
            "An alias and its target need 1 to {MAX_LENGTH} characters"
        )));
    }
    Ok(())
}

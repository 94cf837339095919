//! As whom the daemon runs (`manager.user`, `manager.group`).

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::unistd::{self, Gid, Group, Uid, User};

use crate::config::{Account, Manager};

/// The user and group that a process of root becomes.
#[derive(Clone, Debug)]
pub struct Target {
    uid: Uid,
    gid: Gid,
    /// Whose supplementary groups are taken on, if the user has a name.
    name: Option<std::ffi::CString>,
}

impl Target {
    /// Whom the configuration names. `None` when nothing is to change, as when the process is not root's.
    ///
    /// # Errors
    /// For a name that this host does not know.
    pub fn find(manager: &Manager) -> Result<Option<Self>> {
        if !Uid::effective().is_root() {
            if manager.user != Account::Unchanged || manager.group != Account::Unchanged {
                tracing::debug!(
                    "manager.user and manager.group are for root, who did not start this process"
                );
            }
            return Ok(None);
        }
        let user = match &manager.user {
            Account::Unchanged => User::from_uid(Uid::effective()).ok().flatten(),
            Account::Id(id) => User::from_uid(Uid::from_raw(*id)).ok().flatten(),
            Account::Name(name) => Some(known(name, "user")?),
        };
        let uid = match (&manager.user, &user) {
            (Account::Id(id), _) => Uid::from_raw(*id),
            (Account::Name(_), Some(user)) => user.uid,
            _ => Uid::effective(),
        };
        let gid = match &manager.group {
            // The user's own, so that a user alone does not keep root's group.
            Account::Unchanged if manager.user == Account::Unchanged => Gid::effective(),
            Account::Unchanged => user.as_ref().map_or(Gid::from_raw(uid.as_raw()), |user| user.gid),
            Account::Id(id) => Gid::from_raw(*id),
            // 19.06 takes the name of a user here, and means that user's group.
            Account::Name(name) => match Group::from_name(name).ok().flatten() {
                Some(group) => group.gid,
                None => known(name, "group")?.gid,
            },
        };
        if uid == Uid::effective() && gid == Gid::effective() {
            return Ok(None);
        }
        let name = user.and_then(|user| std::ffi::CString::new(user.name).ok());
        Ok(Some(Self { uid, gid, name }))
    }

    /// Becomes this user, for good.
    ///
    /// # Errors
    /// When the system refuses; the process must not go on then.
    pub fn become_it(&self) -> Result<()> {
        let changed = match &self.name {
            Some(name) => unistd::initgroups(name, self.gid),
            None => unistd::setgroups(&[self.gid]),
        };
        changed
            .and_then(|()| unistd::setgid(self.gid))
            .and_then(|()| unistd::setuid(self.uid))
            .with_context(|| {
                format!(
                    "cannot become user {} and group {} (manager.user, manager.group)",
                    self.uid, self.gid
                )
            })
    }
}

fn known(name: &str, of: &str) -> Result<User> {
    let found = User::from_name(name).with_context(|| format!("cannot look up manager.{of}"))?;
    found.with_context(|| format!("manager.{of}: this host has no {of} {name:?}"))
}

/// Makes a folder with its parents if it is not there, and gives it to `owner`.
///
/// # Errors
/// When it cannot be made.
pub fn prepare_folder(folder: &Path, mode: u32, owner: Option<&Target>) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(mode).create(folder)?;
    match owner {
        Some(owner) => chown(folder, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())),
        None => Ok(()),
    }
}

//! What a new database holds: the domain, group and policy that clients take for granted, and two accounts with random
//! keypairs. There are no published default credentials.

use std::path::Path;

use anyhow::Result;
use bai_model::random::Random;
use bai_model::{
    AccessKey, DefaultForUnspecified, KeypairResourcePolicy, ResourceSlot, SecretKey, UserId, UserRole,
};
use bai_store::Store;
use bai_store::domain::NewDomain;
use bai_store::group::NewGroup;
use bai_store::keypair::NewKeypair;
use bai_store::user::NewUser;
use chrono::{DateTime, Utc};
use serde_json::json;

use crate::credentials::{Account, Credentials};

/// Seconds without use after which a session of the default policy ends.
const IDLE_TIMEOUT: i64 = 1800;
/// Sessions at once under the default policy.
const MAX_SESSIONS: i64 = 30;

/// Fills an empty database and returns the new accounts, which are written to `data_dir` before the database is: whoever
/// finds accounts there finds their keys. Without a directory they get no passwords either: hashing one takes a quarter
/// of a second, which a stack of one command saves.
///
/// # Errors
/// When the database or the directory cannot be written; the database is empty then.
pub async fn seed(
    store: &Store,
    random: &dyn Random,
    now: DateTime<Utc>,
    data_dir: Option<&Path>,
) -> Result<Credentials> {
    let superadmin = new_account("admin@localhost", random);
    let user = new_account("user@localhost", random);
    let group = bai_model::GroupId::generate(random);
    let hashes = match data_dir {
        None => [None, None],
        Some(_) => {
            let secrets = [superadmin.password.clone(), user.password.clone()];
            tokio::task::spawn_blocking(move || {
                secrets.map(|secret| bai_core::Manager::hash_password(&secret).ok())
            })
            .await?
        }
    };
    let mut tx = store.begin().await?;
    tx.insert_domain(
        &NewDomain {
            name: "default".to_owned(),
            description: Some("Default domain".to_owned()),
            total_resource_slots: ResourceSlot::default(),
            allowed_vfolder_hosts: vec!["local".to_owned()],
        },
        now,
    )
    .await?;
    tx.insert_group(
        &NewGroup {
            id: group,
            name: "default".to_owned(),
            description: Some("Default group".to_owned()),
            domain_name: "default".to_owned(),
            total_resource_slots: ResourceSlot::default(),
            allowed_vfolder_hosts: vec!["local".to_owned()],
        },
        now,
    )
    .await?;
    tx.insert_policy(
        &KeypairResourcePolicy {
            name: "default".to_owned(),
            default_for_unspecified: DefaultForUnspecified::Unlimited,
            total_resource_slots: ResourceSlot::default(),
            max_concurrent_sessions: MAX_SESSIONS,
            max_containers_per_session: 1,
            max_vfolder_count: 10,
            max_vfolder_size: 0,
            idle_timeout: IDLE_TIMEOUT,
            allowed_vfolder_hosts: vec!["local".to_owned()],
        },
        now,
    )
    .await?;
    for (name, slots) in [
        ("small", json!({ "cpu": "1", "mem": "2147483648" })),
        ("medium", json!({ "cpu": "2", "mem": "4294967296" })),
        ("large", json!({ "cpu": "4", "mem": "8589934592" })),
    ] {
        tx.insert_preset(name, &ResourceSlot::from_stored(&slots).0)
            .await?;
    }
    let [superadmin_hash, user_hash] = hashes;
    for (account, role, hash) in [
        (&superadmin, UserRole::Superadmin, superadmin_hash),
        (&user, UserRole::User, user_hash),
    ] {
        let id = UserId::generate(random);
        let name = account.email.split('@').next().unwrap_or_default().to_owned();
        tx.insert_user(
            &NewUser {
                uuid: id,
                username: Some(name.clone()),
                email: account.email.clone(),
                password: hash,
                need_password_change: false,
                full_name: Some(name),
                description: None,
                is_active: true,
                domain_name: "default".to_owned(),
                role,
            },
            now,
        )
        .await?;
        tx.insert_keypair(
            &NewKeypair {
                user: id,
                email: account.email.clone(),
                access_key: AccessKey(account.access_key.clone()),
                secret_key: SecretKey::new(account.secret_key.clone()),
                is_active: true,
                is_admin: role.is_admin(),
                rate_limit: Some(30_000),
                resource_policy: "default".to_owned(),
            },
            now,
        )
        .await?;
        tx.add_user_to_group(id, group).await?;
    }
    let credentials = Credentials { superadmin, user };
    if let Some(data_dir) = data_dir {
        credentials.save(data_dir)?;
    }
    tx.commit().await?;
    Ok(credentials)
}

fn new_account(email: &str, random: &dyn Random) -> Account {
    let mut password = [0; 12];
    random.fill(&mut password);
    Account {
        email: email.to_owned(),
        password: hex::encode(password),
        access_key: AccessKey::generate(random).0,
        secret_key: SecretKey::generate(random).expose().to_owned(),
    }
}

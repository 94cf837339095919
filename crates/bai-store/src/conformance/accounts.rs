//! Accounts and folders.

use bai_model::{AccessKey, SecretKey, UserRole, VFolderPermission};
use serde_json::json;

use super::fixtures::load;
use super::*;
use crate::vfolder::NewVFolder;
use crate::{ConflictKind, Error, Result};

/// One look-up answers everything that a request is judged by.
pub async fn credentials_come_in_one_piece(store: Store) {
    seed(&store).await;
    let reader = store.reader();
    let row = reader
        .credential_by_access_key(&key())
        .await
        .expect("a look-up")
        .expect("a credential");
    assert_eq!(row.access_key, key());
    assert_eq!(row.secret_key, SecretKey::new(format!("secret of {KEY}")));
    assert!(row.keypair_is_active && !row.is_admin);
    assert_eq!(row.rate_limit, Some(1000));
    assert_eq!((row.user, row.role), (user_id(1), UserRole::User));
    assert_eq!(row.email, "user@example.com");
    assert_eq!(row.user_id.as_deref(), Some("user@example.com"));
    assert_eq!(row.username.as_deref(), Some("user"));
    assert_eq!(
        (row.user_is_active, row.domain_is_active),
        (Some(true), Some(true))
    );
    assert_eq!(row.domain_name.as_deref(), Some(DEFAULT));
    assert_eq!(row.policy, policy(DEFAULT));
    assert_eq!(
        reader.policy_of_keypair(&key()).await.expect("a look-up"),
        Some(policy(DEFAULT))
    );
    let unknown = AccessKey::from("AKIANOBODY");
    assert!(
        reader
            .credential_by_access_key(&unknown)
            .await
            .expect("a look-up")
            .is_none()
    );
    assert!(
        reader
            .policy_of_keypair(&unknown)
            .await
            .expect("a look-up")
            .is_none()
    );
}

/// Anybody could sign with an empty key.
pub async fn secretless_keypairs_are_no_credentials(store: Store) {
    seed(&store).await;
    let fixture = json!({"keypairs": [
        {"access_key": "AKIANULL", "user": user_id(1), "resource_policy": DEFAULT, "is_active": true},
        {"access_key": "AKIAEMPTY", "secret_key": "", "user": user_id(1), "resource_policy": DEFAULT, "is_active": true},
    ]});
    load(&store, &fixture).await.expect("a fixture");
    for access_key in ["AKIANULL", "AKIAEMPTY"] {
        let row = store
            .reader()
            .credential_by_access_key(&access_key.into())
            .await
            .expect("a look-up");
        assert!(row.is_none(), "{access_key}");
    }
    assert_eq!(
        store
            .reader()
            .keypairs_of_user(user_id(1))
            .await
            .expect("keypairs")
            .len(),
        1
    );
}

/// The address counts within its domain only.
pub async fn users_are_found_by_address_and_key(store: Store) {
    assert_eq!(store.reader().count_users().await.expect("a count"), 0);
    seed(&store).await;
    let reader = store.reader();
    let row = reader
        .user_by_email(DEFAULT, "user@example.com")
        .await
        .expect("a look-up")
        .expect("a user");
    assert_eq!(row.uuid, user_id(1));
    assert_eq!(row.password.as_deref(), Some("hash of user"));
    assert_eq!((row.is_active, row.created_at), (Some(true), Some(at(0))));
    assert!(
        reader
            .user_by_email("other", "user@example.com")
            .await
            .expect("a look-up")
            .is_none()
    );
    assert!(
        reader
            .user_by_email(DEFAULT, "USER@example.com")
            .await
            .expect("a look-up")
            .is_none()
    );
    let row = reader
        .user_by_uuid(user_id(1))
        .await
        .expect("a look-up")
        .expect("a user");
    assert_eq!(row.email, "user@example.com");
    assert!(
        reader
            .user_by_uuid(user_id(9))
            .await
            .expect("a look-up")
            .is_none()
    );
    assert_eq!(reader.count_users().await.expect("a count"), 1);
}

/// A login takes the oldest active one.
pub async fn keypairs_come_oldest_first(store: Store) {
    seed(&store).await;
    let owner = user(1, "user", UserRole::User);
    let mut tx = begin(&store).await;
    tx.insert_keypair(&keypair("AKIAOLDEST", &owner), at(-5))
        .await
        .expect("a keypair");
    tx.insert_keypair(&keypair("AKIANEWEST", &owner), at(5))
        .await
        .expect("a keypair");
    tx.commit().await.expect("a commit");
    let rows = store
        .reader()
        .keypairs_of_user(owner.uuid)
        .await
        .expect("keypairs");
    let keys: Vec<&str> = rows.iter().map(|row| row.access_key.as_str()).collect();
    assert_eq!(keys, ["AKIAOLDEST", KEY, "AKIANEWEST"]);
}

/// Counts are added, and the time of the last use never goes back.
pub async fn usage_adds_up(store: Store) {
    seed(&store).await;
    for (count, last_used) in [(3, at(10)), (2, at(5)), (i64::from(i32::MAX), at(20))] {
        let mut tx = begin(&store).await;
        // More keys than one statement takes, most of them unknown.
        let mut usage: Vec<_> = (0..250)
            .map(|n| (AccessKey(format!("AKIA{n}")), 1, last_used))
            .collect();
        usage.push((key(), count, last_used));
        tx.record_usage(&usage).await.expect("counters");
        tx.record_usage(&[]).await.expect("nothing");
        tx.commit().await.expect("a commit");
        let row = store
            .reader()
            .keypairs_of_user(user_id(1))
            .await
            .expect("keypairs")
            .remove(0);
        let expected = if count == 3 {
            3
        } else if count == 2 {
            5
        } else {
            i64::from(i32::MAX)
        };
        assert_eq!(row.num_queries, expected);
        assert_eq!(row.last_used, Some(if count == 2 { at(10) } else { last_used }));
    }
}

/// The name alone is not enough (DM-46), and nothing inactive is found.
pub async fn groups_are_found_in_their_own_domain(store: Store) {
    seed(&store).await;
    let fixture = json!({
        "domains": [{"name": "other"}, {"name": "asleep", "is_active": false}],
        "groups": [
            {"id": group_id(2), "name": "elsewhere", "domain_name": "other"},
            {"id": group_id(3), "name": "asleep", "domain_name": "other", "is_active": false},
            {"id": group_id(4), "name": "awake", "domain_name": "asleep"},
        ],
    });
    load(&store, &fixture).await.expect("a fixture");
    let reader = store.reader();
    let find = async |name: &str, domain: &str, member| {
        let row = reader
            .group_for_session(name, domain, member)
            .await
            .expect("a look-up");
        row.map(|row| row.id)
    };
    assert_eq!(find(DEFAULT, DEFAULT, None).await, Some(group_id(1)));
    assert_eq!(find(DEFAULT, DEFAULT, Some(user_id(1))).await, Some(group_id(1)));
    assert_eq!(find("elsewhere", "other", None).await, Some(group_id(2)));
    assert_eq!(
        find("elsewhere", "other", Some(user_id(1))).await,
        None,
        "not a member"
    );
    assert_eq!(find("elsewhere", DEFAULT, None).await, None, "another domain's");
    assert_eq!(find("asleep", "other", None).await, None, "inactive group");
    assert_eq!(find("awake", "asleep", None).await, None, "inactive domain");
    let row = reader
        .group_for_session(DEFAULT, DEFAULT, None)
        .await
        .expect("a look-up")
        .expect("a group");
    assert_eq!((row.name.as_str(), row.domain_name.as_str()), (DEFAULT, DEFAULT));
    assert_slots(&row.total_resource_slots, &slots(50, 1 << 39));
    let domain = reader
        .domain(DEFAULT)
        .await
        .expect("a look-up")
        .expect("a domain");
    assert_slots(&domain.total_resource_slots, &slots(100, 1 << 40));
    assert_eq!(domain.allowed_vfolder_hosts, ["local"]);
    assert_eq!((domain.is_active, domain.created_at), (Some(true), Some(at(0))));
    assert!(reader.domain("nowhere").await.expect("a look-up").is_none());
}

/// Constraints have the names of the 19.06 schema on every database.
pub async fn conflicts_are_named(store: Store) {
    seed(&store).await;
    let mut double = user(2, "second", UserRole::User);
    double.email = "user@example.com".to_owned();
    let mut namesake = user(2, "user", UserRole::User);
    namesake.email = "second@example.com".to_owned();
    let mut homeless = user(2, "second", UserRole::User);
    homeless.domain_name = "nowhere".to_owned();
    // Each in a unit of work of its own: on PostgreSQL an error spoils the rest.
    let mut tx = begin(&store).await;
    assert_conflict(
        tx.insert_user(&double, at(0)).await,
        ConflictKind::Unique,
        "ix_users_email",
    );
    drop(tx);
    let mut tx = begin(&store).await;
    assert_conflict(
        tx.insert_user(&namesake, at(0)).await,
        ConflictKind::Unique,
        "uq_users_username",
    );
    drop(tx);
    let mut tx = begin(&store).await;
    assert_conflict(
        tx.insert_domain(&domain(DEFAULT), at(0)).await,
        ConflictKind::Unique,
        "pk_domains",
    );
    drop(tx);
    let mut tx = begin(&store).await;
    let again = tx.insert_group(&group(2, DEFAULT, DEFAULT), at(0)).await;
    assert_conflict(again, ConflictKind::Unique, "uq_groups_name_domain_name");
    drop(tx);
    let mut tx = begin(&store).await;
    let missing = tx.insert_user(&homeless, at(0)).await;
    assert!(
        matches!(
            missing,
            Err(Error::Conflict {
                kind: ConflictKind::ForeignKey,
                ..
            })
        ),
        "{missing:?}"
    );
    drop(tx);
    let mut tx = begin(&store).await;
    assert!(
        !tx.add_user_to_group(user_id(1), group_id(1))
            .await
            .expect("no conflict")
    );
}

#[track_caller]
fn assert_conflict(result: Result<()>, expected: ConflictKind, name: &str) {
    let Err(error) = result else {
        panic!("no conflict on {name}")
    };
    assert!(
        matches!(error, Error::Conflict { kind, .. } if kind == expected),
        "{error:?}"
    );
    assert!(error.is_conflict_on(name) && !error.is_retryable(), "{error:?}");
}

/// Characters count, not bytes, and the message is PostgreSQL's.
pub async fn long_texts_are_refused(store: Store) {
    seed(&store).await;
    let mut tx = begin(&store).await;
    tx.insert_domain(&domain(&"ü".repeat(64)), at(0))
        .await
        .expect("a name of 64 characters");
    let error = tx
        .insert_domain(&domain(&"u".repeat(65)), at(0))
        .await
        .expect_err("too long");
    assert!(
        matches!(
            error,
            Error::TooLong {
                table: "domains",
                column: "name",
                limit: 64
            }
        ),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .starts_with("value too long for type character varying(64)")
    );
    let mut new = agent("i-one");
    new.addr = "x".repeat(129);
    let error = tx
        .upsert_agent(&new, at(0))
        .await
        .expect_err("too long in an update");
    assert!(
        matches!(error, Error::TooLong { column: "addr", .. }),
        "{error:?}"
    );
}

/// Own, shared and group folders, in this order, with the strongest permission (DM-30).
pub async fn folders_are_accessible_in_three_ways(store: Store) {
    seed(&store).await;
    let mut tx = begin(&store).await;
    let second = user(2, "second", UserRole::Admin);
    tx.insert_user(&second, at(0)).await.expect("a user");
    tx.add_user_to_group(second.uuid, group_id(1))
        .await
        .expect("a member");
    let folders = [
        (1, "own", Some(user_id(1)), None),
        (2, "shared", Some(user_id(2)), None),
        (3, "group", None, Some(group_id(1))),
        (4, "secret", Some(user_id(2)), None),
    ];
    for (number, name, user, group) in folders {
        let host = "local".to_owned();
        let folder = NewVFolder {
            id: folder_id(number),
            host,
            name: name.to_owned(),
            user,
            group,
        };
        tx.insert_vfolder(&folder, at(0)).await.expect("a folder");
    }
    for permission in [VFolderPermission::ReadOnly, VFolderPermission::ReadWrite] {
        tx.share_vfolder(folder_id(2), user_id(1), permission)
            .await
            .expect("a share");
    }
    tx.insert_kernel(&kernel(1, "mounts")).await.expect("a kernel");
    let all = [1, 2, 3, 4].map(folder_id);
    tx.attach_vfolders(kernel_id(1), &all).await.expect("attachments");
    tx.attach_vfolders(kernel_id(1), &all)
        .await
        .expect("attachments again");
    tx.commit().await.expect("a commit");

    let reader = store.reader();
    let expected = [
        (folder_id(1), true, VFolderPermission::ReadWriteDelete),
        (folder_id(2), false, VFolderPermission::ReadWrite),
        (folder_id(3), false, VFolderPermission::ReadWrite),
    ];
    let rows = reader.accessible_vfolders(user_id(1)).await.expect("folders");
    let found: Vec<_> = rows
        .iter()
        .map(|row| (row.id, row.is_owner, row.permission))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(
        (rows[0].name.as_str(), rows[0].host.as_str(), rows[0].max_files),
        ("own", "local", Some(1000))
    );
    assert_eq!((rows[2].user, rows[2].group), (None, Some(group_id(1))));
    let mounts = reader.mounts_of_kernel(kernel_id(1)).await.expect("mounts");
    assert_eq!(mounts, rows, "a folder that is not accessible is not mounted");
    let rows = reader.accessible_vfolders(user_id(2)).await.expect("folders");
    let group = rows
        .iter()
        .find(|row| row.id == folder_id(3))
        .expect("a group folder");
    assert!(
        group.is_owner && group.permission == VFolderPermission::ReadWriteDelete,
        "an administrator owns it"
    );
    assert!(
        reader
            .accessible_vfolders(user_id(9))
            .await
            .expect("folders")
            .is_empty()
    );
}

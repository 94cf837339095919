//! Fixtures and the small tables.

use bai_model::UserRole;
use serde_json::{Value, json};

use super::*;
use crate::fixture::{Loaded, populate};
use crate::{ConflictKind, Error, Result};

/// Loads a fixture in a unit of work of its own.
pub(super) async fn load(store: &Store, fixture: &Value) -> Result<Loaded> {
    let mut tx = begin(store).await;
    let hash = |password: &str| Ok::<_, String>(format!("hash of {password}"));
    let loaded = populate(&mut tx, fixture, at(0), &hash).await?;
    tx.commit().await?;
    Ok(loaded)
}

/// Absent columns have their defaults, passwords are hashed, and a second time changes nothing (DM-4).
pub async fn fixtures_load_twice(store: Store) {
    let fixture = json!({
        "domains": [{"name": DEFAULT, "total_resource_slots": {"mem": "1g", "cpu": 2}}],
        "groups": [{"id": group_id(1), "name": DEFAULT, "domain_name": DEFAULT, "allowed_vfolder_hosts": ["local"]}],
        "keypair_resource_policies": [{
            "name": DEFAULT, "default_for_unspecified": "UNLIMITED", "total_resource_slots": {},
            "max_concurrent_sessions": 5, "max_containers_per_session": 1, "max_vfolder_count": 10,
            "max_vfolder_size": 0, "idle_timeout": 600, "allowed_vfolder_hosts": ["local"],
        }],
        "users": [{
            "uuid": user_id(1), "username": "user", "email": "user@example.com", "password": "open sesame",
            "domain_name": DEFAULT, "role": "superadmin", "created_at": "2019-07-15 12:34:56.5+09:00",
        }],
        "association_groups_users": [{"user_id": user_id(1), "group_id": group_id(1)}],
        "keypairs": [{
            "access_key": KEY, "secret_key": "secret/", "user_id": "user@example.com", "user": user_id(1),
            "resource_policy": DEFAULT, "is_active": true, "rate_limit": 30000,
        }],
        "vfolders": [{"id": folder_id(1), "host": "local", "name": "own", "user": user_id(1)}],
        "vfolder_permissions": [{"vfolder": folder_id(1), "user": user_id(1), "permission": "ro"}],
        "resource_presets": [{"name": "small", "resource_slots": {"cpu": "1", "mem": "2g"}}],
    });
    assert_eq!(
        load(&store, &fixture).await.expect("a fixture"),
        Loaded {
            inserted: 9,
            skipped: 0
        }
    );
    assert_eq!(
        load(&store, &fixture).await.expect("a fixture"),
        Loaded {
            inserted: 0,
            skipped: 9
        }
    );
    let reader = store.reader();
    let user = reader
        .user_by_email(DEFAULT, "user@example.com")
        .await
        .expect("a look-up")
        .expect("a user");
    assert_eq!(user.password.as_deref(), Some("hash of open sesame"));
    assert_eq!((user.role, user.is_active), (UserRole::Superadmin, Some(true)));
    assert_eq!(user.created_at, "2019-07-15T03:34:56.5Z".parse().ok());
    let domain = reader
        .domain(DEFAULT)
        .await
        .expect("a look-up")
        .expect("a domain");
    assert_slots(&domain.total_resource_slots, &slots(2, 1 << 30));
    assert!(domain.allowed_vfolder_hosts.is_empty() && domain.is_active == Some(true));
    assert!(
        reader
            .credential_by_access_key(&key())
            .await
            .expect("a look-up")
            .is_some()
    );
}

/// The error says where, and nothing is written.
pub async fn unusable_fixtures_are_refused(store: Store) {
    let cases = [
        (json!([]), "not a JSON object"),
        (json!({"alembic_version": []}), "no table alembic_version"),
        (
            json!({"domains": [{"name": "a"}, {"name": "b", "colour": 1}]}),
            "domains[1]: there is no column colour",
        ),
        (json!({"domains": [{}]}), "domains[0]: the key column name"),
        (
            json!({"users": [{"uuid": user_id(1), "email": "a", "role": "king"}]}),
            "role: king",
        ),
        (json!({"users": [{"uuid": "me", "email": "a"}]}), "uuid: "),
        (
            json!({"resource_presets": [{"name": "a", "resource_slots": {"cpu": "many"}}]}),
            "unusable amounts of cpu",
        ),
    ];
    for (fixture, expected) in cases {
        let error = load(&store, &fixture).await.expect_err(expected);
        assert!(
            matches!(error, Error::Fixture(_)) && error.to_string().contains(expected),
            "{error}"
        );
    }
    let dangling = json!({"domains": [{"name": "a"}], "users": [{"uuid": user_id(1), "email": "a", "domain_name": "b"}]});
    assert!(matches!(
        load(&store, &dangling).await,
        Err(Error::Conflict {
            kind: ConflictKind::ForeignKey,
            ..
        })
    ));
    assert!(store.reader().domain("a").await.expect("a look-up").is_none());
}

/// What small tables hold comes back, amounts as numbers.
pub async fn presets_and_policies_are_kept(store: Store) {
    let mut tx = begin(&store).await;
    tx.insert_preset("small", &slots(1, 1 << 31))
        .await
        .expect("a preset");
    tx.insert_preset("large", &slots(4, 1 << 33))
        .await
        .expect("a preset");
    let error = tx
        .insert_preset("small", &slots(1, 1))
        .await
        .expect_err("a conflict");
    assert!(error.is_conflict_on("pk_resource_presets"), "{error:?}");
    drop(tx);
    let mut tx = begin(&store).await;
    tx.insert_preset("small", &slots(1, 1 << 31))
        .await
        .expect("a preset");
    tx.insert_preset("large", &slots(4, 1 << 33))
        .await
        .expect("a preset");
    tx.commit().await.expect("a commit");
    let presets = store.reader().presets().await.expect("presets");
    assert_eq!(
        presets
            .iter()
            .map(|preset| preset.name.as_str())
            .collect::<Vec<_>>(),
        ["large", "small"]
    );
    assert_slots(&presets[1].resource_slots, &slots(1, 1 << 31));
}

//! Rows as old databases have them.

use bai_model::{AgentStatus, KernelStatus};
use serde_json::{Value, json};

use super::*;
use crate::driver::{Param, params};
use crate::{Error, schema};

/// Stores a map of amounts as no operation of ours would.
async fn soil(tx: &mut Tx, table: &'static str, key: (&str, Param), column: &'static str, value: &Value) {
    let condition = format!("{} = $1", key.0);
    let changed = tx
        .update(table, vec![(column, Param::from(value))], &condition, vec![key.1])
        .await
        .expect("a change");
    assert_eq!(changed, 1, "{table}");
}

/// Suffixes, numbers, exponents and garbage are read as what was meant; cleaning writes that, and leaves garbage alone.
pub async fn dirty_amounts_are_read_and_cleaned(store: Store) {
    seed(&store).await;
    add_kernel(&store, &kernel(1, "session")).await;
    assert_eq!(store.reader().dirty_slots().await.expect("a check"), []);
    let mut tx = begin(&store).await;
    for (table, key, column, value) in [
        (
            "agents",
            ("id", "i-one".into()),
            "available_slots",
            json!({"cpu": 8, "mem": "8g"}),
        ),
        (
            "domains",
            ("name", DEFAULT.into()),
            "total_resource_slots",
            json!({"cpu": "1E+1"}),
        ),
        (
            "groups",
            ("id", group_id(1).into()),
            "total_resource_slots",
            json!({"cpu": 1.5}),
        ),
        (
            "keypair_resource_policies",
            ("name", DEFAULT.into()),
            "total_resource_slots",
            json!({"cpu": "many"}),
        ),
        (
            "kernels",
            ("id", kernel_id(1).into()),
            "occupied_slots",
            json!({"cpu": 1, "mem": "1g"}),
        ),
    ] {
        soil(&mut tx, table, key, column, &value).await;
    }
    tx.commit().await.expect("a commit");

    let reader = store.reader();
    let agent = reader
        .agent(&"i-one".into())
        .await
        .expect("a look-up")
        .expect("an agent");
    assert_slots(&agent.available_slots, &slots(8, 8 << 30));
    assert_slots(
        &reader.occupied_by_agent(&agent.id).await.expect("a sum"),
        &slots(1, 1 << 30),
    );
    assert_eq!(reader.check_accounting().await.expect("a check"), []);
    let dirty = reader.dirty_slots().await.expect("a check");
    let names: Vec<_> = dirty.iter().map(|slots| (slots.table, slots.column)).collect();
    assert_eq!(
        names,
        [
            ("agents", "available_slots"),
            ("domains", "total_resource_slots"),
            ("groups", "total_resource_slots"),
            ("keypair_resource_policies", "total_resource_slots"),
            ("kernels", "occupied_slots"),
        ]
    );
    assert_eq!(
        (dirty[0].key.as_str(), dirty[3].garbage.clone()),
        ("i-one", vec!["cpu".to_owned()])
    );
    assert_eq!(dirty[4].key, kernel_id(1).to_string());

    let mut tx = begin(&store).await;
    assert_eq!(tx.clean_slots().await.expect("a repair"), dirty);
    tx.commit().await.expect("a commit");
    let left = reader.dirty_slots().await.expect("a check");
    assert_eq!(left, [dirty[3].clone()], "garbage is for somebody who knows");
    let domain = reader
        .domain(DEFAULT)
        .await
        .expect("a look-up")
        .expect("a domain");
    assert_eq!(domain.total_resource_slots.to_json(), json!({"cpu": "10"}));
}

/// Sessions without a live agent, and those in no state, are found.
pub async fn orphans_are_found(store: Store) {
    seed(&store).await;
    for (number, agent) in [(1, "i-one"), (2, "i-two"), (3, "i-two"), (4, "i-one")] {
        let mut new = kernel(number, &format!("session{number}"));
        new.agent = agent.into();
        add_kernel(&store, &new).await;
    }
    assert_eq!(store.reader().orphan_kernels().await.expect("a check"), []);
    let mut tx = begin(&store).await;
    tx.set_agent_status(&"i-two".into(), AgentStatus::Lost, Some(at(9)))
        .await
        .expect("a loss");
    tx.terminate_kernel(kernel_id(3), "done", at(9), None)
        .await
        .expect("an end");
    let no_status = vec![("status", Param::from(None::<KernelStatus>))];
    tx.update("kernels", no_status, "id = $1", params![kernel_id(4)])
        .await
        .expect("a change");
    tx.commit().await.expect("a commit");
    let orphans = store.reader().orphan_kernels().await.expect("a check");
    let found: Vec<_> = orphans.iter().map(|orphan| (orphan.id, orphan.status)).collect();
    assert_eq!(
        found,
        [
            (kernel_id(2), Some(KernelStatus::Preparing)),
            (kernel_id(4), None)
        ]
    );
    assert_eq!(orphans[0].agent_status, Some(AgentStatus::Lost));
    assert_eq!(
        (
            orphans[0].sess_id.as_deref(),
            orphans[0].access_key.clone(),
            orphans[0].created_at
        ),
        (Some("session2"), Some(key()), Some(at(2)))
    );
}

/// An opened database has everything.
pub async fn schemas_are_reported(store: Store) {
    let report = store.reader().schema_report().await.expect("a report");
    assert!(report.is_head() && !report.is_empty, "{report:?}");
    assert_eq!(report.revisions, [schema::ALEMBIC_HEAD]);
    assert_eq!(report.version, report.latest_version);
    assert_eq!((report.missing_columns, report.missing_indexes), (vec![], vec![]));
}

/// PostgreSQL keeps no NUL, so SQLite does not either.
pub async fn texts_have_no_nul(store: Store) {
    seed(&store).await;
    let mut tx = begin(&store).await;
    let error = tx.insert_domain(&domain("a\0b"), at(0)).await.expect_err("a NUL");
    assert!(
        matches!(error, Error::Unstorable(_)) && !error.is_retryable(),
        "{error:?}"
    );
}

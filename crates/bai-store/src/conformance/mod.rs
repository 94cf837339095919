//! What every database must do, as functions over an opened, empty [`Store`]; the macro
//! [`store_conformance`](crate::store_conformance) stamps them as tests. Every operation of the crate is called at least
//! once, so that every statement is prepared on every database.
//!
//! Not here: what only a kind of database can show, such as files that survive (`tests/`).

mod accounting;
mod accounts;
mod claims;
mod doctor;
mod fixtures;
mod kernels;
mod leases;
mod races;
mod usage;

pub use accounting::*;
pub use accounts::*;
pub use claims::*;
pub use doctor::*;
pub use fixtures::*;
pub use kernels::*;
pub use leases::*;
pub use races::*;
pub use usage::*;

use bai_model::{
    AccessKey, AgentId, DefaultForUnspecified, GroupId, KernelId, KeypairResourcePolicy, ResourceSlot,
    SecretKey, UserId, UserRole, VFolderId,
};
use chrono::{DateTime, Duration, Utc};
use serde_json::json;
use uuid::Uuid;

use crate::agent::{NewAgent, same_slots};
use crate::domain::NewDomain;
use crate::group::NewGroup;
use crate::kernel::NewKernel;
use crate::keypair::NewKeypair;
use crate::user::NewUser;
use crate::{Reader, Store, Tx};

/// Stamps the suite: `$open` is a function that answers a future of an empty [`Store`] and something to keep alive as
/// long as it, or of nothing when the database cannot be had here.
#[macro_export]
macro_rules! store_conformance {
    ($open:path) => {
        $crate::store_conformance! { @ $open:
            credentials_come_in_one_piece, secretless_keypairs_are_no_credentials, users_are_found_by_address_and_key,
            keypairs_come_oldest_first, usage_adds_up, groups_are_found_in_their_own_domain, conflicts_are_named,
            long_texts_are_refused, folders_are_accessible_in_three_ways, fixtures_load_twice,
            unusable_fixtures_are_refused, presets_and_policies_are_kept, units_of_work_roll_back,
            kernels_live_and_end, many_begin_and_start_together, transitions_are_guarded, sessions_hide_without_their_agent, names_are_held_once,
            racing_writers_make_one_session, racing_terminations_release_once, kernels_are_listed_by_state, endings_are_counted,
            agents_join_change_and_return, sums_are_over_live_kernels, counters_follow_random_operations,
            recalculation_repairs, agents_join_once, the_last_place_is_taken_once, sums_wait_for_each_other, usage_is_counted_by_several, counting_and_ending_keep_one_order,
            sessions_are_counted_by_several, counters_follow_racing_operations,
            leases_pass_from_holder_to_holder, racing_holders_get_one_lease, fences_hold_the_lease,
            claims_live_as_long_as_their_lease, many_claims_stand_or_fall_together, racing_members_get_one_claim,
            usage_comes_in_pages, sums_come_for_all_agents, dirty_amounts_are_read_and_cleaned, orphans_are_found,
            schemas_are_reported, texts_have_no_nul, spoiled_units_of_work_are_not_committed,
        }
    };
    (@ $open:path: $($case:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let Some((store, _guard)) = $open().await else { return };
            $crate::conformance::$case(store).await;
        })*
    };
}

/// The domain, group and policy of [`seed`].
pub(crate) const DEFAULT: &str = "default";
/// The keypair of [`seed`].
pub(crate) const KEY: &str = "AKIACONFORMANCE00001";

/// A moment, `seconds` after a fixed one.
pub(crate) fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH
        + Duration::days(18_000)
        + Duration::seconds(seconds)
        + Duration::microseconds(123_456)
}

pub(crate) fn user_id(number: u128) -> UserId {
    UserId(Uuid::from_u128(0x1000 + number))
}

pub(crate) fn group_id(number: u128) -> GroupId {
    GroupId(Uuid::from_u128(0x2000 + number))
}

pub(crate) fn kernel_id(number: u128) -> KernelId {
    KernelId(Uuid::from_u128(0x3000 + number))
}

pub(crate) fn folder_id(number: u128) -> VFolderId {
    VFolderId(Uuid::from_u128(0x4000 + number))
}

pub(crate) fn slots(cpu: u64, mem: u64) -> ResourceSlot {
    ResourceSlot::from_stored(&json!({"cpu": cpu.to_string(), "mem": mem.to_string()})).0
}

#[track_caller]
pub(crate) fn assert_slots(found: &ResourceSlot, expected: &ResourceSlot) {
    assert!(same_slots(found, expected), "{found:?} is not {expected:?}");
}

pub(crate) fn policy(name: &str) -> KeypairResourcePolicy {
    KeypairResourcePolicy {
        name: name.to_owned(),
        default_for_unspecified: DefaultForUnspecified::Unlimited,
        total_resource_slots: slots(4, 1 << 33),
        max_concurrent_sessions: 30,
        max_containers_per_session: 1,
        max_vfolder_count: 10,
        max_vfolder_size: 1 << 40,
        idle_timeout: 600,
        allowed_vfolder_hosts: vec!["local".to_owned(), "other-host".to_owned()],
    }
}

pub(crate) fn domain(name: &str) -> NewDomain {
    NewDomain {
        name: name.to_owned(),
        description: Some("a domain".to_owned()),
        total_resource_slots: slots(100, 1 << 40),
        allowed_vfolder_hosts: vec!["local".to_owned()],
    }
}

pub(crate) fn group(number: u128, name: &str, domain: &str) -> NewGroup {
    NewGroup {
        id: group_id(number),
        name: name.to_owned(),
        description: None,
        domain_name: domain.to_owned(),
        total_resource_slots: slots(50, 1 << 39),
        allowed_vfolder_hosts: vec![],
    }
}

pub(crate) fn user(number: u128, name: &str, role: UserRole) -> NewUser {
    NewUser {
        uuid: user_id(number),
        username: Some(name.to_owned()),
        email: format!("{name}@example.com"),
        password: Some(format!("hash of {name}")),
        need_password_change: false,
        full_name: None,
        description: None,
        is_active: true,
        domain_name: DEFAULT.to_owned(),
        role,
    }
}

pub(crate) fn keypair(access_key: &str, user: &NewUser) -> NewKeypair {
    NewKeypair {
        access_key: access_key.into(),
        secret_key: SecretKey::new(format!("secret of {access_key}")),
        email: user.email.clone(),
        user: user.uuid,
        is_active: true,
        is_admin: user.role.is_admin(),
        rate_limit: Some(1000),
        resource_policy: DEFAULT.to_owned(),
    }
}

pub(crate) fn agent(id: &str) -> NewAgent {
    NewAgent {
        id: id.into(),
        region: "local".to_owned(),
        addr: "tcp://127.0.0.1:6001".to_owned(),
        version: "19.06.0".to_owned(),
        available_slots: slots(8, 1 << 34),
        compute_plugins: json!({"cpu": {"version": "1"}}),
    }
}

pub(crate) fn kernel(number: u128, name: &str) -> NewKernel {
    NewKernel {
        id: kernel_id(number),
        sess_id: name.to_owned(),
        agent: "i-one".into(),
        agent_addr: "tcp://127.0.0.1:6001".to_owned(),
        domain_name: DEFAULT.to_owned(),
        group_id: group_id(1),
        user_uuid: user_id(1),
        access_key: KEY.into(),
        image: "index.docker.io/lablup/python:3.6-debian".to_owned(),
        registry: "index.docker.io".to_owned(),
        tag: None,
        occupied_slots: slots(1, 1 << 30),
        environ: vec!["FOO=bar".to_owned(), "EMPTY=".to_owned()],
        created_at: at(i64::try_from(number).unwrap_or(0)),
    }
}

pub(crate) fn key() -> AccessKey {
    KEY.into()
}

/// The domain, group and policy `default`, one user with a keypair in them, and the agents `i-one` and `i-two`.
pub(crate) async fn seed(store: &Store) {
    let mut tx = begin(store).await;
    tx.insert_domain(&domain(DEFAULT), at(0)).await.expect("a domain");
    tx.insert_group(&group(1, DEFAULT, DEFAULT), at(0))
        .await
        .expect("a group");
    tx.insert_policy(&policy(DEFAULT), at(0)).await.expect("a policy");
    let user = user(1, "user", UserRole::User);
    tx.insert_user(&user, at(0)).await.expect("a user");
    tx.insert_keypair(&keypair(KEY, &user), at(0))
        .await
        .expect("a keypair");
    tx.add_user_to_group(user.uuid, group_id(1))
        .await
        .expect("a member");
    for id in ["i-one", "i-two"] {
        tx.upsert_agent(&agent(id), at(0)).await.expect("an agent");
    }
    tx.commit().await.expect("a commit");
}

pub(crate) async fn begin(store: &Store) -> Tx {
    store.begin().await.expect("a unit of work")
}

/// Adds a kernel in a unit of work of its own.
pub(crate) async fn add_kernel(store: &Store, kernel: &NewKernel) {
    let mut tx = begin(store).await;
    tx.insert_kernel(kernel).await.expect("a kernel");
    tx.commit().await.expect("a commit");
}

/// The stored counters: `concurrency_used` of [`KEY`] and `occupied_slots` of an agent.
pub(crate) async fn counters(reader: &Reader, agent: &str) -> (i64, ResourceSlot) {
    let keypairs = reader.keypairs_of_user(user_id(1)).await.expect("keypairs");
    let agent = reader
        .agent(&AgentId::from(agent))
        .await
        .expect("a look-up")
        .expect("an agent");
    (keypairs[0].concurrency_used, agent.occupied_slots)
}

//! Sums and counters.

use bai_model::{KernelStatus, ResourceSlot};
use serde_json::json;

use super::*;
use crate::accounting::Discrepancy;

/// Every sum takes its own kernels, whatever their state but `TERMINATED`.
pub async fn sums_are_over_live_kernels(store: Store) {
    seed(&store).await;
    let mut tx = begin(&store).await;
    tx.insert_domain(&domain("other"), at(0)).await.expect("a domain");
    tx.insert_group(&group(2, "second", "other"), at(0))
        .await
        .expect("a group");
    let mut elsewhere = kernel(3, "elsewhere");
    elsewhere.agent = "i-two".into();
    elsewhere.group_id = group_id(2);
    elsewhere.domain_name = "other".to_owned();
    elsewhere.occupied_slots = ResourceSlot::from_stored(&json!({"cpu": "0.5", "cuda.device": "1"})).0;
    for kernel in [
        &kernel(1, "one"),
        &kernel(2, "two"),
        &elsewhere,
        &kernel(4, "four"),
    ] {
        tx.insert_kernel(kernel).await.expect("a kernel");
    }
    tx.set_kernel_status(
        kernel_id(2),
        &[KernelStatus::Preparing],
        KernelStatus::Error,
        None,
    )
    .await
    .expect("a change");
    tx.terminate_kernel(kernel_id(4), "done", at(9), None)
        .await
        .expect("an end");
    tx.commit().await.expect("a commit");

    let reader = store.reader();
    let here = slots(2, 2 << 30);
    assert_slots(
        &reader.occupied_by_group(group_id(1)).await.expect("a sum"),
        &here,
    );
    assert_slots(&reader.occupied_by_domain(DEFAULT).await.expect("a sum"), &here);
    assert_slots(
        &reader.occupied_by_agent(&"i-one".into()).await.expect("a sum"),
        &here,
    );
    assert_slots(
        &reader.occupied_by_agent(&"i-two".into()).await.expect("a sum"),
        &elsewhere.occupied_slots,
    );
    let all = ResourceSlot::from_stored(&json!({"cpu": "2.5", "mem": "2g", "cuda.device": "1"})).0;
    assert_slots(&reader.occupied_by_keypair(&key()).await.expect("a sum"), &all);
    assert_slots(
        &reader
            .occupied_by_keypair(&"AKIANOBODY".into())
            .await
            .expect("a sum"),
        &Default::default(),
    );
    assert_eq!(reader.count_live_sessions(&key()).await.expect("a count"), 3);
    let (used, occupied) = counters(&reader, "i-one").await;
    assert_eq!(used, 3);
    assert_slots(&occupied, &here);
}

/// A small generator (splitmix64), so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// Whatever happens in whatever order, committed or not, counters equal sums.
pub async fn counters_follow_random_operations(store: Store) {
    seed(&store).await;
    for seed in [1, 2, 3] {
        let mut dice = Dice(seed);
        for step in 0..60 {
            let number = u128::from(seed * 1000 + step);
            let mut tx = begin(&store).await;
            for _ in 0..=dice.below(2) {
                random_operation(&mut tx, &mut dice, number).await;
            }
            if dice.below(4) == 0 {
                drop(tx);
            } else {
                tx.commit().await.expect("a commit");
            }
            let differences = store.reader().check_accounting().await.expect("a check");
            assert_eq!(differences, [], "seed {seed}, step {step}");
        }
    }
}

async fn random_operation(tx: &mut Tx, dice: &mut Dice, number: u128) {
    let live: Vec<KernelStatus> = KernelStatus::ALL
        .into_iter()
        .filter(|status| status.is_alive())
        .collect();
    let kernels = tx.kernels_with_status(&live).await.expect("kernels");
    let some = usize::try_from(dice.below(u64::MAX))
        .unwrap_or(0)
        .checked_rem(kernels.len());
    match (dice.below(4), some.map(|index| kernels[index].id)) {
        (0, Some(id)) | (1, Some(id)) if dice.below(2) == 0 => {
            tx.terminate_kernel(id, "diced", at(1), None)
                .await
                .expect("an end");
            tx.terminate_kernel(id, "diced twice", at(2), None)
                .await
                .expect("an end");
        }
        (1, Some(id)) => {
            tx.set_kernel_status(id, &live, KernelStatus::Error, Some("diced"))
                .await
                .expect("a change");
        }
        _ => {
            let mut new = kernel(number, &format!("session{number}"));
            if tx.kernel(new.id).await.expect("a look-up").is_some() {
                return;
            }
            new.agent = if dice.below(2) == 0 {
                "i-one".into()
            } else {
                "i-two".into()
            };
            new.occupied_slots = slots(dice.below(4), dice.below(8) << 28);
            tx.insert_kernel(&new).await.expect("a kernel");
        }
    }
}

/// Wrong counters, as an original manager may leave them, are found, named and repaired; clamped at 0 meanwhile (DM-17).
pub async fn recalculation_repairs(store: Store) {
    seed(&store).await;
    let fixture = json!({
        "keypairs": [
            {"access_key": "AKIAWRONG", "secret_key": "s", "user": user_id(1), "resource_policy": DEFAULT,
             "concurrency_used": 7},
            {"access_key": "AKIANULL", "secret_key": "s", "user": user_id(1), "resource_policy": DEFAULT,
             "concurrency_used": null},
        ],
        "agents": [{"id": "i-wrong", "region": "local", "addr": "tcp://x:1", "version": "1",
                    "available_slots": {"cpu": "4"}, "occupied_slots": {"cpu": "9"}}],
    });
    let mut tx = begin(&store).await;
    let no_hash = |_: &str| Err::<String, _>("no passwords here");
    crate::fixture::populate(&mut tx, &fixture, at(0), &no_hash)
        .await
        .expect("a fixture");
    tx.insert_kernel(&kernel(1, "one")).await.expect("a kernel");
    let mut under_null = kernel(2, "two");
    under_null.access_key = "AKIANULL".into();
    tx.insert_kernel(&under_null).await.expect("a kernel");
    tx.commit().await.expect("a commit");

    let found = store.reader().check_accounting().await.expect("a check");
    let wrong_key = Discrepancy::Keypair {
        access_key: "AKIAWRONG".into(),
        stored: 7,
        derived: 0,
    };
    let [
        keypair,
        Discrepancy::Agent {
            agent,
            stored,
            derived,
        },
    ] = &found[..]
    else {
        panic!("{found:?}")
    };
    assert_eq!(*keypair, wrong_key);
    assert_eq!(agent.as_str(), "i-wrong");
    assert_slots(stored, &ResourceSlot::from_stored(&json!({"cpu": 9})).0);
    assert_slots(derived, &Default::default());

    let mut tx = begin(&store).await;
    assert_eq!(tx.recalculate_usage().await.expect("a repair"), found);
    assert_eq!(tx.recalculate_usage().await.expect("nothing to do"), []);
    tx.commit().await.expect("a commit");
    assert_eq!(store.reader().check_accounting().await.expect("a check"), []);
    assert_eq!(counters(&store.reader(), "i-one").await.0, 1);

    let mut tx = begin(&store).await;
    tx.terminate_kernel(kernel_id(2), "done", at(1), None)
        .await
        .expect("an end");
    assert_eq!(tx.check_accounting().await.expect("a check"), []);
}

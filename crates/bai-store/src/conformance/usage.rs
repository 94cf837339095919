//! Usage of ended sessions, and sums for all agents.

use bai_model::ResourceSlot;
use serde_json::json;

use super::*;
use crate::usage::{UsageGroupRow, UsageQuery};

/// Pages follow each other without gaps or doubles, also where many ended at once, and know their bounds and groups.
pub async fn usage_comes_in_pages(store: Store) {
    seed(&store).await;
    let stats = json!({"cpu_used": {"current": "1234.567"}});
    let mut tx = begin(&store).await;
    tx.insert_group(&group(2, "second", DEFAULT), at(0))
        .await
        .expect("a group");
    for number in 1..=9 {
        let mut new = kernel(number, &format!("session{number}"));
        new.group_id = group_id(if number == 9 { 2 } else { 1 });
        tx.insert_kernel(&new).await.expect("a kernel");
        // 2 to 6 end at once; 1 before and 8 after the period.
        let end = match number {
            1 => 99,
            2..=6 => 100,
            8 => 200,
            _ => 150,
        };
        tx.terminate_kernel(new.id, "done", at(end), Some(stats.clone()))
            .await
            .expect("an end");
    }
    tx.insert_kernel(&kernel(10, "living")).await.expect("a kernel");
    tx.commit().await.expect("a commit");

    let reader = store.reader();
    let mut query = UsageQuery {
        from: at(100),
        until: at(200),
        groups: vec![],
    };
    let mut rows = Vec::new();
    loop {
        let page = reader.usage_page(&query, rows.last(), 2).await.expect("a page");
        let is_last = page.len() < 2;
        rows.extend(page);
        if is_last {
            break;
        }
    }
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    assert_eq!(ids, [2, 3, 4, 5, 6, 7, 9].map(kernel_id));
    let row = &rows[0];
    assert_eq!(
        (row.sess_id.as_deref(), row.access_key.as_ref(), row.group_id),
        (Some("session2"), Some(&key()), group_id(1))
    );
    assert_eq!(
        (row.group_name.as_str(), row.domain_name.as_str()),
        (DEFAULT, DEFAULT)
    );
    assert_eq!(
        (row.created_at, row.terminated_at, row.last_stat.as_ref()),
        (Some(at(2)), at(100), Some(&stats))
    );
    assert_slots(&row.occupied_slots, &slots(1, 1 << 30));
    let names = |groups: Vec<UsageGroupRow>| groups.into_iter().map(|group| group.name).collect::<Vec<_>>();
    let groups = reader.usage_groups(&query).await.expect("groups");
    assert_eq!(
        (groups[1].id, groups[1].domain_name.as_str()),
        (group_id(2), DEFAULT)
    );
    assert_eq!(names(groups), [DEFAULT, "second"]);
    query.groups = vec![group_id(2), group_id(3)];
    let groups = reader.usage_groups(&query).await.expect("groups");
    assert_eq!(names(groups), ["second"]);
    let page = reader.usage_page(&query, None, 100).await.expect("a page");
    assert_eq!(page.iter().map(|row| row.id).collect::<Vec<_>>(), [kernel_id(9)]);
    assert_eq!(
        reader.usage_page(&query, page.last(), 100).await.expect("a page"),
        []
    );
    let found = reader.group_by_id(group_id(2)).await.expect("a look-up");
    assert_eq!(found.map(|group| group.name), Some("second".to_owned()));
    assert_eq!(reader.group_by_id(group_id(3)).await.expect("a look-up"), None);
}

/// One statement for all agents says what one for each does.
pub async fn sums_come_for_all_agents(store: Store) {
    seed(&store).await;
    let mut tx = begin(&store).await;
    for number in 1..=3 {
        tx.insert_kernel(&kernel(number, &format!("session{number}")))
            .await
            .expect("a kernel");
    }
    tx.terminate_kernel(kernel_id(3), "done", at(1), None)
        .await
        .expect("an end");
    tx.commit().await.expect("a commit");
    let reader = store.reader();
    let sums = reader.occupied_by_all_agents().await.expect("sums");
    assert_eq!(sums.len(), 1);
    assert_slots(&sums[&"i-one".into()], &slots(2, 2 << 30));
    let nothing = ResourceSlot::default();
    assert_slots(sums.get(&"i-two".into()).unwrap_or(&nothing), &nothing);
}

//! `/resource`: presets, what is left, counters, and what ended sessions used.

use bai_model::time::Clock;
use bai_model::{AccessKey, AgentId, GroupId, KernelId, ResourceSlot};
use bai_store::kernel::NewKernel;
use bai_testkit::{Api, Role, cast};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{assert_clean, create};

const GROUP: &str = "2de2b969-1d04-48a6-af16-0bc8adb3c831";
/// A kernel at the edge of a year.
const NEW_YEAR: &str = "2019-12-31T15:00:00Z";

async fn check(api: &Api, role: Role, body: Value) -> Value {
    api.call(role, "POST", "/resource/check-presets", &body)
        .await
        .view()
}

/// Names of the presets that can be had.
fn allocatable(view: &Value) -> Vec<&str> {
    let presets = view[1]["presets"].as_array().unwrap().iter();
    presets
        .filter(|preset| preset["allocatable"] == true)
        .map(|preset| preset["name"].as_str().unwrap())
        .collect()
}

const ALL: [&str; 6] = ["large", "large-gpu", "medium", "medium-gpu", "small", "small-gpu"];

#[tokio::test]
async fn presets_have_only_slots_that_the_cluster_knows() {
    let api = Api::start().await;
    let gpu = async || {
        let presets = api.get(Role::User, "/resource/presets").await.json();
        let presets = presets["presets"].as_array().unwrap().clone();
        assert_eq!(presets.len(), 6);
        presets
            .into_iter()
            .find(|preset| preset["name"] == "small-gpu")
            .unwrap()["resource_slots"]
            .clone()
    };
    assert_eq!(gpu().await, json!({ "cpu": "1", "mem": "2147483648" }));
    api.config
        .put("config/resource_slots/cuda.shares", "count")
        .await
        .unwrap();
    assert_eq!(
        gpu().await,
        json!({ "cpu": "1", "mem": "2147483648", "cuda.shares": "0.3" })
    );
    // The agent has none of it, which is no error.
    assert_eq!(
        allocatable(&check(&api, Role::User, Value::Null).await),
        ["large", "medium", "small"]
    );
}

#[tokio::test]
async fn what_is_left_shrinks_with_sessions() {
    let api = Api::start().await;
    let before = check(&api, Role::User, json!({})).await;
    assert_eq!(allocatable(&before), ALL);
    let body = json!({ "lang": "python", "clientSessionToken": "bigger", "config": { "resources": { "cpu": 5, "mem": "1g" } } });
    assert_eq!(api.call(Role::User, "POST", "/kernel", &body).await.status, 201);
    let after = check(&api, Role::User, json!({})).await;
    assert_eq!(
        allocatable(&after),
        ["medium", "medium-gpu", "small", "small-gpu"],
        "{after}"
    );
    let using = json!({ "cpu": "5", "mem": "1073741824" });
    let unlimited = json!({ "cpu": "Infinity", "mem": "Infinity" });
    assert_eq!(after[1]["keypair_using"], using);
    assert_eq!(after[1]["keypair_limits"], unlimited);
    assert_eq!(after[1]["keypair_remaining"], unlimited);
    assert_eq!(
        after[1]["scaling_group_remaining"],
        json!({ "cpu": "3", "mem": "16106127360" })
    );
    assert_eq!(
        check(&api, Role::Monitor, json!({})).await[1]["keypair_using"],
        json!({})
    );
    assert_clean(&api).await;
}

#[tokio::test]
async fn every_quota_counts() {
    let limit = json!({ "cpu": "3", "mem": "4g" });
    for (table, others) in [
        ("keypair_resource_policies", ALL.as_slice()),
        ("groups", &[]),
        ("domains", &[]),
    ] {
        let mut cast = cast::fixture();
        cast[table][0]["total_resource_slots"] = limit.clone();
        let api = Api::start_with(&cast).await;
        create(&api, Role::User, "first").await;
        let mine = check(&api, Role::User, json!({})).await;
        // 2 cores and 3.75 GiB are left.
        assert_eq!(allocatable(&mine), ["small", "small-gpu"], "{table}");
        // The quotas of groups and domains are everybody's.
        let theirs = check(&api, Role::Superadmin, json!({})).await;
        let expected = if others.is_empty() {
            vec!["small", "small-gpu"]
        } else {
            vec!["medium", "medium-gpu", "small", "small-gpu"]
        };
        assert_eq!(allocatable(&theirs), expected, "{table}");
        assert_clean(&api).await;
    }
}

#[tokio::test]
async fn a_named_group_is_told_of_and_a_strange_one_refused() {
    let mut cast = cast::fixture();
    cast["groups"][0]["total_resource_slots"] = json!({ "cpu": "3" });
    let api = Api::start_with(&cast).await;
    create(&api, Role::User, "first").await;
    let named = check(&api, Role::User, json!({ "group": "default" })).await;
    assert_eq!(named[1]["group_limits"], json!({ "cpu": "3", "mem": "Infinity" }));
    assert_eq!(named[1]["group_using"], json!({ "cpu": "1", "mem": "268435456" }));
    assert_eq!(
        named[1]["group_remaining"],
        json!({ "cpu": "2", "mem": "Infinity" })
    );
    assert_eq!(
        check(&api, Role::User, json!({ "group": "strange" })).await[0],
        400
    );
    let unnamed = check(&api, Role::User, json!([1])).await;
    assert_eq!(
        (&unnamed[0], &unnamed[1]["group_limits"]),
        (&json!(200), &Value::Null)
    );
}

#[tokio::test]
async fn counters_that_drifted_are_set_right() {
    let mut cast = cast::fixture();
    cast["keypairs"][2]["concurrency_used"] = json!(7);
    let api = Api::start_with(&cast).await;
    create(&api, Role::User, "first").await;
    assert_ne!(api.store.reader().check_accounting().await.unwrap(), []);
    let answer = api
        .call(
            Role::Superadmin,
            "POST",
            "/resource/recalculate-usage",
            &Value::Null,
        )
        .await;
    assert_eq!(answer.view(), json!([200, {}]));
    assert_clean(&api).await;
}

/// Sessions that lasted 90.25 s and have ended, the last one at `end`.
async fn ended(api: &Api, first: u128, count: u128, end: DateTime<Utc>, stat: Option<&Value>) {
    let mut tx = api.store.begin().await.unwrap();
    let owner = tx
        .credential_by_access_key(&AccessKey::from("AKIANABBDUSEREXAMPLE"))
        .await
        .unwrap()
        .unwrap();
    for number in first..first + count {
        let kernel = NewKernel {
            id: KernelId(uuid::Uuid::from_u128(number)),
            sess_id: format!("session-{number}"),
            agent: AgentId("i-fake".to_owned()),
            agent_addr: "inproc://i-fake".to_owned(),
            domain_name: "default".to_owned(),
            group_id: GroupId(GROUP.parse().unwrap()),
            user_uuid: owner.user,
            access_key: owner.access_key.clone(),
            image: bai_testkit::agent::IMAGE.to_owned(),
            registry: "index.docker.io".to_owned(),
            tag: None,
            occupied_slots: ResourceSlot::from_stored(&json!({ "cpu": "1", "mem": "268435456" })).0,
            environ: Vec::new(),
            created_at: end - chrono::TimeDelta::milliseconds(90_250),
        };
        tx.insert_kernel(&kernel).await.unwrap();
        tx.terminate_kernel(kernel.id, "done", end, stat.cloned())
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
}

async fn usage(api: &Api, kind: &str, body: Value) -> Value {
    let target = format!("/resource/usage/{kind}");
    api.call(Role::Superadmin, "GET", &target, &body).await.view()
}

#[tokio::test]
async fn usage_is_summed_over_any_number_of_sessions() {
    let api = Api::start().await;
    let end: DateTime<Utc> = "2019-07-03T10:00:00Z".parse().unwrap();
    let stat = json!({
        "cpu_used": { "current": "1234.5" }, "mem": { "capacity": "2097152" }, "io_scratch_size": { "stats.max": "9" },
        "io_read": { "current": "1" }, "io_write": { "current": "2" },
    });
    ended(&api, 1, 1200, end, Some(&stat)).await;
    ended(&api, 5000, 1, end, None).await;
    let month = usage(&api, "month", json!({ "group_ids": [], "month": "201907" })).await;
    assert_eq!((&month[0], month[1].as_array().unwrap().len()), (&json!(200), 1));
    let group = &month[1][0];
    assert_eq!(group["c_infos"].as_array().unwrap().len(), 1201);
    assert_eq!(
        group["c_infos"][0],
        json!({
            "id": "00000000-0000-0000-0000-000000000001", "name": "session-1", "access_key": "AKIANABBDUSEREXAMPLE",
            "cpu_used": 1234.5, "mem_allocated": 268435456, "mem_used": 2097152, "shared_memory": 0, "disk_used": 9,
            "io_read": 1, "io_write": 2, "used_time": "0:01:30.250000", "used_days": 1, "device_type": null, "smp": null,
            "nfs": null, "image_name": bai_testkit::agent::IMAGE, "created_at": "2019-07-03 09:58:29.750000+00:00",
            "terminated_at": "2019-07-03 10:00:00+00:00",
        })
    );
    assert_eq!(group["g_id"], GROUP);
    assert_eq!(
        (&group["g_name"], &group["domain_name"]),
        (&json!("default"), &json!("default"))
    );
    assert_eq!(group["g_cpu_used"], 1_481_400.0);
    assert_eq!(
        (&group["g_mem_used"], &group["g_io_write"]),
        (&json!(2_516_582_400_u64), &json!(2400))
    );
    assert_eq!(
        (&group["g_smp"], &group["g_device_type"]),
        (&json!(0), &json!([]))
    );
    let named = json!({ "project": [GROUP], "month": "201907" });
    assert_eq!(usage(&api, "month", named).await, month);
    let dates = json!({ "group": GROUP, "start_date": "20190703", "end_date": "20190704" });
    let period = usage(&api, "period", dates).await;
    assert_eq!(period[1]["c_infos"], group["c_infos"]);
    assert_eq!(
        (&period[1]["start_date"], &period[1]["end_date"]),
        (&json!("20190703"), &json!("20190704"))
    );
    let query = format!("/resource/usage/period?group_id={GROUP}&start_date=20190703&end_date=20190704");
    assert_eq!(api.get(Role::Superadmin, &query).await.view(), period);
}

#[tokio::test]
async fn months_begin_in_the_configured_zone() {
    let api = Api::start().await;
    ended(&api, 1, 1, NEW_YEAR.parse().unwrap(), None).await;
    let sessions = async |month: &str| {
        let groups = usage(&api, "month", json!({ "group_ids": [], "month": month })).await;
        groups[1][0]["c_infos"].as_array().map_or(0, Vec::len)
    };
    assert_eq!((sessions("201912").await, sessions("202001").await), (1, 0));
    api.config
        .put("config/system/timezone", "Asia/Seoul")
        .await
        .unwrap();
    assert_eq!((sessions("201912").await, sessions("202001").await), (0, 1));
    api.config
        .put("config/system/timezone", "Mars/Olympus")
        .await
        .unwrap();
    let answer = usage(&api, "month", json!({ "group_ids": [], "month": "201912" })).await;
    assert_eq!(answer[0], 500);
    assert!(
        answer[1]["title"]
            .as_str()
            .unwrap()
            .contains("config/system/timezone")
    );
}

#[tokio::test]
async fn nothing_used_is_no_error_and_wrong_questions_are_answered() {
    let api = Api::start().await;
    assert!(api.clock.now() > DateTime::UNIX_EPOCH);
    assert_eq!(
        usage(&api, "month", json!({ "group_ids": [GROUP], "month": "2019071" })).await,
        json!([200, []])
    );
    let dates = json!({ "group_id": GROUP, "start_date": "20190701", "end_date": "20190702" });
    let empty = usage(&api, "period", dates).await;
    assert_eq!(
        (&empty[0], &empty[1]["c_infos"], &empty[1]["g_cpu_used"]),
        (&json!(200), &json!([]), &json!(0.0))
    );
    let stranger = "00000000-0000-4000-8000-000000000000";
    let period = |group: &str, start: &str, end: &str| json!({ "group_id": group, "start_date": start, "end_date": end });
    for (kind, body, status, said) in [
        (
            "month",
            json!({ "group_ids": ["x"], "month": "201907" }),
            400,
            "not a group id: x",
        ),
        (
            "month",
            json!({ "group_ids": [1, ""], "month": "201907" }),
            400,
            "blank value is not allowed",
        ),
        (
            "month",
            json!({ "group_ids": [], "month": "2019" }),
            400,
            "does not match pattern",
        ),
        (
            "month",
            json!({ "group_ids": [], "month": "201900" }),
            400,
            "Invalid date values",
        ),
        (
            "month",
            json!({ "group_ids": [], "month": "999912" }),
            400,
            "Invalid date values",
        ),
        (
            "period",
            period("x", "20190701", "20190702"),
            400,
            "not a group id: x",
        ),
        (
            "period",
            period(stranger, "20190701", "20190702"),
            404,
            "No such group",
        ),
        (
            "period",
            period(GROUP, "201907011", "20190702"),
            400,
            "does not match pattern",
        ),
        (
            "period",
            period(GROUP, "20190702", "20190702"),
            400,
            "end_date must be later",
        ),
    ] {
        let answer = usage(&api, kind, body).await;
        assert_eq!(answer[0], status, "{answer}");
        assert!(answer.to_string().contains(said), "{answer}");
    }
}

#[tokio::test]
async fn superadmins_add_images_and_everybody_uses_them() {
    let api = Api::start().await;
    let add = async |body: Value| {
        let answer = api
            .call(Role::Superadmin, "POST", "/resource/images", &body)
            .await;
        (answer.status, answer.json())
    };
    let (status, added) = add(json!({ "name": "mine:2" })).await;
    assert_eq!(status, 200, "{added}");
    assert_eq!(added["image"], "index.docker.io/library/mine:2");
    assert_eq!(added["refusals"], json!({}));
    let created = json!({ "lang": "mine:2", "clientSessionToken": "of-mine" });
    let created = api.call(Role::User, "POST", "/kernel/create", &created).await;
    assert_eq!(created.status, 201, "{:?}", created.json());
    for (body, said) in [
        (json!({ "name": "missing:1" }), "there is no missing:1"),
        (json!({ "name": "a b" }), "no blanks"),
        (json!({ "name": "x".repeat(513) }), "1 to 512 characters"),
        (json!({ "name": 1 }), "name"),
        (json!({}), "name"),
    ] {
        let (status, answer) = add(body).await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer.to_string().contains(said), "{answer}");
    }
}

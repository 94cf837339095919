//! Aliases, limits and who may change them.

use std::sync::Arc;

use bai_core::image::{Catalogue, Rescan};
use bai_core::{Actor, Error, Identity};
use bai_model::{AccessKey, DefaultForUnspecified, KeypairResourcePolicy, ResourceSlot, UserId, UserRole};

use super::{memory, op, options, system};

const PYTHON: &str = "index.docker.io/lablup/python:3.6-ubuntu";

/// A catalogue with one image.
async fn catalogue() -> (Catalogue, bai_backplane::config::Config) {
    let config = memory().await;
    for (key, value) in [
        ("images/index.docker.io/lablup%2Fpython", "1"),
        ("images/index.docker.io/lablup%2Fpython/3.6-ubuntu", "sha256:1"),
        (
            "images/index.docker.io/lablup%2Fpython/3.6-ubuntu/resource/mem/min",
            "64m",
        ),
    ] {
        config.put(key, value).await.unwrap();
    }
    (Catalogue::new(config.clone(), options()), config)
}

fn keypair(role: UserRole) -> Actor {
    Actor::Keypair(Arc::new(Identity {
        access_key: AccessKey("AKIATEST".to_owned()),
        user: UserId(uuid::Uuid::nil()),
        email: "somebody@localhost".to_owned(),
        role,
        is_admin: role.is_admin(),
        domain: None,
        policy: KeypairResourcePolicy {
            name: "default".to_owned(),
            default_for_unspecified: DefaultForUnspecified::Unlimited,
            total_resource_slots: ResourceSlot::default(),
            max_concurrent_sessions: 1,
            max_containers_per_session: 1,
            max_vfolder_count: 1,
            max_vfolder_size: 0,
            idle_timeout: 1,
            allowed_vfolder_hosts: Vec::new(),
        },
        rate_limit: 1,
    }))
}

#[tokio::test]
async fn superadmins_change_images_and_everybody_sees_them() {
    /// Servers run operations on any thread.
    fn is_send(_: &impl Send) {}
    let (catalogue, _) = catalogue().await;
    let (everything, nobody) = (Rescan::default(), system());
    is_send(&catalogue.image_rescan(&nobody, &everything, &|_| {}));
    for (actor, may_change, may_see) in [
        (Actor::System("test"), true, true),
        (keypair(UserRole::Superadmin), true, true),
        (keypair(UserRole::Admin), false, true),
        (keypair(UserRole::User), false, true),
        (keypair(UserRole::Monitor), false, true),
        (Actor::Anonymous, false, false),
    ] {
        let op = op(actor);
        let changes = [
            catalogue.image_alias(&op, "python", PYTHON).await.map(drop),
            catalogue.image_dealias(&op, "python").await.map(drop),
            catalogue.image_update_aliases(&op, &[], false).await.map(drop),
            catalogue
                .image_set_resource_limit(&op, PYTHON, "cpu", Some("1"), None)
                .await
                .map(drop),
            catalogue
                .image_rescan(&op, &Rescan::default(), &|_| {})
                .await
                .map(drop),
        ];
        for change in changes {
            match change {
                Ok(()) => assert!(may_change, "{op:?}"),
                Err(Error::Forbidden(_)) => assert!(!may_change && may_see, "{op:?}"),
                Err(Error::Unauthorized(_)) => assert!(!may_see, "{op:?}"),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(catalogue.images_list(&op).await.is_ok(), may_see);
        assert_eq!(catalogue.image_get(&op, PYTHON).await.is_ok(), may_see);
    }
}

#[tokio::test]
async fn aliases_are_written_quoted_and_read_as_older_hands_wrote_them() {
    let (catalogue, config) = catalogue().await;
    let op = system();
    let target = async |alias: &str| {
        let image = catalogue.image_get(&op, alias).await.unwrap();
        image.map(|image| image.reference.canonical())
    };
    let alias = catalogue
        .image_alias(&op, "python:3.6", "python:3.6-ubuntu")
        .await
        .unwrap();
    assert_eq!(
        (alias.image.as_str(), alias.is_known, alias.previous),
        (PYTHON, true, None)
    );
    let key = "images/_aliases/python%3A3.6";
    assert_eq!(
        config.get(key).await.unwrap().as_deref(),
        Some("python:3.6-ubuntu")
    );
    assert_eq!(target("python:3.6").await.as_deref(), Some(PYTHON));
    catalogue.image_alias(&op, "team/py", "python:3.6").await.unwrap();
    assert_eq!(target("team/py").await.as_deref(), Some(PYTHON));
    // Unquoted, as hands have written it; quoted ones count more.
    config.put("images/_aliases/old/py:1", PYTHON).await.unwrap();
    assert_eq!(target("old/py:1").await.as_deref(), Some(PYTHON));
    let image = catalogue.image_get(&op, PYTHON).await.unwrap().unwrap();
    assert_eq!(image.aliases, ["old/py:1"]);
    assert!(catalogue.image_dealias(&op, "old/py:1").await.unwrap());
    assert!(!catalogue.image_dealias(&op, "old/py:1").await.unwrap());
    assert_eq!(target("old/py:1").await, None);
    assert!(catalogue.image_dealias(&op, "python:3.6").await.unwrap());
    assert_eq!(config.get(key).await.unwrap(), None);
}

#[tokio::test]
async fn aliases_that_lead_nowhere_are_refused_and_none_of_their_file_is_set() {
    let (catalogue, config) = catalogue().await;
    let op = system();
    let pair = |alias: &str, target: &str| (alias.to_owned(), target.to_owned());
    for (alias, target) in [("a", "a"), ("a", "http://x"), ("a", "x:-"), ("", "x"), ("a", "")] {
        let pairs = [pair("good", PYTHON), pair(alias, target)];
        let error = catalogue
            .image_update_aliases(&op, &pairs, false)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::InvalidParameters { .. }), "{error}");
    }
    let circle = [pair("a", "b"), pair("b", "a")];
    assert!(catalogue.image_update_aliases(&op, &circle, false).await.is_err());
    // As many as the reader follows, and one more.
    let chain: Vec<_> = (0..9)
        .map(|n| pair(&format!("a{n}"), &format!("a{}", n + 1)))
        .collect();
    assert!(catalogue.image_update_aliases(&op, &chain, false).await.is_err());
    assert!(config.prefix("images/_aliases").await.unwrap().is_empty());
    catalogue
        .image_update_aliases(&op, &chain[..8], false)
        .await
        .unwrap();
    assert_eq!(catalogue.image_get(&op, "a0").await.unwrap(), None);
    let dry = catalogue
        .image_update_aliases(&op, &[pair("a0", PYTHON)], true)
        .await
        .unwrap();
    assert_eq!(dry[0].previous.as_deref(), Some("a1"));
    assert_eq!(
        config.get("images/_aliases/a0").await.unwrap().as_deref(),
        Some("a1")
    );
    // For an image that a later rescan brings.
    let alias = catalogue.image_alias(&op, "later", "lua:5.3").await.unwrap();
    assert_eq!(
        (alias.image.as_str(), alias.is_known),
        ("index.docker.io/lablup/lua:5.3", false)
    );
}

#[tokio::test]
async fn limits_are_kept_as_given_and_checked() {
    let (catalogue, config) = catalogue().await;
    let op = system();
    let set = async |reference: &str, slot: &str, min: Option<&str>, max: Option<&str>| {
        catalogue
            .image_set_resource_limit(&op, reference, slot, min, max)
            .await
    };
    catalogue.image_alias(&op, "py", PYTHON).await.unwrap();
    assert_eq!(set("py", "cpu", Some("2"), Some("4")).await.unwrap(), PYTHON);
    assert_eq!(set(PYTHON, "mem", None, Some("1.5g")).await.unwrap(), PYTHON);
    let path = "images/index.docker.io/lablup%2Fpython/3.6-ubuntu/resource/";
    let limits = async || config.prefix(path).await.unwrap();
    let entry = |key: &str, value: &str| (format!("{path}{key}"), value.to_owned());
    let expected = [
        entry("cpu/max", "4"),
        entry("cpu/min", "2"),
        entry("mem/max", "1.5g"),
        entry("mem/min", "64m"),
    ];
    assert_eq!(limits().await, expected);
    for (reference, slot, min, max, part) in [
        ("lua", "cpu", Some("1"), None, "Unknown image reference: lua"),
        ("lua:-", "cpu", Some("1"), None, "Invalid image reference"),
        (
            PYTHON,
            "gpu",
            Some("1"),
            None,
            "Unknown resource slot: gpu (known: cpu, mem)",
        ),
        (PYTHON, "cpu", Some("1g"), None, "Invalid amount of cpu: 1g"),
        (PYTHON, "cpu", Some("nan"), None, "Invalid amount"),
        (PYTHON, "cpu", Some("-1"), None, "Invalid amount"),
        (PYTHON, "cpu", Some("5"), None, "above the most, 4"),
        (PYTHON, "mem", None, Some("32m"), "above the most"),
        (PYTHON, "mem", Some("2g"), Some("1g"), "above the most"),
    ] {
        let error = set(reference, slot, min, max).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(limits().await, expected);
}

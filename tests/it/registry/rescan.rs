use std::sync::Mutex;

use bai_core::image::{Catalogue, ImageChange, Rescan, RescanEvent};
use bai_model::image_ref::quote;
use bai_registry::{Options, Trust};
use bai_testkit::services::registry::{Access, DOCKER, DOCKER_LIST, OCI, OCI_INDEX, Tls};
use serde_json::json;

use super::{
    Site, config_file, config_file_of_2019, kernel, memory, news, options, rescan, set_registry, system,
};

/// What the original left in etcd for an image, with the registry's name, the digest and the size to be filled in.
const ORIGINAL: &str = "\
images/{registry}/lablup%2Fpython	1
images/{registry}/lablup%2Fpython/3.6-debian	{digest}
images/{registry}/lablup%2Fpython/3.6-debian/labels/ai.backend.base-distro	ubuntu16.04
images/{registry}/lablup%2Fpython/3.6-debian/labels/ai.backend.envs.corecount	OPENBLAS_NUM_THREADS,OMP_NUM_THREADS,NPROC
images/{registry}/lablup%2Fpython/3.6-debian/labels/ai.backend.features	batch query uid-match user-input
images/{registry}/lablup%2Fpython/3.6-debian/labels/ai.backend.kernelspec	1
images/{registry}/lablup%2Fpython/3.6-debian/labels/ai.backend.resource.min.cpu	1
images/{registry}/lablup%2Fpython/3.6-debian/labels/ai.backend.resource.min.mem	256m
images/{registry}/lablup%2Fpython/3.6-debian/labels/ai.backend.runtime-path	/usr/bin/python
images/{registry}/lablup%2Fpython/3.6-debian/labels/ai.backend.runtime-type	python
images/{registry}/lablup%2Fpython/3.6-debian/labels/ai.backend.service-ports	ipython:pty:3000,jupyter:http:8080,webapp:http:8081
images/{registry}/lablup%2Fpython/3.6-debian/labels/variant	3.6-debian
images/{registry}/lablup%2Fpython/3.6-debian/resource/cpu/min	1
images/{registry}/lablup%2Fpython/3.6-debian/resource/mem/min	256m
images/{registry}/lablup%2Fpython/3.6-debian/size_bytes	{size}";

#[tokio::test]
async fn a_rescan_writes_byte_for_byte_what_the_original_wrote() {
    let Some(site) = Site::start().await else { return };
    let labels = json!({
        "ai.backend.base-distro": "ubuntu16.04",
        "ai.backend.envs.corecount": "OPENBLAS_NUM_THREADS,OMP_NUM_THREADS,NPROC",
        "ai.backend.features": "batch query uid-match user-input",
        "ai.backend.kernelspec": "1",
        "ai.backend.resource.min.cpu": "1",
        "ai.backend.resource.min.mem": "256m",
        "ai.backend.runtime-path": "/usr/bin/python",
        "ai.backend.runtime-type": "python",
        "ai.backend.service-ports": "ipython:pty:3000,jupyter:http:8080,webapp:http:8081",
        "variant": "3.6-debian",
    });
    let config = config_file_of_2019(&labels);
    let pushed = site
        .pusher
        .image("lablup/python", Some("3.6-debian"), DOCKER, &config)
        .await
        .unwrap();
    let name = site.registry.url.strip_prefix("http://").unwrap();
    let config = memory().await;
    set_registry(&config, name, &site.registry.url, None).await;
    let summary = rescan(&config, &options(), &Rescan::default()).await;
    assert!(
        summary.is_complete() && summary.registries[0].added == 1,
        "{summary:?}"
    );
    let written = config.prefix("images/").await.unwrap();
    let written: Vec<_> = written
        .iter()
        .map(|(key, value)| format!("{key}\t{value}"))
        .collect();
    let expected = ORIGINAL
        .replace("{registry}", &quote(name))
        .replace("{digest}", &pushed.config)
        .replace("{size}", &pushed.size_bytes.to_string());
    assert_eq!(written.join("\n"), expected);
}

#[tokio::test]
async fn every_kind_of_image_is_understood_and_a_broken_one_stops_nothing() {
    let Some(site) = Site::start().await else { return };
    let push = |name, tag, media_type, config: String| {
        let pusher = &site.pusher;
        async move { pusher.image(name, tag, media_type, &config).await.unwrap() }
    };
    push("lablup/docker", Some("1"), DOCKER, kernel()).await;
    let oci = push("lablup/oci", Some("1-ubuntu"), OCI, kernel()).await;
    let amd64 = push(
        "lablup/multi",
        None,
        OCI,
        config_file(&[("ai.backend.kernelspec", "1"), ("for", "amd64")]),
    )
    .await;
    let arm64 = push("lablup/multi", None, OCI, kernel()).await;
    let s390x = push("lablup/multi", None, DOCKER, kernel()).await;
    let platforms = [(&s390x, "s390x"), (&arm64, "arm64"), (&amd64, "amd64")];
    site.pusher
        .list("lablup/multi", "1", OCI_INDEX, &platforms)
        .await
        .unwrap();
    site.pusher
        .list("lablup/multi", "2", DOCKER_LIST, &[(&s390x, "s390x")])
        .await
        .unwrap();
    push(
        "lablup/plain",
        Some("1"),
        DOCKER,
        config_file(&[("maintainer", "x")]),
    )
    .await;
    push(
        "lablup/plain",
        Some("2"),
        DOCKER,
        config_file(&[("ai.backend.kernelspec", "")]),
    )
    .await;
    push("lablup/docker", Some("3.6-18.04"), DOCKER, kernel()).await;
    push("lablup/broken", Some("1"), DOCKER, "no configuration".to_owned()).await;
    let dry = Rescan {
        dry_run: true,
        ..Rescan::default()
    };
    let expected = rescan(&site.config, &options(), &dry).await;
    assert!(site.images().await.is_empty());
    let summary = site.rescan().await;
    let [scan] = summary.registries.as_slice() else {
        panic!("{summary:?}")
    };
    assert_eq!(news(&summary), news(&expected));
    assert_eq!(
        (
            scan.repositories,
            scan.added,
            scan.no_kernel,
            scan.malformed,
            scan.failed
        ),
        (5, 3, 2, 1, 2)
    );
    assert!(!summary.is_complete() && scan.error.is_none());
    let news = news(&summary);
    let reason = |image: &str| match news.iter().find(|(name, _)| *name == image).unwrap().1 {
        ImageChange::Failed(reason) | ImageChange::Malformed(reason) => reason.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        reason("cr.test/lablup/multi:2"),
        "registry cr.test: lablup/multi:2: has no variant for linux on amd64"
    );
    assert!(reason("cr.test/lablup/broken:1").contains("the image's configuration is malformed"));
    assert!(reason("cr.test/lablup/docker:3.6-18.04").contains("18.04"));
    let images = site.images().await;
    assert_eq!(images["images/cr.test/lablup%2Foci/1-ubuntu"], oci.config);
    assert_eq!(images["images/cr.test/lablup%2Fmulti/1"], amd64.config);
    assert_eq!(
        images["images/cr.test/lablup%2Fmulti/1/size_bytes"],
        amd64.size_bytes.to_string()
    );
    assert_eq!(images["images/cr.test/lablup%2Fmulti/1/labels/for"], "amd64");
    assert!(
        !images
            .keys()
            .any(|key| key.contains("plain") || key.contains("18.04") || key.contains("broken"))
    );
    let again = site.rescan().await;
    assert_eq!((again.registries[0].added, again.registries[0].unchanged), (0, 3));
    assert_eq!(site.images().await, images);
}

#[tokio::test]
async fn what_is_not_answered_or_not_a_registrys_stays() {
    let Some(site) = Site::start().await else {
        return;
    };
    let tag = "images/cr.test/lablup%2Fpython/3.6";
    site.pusher
        .image("lablup/python", Some("3.6"), DOCKER, &kernel())
        .await
        .unwrap();
    for (key, value) in [
        // An agent's own, one that the registry no longer has, an alias, and a limit of an administrator.
        ("images/index.docker.io/lablup%2Fpython/3.11-host", "sha256:host"),
        ("images/cr.test/lablup%2Fpython/2.7", "sha256:gone"),
        ("images/_aliases/python", "cr.test/lablup/python:3.6"),
        ("images/cr.test/lablup%2Fpython/3.6/resource/mem/max", "1g"),
    ] {
        site.config.put(key, value).await.unwrap();
    }
    let before = site.images().await;
    site.rescan().await;
    let known = site.images().await;
    assert!(before.iter().all(|(key, value)| known.get(key) == Some(value)));
    assert!(known.contains_key(tag));

    // Pushed again with other labels: those that are gone go, and so does the minimum that came from one.
    let labels = config_file(&[("ai.backend.kernelspec", "2")]);
    let pushed = site
        .pusher
        .image("lablup/python", Some("3.6"), OCI, &labels)
        .await
        .unwrap();
    let summary = site.rescan().await;
    assert_eq!(
        news(&summary),
        [("cr.test/lablup/python:3.6", &ImageChange::Updated)]
    );
    let updated = site.images().await;
    assert_eq!(updated[tag], pushed.config);
    assert_eq!(updated[&format!("{tag}/labels/ai.backend.kernelspec")], "2");
    assert_eq!(updated[&format!("{tag}/resource/mem/max")], "1g");
    assert!(!updated.contains_key(&format!("{tag}/resource/mem/min")));
    assert!(!updated.contains_key(&format!("{tag}/labels/ai.backend.resource.min.mem")));

    // Pushed again broken, and then no registry at all.
    site.pusher
        .image("lablup/python", Some("3.6"), OCI, "broken")
        .await
        .unwrap();
    let summary = site.rescan().await;
    assert_eq!(summary.registries[0].failed, 1);
    assert_eq!(site.images().await, updated);
    site.registry.stop();
    let summary = site.rescan().await;
    let error = summary.registries[0].error.clone().unwrap();
    assert!(
        error.starts_with("registry cr.test: cannot be reached: "),
        "{error}"
    );
    assert_eq!(site.images().await, updated);
}

#[tokio::test]
async fn long_listings_and_many_labels_arrive_whole() {
    let Some(site) = Site::start().await else { return };
    let names: Vec<_> = (0..5).map(|number| format!("lablup/image{number}")).collect();
    let labels: Vec<_> = (0..300).map(|number| format!("label{number:03}")).collect();
    let mut pairs: Vec<_> = labels.iter().map(|label| (label.as_str(), "x")).collect();
    pairs.push(("ai.backend.kernelspec", "1"));
    for name in &names {
        for tag in ["1", "2", "3"] {
            site.pusher
                .image(name, Some(tag), DOCKER, &config_file(&pairs))
                .await
                .unwrap();
        }
    }
    let options = Options {
        page_size: 2,
        ..options()
    };
    let summary = rescan(&site.config, &options, &Rescan::default()).await;
    assert_eq!(
        (summary.registries[0].repositories, summary.registries[0].added),
        (5, 15)
    );
    let catalogue = Catalogue::new(site.config.clone(), options);
    let images = catalogue.images_list(&system()).await.unwrap();
    assert_eq!(images.len(), 15);
    assert!(images.iter().all(|image| image.labels.len() == 301));
}

/// A certificate for 127.0.0.1 that signs itself.
fn certificate() -> Tls {
    let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    Tls {
        certificate: signed.cert.pem(),
        key: signed.signing_key.serialize_pem(),
    }
}

#[tokio::test]
async fn private_registries_with_certificates_of_their_own_are_let_in_as_configured() {
    let Some(site) = Site::start().await else { return };
    site.pusher
        .image("lablup/python", Some("3.6"), DOCKER, &kernel())
        .await
        .unwrap();
    let tls = certificate();
    let access = Access::Basic {
        username: "me".to_owned(),
        password: "s3c:ret".to_owned(),
    };
    let private = site.with_access("private", &access, Some(&tls));
    let trusting = |trust: Trust| Options { trust, ..options() };
    let own = trusting(Trust::SystemAnd(tls.certificate.clone()));
    for (options, credentials, expected) in [
        (&own, Some(("me", "s3c:ret")), None),
        (&trusting(Trust::Anybody), Some(("me", "s3c:ret")), None),
        (&own, Some(("me", "wrong")), Some("wants (other) credentials")),
        (&own, None, Some("wants (other) credentials")),
        (
            &trusting(Trust::SystemAnd(certificate().certificate)),
            Some(("me", "s3c:ret")),
            Some("certificate"),
        ),
    ] {
        let config = memory().await;
        set_registry(&config, "private", &private.url, credentials).await;
        let summary = rescan(&config, options, &Rescan::default()).await;
        let [scan] = summary.registries.as_slice() else {
            panic!("{summary:?}")
        };
        match (expected, &scan.error) {
            (None, None) => assert_eq!(scan.added, 1),
            (Some(part), Some(error)) => {
                assert!(error.contains(part) && !error.contains("s3c"), "{error}");
                assert!(config.prefix("images/").await.unwrap().is_empty());
            }
            (expected, error) => panic!("{error:?} instead of {expected:?}"),
        }
    }
}

#[tokio::test]
async fn a_registry_that_goes_away_is_given_up_and_the_catalogue_keeps_what_it_had() {
    let Some(site) = Site::start().await else { return };
    for tag in 0..60 {
        site.pusher
            .image("lablup/python", Some(&tag.to_string()), DOCKER, &kernel())
            .await
            .unwrap();
    }
    site.rescan().await;
    let known = site.images().await;
    site.config
        .put("images/cr.test/lablup%2Fpython/0", "sha256:older")
        .await
        .unwrap();
    let Site { config, registry, .. } = site;
    let registry = Mutex::new(registry);
    let options = Options {
        attempts: 1,
        ..options()
    };
    let catalogue = Catalogue::new(config.clone(), options);
    let stop_when_listed = |event: RescanEvent<'_>| {
        if matches!(event, RescanEvent::Listed { images: 60, .. }) {
            registry.lock().unwrap().stop();
        }
    };
    let summary = catalogue
        .image_rescan(&system(), &Rescan::default(), &stop_when_listed)
        .await
        .unwrap();
    let [scan] = summary.registries.as_slice() else {
        panic!("{summary:?}")
    };
    assert_eq!(scan.failed, 32);
    let error = scan.error.as_deref().unwrap();
    assert!(
        error.contains("given up after 32 images in a row could not be reached"),
        "{error}"
    );
    let images = config.prefix("images/").await.unwrap();
    assert!(images.iter().all(|(key, _)| known.contains_key(key)) && images.len() == known.len());
}

#[tokio::test]
async fn registries_are_scanned_beside_each_other_and_fail_by_themselves() {
    let Some(site) = Site::start().await else { return };
    site.pusher
        .image("lablup/python", Some("3.6"), DOCKER, &kernel())
        .await
        .unwrap();
    set_registry(&site.config, "a.broken", "not a URL", None).await;
    set_registry(&site.config, "b:5000", &site.registry.url, None).await;
    site.config
        .put("config/docker/registry/c.unset/username", "x")
        .await
        .unwrap();
    let summary = site.rescan().await;
    let view: Vec<_> = summary
        .registries
        .iter()
        .map(|scan| (scan.registry.as_str(), scan.added, scan.error.is_some()))
        .collect();
    assert_eq!(
        view,
        [("a.broken", 0, true), ("b:5000", 1, false), ("cr.test", 1, false)]
    );
    let one = Rescan {
        registry: Some("b:5000".to_owned()),
        ..Rescan::default()
    };
    let summary = rescan(&site.config, &options(), &one).await;
    assert_eq!(
        (summary.registries.len(), summary.registries[0].unchanged),
        (1, 1)
    );
}

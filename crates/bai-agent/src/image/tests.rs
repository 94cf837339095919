use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};

use super::*;

fn install(folder: &Path, name: &str, script: &str) {
    std::fs::create_dir_all(folder).expect("made");
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
}

fn now() -> DateTime<Utc> {
    "2019-07-15T00:00:00Z".parse().expect("a time")
}

async fn look(folders: &[PathBuf]) -> (Vec<Candidate>, Cache) {
    let candidates = tools::candidates(folders);
    let mut cache = Cache::default();
    cache.look(candidates.clone(), now()).await;
    (candidates, cache)
}

#[tokio::test]
async fn programs_become_images_with_the_first_of_each_version() {
    let dir = tempfile::tempdir().expect("a folder");
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    // A shim: what it says, not where it is, counts.
    install(&second, "real-python", "exit 0");
    let real = second.join("real-python");
    install(
        &first,
        "python3",
        &format!("echo 3.11.7; echo {}", real.display()),
    );
    install(&first, "python3.6", "exit 127");
    install(&second, "python3", "echo 3.11.2; echo /bin/sh");
    install(&second, "python3.12", "echo 3.12.1; echo /bin/sh");
    install(&second, "gcc", "echo 12");
    install(&second, "node", "echo not a version");
    let (candidates, cache) = look(&[first, second.clone()]).await;
    let images = images_of(&candidates, &cache);
    let names: Vec<&str> = images.iter().map(|image| image.canonical.as_str()).collect();
    assert_eq!(
        names,
        [
            "index.docker.io/lablup/python:3.11-host",
            "index.docker.io/lablup/python:3.12-host",
            "index.docker.io/lablup/c:12-host",
        ]
    );
    assert_eq!(images[0].aliases, ["python", "python3", "python:3.11"]);
    assert_eq!(images[1].aliases, ["python:3.12"]);
    assert_eq!(
        images[0].labels["ai.backend.runtime-path"],
        real.display().to_string()
    );
    assert_eq!(
        images[2].labels["ai.backend.runtime-path"],
        second.join("gcc").display().to_string()
    );
    assert_eq!(images[0].resource_min["mem"], "64m");
    let digest = images[0].digest.strip_prefix("sha256:").expect("of the form");
    assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_ne!(images[0].digest, images[1].digest);
}

#[tokio::test]
async fn what_was_found_out_is_kept_until_the_program_changes() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("bin");
    install(&folder, "python3", "echo 3.11.7");
    let (candidates, cache) = look(std::slice::from_ref(&folder)).await;
    let file = dir.path().join("images.json");
    cache.write(&file).expect("written");
    let read = Cache::read(&file);
    assert_eq!(read, cache);
    assert!(read.is_sure(&candidates[0], now()));
    assert!(
        !read.is_sure(&candidates[0], now() + TimeDelta::hours(25)),
        "a script leads where it likes"
    );
    install(&folder, "python3", "echo 3.12.1 and more");
    let changed = tools::candidates(&[folder]);
    assert!(!read.is_sure(&changed[0], now()));
    assert_eq!(read.program(&changed[0]), None);
    std::fs::write(&file, "{broken").expect("written");
    assert_eq!(Cache::read(&file), Cache::default());
}

/// A tool that says its version and notes that it was asked.
fn install_noting(folder: &Path, name: &str, says: &str) {
    install(
        folder,
        name,
        &format!("echo x >> {}/asked-{name}; {says}", folder.display()),
    );
}

fn times_asked(folder: &Path, name: &str) -> usize {
    std::fs::read_to_string(folder.join(format!("asked-{name}"))).map_or(0, |text| text.lines().count())
}

#[tokio::test]
async fn who_wants_one_image_runs_no_other_program() {
    let dir = tempfile::tempdir().expect("a folder");
    let kept = dir.path().join("images.json");
    install_noting(dir.path(), "python3", "echo 3.11.7");
    install_noting(dir.path(), "python3.9", "echo 3.9.1");
    install_noting(dir.path(), "gcc", "echo 12");
    let wanted = |only: Option<&str>| Images::Host {
        folders: vec![dir.path().to_owned()],
        only: only.map(str::to_owned),
    };
    let asked = || ["python3", "python3.9", "gcc"].map(|name| times_asked(dir.path(), name));
    let names = async |shelf: &Shelf| {
        let images = shelf.list().await.expect("known").into_iter();
        images.map(|image| image.canonical).collect::<Vec<_>>()
    };
    let shelf = Shelf::fill(wanted(Some("python")), &kept, now()).await;
    assert_eq!(names(&shelf).await, ["index.docker.io/lablup/python:3.11-host"]);
    assert_eq!(asked(), [1, 0, 0]);
    let shelf = Shelf::fill(wanted(Some("lablup/python:3.9-host")), &kept, now()).await;
    assert_eq!(names(&shelf).await, ["index.docker.io/lablup/python:3.9-host"]);
    assert_eq!(asked(), [2, 1, 0]);
    assert!(!kept.exists(), "a part is not kept as the whole");
    // Who asks for what there is not learns what there is.
    let shelf = Shelf::fill(wanted(Some("fortran")), &kept, now()).await;
    assert_eq!(shelf.list().await.expect("known").len(), 3);
    assert_eq!(asked(), [3, 2, 1]);
    // From here on it is known, but scripts are asked again after a day.
    Shelf::fill(wanted(None), &kept, now()).await;
    Shelf::fill(wanted(Some("gcc")), &kept, now()).await;
    assert_eq!(asked(), [3, 2, 1]);
    Shelf::fill(wanted(None), &kept, now() + TimeDelta::hours(25)).await;
    assert_eq!(asked(), [4, 3, 2]);
    let image = ImageConfig {
        canonical: "lablup/r:4".to_owned(),
        ..ImageConfig::default()
    };
    let pulling = async { panic!("programs of the host are not pulled") };
    let refused = shelf.obtain(&image, pulling).await.expect_err("not here").repr();
    assert!(
        refused.contains("lablup/r:4") && refused.contains("lablup/c:12-host"),
        "{refused}"
    );
}

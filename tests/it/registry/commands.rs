//! `bai etcd …` as operators run it, on the data of a server that does not run.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use bai::system::SystemClock;
use bai_backplane::config::Config;
use bai_backplane::kv;
use bai_testkit::services::registry::{Access, DOCKER, DockerRegistry, Pusher};
use serde_json::{Value, json};

use super::kernel;

fn etcd(data_dir: &Path, arguments: &[&str]) -> Command {
    let test = std::env::current_exe().unwrap();
    let bai = test.parent().and_then(Path::parent).unwrap().join("bai");
    assert!(
        bai.exists(),
        "{} is missing: run `cargo build -p bai` first",
        bai.display()
    );
    let mut command = Command::new(bai);
    command
        .env_clear()
        .arg("etcd")
        .arg("--data-dir")
        .arg(data_dir)
        .args(arguments);
    command
}

fn run(data_dir: &Path, arguments: &[&str]) -> Output {
    etcd(data_dir, arguments).output().unwrap()
}

fn stdout(data_dir: &Path, arguments: &[&str]) -> String {
    let output = run(data_dir, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json_of(data_dir: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(data_dir, arguments)).unwrap()
}

/// Exit code and stderr of a command that fails.
fn failure(data_dir: &Path, arguments: &[&str]) -> (i32, String) {
    let output = run(data_dir, arguments);
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// Writes a setting as a server would, and lets go of the file.
async fn put(data_dir: &Path, key: &str, value: &str) {
    let uri = format!("embedded://{}", data_dir.join("config.db").display());
    let kv = loop {
        // The file is let go of in the background, a moment after the last store on it was dropped.
        match kv::open(&uri, Arc::new(SystemClock)).await {
            Ok(kv) => break kv,
            Err(error) if error.is_retryable() => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    Config::new(kv, "local").put(key, value).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_scanned_listed_named_and_limited() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    let Some(registry) = DockerRegistry::start(folder.path(), &images, &Access::Anybody, None).unwrap()
    else {
        return;
    };
    let pusher = Pusher::new(&registry).unwrap();
    let pushed = pusher
        .image("lablup/python", Some("3.6-debian"), DOCKER, &kernel())
        .await
        .unwrap();
    pusher
        .image("lablup/broken", Some("1"), DOCKER, "broken")
        .await
        .unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    put(&data, "config/docker/registry/cr.test", &registry.url).await;

    let output = run(&data, &["rescan-images", "cr.test", "--dry-run"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "cr.test: would be: 1 added, 0 updated, 0 unchanged, 0 without kernel, 0 malformed, 1 failed\n"
    );
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cr.test: 2 images in 2 repositories\n"), "{said}");
    assert!(
        said.contains("cr.test/lablup/python:3.6-debian: added\n"),
        "{said}"
    );
    assert!(
        said.contains("cr.test/lablup/broken:1: failed: registry cr.test: lablup/broken:1: the image's"),
        "{said}"
    );
    assert_eq!(stdout(&data, &["list-images"]), "");

    let output = run(&data, &["rescan-images", "--json"]);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["registries"][0]["added"], 1);
    let news = summary["registries"][0]["images"].as_array().unwrap();
    assert!(
        news.contains(&json!({ "image": "cr.test/lablup/python:3.6-debian", "change": "added" })),
        "{news:?}"
    );

    assert_eq!(
        stdout(
            &data,
            &["alias", "python:3.6", "cr.test/lablup/python:3.6-debian"]
        ),
        "python:3.6 -> cr.test/lablup/python:3.6-debian\n"
    );
    let limit = ["set-image-resource-limit", "python:3.6", "cpu", ":4"];
    assert_eq!(
        stdout(&data, &limit),
        "cr.test/lablup/python:3.6-debian: cpu from as it was to 4\n"
    );
    let inspected = json_of(&data, &["inspect-image", "python:3.6", "--json"]);
    assert_eq!(
        inspected,
        json!({
            "image": "cr.test/lablup/python:3.6-debian", "registry": "cr.test", "name": "lablup/python",
            "tag": "3.6-debian", "digest": pushed.config, "size_bytes": pushed.size_bytes, "aliases": ["python:3.6"],
            "labels": { "ai.backend.kernelspec": "1", "ai.backend.resource.min.mem": "64m" },
            "resource_limits": {
                "cpu": { "min": "0", "max": "4" }, "mem": { "min": "64m", "max": "Infinity" },
            },
            "supported_accelerators": [],
        })
    );
    assert_eq!(json_of(&data, &["ls-images", "--json"]), json!([inspected]));
    let text = stdout(&data, &["inspect-image", "python:3.6"]);
    assert!(text.contains("mem:          64m to Infinity\n"), "{text}");
    let listed = stdout(&data, &["list-images"]);
    assert!(
        listed.starts_with("cr.test/lablup/python:3.6-debian  ") && listed.ends_with("  python:3.6\n"),
        "{listed}"
    );
    assert_eq!(stdout(&data, &["dealias", "python:3.6"]), "removed python:3.6\n");
    assert_eq!(stdout(&data, &["dealias", "python:3.6"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn aliases_come_from_files_and_stdin() {
    let data = tempfile::tempdir().unwrap();
    put(
        data.path(),
        "config/docker/registry/cr.test",
        "http://127.0.0.1:1",
    )
    .await;
    let file = data.path().join("image-aliases.yml");
    fs::write(
        &file,
        "aliases:\n  - ['python:3.6', 'python:3.6-ubuntu']\n  - [py, 'python:3.6']\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let dry = json_of(data.path(), &["update-aliases", file, "--dry-run", "--json"]);
    assert_eq!(dry[1]["image"], "index.docker.io/lablup/python:3.6-ubuntu");
    assert_eq!(dry[1]["previous"], Value::Null);
    let expected = "python:3.6 -> python:3.6-ubuntu\npy -> python:3.6\n";
    assert_eq!(stdout(data.path(), &["update-aliases", file]), expected);
    let again = json_of(data.path(), &["update-aliases", file, "--json"]);
    assert_eq!(again[0]["previous"], "python:3.6-ubuntu");
    let mut child = etcd(data.path(), &["update-aliases", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(br#"{"aliases": [["py", "py"]]}"#)
        .unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(1));
    let (code, said) = failure(data.path(), &["update-aliases", "/nowhere.yml"]);
    assert!(code == 1 && said.contains("cannot read /nowhere.yml"), "{said}");
    fs::write(file, "images: []\n").unwrap();
    let (code, said) = failure(data.path(), &["update-aliases", file]);
    assert!(code == 1 && said.contains("is no aliases file"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_to_do() {
    let data = tempfile::tempdir().unwrap();
    let missing = data.path().join("missing");
    for folder in [&missing, data.path()] {
        let (code, said) = failure(folder, &["list-images"]);
        assert!(
            code == 1 && said.contains("has no configuration store; start a server there"),
            "{said}"
        );
    }
    assert!(!missing.exists());
    put(
        data.path(),
        "config/docker/registry/cr.test",
        "http://127.0.0.1:1",
    )
    .await;
    let (code, said) = failure(data.path(), &["rescan-images", "other"]);
    assert_eq!(code, 1);
    assert!(
        said.contains("Unknown registry: other (configured: cr.test)"),
        "{said}"
    );
    let (code, said) = failure(data.path(), &["rescan-images"]);
    assert!(
        code == 1 && said.contains("registry cr.test: cannot be reached"),
        "{said}"
    );
    let (code, said) = failure(data.path(), &["inspect-image", "python"]);
    assert!(
        code == 1 && said.contains("the catalogue has no image python"),
        "{said}"
    );
    for range in ["4", ":", ""] {
        assert_eq!(
            failure(data.path(), &["set-image-resource-limit", "python", "cpu", range]).0,
            2,
            "{range}"
        );
    }
    // A server on the directory has both.
    let lock = fs::File::options()
        .write(true)
        .open(data.path().join("lock"))
        .unwrap();
    lock.try_lock().unwrap();
    let (code, said) = failure(data.path(), &["alias", "a", "b:1"]);
    assert!(
        code == 1 && said.contains("a server runs on this directory") && said.contains("stop the server"),
        "{said}"
    );
}

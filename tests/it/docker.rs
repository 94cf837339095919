//! The executable with containers: any image is added by one command and run.

use bai_testkit::services::{Docker, rootfs};

use crate::server::{Up, command, stdout};

const IMAGE: &str = "some-image:1";

#[test]
fn any_image_is_added_by_one_command_and_run() {
    let engine = match Docker::start() {
        Ok(engine) => engine,
        Err(missing) => return println!("SKIPPED: `bai up --runtime docker`, because {missing}"),
    };
    let root = tempfile::tempdir().unwrap();
    let made = rootfs::shell(root.path()).and_then(|()| rootfs::python(root.path()));
    if let Err(error) = made {
        return println!("SKIPPED: `bai up --runtime docker`, because an image cannot be made: {error:#}");
    }
    // It says nothing of Backend.AI.
    engine.import(root.path(), IMAGE, &[]).unwrap();

    let host = engine.host();
    let arguments = ["--runtime", "docker", "--docker-network", "none"];
    let up = Up::start_with(
        tempfile::tempdir().unwrap(),
        &arguments,
        &[("DOCKER_HOST", &host)],
    );
    let refused = up.run(&[IMAGE, "-c", "print(6*7)"]);
    assert!(!refused.status.success(), "nobody has added it: {refused:?}");
    let ordinary = add(&up, &up.settings, IMAGE);
    assert!(
        !ordinary.status.success(),
        "it is for administrators: {ordinary:?}"
    );
    let env = command(&up.home)
        .args(["env", "--data-dir"])
        .arg(up.home.path().join("data"))
        .output()
        .unwrap();
    let settings: Vec<(String, String)> = stdout(&env)
        .lines()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
        .collect();
    let added = add(&up, &settings, IMAGE);
    assert_eq!(
        stdout(&added),
        format!("index.docker.io/library/{IMAGE} is in the catalogue\n")
    );
    let run = up.run(&[
        IMAGE,
        "--rm",
        "-c",
        "import os; print(6*7, os.path.exists('/opt/bai/bai-runner'))",
    ]);
    assert_eq!(stdout(&run), "42 True\n");
    assert_eq!(engine.docker(&["ps", "-aq"]).unwrap(), "", "no container is left");
}

fn add(up: &Up, settings: &[(String, String)], image: &str) -> std::process::Output {
    let mut add = command(&up.home);
    add.args(["image", "add", image]).envs(settings.iter().cloned());
    add.output().unwrap()
}

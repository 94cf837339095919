//! The Docker runtime on an engine of its own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bai_agent::Images;
use bai_agent::runtime::docker::{DockerRuntime, Engine, EngineError, Options};
use bai_agent::runtime::{KernelSpec, Runtime};
use bai_model::KernelId;
use bai_proto::agent::{AgentRpc, ImageConfig, RegistryConfig};
use bai_proto::event::{AgentEvent, AgentImage};
use bai_proto::runner::Request;
use bai_testkit::services::registry::{Access, DockerRegistry};
use bai_testkit::services::{Docker, rootfs};

use crate::site::{Site, config, new_id, printed, soon};
use crate::{conform, reach, whole};

const IMAGE: &str = "index.docker.io/library/session:1";
const UNLABELLED: &str = "python-plain:1";
const EMPTY: &str = "empty:1";
const LABELS: [&str; 4] = [
    "LABEL ai.backend.kernelspec=1",
    "LABEL ai.backend.runtime-type=shell",
    "LABEL ai.backend.runtime-path=/bin/sh",
    "LABEL ai.backend.resource.min.mem=128m",
];

/// The static runner: `BAI_RUNNER`, or what the build of `bai` has left in the target directory.
pub fn runner() -> Option<PathBuf> {
    let built = || {
        let exe = std::env::current_exe().ok()?;
        let target = exe.ancestors().nth(3)?;
        let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        Some(target.join("runner").join(triple).join("runner/bai-runner"))
    };
    let found = std::env::var_os("BAI_RUNNER").map(PathBuf::from).or_else(built);
    let found = found.filter(|path| path.is_file());
    if found.is_none() {
        println!(
            "SKIPPED: the Docker runtime, because the static bai-runner is not built (`cargo build -p bai`)"
        );
    }
    found
}

/// An engine with the images of these tests.
fn prepare() -> Option<Docker> {
    let engine = match Docker::start() {
        Ok(engine) => engine,
        Err(missing) => {
            println!("SKIPPED: the Docker runtime, because {missing}");
            return None;
        }
    };
    let dir = tempfile::tempdir().expect("a folder");
    let root = dir.path();
    std::fs::create_dir(root.join("empty")).expect("made");
    let changes: Vec<String> = LABELS.iter().map(|label| (*label).to_owned()).collect();
    engine
        .import(&root.join("empty"), EMPTY, &changes)
        .expect("imported");
    std::fs::create_dir(root.join("shell")).expect("made");
    rootfs::shell(&root.join("shell")).expect("copied");
    engine
        .import(&root.join("shell"), "session:1", &changes)
        .expect("imported");
    if let Err(error) = rootfs::python(&root.join("shell")) {
        println!("SKIPPED: Python in containers, because {error:#}");
    }
    engine
        .import(&root.join("shell"), UNLABELLED, &[])
        .expect("imported");
    Some(engine)
}

/// The engine that tests share which leave it alone. It ends with this process.
pub fn shared() -> Option<&'static Docker> {
    static ENGINE: OnceLock<Option<Docker>> = OnceLock::new();
    ENGINE.get_or_init(prepare).as_ref()
}

pub struct Bench {
    engine: Engine,
    pub options: Options,
    pub spec: KernelSpec,
    dir: tempfile::TempDir,
}

impl Bench {
    pub async fn new(docker: &Docker, index: u32) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a folder");
        let spec = KernelSpec {
            image: IMAGE.to_owned(),
            ..conform::spec(dir.path(), index)
        };
        let run = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(spec.scratch.join("run"), run).expect("set");
        let options = Options {
            network: Some("none".to_owned()),
            ..Options::new(runner()?, dir.path().display().to_string())
        };
        let engine = Engine::connect(Some(&docker.host())).await.expect("it answers");
        Some(Self {
            engine,
            options,
            spec,
            dir,
        })
    }

    pub async fn open(&self) -> DockerRuntime {
        let kept = self.dir.path().join("engine-images.json");
        let opened = DockerRuntime::open(self.engine.clone(), self.options.clone(), kept).await;
        opened.expect("the engine answers")
    }

    fn containers(&self, docker: &Docker) -> String {
        let owner = format!("label=bai.owner={}", self.options.owner);
        docker.docker(&["ps", "-aq", "--filter", &owner]).expect("listed")
    }
}

fn python_config() -> ImageConfig {
    ImageConfig {
        canonical: format!("index.docker.io/library/{UNLABELLED}"),
        ..ImageConfig::default()
    }
}

#[tokio::test]
async fn a_kernel_does_what_every_runtime_must() {
    let Some(docker) = shared() else { return };
    let Some(bench) = Bench::new(docker, 1).await else {
        return;
    };
    let runtime = bench.open().await;
    println!(
        "engine {}; it lacks {:?}",
        bench.engine.version,
        runtime.refusals()
    );
    conform::works_and_is_killed(&runtime, &bench.spec).await;
    conform::restarts_with_its_files(&runtime, &bench.spec).await;
    conform::tells_of_its_end(&runtime, &bench.spec).await;
    conform::says_why_it_does_not_start(&runtime, &bench.spec).await;
    let next = bench.open().await;
    conform::outlives_its_agent(Box::new(runtime), &next, &bench.spec).await;
    assert_eq!(bench.containers(docker), "", "no container is left");
}

#[tokio::test]
async fn a_container_is_measured_by_its_groups_and_not_when_it_has_ended() {
    let Some(docker) = shared() else { return };
    let Some(bench) = Bench::new(docker, 20).await else {
        return;
    };
    let runtime = bench.open().await;
    let id = runtime.start(&bench.spec).await.expect("it starts").container_id;
    let before = runtime.measure(&bench.spec, &id).await.expect("it runs");
    conform::sh(
        &runtime,
        &bench.spec,
        "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done",
    )
    .await;
    let sample = runtime.measure(&bench.spec, &id).await.expect("it runs");
    assert!(sample.cpu > before.cpu, "{before:?}, {sample:?}");
    assert!(
        sample.memory > 0 && sample.memory_peak >= sample.memory,
        "{sample:?}"
    );
    // The engine, which lets everybody wait for its next second, tells nothing of a network without interfaces.
    assert_eq!(sample.network, Some((0, 0)), "the agent has not read it itself");
    docker.docker(&["kill", &id]).expect("killed");
    assert!(
        runtime.measure(&bench.spec, &id).await.is_none(),
        "of one that has ended there are only zeros"
    );
    runtime.kill(&bench.spec, &id).await.expect("removed");
}

#[tokio::test]
async fn want_of_memory_is_named_as_the_reason() {
    let Some(docker) = shared() else { return };
    let Some(bench) = Bench::new(docker, 2).await else {
        return;
    };
    let runtime = bench.open().await;
    if !runtime.refusals().is_empty() {
        println!(
            "SKIPPED: want of memory, because the engine lacks {:?}",
            runtime.refusals()
        );
        return;
    }
    conform::names_want_of_memory(&runtime, &bench.spec).await;
    assert_eq!(bench.containers(docker), "");
}

#[tokio::test]
async fn limits_and_protections_are_really_set() {
    let Some(docker) = shared() else { return };
    let Some(bench) = Bench::new(docker, 3).await else {
        return;
    };
    let runtime = bench.open().await;
    let id = runtime.start(&bench.spec).await.expect("started").container_id;
    let host = docker
        .docker(&["inspect", "--format", "{{json .HostConfig}}", &id])
        .expect("described");
    let host: serde_json::Value = serde_json::from_str(&host).expect("JSON");
    for (field, expected) in [
        ("Memory", serde_json::json!(256 << 20)),
        ("MemorySwap", serde_json::json!(256 << 20)),
        ("CpuQuota", serde_json::json!(100_000)),
        ("CpusetCpus", serde_json::json!("0")),
        ("PidsLimit", serde_json::json!(1024)),
        ("ShmSize", serde_json::json!(128 << 20)),
        ("CapDrop", serde_json::json!(["ALL"])),
        ("Privileged", serde_json::json!(false)),
        ("SecurityOpt", serde_json::json!(["no-new-privileges"])),
    ] {
        assert_eq!(host[field], expected, "{field}");
    }
    let sh = async |command: &str| conform::sh(&runtime, &bench.spec, command).await.0;
    assert_eq!(sh("nproc").await, "1");
    let status = sh("cat /proc/self/status").await;
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_default().trim().to_owned()
    };
    assert_eq!(field("CapEff"), "0000000000000000");
    assert_eq!(field("CapPrm"), "0000000000000000");
    assert_eq!(
        (field("NoNewPrivs").as_str(), field("Seccomp").as_str()),
        ("1", "2")
    );
    assert_eq!(sh("id -un; id -u").await, "work\n9001");
    runtime.kill(&bench.spec, &id).await.expect("killed");
}

#[tokio::test]
async fn a_session_reaches_neither_the_runners_socket_nor_its_first_process() {
    let Some(docker) = shared() else { return };
    let Some(bench) = Bench::new(docker, 4).await else {
        return;
    };
    let runtime = bench.open().await;
    let id = runtime.start(&bench.spec).await.expect("started").container_id;
    let sh = async |command: &str| conform::sh(&runtime, &bench.spec, command).await;
    for attempt in [
        "ls /opt/bai/private",
        "ls /opt/bai/private/run",
        "ls /proc/1/root/opt/bai/private/run",
        "cat /proc/1/mem",
        "echo x > /opt/bai/bai-runner",
        "echo x > /home/config/x",
        "kill -9 1 && ! kill -0 1",
    ] {
        let (said, code) = sh(attempt).await;
        assert_ne!(code, Some(0), "{attempt}: {said}");
    }
    assert_eq!(sh("echo alive").await.0, "alive");
    runtime.kill(&bench.spec, &id).await.expect("killed");
}

#[tokio::test]
async fn the_runner_needs_nothing_of_an_image() {
    let Some(docker) = shared() else { return };
    let Some(mut bench) = Bench::new(docker, 5).await else {
        return;
    };
    bench.spec.image = EMPTY.to_owned();
    let runtime = bench.open().await;
    let id = runtime.start(&bench.spec).await.expect("started").container_id;
    let (_, code) = conform::sh(&runtime, &bench.spec, "true").await;
    assert_ne!(code, Some(0), "there is no shell to run it");
    runtime.kill(&bench.spec, &id).await.expect("killed");
}

#[tokio::test]
async fn images_are_offered_as_they_say_and_others_when_added() {
    let Some(docker) = shared() else { return };
    let Some(mut bench) = Bench::new(docker, 6).await else {
        return;
    };
    let runtime = bench.open().await;
    let images = runtime.images();
    let names = async || {
        let listed = images.list().await.expect("listed");
        listed
            .into_iter()
            .map(|image| image.canonical)
            .collect::<Vec<_>>()
    };
    let offered = names().await;
    assert!(offered.contains(&IMAGE.to_owned()), "{offered:?}");
    assert!(!offered.iter().any(|name| name.contains("plain")), "{offered:?}");
    let added = images.add(UNLABELLED).await.expect("added");
    let has_python = added.labels["ai.backend.runtime-type"] == "python";
    assert_eq!(
        added.digest,
        docker
            .docker(&["image", "inspect", "--format", "{{.Id}}", UNLABELLED])
            .expect("its id")
    );
    assert!(names().await.contains(&added.canonical));
    // Another agent process still offers it, without a look.
    let again = bench.open().await.images().list().await.expect("listed");
    assert!(
        again
            .iter()
            .any(|image| image.canonical == added.canonical && image.labels == added.labels)
    );
    let unknown = images.add("nothing:1").await.expect_err("not there").to_string();
    assert!(unknown.contains("nothing:1"), "{unknown}");
    let local = images
        .find(&python_config())
        .await
        .expect("asked")
        .expect("there");
    if !has_python {
        println!("SKIPPED: a query in an image without labels, because Python could not be copied");
        return;
    }
    bench.spec.image = local.reference;
    bench.spec.runtime_type = local.labels["ai.backend.runtime-type"].clone();
    bench.spec.runtime_path = local.labels.get("ai.backend.runtime-path").cloned();
    let id = runtime.start(&bench.spec).await.expect("started").container_id;
    let mut stream = runtime.connect(&bench.spec).await.expect("the runner accepts");
    let (said, _) = conform::run(&mut *stream, Request::Code("print(6*7)".to_owned())).await;
    assert_eq!(said, "42");
    runtime.kill(&bench.spec, &id).await.expect("killed");
    assert_eq!(bench.containers(docker), "");
}

#[tokio::test]
async fn a_pull_that_fails_names_image_and_registry() {
    let Some(docker) = shared() else { return };
    let Some(bench) = Bench::new(docker, 7).await else {
        return;
    };
    let runtime = bench.open().await;
    let wanted = ImageConfig {
        canonical: "127.0.0.1:1/team/image:3".to_owned(),
        digest: format!("sha256:{}", "0".repeat(64)),
        ..ImageConfig::default()
    };
    assert_eq!(runtime.images().find(&wanted).await.expect("asked"), None);
    let error = runtime
        .images()
        .pull(&wanted)
        .await
        .expect_err("nobody is there")
        .to_string();
    assert!(
        error.contains("127.0.0.1:1/team/image:3 from the registry 127.0.0.1:1:"),
        "{error}"
    );
    assert!(runtime.images().pulls().is_empty());
    // The same image by another name is the one that is meant.
    let id = docker
        .docker(&["image", "inspect", "--format", "{{.Id}}", "session:1"])
        .expect("its id");
    let renamed = ImageConfig {
        digest: id.clone(),
        ..wanted
    };
    let local = runtime
        .images()
        .find(&renamed)
        .await
        .expect("asked")
        .expect("there");
    assert_eq!(local.reference, id);
}

#[tokio::test]
async fn containers_of_kernels_without_folders_are_removed_and_others_are_not() {
    let Some(docker) = shared() else { return };
    let Some(bench) = Bench::new(docker, 8).await else {
        return;
    };
    let runtime = bench.open().await;
    let id = runtime.start(&bench.spec).await.expect("started").container_id;
    let mut lost = bench.spec.clone();
    lost.kernel = KernelId("00000000-0000-4000-8000-00000000dead".parse().expect("an id"));
    lost.scratch = bench.dir.path().join("lost");
    for name in ["work", "config", "run"] {
        std::fs::create_dir_all(lost.scratch.join(name)).expect("directories");
    }
    runtime.start(&lost).await.expect("started");
    std::fs::remove_dir_all(&lost.scratch).expect("removed");
    let next = bench.open().await;
    assert!(next.find(&lost).await.is_none());
    assert!(next.adopt(&bench.spec, &id).await.expect("asked").is_some());
    next.kill(&bench.spec, &id).await.expect("killed");
    assert_eq!(bench.containers(docker), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_restarts_ends_sessions_and_one_that_hangs_hangs_nobody() {
    let Some(docker) = prepare() else { return };
    let Some(bench) = Bench::new(&docker, 9).await else {
        return;
    };
    let runtime = bench.open().await;
    let id = runtime.start(&bench.spec).await.expect("started").container_id;
    docker.pause();
    let late = runtime
        .adopt(&bench.spec, &id)
        .await
        .expect_err("it does not answer")
        .to_string();
    assert!(late.contains("within"), "{late}");
    docker.resume();
    assert!(runtime.adopt(&bench.spec, &id).await.expect("asked").is_some());
    let restart = async {
        tokio::task::block_in_place(|| {
            docker.stop();
            docker.start_again();
        });
    };
    let (reason, ()) = tokio::join!(runtime.wait(&bench.spec, &id), restart);
    assert_eq!(reason, "self-terminated");
    runtime.kill(&bench.spec, &id).await.expect("cleaned up");
    assert_eq!(bench.containers(&docker), "");
    docker.stop();
    let absent = Engine::connect(Some(&docker.host()))
        .await
        .expect_err("it is gone");
    assert!(matches!(absent, EngineError::Absent(_)), "{absent}");
}

/// An image as the manager knows it, which on this engine is another's content.
fn labelled(name: &str, runtime_type: &str, program: &str) -> AgentImage {
    let label = |name: &str, value: &str| (format!("ai.backend.{name}"), value.to_owned());
    AgentImage {
        canonical: format!("index.docker.io/library/{name}"),
        digest: String::new(),
        labels: [
            label("kernelspec", "1"),
            label("runtime-type", runtime_type),
            label("runtime-path", program),
        ]
        .into(),
        aliases: Vec::new(),
        resource_min: Default::default(),
    }
}

impl Bench {
    /// What a whole agent needs.
    async fn whole(&self) -> (Arc<DockerRuntime>, Images) {
        let runtime = Arc::new(self.open().await);
        let images = Images::Engine(runtime.images());
        (runtime, images)
    }
}

#[tokio::test]
async fn work_folders_can_be_in_memory() {
    let Some(docker) = shared() else { return };
    let Some(bench) = Bench::new(docker, 40).await else {
        return;
    };
    let (runtime, images) = bench.whole().await;
    let image = labelled(UNLABELLED, "shell", "/bin/sh");
    whole::life_in_memory(bench.dir.path(), runtime, images, &image).await;
}

#[tokio::test]
async fn an_agent_does_what_managers_ask() {
    let Some(docker) = shared() else { return };
    let Some(bench) = Bench::new(docker, 11).await else {
        return;
    };
    let (runtime, images) = bench.whole().await;
    let image = labelled(UNLABELLED, "shell", "/bin/sh");
    whole::life(bench.dir.path(), runtime.clone(), images.clone(), &image).await;
    if runtime.refusals().is_empty() {
        whole::want_of_memory(bench.dir.path(), runtime, images, &image).await;
    } else {
        println!(
            "SKIPPED: want of memory, because the engine lacks {:?}",
            runtime.refusals()
        );
    }
    assert_eq!(bench.containers(docker), "");
}

#[tokio::test]
async fn a_terminal_is_typed_into_and_outlives_the_agent() {
    let Some(docker) = shared() else { return };
    let Some(bench) = Bench::new(docker, 12).await else {
        return;
    };
    let (runtime, images) = bench.whole().await;
    let image = labelled(UNLABELLED, "shell", "/bin/sh");
    reach::terminal(bench.dir.path(), runtime, images, &image).await;
    assert_eq!(bench.containers(docker), "");
}

#[tokio::test]
async fn services_are_reached_by_their_ports() {
    let Some(docker) = shared() else { return };
    let Some(bench) = Bench::new(docker, 13).await else {
        return;
    };
    let (runtime, images) = bench.whole().await;
    let image = runtime.images().add(UNLABELLED).await.expect("added");
    if image.labels["ai.backend.runtime-type"] != "python" {
        println!("SKIPPED: services in containers, because Python could not be copied");
        return;
    }
    reach::ports(bench.dir.path(), runtime.clone(), images.clone(), &image).await;
    reach::services(bench.dir.path(), runtime, images, &image).await;
    assert_eq!(bench.containers(docker), "");
}

#[tokio::test]
async fn a_private_registrys_image_is_pulled_with_the_credentials_of_the_manager() {
    let Some(docker) = shared() else { return };
    let Some(bench) = Bench::new(docker, 14).await else {
        return;
    };
    let (runtime, images) = bench.whole().await;
    let (folder, stored) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let start = |access: &Access| {
        let folder = folder.path().join(format!("{access:?}").len().to_string());
        std::fs::create_dir_all(&folder).expect("made");
        DockerRegistry::start(&folder, stored.path(), access, None).expect("it listens")
    };
    let Some(open) = start(&Access::Anybody) else {
        return;
    };
    let access = Access::Basic {
        username: "somebody".to_owned(),
        password: "s3cret".to_owned(),
    };
    let private = start(&access).expect("the open one has started");
    let named =
        |registry: &DockerRegistry| format!("{}/team/private:1", registry.url.trim_start_matches("http://"));
    // Its content is the shell's, and its id is its own.
    let source = named(&open);
    let id = docker
        .docker(&["create", "session:1", "/bin/sh"])
        .expect("created");
    docker
        .docker(&["commit", "--change", "LABEL private=yes", &id, &source])
        .expect("made");
    docker.docker(&["rm", &id]).expect("removed");
    let digest = docker
        .docker(&["image", "inspect", "--format", "{{.Id}}", &source])
        .expect("its id");
    docker.docker(&["push", &source]).expect("pushed");
    docker.docker(&["rmi", &source]).expect("removed");

    let mut site = Site::start(bench.dir.path(), runtime, images).await;
    let mut wanted = config(&labelled("unused:1", "shell", "/bin/sh"));
    wanted.image.canonical = named(&private);
    wanted.image.digest = digest;
    wanted.image.registry = RegistryConfig {
        name: named(&private).split('/').next().expect("a name").to_owned(),
        url: private.url.clone(),
        username: Some("somebody".to_owned()),
        password: Some("wrong".to_owned()),
    };
    let kernel = new_id();
    let refused = soon(site.agent.create_kernel(kernel, wanted.clone())).await;
    let refused = refused.expect_err("a wrong password").repr();
    assert!(
        refused.contains("team/private:1") && !refused.contains("wrong"),
        "{refused}"
    );
    wanted.image.registry.password = Some("s3cret".to_owned());
    soon(site.agent.create_kernel(kernel, wanted))
        .await
        .expect("pulled");
    let told = async {
        loop {
            if let AgentEvent::KernelPulling { image, .. } = site.events.recv().await.expect("an event") {
                return image;
            }
        }
    };
    assert_eq!(soon(told).await, named(&private));
    assert_eq!(printed(&site.query(kernel, "echo here").await), "here\n");
    site.agent.destroy_kernel(kernel).await.expect("destroyed");
    assert_eq!(bench.containers(docker), "");
}

#[tokio::test]
async fn an_agent_that_is_not_root_runs_sessions_as_itself() {
    const NOBODY: u32 = 65534;
    let Some(docker) = shared() else { return };
    let Some(runner) = runner() else { return };
    if std::process::Command::new("setpriv")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("SKIPPED: an agent that is not root, because there is no setpriv");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let open = |path: &Path, mode: u32| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).expect("set");
    };
    // What nobody may read and run.
    let (own, copied) = (dir.path().join("test"), dir.path().join("bai-runner"));
    std::fs::copy(std::env::current_exe().expect("this program"), &own).expect("copied");
    std::fs::copy(runner, &copied).expect("copied");
    let data = dir.path().join("data");
    std::fs::create_dir(&data).expect("made");
    std::os::unix::fs::chown(&data, Some(NOBODY), Some(NOBODY)).expect("given");
    open(dir.path(), 0o755);
    let socket = docker.socket();
    open(socket.parent().expect("a folder"), 0o755);
    open(&socket, 0o666);
    let inner = tokio::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(own)
        .args([
            "docker::as_somebody_who_is_not_root",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env("BAI_RUNNER", copied)
        .env("BAI_TEST_ENGINE", docker.host())
        .env("BAI_TEST_DATA", &data)
        .output();
    let inner = soon(inner).await.expect("run");
    let said = String::from_utf8_lossy(&inner.stdout);
    assert!(
        inner.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&inner.stderr)
    );
}

#[tokio::test]
#[ignore = "the test before runs it as another user"]
async fn as_somebody_who_is_not_root() {
    let variable = |name: &str| std::env::var(name).expect(name);
    let data = PathBuf::from(variable("BAI_TEST_DATA"));
    assert!(!nix::unistd::geteuid().is_root());
    let engine = Engine::connect(Some(&variable("BAI_TEST_ENGINE")))
        .await
        .expect("it answers");
    let options = Options {
        network: Some("none".to_owned()),
        ..Options::new(runner().expect("given"), data.display().to_string())
    };
    let opened = DockerRuntime::open(engine, options, data.join("engine-images.json")).await;
    let runtime = Arc::new(opened.expect("the engine answers"));
    let images = Images::Engine(runtime.images());
    let image = labelled(UNLABELLED, "shell", "/bin/sh");
    whole::life(&data, runtime.clone(), images.clone(), &image).await;
    reach::terminal(&data, runtime, images, &image).await;
}

/// What our runner and protocol add to the engine's own work. Prints, and asserts nothing about time.
#[tokio::test]
async fn create_to_first_output_is_measured_against_docker_alone() {
    let Some(docker) = shared() else { return };
    let Some(bench) = Bench::new(docker, 10).await else {
        return;
    };
    let runtime = bench.open().await;
    let (mut ours, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..9 {
        let begun = Instant::now();
        let id = runtime.start(&bench.spec).await.expect("started").container_id;
        assert_eq!(conform::sh(&runtime, &bench.spec, "echo 42").await.0, "42");
        ours.push(begun.elapsed());
        runtime.kill(&bench.spec, &id).await.expect("killed");
        alone.push(docker_alone(&bench.engine).await);
    }
    ours.sort();
    alone.sort();
    println!(
        "create to first output: ours {:?}, Docker alone {:?} (medians of 9)",
        ours[4], alone[4]
    );
}

async fn docker_alone(engine: &Engine) -> std::time::Duration {
    use bollard::models::{ContainerCreateBody, HostConfig};
    use bollard::query_parameters::{
        AttachContainerOptionsBuilder, CreateContainerOptions, RemoveContainerOptionsBuilder,
        StartContainerOptions,
    };
    use futures_util::StreamExt;
    let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
    let body = ContainerCreateBody {
        image: Some(IMAGE.to_owned()),
        cmd: words(&["/bin/sh", "-c", "echo 42"]),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let begun = Instant::now();
    let made = engine
        .api
        .create_container(None::<CreateContainerOptions>, body)
        .await
        .expect("created");
    let options = AttachContainerOptionsBuilder::new()
        .stream(true)
        .stdout(true)
        .build();
    let mut attached = engine
        .api
        .attach_container(&made.id, Some(options))
        .await
        .expect("attached");
    engine
        .api
        .start_container(&made.id, None::<StartContainerOptions>)
        .await
        .expect("started");
    let first = attached.output.next().await.expect("output").expect("readable");
    assert_eq!(first.to_string().trim(), "42");
    let taken = begun.elapsed();
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    engine
        .api
        .remove_container(&made.id, Some(options))
        .await
        .expect("removed");
    taken
}

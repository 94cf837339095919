//! Sessions as an agent of 19.06 starts them (`agent-protocol.md` 6.9, 6.10, 7.7): folder, files, companion and container,
//! with the published runner of its time inside.
//!
//! What differs from the original: the runner is the stand-alone 1.4.2, because the one that the agent brings along is in no
//! package; the entry point makes no user in the image, but becomes it; there is neither jail nor hook.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{Docker, Missing, rootfs};

/// What users choose, and where the runner's programs come from.
pub const IMAGE: &str = "index.docker.io/lablup/python:3.6-ubuntu18.04";
const RUNNER_IMAGE: &str = "lablup/backendai-krunner-env:19.06.0-ubuntu16.04";

const ENTRYPOINT: &str = r#"#!/bin/sh
export HOME=/home/work LD_LIBRARY_PATH=/opt/backend.ai/lib
exec /opt/backend.ai/bin/python -c 'import os, sys; os.setgid(9001); os.setuid(9001); os.execv(sys.argv[1], sys.argv[1:])' "$@"
"#;

/// An engine on which an agent of 19.06 has sessions.
#[derive(Debug)]
pub struct OriginalAgent<'a> {
    docker: &'a Docker,
    scratch_root: PathBuf,
    /// What it mounts into containers.
    programs: TempDir,
}

/// What a session has.
#[derive(Clone, Debug)]
pub struct OriginalSession {
    /// Its kernel's id.
    pub kernel: String,
    /// Host ports of 2000, 2001 and of the service `web` at 8000.
    pub ports: [u16; 3],
    /// Host folder of the virtual folder `data`.
    pub folder: Option<PathBuf>,
    pub idle_timeout: u64,
}

impl<'a> OriginalAgent<'a> {
    /// Makes the images.
    ///
    /// # Errors
    /// [`Missing`] when the published runner is not installed, or no image can be made.
    pub fn on(docker: &'a Docker, scratch_root: &Path) -> Result<Self, Missing> {
        let environment = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/interop/runner-19.06");
        if !environment.join("stamp").exists() {
            let why = "target/interop/runner-19.06 has not been made (`cargo xtask test` makes it, with Python 3.6)";
            return Err(Missing(why.to_owned()));
        }
        let make = || -> Result<TempDir> {
            let root = TempDir::new()?;
            rootfs::original_runner(root.path(), &environment)?;
            docker.import(root.path(), RUNNER_IMAGE, &["VOLUME /opt/backend.ai".to_owned()])?;
            let root = TempDir::new()?;
            rootfs::shell(root.path())?;
            rootfs::python(root.path())?;
            let labels = [
                "LABEL ai.backend.kernelspec=1",
                "LABEL ai.backend.runtime-type=python",
                "LABEL ai.backend.runtime-path=/usr/bin/python3",
                "LABEL ai.backend.service-ports=web:http:8000",
            ];
            docker.import(root.path(), IMAGE, &labels.map(str::to_owned))?;
            let programs = TempDir::with_prefix("bai-original-")?;
            let entrypoint = programs.path().join("entrypoint.sh");
            fs::write(&entrypoint, ENTRYPOINT)?;
            fs::set_permissions(&entrypoint, PermissionsExt::from_mode(0o755))?;
            Ok(programs)
        };
        Ok(Self {
            docker,
            scratch_root: scratch_root.to_owned(),
            programs: make().map_err(|error| Missing(format!("the images cannot be made: {error:#}")))?,
        })
    }

    /// Starts a session with a core and 256 MiB; its container's id.
    ///
    /// # Errors
    /// When the engine does not.
    pub fn start(&self, session: &OriginalSession) -> Result<String> {
        let kernel = &session.kernel;
        let scratch = self.scratch_root.join(kernel);
        fs::create_dir_all(scratch.join("work/.jupyter")).context("make the folder")?;
        fs::create_dir_all(scratch.join("config"))?;
        for folder in [scratch.join("work"), scratch.join("work/.jupyter")] {
            std::os::unix::fs::chown(folder, Some(9001), Some(9001))?;
        }
        let mounts = session
            .folder
            .as_ref()
            .map(|folder| format!("{}:/home/work/data:rw", folder.display()));
        let record = |id: &str| {
            format!(
                "CID={id}\nSCRATCH_SIZE=0m\nMOUNTS={}\nSLOTS={{\"cpu\": \"1\", \"mem\": \"268435456\"}}\nIDLE_TIMEOUT={}\n\
                 CPU_SHARES=0:1\nMEM_SHARES=root:256m\n",
                mounts.as_deref().unwrap_or_default(),
                session.idle_timeout
            )
        };
        fs::write(scratch.join("config/environ.txt"), "GREETING=hello\n")?;
        fs::write(scratch.join("config/resource.txt"), record("None"))?;
        let companion = format!("kernel-env.{kernel}");
        self.docker
            .docker(&["create", "--name", &companion, RUNNER_IMAGE, "/bin/true"])?;
        let binds = [
            format!("{}/config:/home/config:ro", scratch.display()),
            format!("{}/work:/home/work/:rw", scratch.display()),
            format!(
                "{}/entrypoint.sh:/opt/backend.ai/bin/entrypoint.sh:ro",
                self.programs.path().display()
            ),
        ];
        let [input, output, web] = session.ports;
        let ports = [(input, 2000), (output, 2001), (web, 8000)]
            .map(|(outside, inside)| format!("0.0.0.0:{outside}:{inside}"));
        let name = format!("kernel.python.{kernel}");
        let mut create = vec![
            "create",
            "--name",
            &name,
            "--tty",
            "--interactive",
            "--init",
            "--stop-signal",
            "SIGINT",
        ];
        create.extend(["--volumes-from", &companion, "--workdir", "/home/work"]);
        create.extend([
            "--cpu-period",
            "100000",
            "--cpu-quota",
            "100000",
            "--cpuset-cpus",
            "0",
        ]);
        create.extend(["--memory", "268435456", "--memory-swap", "268435456"]);
        create.extend([
            "--env",
            "GREETING=hello",
            "--env",
            "LD_PRELOAD=/opt/backend.ai/hook/libbaihook.so",
        ]);
        create.extend(["--entrypoint", "/opt/backend.ai/bin/entrypoint.sh"]);
        for bind in binds.iter().chain(&mounts) {
            create.extend(["--volume", bind]);
        }
        for port in &ports {
            create.extend(["--publish", port]);
        }
        create.extend([
            IMAGE,
            "/opt/backend.ai/bin/python",
            "-m",
            "ai.backend.kernel",
            "python",
        ]);
        let id = self.docker.docker(&create)?;
        let id = id.lines().last().unwrap_or_default().to_owned();
        fs::write(scratch.join("config/resource.txt"), record(&id))?;
        self.docker.docker(&["start", &id])?;
        Ok(id)
    }
}

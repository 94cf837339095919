//! Root file systems for images, copied from the programs of this host.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Beside the shell, what the tests' commands call.
const PROGRAMS: [&str; 10] = [
    "cat", "head", "id", "ls", "nproc", "sleep", "tail", "wc", "grep", "kill",
];

/// A shell and a few programs.
///
/// # Errors
/// When one of them is not on this host.
pub fn shell(root: &Path) -> Result<()> {
    copy_program(Path::new("/bin/sh"), root, "bin/sh")?;
    for name in PROGRAMS {
        copy_program(
            &Path::new("/usr/bin").join(name),
            root,
            &format!("usr/bin/{name}"),
        )
        .or_else(|_| copy_program(&Path::new("/bin").join(name), root, &format!("usr/bin/{name}")))?;
    }
    for folder in ["tmp", "etc"] {
        fs::create_dir_all(root.join(folder))?;
    }
    Ok(fs::set_permissions(
        root.join("tmp"),
        std::os::unix::fs::PermissionsExt::from_mode(0o1777),
    )?)
}

/// The system's Python, without what no test imports.
///
/// # Errors
/// When it is not on this host.
pub fn python(root: &Path) -> Result<()> {
    let program = fs::canonicalize("/usr/bin/python3").context("there is no /usr/bin/python3")?;
    copy_program(&program, root, "usr/bin/python3")?;
    let name = program
        .file_name()
        .and_then(|name| name.to_str())
        .context("its name")?;
    let library = Path::new("/usr/lib").join(name);
    let target = root.join("usr/lib").join(name);
    copy_folder(
        &library,
        &target,
        &[
            "__pycache__",
            "test",
            "dist-packages",
            "config-3.11-x86_64-linux-gnu",
        ],
    )?;
    for entry in fs::read_dir(library.join("lib-dynload"))? {
        copy_libraries(&entry?.path(), root)?;
    }
    Ok(())
}

fn copy_program(program: &Path, root: &Path, target: &str) -> Result<()> {
    copy(program, &root.join(target))?;
    copy_libraries(program, root)
}

/// The libraries that the loader would load, and the loader.
fn copy_libraries(program: &Path, root: &Path) -> Result<()> {
    let listed = Command::new("ldd").arg(program).output().context("run ldd")?;
    for word in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
        if let Some(relative) = word.strip_prefix('/') {
            let target = root.join(relative);
            if !target.exists() {
                copy(Path::new(word), &target)?;
            }
        }
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path, without: &[&str]) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if without.iter().any(|other| name == *other) {
            continue;
        }
        let (from, to) = (entry.path(), to.join(&name));
        match fs::metadata(&from) {
            Ok(meta) if meta.is_dir() => copy_folder(&from, &to, without)?,
            Ok(_) => copy(&from, &to)?,
            // A link that leads nowhere.
            Err(_) => {}
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a folder")?;
    fs::create_dir_all(folder)?;
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    ensure!(to.exists(), "{} was not copied", to.display());
    Ok(())
}

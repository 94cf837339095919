//! Root file systems for images, copied from the programs of this host.

use std::fs;
use std::path::{Path, PathBuf};
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

/// Packages that no test of containers imports, most of them large.
const LEFT_OUT: [&str; 14] = [
    "__pycache__",
    "PIL",
    "contourpy",
    "debugpy",
    "fontTools",
    "kiwisolver",
    "matplotlib",
    "mpl_toolkits",
    "numpy",
    "numpy.libs",
    "pillow.libs",
    "pip",
    "setuptools",
    "tests",
];

/// A Jupyter kernel for [`python`], out of the environment that `cargo xtask test` makes, where pip would install it.
pub fn kernel(root: &Path) -> Result<()> {
    let environment = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/interop/jupyter");
    let program = fs::canonicalize("/usr/bin/python3").context("there is no /usr/bin/python3")?;
    let version = program
        .file_name()
        .and_then(|name| name.to_str())
        .context("its name")?;
    let packages = environment.join("lib").join(version).join("site-packages");
    ensure!(
        packages.exists(),
        "target/interop/jupyter has not been made for {version} (`cargo xtask test` makes it)"
    );
    let local = root.join("usr/local");
    copy_folder(
        &packages,
        &local.join("lib").join(version).join("dist-packages"),
        &LEFT_OUT,
    )?;
    copy_folder(
        &environment.join("share/jupyter"),
        &local.join("share/jupyter"),
        &[],
    )?;
    for library in libraries(&packages) {
        copy_libraries(&library, root)?;
    }
    Ok(())
}

/// The runner of an agent of 19.06 with a Python of its own, as the original's image for it has them, below
/// `opt/backend.ai`. `environment` is a virtual environment with the published package.
///
/// # Errors
/// When its Python is not to be found.
pub fn original_runner(root: &Path, environment: &Path) -> Result<()> {
    let program = fs::canonicalize(environment.join("bin/python")).context("there is no bin/python in it")?;
    let home = program.ancestors().nth(2).context("where it is installed")?;
    let opt = root.join("opt/backend.ai");
    copy(&program, &opt.join("bin/python"))?;
    let (library, packages) = ("lib/python3.6", "lib/python3.6/site-packages");
    let left_out = [
        "__pycache__",
        "test",
        "tests",
        "site-packages",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "tkinter",
    ];
    copy_folder(&home.join(library), &opt.join(library), &left_out)?;
    copy_folder(
        &environment.join(packages),
        &opt.join(packages),
        &["__pycache__", "pip", "setuptools"],
    )?;
    // All in one folder, which the entry point names to the loader.
    for needing in libraries(&opt).iter().chain([&program]) {
        let listed = Command::new("ldd").arg(needing).output().context("run ldd")?;
        for needed in String::from_utf8_lossy(&listed.stdout)
            .split_whitespace()
            .map(Path::new)
        {
            let name = needed
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if needed.is_absolute() && !name.starts_with("ld-linux") {
                copy(needed, &opt.join("lib").join(name))?;
            }
        }
    }
    Ok(())
}

/// Compiled modules below a folder.
fn libraries(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            found.extend(libraries(&path));
        } else if path.extension().is_some_and(|extension| extension == "so") {
            found.push(path);
        }
    }
    found
}

/// A system without glibc: the loader and library of musl, a shell that needs neither, and `program`, compiled from C.
pub fn musl(root: &Path, program: &str) -> Result<()> {
    let busybox = Path::new("/usr/bin/busybox");
    let needs = Command::new("ldd").arg(busybox).output().context("run ldd")?;
    ensure!(
        busybox.exists() && needs.stdout.is_empty(),
        "there is no static busybox (Debian's busybox-static)"
    );
    copy(busybox, &root.join("bin/busybox"))?;
    for name in ["sh", "cat", "grep", "id", "ls", "sleep", "touch", "true"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
    }
    let library = Path::new("/lib/x86_64-linux-musl/libc.so");
    ensure!(
        library.exists(),
        "there is no {} (Debian's musl-tools)",
        library.display()
    );
    copy(library, &root.join("lib/ld-musl-x86_64.so.1"))?;
    fs::create_dir_all(root.join("tmp"))?;
    let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    fs::set_permissions(root.join("tmp"), anybody)?;
    compile("musl-gcc", &[], program, &root.join("bin/ask"))
}

/// Nothing but one static program, compiled from C.
pub fn scratch(root: &Path, program: &str) -> Result<()> {
    compile("gcc", &["-static"], program, &root.join("app"))
}

fn compile(compiler: &str, options: &[&str], program: &str, target: &Path) -> Result<()> {
    let source = target.with_extension("c");
    fs::write(&source, program)?;
    let output = Command::new(compiler)
        .args(options)
        .args([Path::new("-o"), target, &source])
        .output()
        .with_context(|| format!("run {compiler}"))?;
    fs::remove_file(&source)?;
    ensure!(
        output.status.success(),
        "{compiler}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
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

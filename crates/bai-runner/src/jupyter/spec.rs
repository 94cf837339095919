//! Which Jupyter kernel an image has for its language: descriptions (kernelspecs) are looked for as files, where Jupyter
//! looks for them, so that no interpreter has to start for that.
//!
//! Invariants: the same image gives the same kernel; what belongs to another interpreter than the session's is not taken;
//! a description that cannot be read or whose program is missing is none.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use serde_json::Value;

use crate::lang::Runtime;
use crate::languages;

/// Bytes of a description.
const MAX_SPEC: u64 = 64 << 10;
/// How long an interpreter may take to say where it is installed.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a kernel is started and interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The name of its folder.
    pub name: String,
    /// The program and its arguments, `{connection_file}` among them.
    pub argv: Vec<String>,
    pub environ: Vec<(String, String)>,
    /// By a message; by SIGINT else.
    pub is_interrupted_by_message: bool,
}

/// The kernel for the session's language, if the image has one.
pub fn find(runtime: &Runtime) -> Option<Spec> {
    let word = runtime.language.kernelspec?;
    folders(runtime)
        .iter()
        .find_map(|folder| find_in(folder, word, runtime))
}

/// The best of a folder: `word3` or `word` itself, else the shortest name that contains it.
fn find_in(folder: &Path, word: &str, runtime: &Runtime) -> Option<Spec> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.to_lowercase().contains(word))
        .collect();
    let is_usual = |name: &str| name == word || name.strip_prefix(word) == Some("3");
    names.sort_by_key(|name| (!is_usual(name), name.len(), name.clone()));
    names
        .iter()
        .find_map(|name| read(&folder.join(name), name, runtime))
}

/// Where Jupyter keeps descriptions: where it is told, in the user's folder, at the interpreter's place, the system's.
fn folders(runtime: &Runtime) -> Vec<PathBuf> {
    let variable = |name: &str| runtime.environ.get(name).filter(|value| !value.is_empty());
    let mut roots: Vec<PathBuf> = Vec::new();
    if let Some(path) = variable("JUPYTER_PATH") {
        roots.extend(std::env::split_paths(path));
    }
    roots.extend(match (variable("JUPYTER_DATA_DIR"), variable("HOME")) {
        (Some(folder), _) => Some(PathBuf::from(folder)),
        (None, Some(home)) => Some(Path::new(home).join(".local/share/jupyter")),
        (None, None) => None,
    });
    let prefix = program(&runtime.path, runtime).and_then(|program| prefix(&program, runtime));
    let is_system = prefix.as_deref() == Some(Path::new("/usr"));
    let mut prefixes: Vec<PathBuf> = Vec::new();
    // Debian's Python installs there; other Pythons have nothing to do with it, other languages have no other place.
    if is_system || runtime.language.name != "python" {
        prefixes.push("/usr/local".into());
    }
    if runtime.language.name != "python" {
        prefixes.push("/usr".into());
    }
    prefixes.splice(0..0, prefix);
    roots.extend(prefixes.iter().map(|prefix| prefix.join("share/jupyter")));
    roots.retain(|root| root.is_absolute());
    roots.iter().map(|root| root.join("kernels")).collect()
}

/// Where an interpreter is installed, as Python itself finds out.
fn prefix(program: &Path, runtime: &Runtime) -> Option<PathBuf> {
    let above = |program: &Path| Some(program.parent()?.parent()?.to_owned());
    let is_environment = |folder: Option<&Path>| folder.is_some_and(|at| at.join("pyvenv.cfg").exists());
    if is_environment(program.parent()) || is_environment(above(program).as_deref()) {
        return above(program);
    }
    let program = fs::canonicalize(program).ok()?;
    let mut start = [0; 2];
    let is_script = File::open(&program)
        .and_then(|mut file| file.read_exact(&mut start))
        .is_ok_and(|()| start == *b"#!");
    match is_script && runtime.language.name == "python" {
        true => ask_for_prefix(&program, runtime),
        false => above(&program),
    }
}

/// A script in the place of an interpreter (of a version manager) knows alone which one it starts.
fn ask_for_prefix(program: &Path, runtime: &Runtime) -> Option<PathBuf> {
    let mut child = Command::new(program)
        .args(["-c", "import sys; print(sys.prefix)"])
        .env_clear()
        .envs(&runtime.environ)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let (deadline, mut said) = (Instant::now() + PATIENCE, Vec::new());
    if let Some(mut stdout) = child.stdout.take() {
        while said.len() < 4096 {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            let mut polled = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
            let is_ready = poll(&mut polled, u16::try_from(left).unwrap_or(u16::MAX));
            let mut chunk = [0; 1024];
            match is_ready {
                Ok(1..) => match stdout.read(&mut chunk) {
                    Ok(count @ 1..) => said.extend_from_slice(&chunk[..count]),
                    _ => break,
                },
                Err(nix::Error::EINTR) => {}
                _ => break,
            }
        }
    }
    _ = child.kill();
    _ = child.wait();
    let line = String::from_utf8(said).ok()?;
    Some(PathBuf::from(line.strip_suffix('\n')?)).filter(|prefix| prefix.is_absolute())
}

/// Reads `kernel.json`; `None` when it is not usable here.
fn read(folder: &Path, name: &str, runtime: &Runtime) -> Option<Spec> {
    let mut text = String::new();
    let file = File::open(folder.join("kernel.json")).ok()?;
    file.take(MAX_SPEC).read_to_string(&mut text).ok()?;
    let spec: Value = serde_json::from_str(&text).ok()?;
    let is_other = |language: &str| !language.eq_ignore_ascii_case(runtime.language.name);
    if spec["language"].as_str().is_some_and(is_other) {
        return None;
    }
    let words = spec["argv"].as_array()?.iter();
    let mut argv: Vec<String> = words
        .map(|word| Some(word.as_str()?.replace("{resource_dir}", folder.to_str()?)))
        .collect::<Option<_>>()?;
    if !argv.iter().any(|word| word.contains("{connection_file}")) {
        return None;
    }
    let first = match argv.first()?.as_str() {
        // Jupyter means the Python that it runs on itself.
        word if runtime.language.name == "python" && is_any_python(word) => &runtime.path,
        word => word,
    };
    argv[0] = program(first, runtime)?.to_str()?.to_owned();
    let environ = spec["env"].as_object().into_iter().flatten();
    Some(Spec {
        name: name.to_owned(),
        argv,
        environ: environ
            .filter_map(|(name, value)| Some((name.clone(), substituted(value.as_str()?, runtime))))
            .collect(),
        is_interrupted_by_message: spec["interrupt_mode"] == "message",
    })
}

fn is_any_python(word: &str) -> bool {
    let version = word.strip_prefix("python");
    version.is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
}

fn program(name: &str, runtime: &Runtime) -> Option<PathBuf> {
    let path = runtime
        .environ
        .get("PATH")
        .map(String::as_str)
        .unwrap_or_default();
    languages::find(name, path.as_ref())
}

/// `${NAME}` becomes the session's variable, where there is one.
fn substituted(text: &str, runtime: &Runtime) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        result.push_str(before);
        let known = after
            .split_once('}')
            .and_then(|(name, after)| Some((runtime.environ.get(name)?, after)));
        match known {
            Some((value, after)) => {
                result.push_str(value);
                rest = after;
            }
            None => {
                result.push_str("${");
                rest = after;
            }
        }
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use serde_json::json;

    use super::*;

    struct Image {
        dir: tempfile::TempDir,
        environ: BTreeMap<String, String>,
    }

    impl Image {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a folder");
            let image = Self {
                environ: BTreeMap::from([("HOME".to_owned(), dir.path().join("home").display().to_string())]),
                dir,
            };
            image.program("opt/bin/python3.11", "no interpreter");
            symlink("python3.11", image.dir.path().join("opt/bin/python3")).expect("a link");
            image
        }

        fn program(&self, name: &str, text: &str) -> String {
            let path = self.dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
            path.display().to_string()
        }

        fn describe(&self, root: &str, name: &str, spec: &Value) {
            let folder = self.dir.path().join(root).join("kernels").join(name);
            fs::create_dir_all(&folder).expect("made");
            fs::write(folder.join("kernel.json"), spec.to_string()).expect("written");
        }

        fn find(&self, program: &str) -> Option<Spec> {
            let path = self.dir.path().join(program).display().to_string();
            find(&Runtime::new("python", Some(&path), &self.environ))
        }
    }

    fn generic() -> Value {
        json!({"argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"})
    }

    #[test]
    fn kernels_are_found_at_the_interpreters_place() {
        let image = Image::new();
        assert_eq!(image.find("opt/bin/python3"), None);
        image.describe("opt/share/jupyter", "python3", &generic());
        let spec = image.find("opt/bin/python3").expect("found");
        assert_eq!(
            (spec.name.as_str(), spec.is_interrupted_by_message),
            ("python3", false)
        );
        assert!(spec.argv[0].ends_with("opt/bin/python3"), "{spec:?}");
        // An environment of that Python is another place, and another interpreter.
        fs::create_dir_all(image.dir.path().join("venv/bin")).expect("made");
        symlink(
            image.dir.path().join("opt/bin/python3"),
            image.dir.path().join("venv/bin/python"),
        )
        .expect("a link");
        fs::write(image.dir.path().join("venv/pyvenv.cfg"), "").expect("written");
        assert_eq!(image.find("venv/bin/python"), None);
        // A script is asked.
        let prefix = image.dir.path().join("opt");
        image.program("shims/python", &format!("#!/bin/sh\necho {}\n", prefix.display()));
        let spec = image.find("shims/python").expect("found");
        assert!(spec.argv[0].ends_with("shims/python"), "{spec:?}");
        image.program("shims/python", "#!/bin/sh\nexec sleep 1000\n");
    }

    #[test]
    fn the_users_kernels_and_those_that_are_named_come_first() {
        let mut image = Image::new();
        image.describe("opt/share/jupyter", "python3", &generic());
        image.describe("home/.local/share/jupyter", "my-python", &generic());
        assert_eq!(image.find("opt/bin/python3").expect("found").name, "my-python");
        image.describe("named", "python-special", &generic());
        let named = image.dir.path().join("named").display().to_string();
        image
            .environ
            .insert("JUPYTER_PATH".to_owned(), format!("relative:{named}"));
        assert_eq!(
            image.find("opt/bin/python3").expect("found").name,
            "python-special"
        );
    }

    #[test]
    fn what_is_not_usable_is_passed_over() {
        let image = Image::new();
        let root = "opt/share/jupyter";
        let with = |argv: Value, language: &str| json!({"argv": argv, "language": language});
        image.describe(
            root,
            "python",
            &with(json!(["/nonexistent/python", "{connection_file}"]), "python"),
        );
        image.describe(root, "python3", &with(json!(["python3"]), "python"));
        image.describe(
            root,
            "xpython",
            &with(json!(["python3", "{connection_file}"]), "xonsh"),
        );
        image.describe(root, "python4", &json!("nonsense"));
        image.describe(root, "python5", &with(json!([5, "{connection_file}"]), "python"));
        assert_eq!(image.find("opt/bin/python3"), None);
        image.describe(root, "python-long", &generic());
        image.describe(root, "python2", &generic());
        assert_eq!(image.find("opt/bin/python3").expect("found").name, "python2");
        let other = Runtime::new("c", Some("/usr/bin/gcc"), &image.environ);
        assert_eq!(find(&other), None);
    }

    #[test]
    fn descriptions_have_variables_and_modes() {
        let mut image = Image::new();
        image.environ.insert("A".to_owned(), "${B}".to_owned());
        let mut spec = generic();
        spec["env"] = json!({"X": "<${A}${Y}$", "Z": 5});
        spec["interrupt_mode"] = json!("message");
        spec["argv"]
            .as_array_mut()
            .expect("words")
            .push(json!("{resource_dir}/x"));
        image.describe("opt/share/jupyter", "python3", &spec);
        let spec = image.find("opt/bin/python3").expect("found");
        assert_eq!(spec.environ, [("X".to_owned(), "<${B}${Y}$".to_owned())]);
        assert!(spec.is_interrupted_by_message);
        assert!(spec.argv.last().expect("words").ends_with("kernels/python3/x"));
    }
}

//! `bai run`: code or files in a session, on the configured endpoint or, with none, on a stack inside this process.

use std::fs;
use std::io::{self, BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bai_model::random::Random;
use bai_model::{SecretKey, SessionName};
use reqwest::Method;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::configured_client;
use crate::client::{Client, RunStream, next_frame, send_text};
use crate::output::{line, raw, raw_error, say};
use crate::sessions::RuntimeChoice;
use crate::system::SystemRandom;
use crate::wire::{EmbeddedOptions, Stack, StackOptions};

const EXAMPLES: &str = "\
Examples:
  bai run python -c 'print(6*7)'
  bai run python main.py helper.py --exec 'python3 main.py'
  bai run c main.c                                 build and run with the language's defaults
  bai run -e NAME=value -r cpu=1 -r mem=512m shell -c 'echo $NAME'

With BACKEND_ENDPOINT, BACKEND_ACCESS_KEY and BACKEND_SECRET_KEY set, the session is made there;
otherwise on this machine, without a server, and ended afterwards.";

/// Files in one upload request.
const FILES_PER_UPLOAD: usize = 20;
/// What takes longer than this is worth a word.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Image or alias: python, shell, c, ...
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Files to upload and run in batch mode
    #[arg(value_name = "FILE", conflicts_with = "code")]
    files: Vec<PathBuf>,
    /// Code to run in query mode
    #[arg(short, long, value_name = "CODE")]
    code: Option<String>,
    /// Clean command before the build; `*` for the language's default
    #[arg(long, value_name = "COMMAND", requires = "files")]
    clean: Option<String>,
    /// Build command [default: the language's]
    #[arg(long, value_name = "COMMAND", requires = "files")]
    build: Option<String>,
    /// Command to run [default: the language's]
    #[arg(long, value_name = "COMMAND", requires = "files")]
    exec: Option<String>,
    /// Folder that the files' paths are relative to
    #[arg(long, value_name = "DIR", default_value = ".")]
    basedir: PathBuf,
    /// Environment variable of the session; may be repeated
    #[arg(short = 'e', long = "env", value_name = "NAME=VALUE")]
    environ: Vec<String>,
    /// Resources of the session, such as cpu=2 or mem=1g; may be repeated
    #[arg(short, long = "resources", value_name = "SLOT=AMOUNT")]
    resources: Vec<String>,
    /// Name of the session: reused if it is there, kept unless --rm
    #[arg(short = 't', long, value_name = "NAME")]
    name: Option<String>,
    /// End the session afterwards (always so without a server)
    #[arg(long)]
    rm: bool,
    /// One JSON object with console, exit code and session on stdout instead of the output itself
    #[arg(long)]
    json: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// Runs and returns the program's exit code.
///
/// # Errors
/// When the session cannot be had or the run breaks.
pub async fn run(args: Args) -> Result<ExitCode> {
    if args.code.is_none() && args.files.is_empty() {
        bail!("nothing to run: give code with -c or name files");
    }
    if let Some(client) = configured_client()? {
        return run_on(&client, &args, args.rm).await;
    }
    let folder = tempfile::Builder::new()
        .prefix("bai-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    let options = StackOptions::embedded(EmbeddedOptions {
        data_dir: folder.path().to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        ephemeral: true,
        only_image: Some(args.image.clone()),
        allow_process_runtime: false,
        runtime: RuntimeChoice::Process,
        docker_network: None,
    })?;
    let starting = Stack::start(options);
    let stack = patiently(&args, "starting a stack for this command", starting).await?;
    let account = stack
        .new_credentials
        .as_ref()
        .map(|credentials| credentials.user.clone());
    let account = account.context("the temporary database was not empty")?;
    let client = Client::new(
        &stack.endpoint,
        &account.access_key,
        SecretKey::new(account.secret_key),
    )?;
    let ended = run_on(&client, &args, true).await;
    let refusals = stack.refusals();
    if !args.quiet && !refusals.is_empty() {
        let protections: Vec<_> = refusals
            .iter()
            .map(|refusal| refusal.protection.as_str())
            .collect();
        say(&format!(
            "bai: this machine refuses some protections of sessions: {} (`bai -v run` tells why)",
            protections.join(", ")
        ));
    }
    stack.stop().await;
    folder
        .close()
        .context("the temporary folder could not be removed")?;
    ended
}

async fn run_on(client: &Client, args: &Args, remove: bool) -> Result<ExitCode> {
    let files = read_files(args)?;
    let session = session_name(args)?;
    let path = format!("/kernel/{session}");
    let request = json!({
        "lang": args.image,
        "tag": null,
        "clientSessionToken": session,
        "config": {
            "mounts": [],
            "environ": pairs(&args.environ, "-e NAME=VALUE")?,
            "resources": pairs(&args.resources, "-r SLOT=AMOUNT")?,
        },
    });
    let creating = client.call(Method::POST, "/kernel/create", Some(&request));
    patiently(args, "starting the session", creating).await?;
    let ended = async {
        for chunk in files.chunks(FILES_PER_UPLOAD) {
            client
                .upload(&format!("{path}/upload"), chunk.to_vec())
                .await
                .context("cannot upload the files")?;
        }
        Run {
            args,
            console: Vec::new(),
        }
        .follow(client, &session)
        .await
    }
    .await;
    if remove {
        let removing = client.call(Method::DELETE, &path, None);
        let removed = patiently(args, "ending the session", removing)
            .await
            .context("cannot end the session");
        // An error of the run itself is the one to tell.
        return ended.and_then(|code| removed.map(|_| code));
    }
    if !args.quiet {
        say(&format!(
            "bai: the session {session} goes on; use it again with -t {session}"
        ));
    }
    ended
}

fn session_name(args: &Args) -> Result<SessionName> {
    let name = args.name.clone().unwrap_or_else(|| {
        let mut bytes = [0; 5];
        SystemRandom.fill(&mut bytes);
        hex::encode(bytes)
    });
    name.parse().map_err(|_| {
        anyhow::anyhow!(
            "a session's name has 4 to 64 letters, digits, `_`, `.` and `-`, with no `.` or `-` at its ends"
        )
    })
}

fn pairs(given: &[String], form: &str) -> Result<Map<String, Value>> {
    given
        .iter()
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), Value::from(value))),
            _ => bail!("`{pair}` is not of the form {form}"),
        })
        .collect()
}

/// The files with their paths relative to the base folder.
fn read_files(args: &Args) -> Result<Vec<(String, Vec<u8>)>> {
    let base =
        fs::canonicalize(&args.basedir).with_context(|| format!("cannot read {}", args.basedir.display()))?;
    args.files
        .iter()
        .map(|file| {
            let full = fs::canonicalize(file).with_context(|| format!("cannot read {}", file.display()))?;
            let relative = full.strip_prefix(&base).map(Path::to_path_buf);
            let relative =
                relative.with_context(|| format!("{} is not below {}", file.display(), base.display()))?;
            let content = fs::read(&full).with_context(|| format!("cannot read {}", file.display()))?;
            Ok((relative.to_string_lossy().into_owned(), content))
        })
        .collect()
}

/// Waits, and says what for when it takes longer than a second.
async fn patiently<T>(args: &Args, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(PATIENCE) => {}
    }
    if !args.quiet {
        say(&format!("bai: {what} ..."));
    }
    work.await
}

/// One run being followed.
struct Run<'a> {
    args: &'a Args,
    /// Gathered for `--json`.
    console: Vec<Value>,
}

impl Run<'_> {
    async fn follow(mut self, client: &Client, session: &SessionName) -> Result<ExitCode> {
        let mut interrupts = signal(SignalKind::interrupt())?;
        let mut stream = client.run_stream(session.as_str()).await?;
        send_text(&mut stream, self.request().to_string()).await?;
        let mut exit_code = 0;
        loop {
            let frame = tokio::select! {
                frame = next_frame(&mut stream) => frame?,
                _ = interrupts.recv() => {
                    client.call(Method::POST, &format!("/kernel/{session}/interrupt"), None).await?;
                    continue;
                }
            };
            let Some(frame) = frame else { break };
            self.show(&frame)?;
            match frame["status"].as_str() {
                Some("waiting-input") => self.answer(&mut stream, &frame).await?,
                Some("build-finished") if frame["exitCode"].as_i64().is_some_and(|code| code != 0) => {
                    say(&format!(
                        "bai: the build failed with exit code {}",
                        frame["exitCode"]
                    ));
                }
                Some("finished") => exit_code = frame["exitCode"].as_i64().unwrap_or(0),
                Some("exec-timeout") => bail!("the run took too long and was ended"),
                _ => {}
            }
        }
        if self.args.json {
            let view = json!({ "session": session, "exit_code": exit_code, "console": self.console });
            line(&view.to_string())?;
        }
        Ok(ExitCode::from(u8::try_from(exit_code).unwrap_or(1)))
    }

    fn request(&self) -> Value {
        match &self.args.code {
            Some(code) => json!({ "mode": "query", "code": code, "options": null }),
            None => {
                let options = json!({
                    "clean": self.args.clean,
                    "build": self.args.build.as_deref().unwrap_or("*"),
                    "exec": self.args.exec.clone().unwrap_or_else(|| default_exec(self.args)),
                });
                json!({ "mode": "batch", "code": "", "options": options })
            }
        }
    }

    fn show(&mut self, frame: &Value) -> Result<()> {
        for item in frame["console"].as_array().into_iter().flatten() {
            if self.args.json {
                self.console.push(item.clone());
                continue;
            }
            let text = item[1].as_str().unwrap_or_default();
            match item[0].as_str() {
                Some("stdout") => raw(text.as_bytes())?,
                Some("stderr") => raw_error(text.as_bytes())?,
                Some("media") => {
                    let size = item[1][1].as_str().map_or(0, str::len);
                    say(&format!(
                        "bai: {} of {size} characters (see it with --json)",
                        item[1][0]
                    ));
                }
                Some(kind) => say(&format!("bai: {kind}: {text}")),
                None => {}
            }
        }
        Ok(())
    }

    /// Reads a line of the user for the program.
    async fn answer(&self, stream: &mut RunStream, frame: &Value) -> Result<()> {
        let is_password = frame["options"]["is_password"] == true;
        let text = tokio::task::spawn_blocking(move || read_line(is_password)).await??;
        send_text(stream, text).await
    }
}

/// What runs files without `--exec`: a single script by its interpreter, anything else by the language's default.
fn default_exec(args: &Args) -> String {
    let interpreter = match args.image.split(':').next() {
        Some("python" | "python3") => "python3",
        Some("shell" | "bash" | "sh") => "sh",
        Some("nodejs" | "node") => "node",
        _ => return "*".to_owned(),
    };
    match args.files.as_slice() {
        [file] => match file.file_name() {
            Some(_) => format!(
                "{interpreter} '{}'",
                file.to_string_lossy().replace('\'', "'\\''")
            ),
            None => "*".to_owned(),
        },
        _ => "*".to_owned(),
    }
}

/// A line without its end; of a password nothing is shown.
fn read_line(is_password: bool) -> io::Result<String> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let stdin = io::stdin();
    let shown = (is_password && stdin.is_terminal())
        .then(|| tcgetattr(&stdin))
        .transpose()?;
    if let Some(shown) = &shown {
        let mut hidden = shown.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&stdin, SetArg::TCSAFLUSH, &hidden)?;
    }
    let mut text = String::new();
    let read = stdin.lock().read_line(&mut text);
    if let Some(shown) = &shown {
        tcsetattr(&stdin, SetArg::TCSAFLUSH, shown)?;
    }
    read?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

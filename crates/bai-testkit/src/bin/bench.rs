//! Measures the executable beside this one against a bare axum server, in one run (`cargo xtask bench`).
//!
//! Both servers get the same load from the same client: a few connections that each send one prepared request after the
//! other. The ratio says what the manager adds; the absolute numbers say as much about the machine and its load.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bai_gateway::auth::date;
use bai_gateway::auth::signature::{Algorithm, Signed, sign};
use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use http::HeaderMap;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

const CONNECTIONS: usize = 8;
/// Requests of each connection: together fewer than a keypair may send in a quarter of an hour.
const LOAD: u32 = 3_000;
const SESSIONS: usize = 15;

#[tokio::main]
async fn main() -> Result<()> {
    let bare = bare_server().await?;
    let scratch = tempfile::tempdir()?;
    let server = Server::start(scratch.path()).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let memory = server.memory()?;

    let mut table = Table::default();
    table.row("start-up to first answer", &millis(server.start_up), "150 ms");
    table.row(
        "idle memory of `bai up`",
        &format!("{:.1} MiB", memory as f64 / 1024.0),
        "48 MiB",
    );
    sessions(&server, &mut table).await?;

    let plain = format!("GET / HTTP/1.1\r\nhost: {bare}\r\n\r\n");
    let limit = rate(bare, plain.as_bytes()).await?;
    table.row("bare server, GET /", &format!("{limit:.0}/s"), "");
    let request = server.request("GET", "/", &Value::Null)?;
    table.rate("GET /", rate(server.address, &request).await?, limit, "");
    let request = server.request("GET", "/auth/test?echo=x", &Value::Null)?;
    table.rate(
        "signed GET /auth/test",
        rate(server.address, &request).await?,
        limit,
        "40 %",
    );
    table.print()
}

/// Life of a session, for Python and for the shell, whose own start takes next to no time.
async fn sessions(server: &Server, table: &mut Table) -> Result<()> {
    for (image, code) in [("python", "print(1)"), ("shell", "echo 1")] {
        let (mut first, mut second, mut destroyed) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..SESSIONS {
            let name = format!("bench-{image}-{number}");
            let begun = Instant::now();
            let wanted = json!({ "lang": image, "clientSessionToken": name });
            let (status, body) = server.call("POST", "/kernel/create", &wanted).await?;
            ensure!(status == 201, "no {image} session: {status} {body}");
            execute(server, &name, code).await?;
            first.push(begun.elapsed());
            let begun = Instant::now();
            execute(server, &name, code).await?;
            second.push(begun.elapsed());
            let begun = Instant::now();
            let (status, body) = server
                .call("DELETE", &format!("/kernel/{name}"), &Value::Null)
                .await?;
            ensure!(status == 200, "{image} session not destroyed: {status} {body}");
            destroyed.push(begun.elapsed());
        }
        let targets = if image == "python" {
            ["150 ms", "5 ms", ""]
        } else {
            ["60 ms", "", ""]
        };
        table.row(
            &format!("{image}: create to first output"),
            &millis(median(first)),
            targets[0],
        );
        table.row(
            &format!("{image}: second execute"),
            &millis(median(second)),
            targets[1],
        );
        table.row(
            &format!("{image}: destroy"),
            &millis(median(destroyed)),
            targets[2],
        );
    }
    let begun = Instant::now();
    ensure!(Command::new("python3").args(["-c", "pass"]).status()?.success());
    table.row("python3 -c pass, for comparison", &millis(begun.elapsed()), "");
    Ok(())
}

/// Runs code to its end; fails unless it printed `1`.
async fn execute(server: &Server, session: &str, code: &str) -> Result<()> {
    let path = format!("/kernel/{session}");
    let mut wanted = json!({ "mode": "query", "code": code, "runId": "bench" });
    let mut printed = String::new();
    loop {
        let (status, body) = server.call("POST", &path, &wanted).await?;
        ensure!(status == 200, "{code}: {status} {body}");
        let result = &body["result"];
        for item in result["console"].as_array().into_iter().flatten() {
            printed.push_str(item[1].as_str().unwrap_or_default());
        }
        if result["status"] == "finished" {
            ensure!(printed.trim() == "1", "{code} printed {printed:?}");
            return Ok(());
        }
        wanted = json!({ "mode": "continue", "code": "", "runId": "bench" });
    }
}

/// What axum does without us.
async fn bare_server() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let answer = || async { axum::Json(json!({ "version": "v4.20190615", "manager": "19.06.0b2" })) };
    let router = axum::Router::new().route("/", axum::routing::get(answer));
    // Ends with this process.
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

/// Answers in a second under load. Every answer must be 200, or 429 would look fast.
async fn rate(address: SocketAddr, request: &[u8]) -> Result<f64> {
    let begun = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let request = request.to_vec();
        clients.spawn(async move {
            let mut connection = Connection::open(address).await?;
            for _ in 0..LOAD {
                let (status, body) = connection.exchange(&request).await?;
                ensure!(
                    status == 200,
                    "under load: {status} {}",
                    String::from_utf8_lossy(&body)
                );
            }
            Ok(())
        });
    }
    let clients: Vec<Result<()>> = clients.join_all().await;
    let total = f64::from(LOAD) * clients.len() as f64;
    clients.into_iter().collect::<Result<()>>()?;
    Ok(total / begun.elapsed().as_secs_f64())
}

/// HTTP as far as this program needs it.
struct Connection(BufReader<TcpStream>);

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<(u16, Vec<u8>)> {
        self.0.get_mut().write_all(request).await?;
        let (mut status, mut length, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            ensure!(
                self.0.read_line(&mut line).await? > 0,
                "the server closed the connection"
            );
            let text = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = text.strip_prefix("http/1.1 ") {
                status = rest.get(..3).unwrap_or_default().parse()?;
            } else if let Some(value) = text.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            } else if text.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        Ok((status, body))
    }
}

/// `bai up` with a new data directory, ended when dropped.
struct Server {
    process: Child,
    address: SocketAddr,
    access_key: String,
    secret_key: String,
    start_up: Duration,
}

impl Server {
    async fn start(scratch: &Path) -> Result<Self> {
        let bai = beside_this("bai")?;
        let data = scratch.join("data");
        // A free port, so that the first answer can be asked for before anything says where it will be.
        let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let listen = address.to_string();
        let up = |data: &Path| {
            let mut up = Command::new(&bai);
            up.args(["up", "--listen", &listen, "--data-dir"]).arg(data);
            up.stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        };
        // Once to make the databases, once to measure.
        let mut first = Self::answering(up(&data)?, address).await?;
        Command::new("kill")
            .arg(first.process.id().to_string())
            .status()?;
        first.process.wait()?;
        let mut server = Self::answering(up(&data)?, address).await?;
        let env = Command::new(&bai)
            .args(["env", "--json", "--data-dir"])
            .arg(&data)
            .output()?;
        let account: Value = serde_json::from_slice(&env.stdout).context("`bai env --json` gave no JSON")?;
        let word = |key: &str| account[key].as_str().unwrap_or_default().to_owned();
        (server.access_key, server.secret_key) = (word("access_key"), word("secret_key"));
        Ok(server)
    }

    async fn answering(process: Child, address: SocketAddr) -> Result<Self> {
        let begun = Instant::now();
        let (access_key, secret_key) = (String::new(), String::new());
        let mut server = Self {
            process,
            address,
            access_key,
            secret_key,
            start_up: Duration::ZERO,
        };
        let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\n\r\n");
        while begun.elapsed() < Duration::from_secs(20) {
            if let Ok(mut connection) = Connection::open(address).await
                && let Ok((200, _)) = connection.exchange(request.as_bytes()).await
            {
                server.start_up = begun.elapsed();
                return Ok(server);
            }
            ensure!(server.process.try_wait()?.is_none(), "`bai up` ended");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bail!("`bai up` does not answer")
    }

    /// Resident memory in KiB.
    fn memory(&self) -> Result<u32> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no VmRSS")?.parse()?)
    }

    async fn call(&self, method: &str, target: &str, body: &Value) -> Result<(u16, Value)> {
        let request = self.request(method, target, body)?;
        let (status, body) = Connection::open(self.address).await?.exchange(&request).await?;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// A signed request as bytes. It may be sent again for some minutes.
    fn request(&self, method: &str, target: &str, body: &Value) -> Result<Vec<u8>> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let now = DateTime::<Utc>::from(std::time::SystemTime::now());
        let stamp = now.to_rfc3339_opts(SecondsFormat::Micros, false);
        let mut headers = HeaderMap::new();
        headers.insert("host", self.address.to_string().parse()?);
        headers.insert("content-type", "application/json".parse()?);
        headers.insert("x-backendai-version", "v4.20190615".parse()?);
        headers.insert("date", stamp.parse()?);
        let signature = sign(&Signed {
            algorithm: Algorithm::Sha256,
            secret_key: &self.secret_key,
            signature: "",
            date: &date::parse(&stamp, NaiveDate::MIN).context("a date of ours")?,
            method,
            target,
            headers: &headers,
            body: body.as_bytes(),
        });
        let credential = format!(
            "BackendAI signMethod=HMAC-SHA256, credential={}:{signature}",
            self.access_key
        );
        headers.insert("authorization", credential.parse()?);
        let mut text = format!("{method} {target} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in &headers {
            text.push_str(&format!("{name}: {}\r\n", value.to_str()?));
        }
        Ok(format!("{text}\r\n{body}").into_bytes())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing to be done about a process that is gone.
        _ = Command::new("kill")
            .arg(self.process.id().to_string())
            .stderr(Stdio::null())
            .status();
        _ = self.process.wait();
    }
}

fn beside_this(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(
        path.exists(),
        "{} is missing; `cargo xtask bench` builds it",
        path.display()
    );
    Ok(path)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// What is printed in the end.
#[derive(Default)]
struct Table(Vec<[String; 4]>);

impl Table {
    fn row(&mut self, what: &str, measured: &str, target: &str) {
        self.0.push([
            what.to_owned(),
            measured.to_owned(),
            String::new(),
            target.to_owned(),
        ]);
    }

    fn rate(&mut self, what: &str, rate: f64, limit: f64, target: &str) {
        let ratio = format!("{:.0} %", 100.0 * rate / limit);
        self.0
            .push([what.to_owned(), format!("{rate:.0}/s"), ratio, target.to_owned()]);
    }

    fn print(&self) -> Result<()> {
        let mut out = io::stdout().lock();
        writeln!(
            out,
            "{:<36} {:>12} {:>10} {:>10}",
            "median of a run", "measured", "of bare", "target"
        )?;
        for [what, measured, ratio, target] in &self.0 {
            writeln!(out, "{what:<36} {measured:>12} {ratio:>10} {target:>10}")?;
        }
        Ok(())
    }
}

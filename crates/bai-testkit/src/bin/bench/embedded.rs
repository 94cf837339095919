//! `bai up` with nothing configured: how fast it starts, what it takes, what a session costs, and what the manager adds to
//! a bare axum server.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::beside_this;
use crate::client::{Connection, Keypair, load};
use crate::table::{Table, median, millis};

const CONNECTIONS: usize = 8;
/// Less than a keypair may send in a quarter of an hour.
const LOAD: Duration = Duration::from_secs(1);
pub const SESSIONS: usize = 15;

/// Measures it and prints a table.
pub async fn measure() -> Result<()> {
    let bare = bare_server().await?;
    let scratch = tempfile::tempdir()?;
    let server = Server::start(scratch.path(), &[], &[]).await?;
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

    let plain = format!("GET / HTTP/1.1\r\nhost: {bare}\r\n\r\n").into_bytes();
    let limit = rate(bare, plain).await?;
    table.row("bare server, GET /", &format!("{limit:.0}/s"), "");
    for (what, target, wanted) in [
        ("GET /", "/", ""),
        ("signed GET /auth/test", "/auth/test?echo=x", "40 %"),
    ] {
        let request = server
            .keypair
            .request(server.address, "GET", target, &Value::Null)?;
        table.rate(what, rate(server.address, request).await?, limit, wanted);
    }
    table.print()
}

async fn rate(address: SocketAddr, request: Vec<u8>) -> Result<f64> {
    Ok(load(address, &[request], CONNECTIONS, LOAD).await?.rate)
}

/// Life of a session, for Python and for the shell, whose own start takes next to no time.
async fn sessions(server: &Server, table: &mut Table) -> Result<()> {
    for (image, code) in [("python", "print(1)"), ("shell", "echo 1")] {
        let [first, second, destroyed] = lives(server, image, code).await?;
        let targets = if image == "python" {
            ["150 ms", "5 ms", ""]
        } else {
            ["60 ms", "", ""]
        };
        table.row(
            &format!("{image}: create to first output"),
            &millis(first),
            targets[0],
        );
        table.row(&format!("{image}: second execute"), &millis(second), targets[1]);
        table.row(&format!("{image}: destroy"), &millis(destroyed), targets[2]);
    }
    let begun = Instant::now();
    ensure!(Command::new("python3").args(["-c", "pass"]).status()?.success());
    table.row("python3 -c pass, for comparison", &millis(begun.elapsed()), "");
    Ok(())
}

/// Medians of some lives of a session, one after the other: from its creation to its first output, a second run, its end.
pub async fn lives(server: &Server, image: &str, code: &str) -> Result<[Duration; 3]> {
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for number in 0..SESSIONS {
        let name = format!("bench-{number}");
        let begun = Instant::now();
        let wanted = json!({ "lang": image, "clientSessionToken": name });
        let (status, body) = server.call("POST", "/kernel/create", &wanted).await?;
        ensure!(status == 201, "no {image} session: {status} {body}");
        execute(server, &name, code).await?;
        times[0].push(begun.elapsed());
        let begun = Instant::now();
        execute(server, &name, code).await?;
        times[1].push(begun.elapsed());
        let begun = Instant::now();
        let (status, body) = server
            .call("DELETE", &format!("/kernel/{name}"), &Value::Null)
            .await?;
        ensure!(status == 200, "{image} session not destroyed: {status} {body}");
        times[2].push(begun.elapsed());
    }
    Ok(times.map(median))
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

/// `bai up` with a new data directory, ended when dropped.
pub struct Server {
    process: Child,
    address: SocketAddr,
    keypair: Keypair,
    start_up: Duration,
}

impl Server {
    /// With further arguments and variables of the environment.
    pub async fn start(scratch: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let bai = beside_this("bai")?;
        let data = scratch.join("data");
        // A free port, so that the first answer can be asked for before anything says where it will be.
        let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let listen = address.to_string();
        let up = |data: &Path| {
            let mut up = Command::new(&bai);
            up.args(["up", "--listen", &listen, "--data-dir"]).arg(data);
            up.args(arguments).envs(environment.iter().copied());
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
        server.keypair = Keypair {
            access_key: word("access_key"),
            secret_key: word("secret_key"),
        };
        Ok(server)
    }

    async fn answering(process: Child, address: SocketAddr) -> Result<Self> {
        let begun = Instant::now();
        let mut server = Self {
            process,
            address,
            keypair: Keypair::default(),
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
        let request = self.keypair.request(self.address, method, target, body)?;
        let (status, body) = Connection::open(self.address).await?.exchange(&request).await?;
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
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

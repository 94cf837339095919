//! Requests as bytes, connections that send them, and many of these at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bai_gateway::auth::date;
use bai_gateway::auth::signature::{Algorithm, Signed, sign};
use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use http::HeaderMap;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// HTTP as far as this program needs it.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    pub async fn exchange(&mut self, request: &[u8]) -> Result<(u16, Vec<u8>)> {
        self.0.get_mut().write_all(request).await?;
        let (mut status, mut length, mut is_chunked, mut line) = (0, 0, false, String::new());
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
            } else if text.starts_with("transfer-encoding:") {
                is_chunked = true;
            } else if text.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        while is_chunked {
            line.clear();
            self.0.read_line(&mut line).await?;
            let length = usize::from_str_radix(line.trim_end(), 16)?;
            let end = body.len();
            // With the end of the line behind it.
            body.resize(end + length + 2, 0);
            self.0.read_exact(&mut body[end..]).await?;
            body.truncate(end + length);
            is_chunked = length > 0;
        }
        Ok((status, body))
    }
}

/// Who signs requests.
#[derive(Clone, Debug, Default)]
pub struct Keypair {
    pub access_key: String,
    pub secret_key: String,
}

impl Keypair {
    /// A signed request as bytes. It may be sent again for some minutes.
    pub fn request(&self, address: SocketAddr, method: &str, target: &str, body: &Value) -> Result<Vec<u8>> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let now = DateTime::<Utc>::from(std::time::SystemTime::now());
        let stamp = now.to_rfc3339_opts(SecondsFormat::Micros, false);
        let mut headers = HeaderMap::new();
        headers.insert("host", address.to_string().parse()?);
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

/// How a server answered under load.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Answers in a second.
    pub rate: f64,
    pub p50: Duration,
    pub p99: Duration,
}

/// Sends `requests` in turn over `connections` for a while, each connection its share of them. Every answer must be
/// 200, or a refusal would look fast.
pub async fn load(
    address: SocketAddr,
    requests: &[Vec<u8>],
    connections: usize,
    duration: Duration,
) -> Result<Measured> {
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..connections {
        let own: Vec<Vec<u8>> = requests
            .iter()
            .cycle()
            .skip(number)
            .step_by(connections)
            .take(requests.len().div_ceil(connections))
            .cloned()
            .collect();
        clients.spawn(async move {
            let mut times = Vec::new();
            let mut connection = Connection::open(address).await?;
            for request in own.iter().cycle() {
                let sent = Instant::now();
                let (status, body) = connection.exchange(request).await?;
                ensure!(
                    status == 200,
                    "under load: {status} {}",
                    String::from_utf8_lossy(&body)
                );
                times.push(sent.elapsed());
                if begun.elapsed() > duration {
                    break;
                }
            }
            Ok(times)
        });
    }
    let times: Result<Vec<Vec<Duration>>> = clients.join_all().await.into_iter().collect();
    let elapsed = begun.elapsed().as_secs_f64();
    let mut times = times?.concat();
    times.sort();
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
    Ok(Measured {
        rate: times.len() as f64 / elapsed,
        p50: at(50),
        p99: at(99),
    })
}

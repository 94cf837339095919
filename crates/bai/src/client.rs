//! A client of the public API, for commands that need a server: signed requests (`http-api.md` 3.4) and the execution
//! stream. It speaks to any 19.06 endpoint, ours or the original.

use anyhow::{Context, Result, anyhow, bail};
use bai_gateway::auth::date;
use bai_gateway::auth::signature::{Algorithm, Signed, sign};
use bai_model::SecretKey;
use bai_model::time::Clock;
use chrono::SecondsFormat;
use futures_util::{SinkExt, StreamExt};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HOST, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::system::SystemClock;

/// What 19.06 clients announce.
const API_VERSION: &str = "v4.20190315";

/// An endpoint and a keypair.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Url,
    access_key: String,
    secret_key: SecretKey,
    http: reqwest::Client,
}

/// The stream of one run.
pub type RunStream = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

impl Client {
    /// # Errors
    /// When the endpoint is not an absolute `http` or `https` address.
    pub fn new(endpoint: &str, access_key: &str, secret_key: SecretKey) -> Result<Self> {
        let endpoint: Url = endpoint
            .parse()
            .with_context(|| format!("the endpoint {endpoint} is not an address"))?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host().is_none() {
            bail!("the endpoint {endpoint} must be like http://127.0.0.1:8081");
        }
        // The provider may have been installed by another client of this process.
        _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self {
            endpoint,
            access_key: access_key.to_owned(),
            secret_key,
            http,
        })
    }

    /// Sends a JSON request and returns the JSON answer, `null` for an empty one.
    ///
    /// # Errors
    /// The server's own words for anything but success.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let content_type = if body.is_some() {
            "application/json"
        } else {
            "text/plain"
        };
        let mut request = self.signed(method, path, Some(content_type))?;
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        answer(
            request
                .send()
                .await
                .with_context(|| format!("{} cannot be reached", self.endpoint))?,
        )
        .await
    }

    /// Sends files into a session, `(path below /home/work, content)`.
    ///
    /// # Errors
    /// The server's own words.
    pub async fn upload(&self, path: &str, files: Vec<(String, Vec<u8>)>) -> Result<()> {
        let mut form = reqwest::multipart::Form::new();
        for (name, content) in files {
            form = form.part("src", reqwest::multipart::Part::bytes(content).file_name(name));
        }
        // The form names its own type, with its boundary, of which signatures see nothing.
        let mut headers = self.signature(&Method::POST, path, Some("multipart/form-data"))?;
        headers.remove(CONTENT_TYPE);
        let request = self
            .http
            .post(self.address(path)?)
            .headers(headers)
            .multipart(form);
        answer(
            request
                .send()
                .await
                .with_context(|| format!("{} cannot be reached", self.endpoint))?,
        )
        .await
        .map(drop)
    }

    /// Opens the execution stream of a session.
    ///
    /// # Errors
    /// When the server refuses the handshake.
    pub async fn run_stream(&self, session: &str) -> Result<RunStream> {
        let path = format!("/stream/kernel/{session}/execute");
        let mut address = self.address(&path)?;
        let scheme = if address.scheme() == "https" { "wss" } else { "ws" };
        address
            .set_scheme(scheme)
            .map_err(|()| anyhow!("the endpoint cannot be used for streams"))?;
        let mut request = address.as_str().into_client_request()?;
        request
            .headers_mut()
            .extend(self.signature(&Method::GET, &path, None)?);
        let (stream, _) = tokio_tungstenite::connect_async(request)
            .await
            .context("the session cannot be streamed")?;
        Ok(stream)
    }

    fn signed(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&'static str>,
    ) -> Result<reqwest::RequestBuilder> {
        let headers = self.signature(&method, path, content_type)?;
        Ok(self.http.request(method, self.address(path)?).headers(headers))
    }

    fn address(&self, path: &str) -> Result<Url> {
        let base = self.endpoint.as_str().trim_end_matches('/');
        Ok(format!("{base}{path}").parse()?)
    }

    /// The headers of a signed request.
    fn signature(
        &self,
        method: &Method,
        path: &str,
        content_type: Option<&'static str>,
    ) -> Result<HeaderMap> {
        let address = self.address(path)?;
        let host = match (address.host_str(), address.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.to_owned(),
            (None, _) => bail!("the endpoint has no host"),
        };
        let target = match address.query() {
            Some(query) => format!("{}?{query}", address.path()),
            None => address.path().to_owned(),
        };
        let now = SystemClock.now();
        let stamp = now.to_rfc3339_opts(SecondsFormat::Micros, false);
        let date = date::parse(&stamp, now.date_naive()).context("the time cannot be written as a date")?;
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse()?);
        headers.insert(DATE, stamp.parse()?);
        headers.insert("x-backendai-version", HeaderValue::from_static(API_VERSION));
        if let Some(content_type) = content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        let signature = sign(&Signed {
            algorithm: Algorithm::Sha256,
            secret_key: self.secret_key.expose(),
            signature: "",
            date: &date,
            method: method.as_str(),
            target: &target,
            headers: &headers,
            body: b"",
        });
        let credential = format!(
            "BackendAI signMethod=HMAC-SHA256, credential={}:{signature}",
            self.access_key
        );
        headers.insert(AUTHORIZATION, credential.parse()?);
        Ok(headers)
    }
}

/// The JSON of an answer, or its problem as an error.
async fn answer(response: reqwest::Response) -> Result<Value> {
    let status = response.status();
    let body = response.bytes().await.context("the answer broke off")?;
    let value: Value = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body).unwrap_or_default()
    };
    if status.is_success() {
        return Ok(value);
    }
    let title = value["title"].as_str().unwrap_or("the server gave no reason");
    let exception = value["agent-details"]["exception"].as_str();
    let data = value.get("data").map(ToString::to_string);
    let details = exception
        .map(str::to_owned)
        .or(data)
        .map(|details| format!(": {details}"))
        .unwrap_or_default();
    bail!("{} {title}{details}", status.as_u16())
}

/// The next frame of a run; `None` at its end.
///
/// # Errors
/// When the connection breaks or the server reports an error.
pub async fn next_frame(stream: &mut RunStream) -> Result<Option<Value>> {
    loop {
        match stream.next().await {
            None | Some(Ok(Message::Close(_))) => return Ok(None),
            Some(Err(error)) => return Err(error).context("the connection to the session broke"),
            Some(Ok(Message::Text(text))) => {
                let frame: Value =
                    serde_json::from_str(&text).context("the server sent something that is not JSON")?;
                if frame["status"] == "error" {
                    bail!("{}", frame["msg"].as_str().unwrap_or("the run failed"));
                }
                return Ok(Some(frame));
            }
            Some(Ok(_)) => {}
        }
    }
}

/// Sends one text frame.
///
/// # Errors
/// When the connection is broken.
pub async fn send_text(stream: &mut RunStream, text: String) -> Result<()> {
    stream
        .send(Message::Text(text.into()))
        .await
        .context("the connection to the session broke")
}

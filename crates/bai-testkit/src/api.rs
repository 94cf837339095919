//! The API in process, and requests to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bai_backplane::broker::Broker;
use bai_backplane::config::Config;
use bai_core::{Manager, ManagerOptions};
use bai_gateway::GatewayOptions;
use bai_gateway::auth::date;
use bai_gateway::auth::signature::{Algorithm, Signed, sign};
use bai_model::AgentId;
use bai_model::time::Clock;
use bai_proto::event::{AgentEvent, EventReceiver, ReceiverOptions};
use bai_store::{Store, fixture};
use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, tungstenite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::ambient::{ManualClock, SeededRandom};
use crate::cast::{self, Role};
use crate::profile::Ground;
use crate::{FakeAgent, agent};

/// A booted system.
#[derive(Debug)]
pub struct Api {
    pub agent: Arc<FakeAgent>,
    pub clock: Arc<ManualClock>,
    pub manager: Arc<Manager>,
    pub store: Store,
    pub config: Config,
    pub broker: Arc<dyn Broker>,
    /// Events of the agent.
    pub events: mpsc::Sender<AgentEvent>,
    random: Arc<SeededRandom>,
    router: axum::Router,
    ground: Ground,
    stopping: CancellationToken,
    servers: TaskTracker,
}

/// A request to be signed and sent.
#[derive(Clone, Debug)]
pub struct Request {
    pub role: Role,
    pub method: String,
    pub target: String,
    pub version: &'static str,
    pub headers: Vec<(String, String)>,
    pub content_type: Option<String>,
    pub body: Vec<u8>,
}

/// An answer, read whole.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON, null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A header as text, empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// Status and JSON in one value, for snapshots.
    pub fn view(&self) -> Value {
        serde_json::json!([self.status, self.json()])
    }
}

impl Request {
    /// A signed request without a body.
    pub fn new(role: Role, method: &str, target: &str) -> Self {
        Self {
            role,
            method: method.to_owned(),
            target: target.to_owned(),
            version: "v4.20190615",
            headers: Vec::new(),
            content_type: Some("application/json".to_owned()),
            body: Vec::new(),
        }
    }

    #[must_use]
    pub fn json(mut self, body: &Value) -> Self {
        self.body = body.to_string().into_bytes();
        self
    }
}

impl Api {
    /// Boots the system with the cast in its database and the fake agent attached.
    pub async fn start() -> Self {
        Self::start_with(&cast::fixture()).await
    }

    /// The same with a cast of the test's own.
    pub async fn start_with(cast: &Value) -> Self {
        let mut api = Self::start_alone(cast).await;
        api.attach_agent().await;
        api
    }

    /// The same without any agent.
    pub async fn start_alone(cast: &Value) -> Self {
        let start: DateTime<Utc> = "2019-07-15T12:34:56Z".parse().expect("a timestamp");
        let clock = Arc::new(ManualClock::at(start));
        let ground = Ground::open(clock.clone()).await;
        let mut tx = ground.store.begin().await.expect("a transaction");
        // Cost 4: the tests are not about the strength of their passwords.
        fixture::populate(&mut tx, cast, clock.now(), &|password: &str| {
            bcrypt::hash(password, 4)
        })
        .await
        .expect("the cast");
        tx.commit().await.expect("the cast");
        let (fake, random) = (Arc::new(FakeAgent::default()), Arc::new(SeededRandom::default()));
        Self::boot(ground, clock, random, fake).await
    }

    async fn boot(
        ground: Ground,
        clock: Arc<ManualClock>,
        random: Arc<SeededRandom>,
        agent: Arc<FakeAgent>,
    ) -> Self {
        let manager = Manager::start(ManagerOptions {
            store: ground.store.clone(),
            config: ground.config.clone(),
            registries: bai_registry::Options::default(),
            broker: ground.broker.clone(),
            clock: clock.clone(),
            random: random.clone(),
            heartbeat_timeout: Duration::from_secs(30),
            agent_tls: None,
        })
        .await
        .expect("a manager");
        let stopping = CancellationToken::new();
        let options = GatewayOptions {
            clock: clock.clone(),
            random: random.clone(),
            stopping: stopping.clone(),
        };
        let router = bai_gateway::router(Arc::clone(&manager), options);
        let (events, _) = mpsc::channel(1);
        Self {
            agent,
            clock,
            manager,
            store: ground.store.clone(),
            config: ground.config.clone(),
            broker: ground.broker.clone(),
            events,
            random,
            router,
            ground,
            stopping,
            servers: TaskTracker::new(),
        }
    }

    /// Another manager over the same databases, as after a restart. The agent goes on, and has not attached yet.
    pub async fn restart_manager(self) -> Self {
        self.manager.shutdown().await;
        Self::boot(self.ground, self.clock, self.random, self.agent).await
    }

    /// Whether somebody waits for a lock of the database. In memory everybody simply waits for their turn.
    pub async fn is_waiting_for_a_lock(&self) -> bool {
        self.ground.is_waiting_for_a_lock().await
    }

    /// Has somebody else change the database, as an administrator does with `psql`. Nobody can on the embedded profile,
    /// where this is `None`.
    pub async fn psql(&self, statement: &str) -> Option<String> {
        self.ground.psql(statement).await
    }

    /// Attaches the fake agent and waits for its registration.
    pub async fn attach_agent(&mut self) {
        let (events, incoming) = agent::events();
        self.events = events;
        self.manager
            .attach_agent(AgentId("i-fake".to_owned()), agent::as_rpc(&self.agent), incoming);
        self.manager.wait_for_agent().await.expect("the agent registers");
    }

    /// Takes events of agents on other hosts, as a configured manager does; gives the address for these.
    pub async fn hear(&self, options: ReceiverOptions) -> SocketAddr {
        let address = "127.0.0.1:0".parse().expect("an address");
        let receiver = EventReceiver::bind(address, options).await.expect("a port");
        let address = receiver.local_addr().expect("an address");
        let (events, received) = mpsc::channel(64);
        self.manager.hear_agents(received);
        tokio::spawn(receiver.run(events, CancellationToken::new()));
        address
    }

    /// Serves on loopback as the executable does, for as long as the test runs: for websockets, and for what is wrong
    /// below HTTP.
    pub async fn listen(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (router, stopping) = (self.router.clone(), self.stopping.clone());
        self.servers.spawn(bai_gateway::serve(listener, router, stopping));
        address
    }

    /// Stops every server that [`Api::listen`]s, as the executable does, and waits for it.
    pub async fn stop_serving(&self) {
        self.stopping.cancel();
        self.servers.close();
        self.servers.wait().await;
    }

    /// Opens a signed websocket at a server that [`Api::listen`]s.
    ///
    /// # Errors
    /// With the answer of a server that refuses.
    pub async fn open_stream(
        &self,
        address: SocketAddr,
        role: Role,
        target: &str,
    ) -> Result<WebSocketStream<TcpStream>, tungstenite::Error> {
        let mut request = format!("ws://{address}{target}").into_client_request()?;
        let mut signed = Request::new(role, "GET", target);
        signed.content_type = None;
        request
            .headers_mut()
            .extend(self.sign(&signed, &address.to_string()));
        let socket = TcpStream::connect(address).await.expect("a connection");
        tokio_tungstenite::client_async(request, socket)
            .await
            .map(|(stream, _)| stream)
    }

    /// Sends a signed request with a JSON body.
    pub async fn call(&self, role: Role, method: &str, target: &str, body: &Value) -> Answer {
        self.send(Request::new(role, method, target).json(body)).await
    }

    /// Sends a signed request without a body.
    pub async fn get(&self, role: Role, target: &str) -> Answer {
        self.send(Request::new(role, "GET", target)).await
    }

    /// Signs and sends a request.
    pub async fn send(&self, request: Request) -> Answer {
        let headers = self.sign(&request, "127.0.0.1:8081");
        self.send_raw(&request.method, &request.target, headers, request.body)
            .await
    }

    /// The headers of a request, with its role's signature.
    pub fn sign(&self, request: &Request, host: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("host", host.parse().expect("a host"));
        if let Some(content_type) = &request.content_type {
            headers.insert("content-type", content_type.parse().expect("a content type"));
        }
        if let Some((access_key, secret_key)) = request.role.keypair() {
            let date = self.clock.now().to_rfc3339_opts(SecondsFormat::Micros, false);
            headers.insert("date", date.parse().expect("a date"));
            headers.insert("x-backendai-version", HeaderValue::from_static(request.version));
            let signature = sign(&Signed {
                algorithm: Algorithm::Sha256,
                secret_key,
                signature: "",
                date: &date::parse(&date, NaiveDate::MIN).expect("a date"),
                method: &request.method,
                target: &request.target,
                headers: &headers,
                body: &request.body,
            });
            let credential = format!("BackendAI signMethod=HMAC-SHA256, credential={access_key}:{signature}");
            headers.insert("authorization", credential.parse().expect("a header value"));
        }
        for (name, value) in &request.headers {
            let name: HeaderName = name.parse().expect("a header name");
            headers.insert(name, value.parse().expect("a header value"));
        }
        headers
    }

    /// Sends a request exactly as it is.
    pub async fn send_raw(&self, method: &str, target: &str, headers: HeaderMap, body: Vec<u8>) -> Answer {
        let answer = self.ask(method, target, headers, body).await;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes().to_vec();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    /// Signs and sends a request whose answer is read as it comes.
    pub async fn follow(&self, request: Request) -> http::Response<Body> {
        let headers = self.sign(&request, "127.0.0.1:8081");
        self.ask(&request.method, &request.target, headers, request.body)
            .await
    }

    async fn ask(
        &self,
        method: &str,
        target: &str,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> http::Response<Body> {
        let mut request = http::Request::new(Body::from(body.clone()));
        *request.method_mut() = method.parse().expect("a method");
        *request.uri_mut() = target.parse().expect("a target");
        *request.headers_mut() = headers;
        if !body.is_empty() {
            request.headers_mut().insert("content-length", body.len().into());
        }
        self.router
            .clone()
            .oneshot(request)
            .await
            .expect("the router never fails")
    }
}

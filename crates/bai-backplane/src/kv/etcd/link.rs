//! One call to some server of the cluster: which one, with which token, until when, and when again.
//!
//! Invariants: a call ends within its deadline. What was certainly not carried out is tried again until then, at another
//! server if there is one; what may have been is repeated only when doing it twice is doing it once. A server that did not
//! answer in time loses its connection, so that a dead one cannot hold up the next call. Once all servers have failed a
//! whole deadline long, later calls fail after one look at each, until one succeeds. A server that was silent is asked beside
//! the calls until it is heard again; while all are silent, calls fail at once.
//!
//! Not here: what the calls mean.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::super::Revision;
use super::proto;
use super::verdict::{Done, Fault, Verdict, chain, judge};
use crate::address::{Address, joined};
use crate::error::Service;
use crate::{Result, Terminal};

/// How long a call may take unless `timeout=` says otherwise.
const DEADLINE: Duration = Duration::from_secs(5);
/// Waits between the rounds of one call.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Between questions to a server that is silent.
const LISTENING_PAUSE: Duration = Duration::from_millis(500);
/// Idle connections are tried this often; etcd refuses pings that come more often than every five seconds.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// The largest answer that is read: some ten thousand keys with their values.
const MAX_ANSWER: usize = 64 << 20;

/// A remote procedure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method {
    path: &'static str,
    /// Doing it twice is doing it once.
    repeatable: bool,
}

impl Method {
    pub const RANGE: Self = Self::repeatable("/etcdserverpb.KV/Range");
    pub const TXN: Self = Self::once("/etcdserverpb.KV/Txn");
    /// A second grant leaves the first to run out by itself.
    pub const GRANT: Self = Self::repeatable("/etcdserverpb.Lease/LeaseGrant");
    pub const REVOKE: Self = Self::once("/etcdserverpb.Lease/LeaseRevoke");
    pub const KEEP_ALIVE: Self = Self::repeatable("/etcdserverpb.Lease/LeaseKeepAlive");
    pub const WATCH: Self = Self::repeatable("/etcdserverpb.Watch/Watch");
    const AUTHENTICATE: Self = Self::repeatable("/etcdserverpb.Auth/Authenticate");

    const fn repeatable(path: &'static str) -> Self {
        Self {
            path,
            repeatable: true,
        }
    }

    const fn once(path: &'static str) -> Self {
        Self {
            path,
            repeatable: false,
        }
    }
}

type Token = MetadataValue<Ascii>;
/// One call to one server.
type Attempt<T> = BoxFuture<'static, std::result::Result<T, Status>>;

/// One of the cluster's servers.
struct Server {
    endpoint: Endpoint,
    channel: Mutex<Channel>,
    /// It was when it was last asked; somebody waits to hear it again.
    is_silent: AtomicBool,
}

/// How long a server is waited for.
#[derive(Clone, Copy)]
struct Patience {
    /// For an answer.
    answer: Duration,
    /// For a refusal; what takes longer is silence.
    refusal: Duration,
}

impl Server {
    fn new(endpoint: Endpoint) -> Self {
        Self {
            channel: Mutex::new(endpoint.connect_lazy()),
            endpoint,
            is_silent: AtomicBool::new(false),
        }
    }

    /// Calls are made over a new connection from now on.
    fn reconnect(&self) {
        *enter(&self.channel) = self.endpoint.connect_lazy();
    }

    /// Notes that it was silent, and has it asked until it no longer is.
    fn fell_silent(self: &Arc<Self>, patience: Patience) {
        if !self.is_silent.swap(true, Ordering::Relaxed) {
            tokio::spawn(Self::listen(Arc::downgrade(self), patience));
        }
    }

    /// Asks until an answer comes, whatever it is, or nobody is left who wants to know.
    async fn listen(server: Weak<Self>, patience: Patience) {
        loop {
            sleep(LISTENING_PAUSE).await;
            let Some(channel) = server.upgrade().map(|server| server.endpoint.connect_lazy()) else {
                return;
            };
            let question = proto::RangeRequest {
                key: Bytes::from_static(b"\0"),
                limit: 1,
                keys_only: true,
                ..proto::RangeRequest::default()
            };
            let began = Instant::now();
            let answer = unary::<_, proto::RangeResponse>(Method::RANGE, channel, None, question);
            let is_heard = match timeout_at(began + patience.answer, answer).await {
                Ok(Ok(_)) => true,
                Ok(Err(_)) => began.elapsed() < patience.refusal,
                Err(_) => false,
            };
            if is_heard {
                if let Some(server) = server.upgrade() {
                    server.is_silent.store(false, Ordering::Relaxed);
                }
                return;
            }
        }
    }
}

/// The cluster's servers, and where we stand with them.
pub(super) struct Link {
    service: Service,
    servers: Vec<Arc<Server>>,
    credentials: Option<proto::AuthenticateRequest>,
    patience: Patience,
    /// The server that is asked first.
    current: AtomicUsize,
    token: Mutex<Option<Token>>,
    /// Lets one caller log in while the others wait for its token.
    log_in: tokio::sync::Mutex<()>,
    /// The last call used up its deadline in vain.
    out: AtomicBool,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("address", &self.service.address)
            .finish_non_exhaustive()
    }
}

impl Link {
    pub fn new(address: &Address) -> Result<Self> {
        let deadline = address.timeout(DEADLINE)?;
        let tls = match address.option("tls") {
            None | Some("false") if address.option("ca").is_some() => {
                return Err(Terminal::Address("ca= needs tls=true in the etcd:// address".to_owned()).into());
            }
            None | Some("false") => None,
            Some("true") => Some(match address.authority()? {
                Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                None => ClientTlsConfig::new().with_native_roots(),
            }),
            Some(_) => return Err(Terminal::Address("tls= is true or false".to_owned()).into()),
        };
        let connect = deadline / u32::try_from(address.hosts.len() + 1).unwrap_or(u32::MAX);
        let endpoints = address.hosts.iter().map(|(host, port)| {
            let scheme = if tls.is_some() { "https" } else { "http" };
            let endpoint = Endpoint::from_shared(format!("{scheme}://{}", joined(host, *port)))?
                .connect_timeout(connect)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(PING.0)
                .keep_alive_timeout(PING.1)
                .keep_alive_while_idle(true);
            match &tls {
                Some(tls) => endpoint.tls_config(tls.clone()),
                None => Ok(endpoint),
            }
        });
        let endpoints: std::result::Result<Vec<_>, tonic::transport::Error> = endpoints.collect();
        let endpoints = endpoints
            .map_err(|error| Terminal::Address(format!("the etcd:// address: {}", chain(&error))))?;
        Ok(Self {
            service: Service {
                name: "etcd",
                address: address.printed(),
                address_setting: "etcd.addr or bai.config-store",
                credentials_setting: "etcd.user and etcd.password, or bai.config-store",
            },
            servers: endpoints
                .into_iter()
                .map(|endpoint| Arc::new(Server::new(endpoint)))
                .collect(),
            credentials: address.user.clone().map(|name| proto::AuthenticateRequest {
                name,
                password: address.password.clone().unwrap_or_default(),
            }),
            patience: Patience {
                answer: deadline,
                refusal: connect,
            },
            current: AtomicUsize::new(0),
            token: Mutex::new(None),
            log_in: tokio::sync::Mutex::new(()),
            out: AtomicBool::new(false),
        })
    }

    /// One question, one answer.
    pub async fn call<Q, A>(&self, method: Method, question: Q) -> std::result::Result<A, Fault>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.attempts(method, |channel, token| {
            unary(method, channel, token, question.clone())
        })
        .await
    }

    /// One question, one answer, of a method that could go on.
    pub async fn call_once_streaming<Q, A>(
        &self,
        method: Method,
        question: Q,
    ) -> std::result::Result<A, Fault>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.attempts(method, |channel, token| {
            let question = question.clone();
            Box::pin(async move {
                let questions = stream::iter([question]);
                let mut answers: Streaming<A> = streaming(method, channel, request(questions, token)).await?;
                let answer = answers.message().await?;
                answer.ok_or_else(|| Status::unavailable("the answer is missing"))
            })
        })
        .await
    }

    /// One question, answers without end.
    pub async fn open<Q, A>(&self, method: Method, question: Q) -> std::result::Result<Streaming<A>, Fault>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.attempts(method, |channel, token| {
            // The end of the questions would be the end of the answers.
            let questions = stream::iter([question.clone()]).chain(stream::pending());
            Box::pin(streaming(method, channel, request(questions, token)))
        })
        .await
    }

    /// Where the store stands: its revision, and the term of its leader, which only a new or restored store turns back.
    pub async fn head(&self, prefix: &str) -> Result<proto::ResponseHeader> {
        let (key, range_end) = super::span(prefix);
        let request = proto::RangeRequest {
            key,
            range_end,
            limit: 1,
            keys_only: true,
        };
        let answer: proto::RangeResponse = self.call(Method::RANGE, request).await?;
        Ok(answer.header.unwrap_or_default())
    }

    /// The next call shall log in anew.
    pub fn forget_token(&self) {
        *enter(&self.token) = None;
    }

    /// Asks one server after the other until one answers, or there is no use in it, or the time is over.
    async fn attempts<T>(
        &self,
        method: Method,
        attempt: impl Fn(Channel, Option<Token>) -> Attempt<T> + Send + Sync,
    ) -> std::result::Result<T, Fault> {
        if self
            .servers
            .iter()
            .all(|server| server.is_silent.load(Ordering::Relaxed))
        {
            return Err(self.service.unavailable("does not answer").into());
        }
        let end = Instant::now() + self.patience.answer;
        let patient = !self.out.load(Ordering::Relaxed);
        let mut renewed = false;
        let mut failures = 0;
        let mut pause = BACK_OFF.0;
        loop {
            let number = self.current.load(Ordering::Relaxed) % self.servers.len();
            let server = &self.servers[number];
            let began = Instant::now();
            let answered = self.attempt(server, end, method, &attempt).await;
            match answered {
                Err(Verdict::Elsewhere { .. }) if began.elapsed() >= self.patience.refusal => {
                    server.fell_silent(self.patience);
                }
                _ => server.is_silent.store(false, Ordering::Relaxed),
            }
            match answered {
                Ok(answer) => {
                    self.out.store(false, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(Verdict::Final(fault)) => return Err(fault),
                Err(Verdict::LogIn) if self.credentials.is_none() => {
                    return Err(self.service.refuses("it wants one").into());
                }
                Err(Verdict::LogIn) if renewed => {
                    return Err(self.service.refuses("it does not accept its own token").into());
                }
                Err(Verdict::LogIn) => renewed = true,
                Err(Verdict::Elsewhere { done, why }) => {
                    self.leave(number);
                    failures += 1;
                    if done == Done::Perhaps && !method.repeatable {
                        self.out.store(Instant::now() >= end, Ordering::Relaxed);
                        return Err(self.service.unavailable(why).into());
                    }
                    self.give_up_or_wait(end, patient, failures, why, &mut pause)
                        .await?;
                }
            }
        }
    }

    /// Asks one server once.
    async fn attempt<T>(
        &self,
        server: &Server,
        end: Instant,
        method: Method,
        attempt: &(impl Fn(Channel, Option<Token>) -> Attempt<T> + Sync),
    ) -> std::result::Result<T, Verdict> {
        // Leaves time for a second server, where asking one does no harm.
        let end = if method.repeatable && self.servers.len() > 1 {
            end.min(Instant::now() + self.patience.answer / 2)
        } else {
            end
        };
        let channel = enter(&server.channel).clone();
        let mut asked = Done::No;
        let answered = timeout_at(end, async {
            let token = self.token(&channel).await?;
            asked = Done::Perhaps;
            let answer = attempt(channel, token.clone()).await;
            answer.map_err(|status| {
                let verdict = judge(&status, &self.service);
                let mut current = enter(&self.token);
                if matches!(verdict, Verdict::LogIn) && *current == token {
                    *current = None;
                }
                verdict
            })
        });
        match answered.await {
            Ok(answer) => answer,
            Err(_) => {
                server.reconnect();
                Err(Verdict::Elsewhere {
                    done: asked,
                    why: format!("did not answer within {:?}", self.patience.answer),
                })
            }
        }
    }

    /// Fails when the time is over or, during an outage, when each server was asked; waits after each round.
    async fn give_up_or_wait(
        &self,
        end: Instant,
        patient: bool,
        failures: usize,
        why: String,
        pause: &mut Duration,
    ) -> Result<()> {
        let round_is_over = failures.is_multiple_of(self.servers.len());
        if Instant::now() + *pause >= end || (!patient && round_is_over) {
            self.out.store(true, Ordering::Relaxed);
            return Err(self.service.unavailable(why));
        }
        if round_is_over {
            sleep(*pause).await;
            *pause = (*pause * 2).min(BACK_OFF.1);
        }
        Ok(())
    }

    /// Asks another server first from now on.
    fn leave(&self, server: usize) {
        let next = (server + 1) % self.servers.len();
        // Whoever was faster has left it already.
        let _ = self
            .current
            .compare_exchange(server, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The token of our user, or none without a user.
    async fn token(&self, channel: &Channel) -> std::result::Result<Option<Token>, Verdict> {
        let Some(credentials) = &self.credentials else {
            return Ok(None);
        };
        let known = || enter(&self.token).clone();
        if let Some(token) = known() {
            return Ok(Some(token));
        }
        let _turn = self.log_in.lock().await;
        if let Some(token) = known() {
            return Ok(Some(token));
        }
        let answer = unary(Method::AUTHENTICATE, channel.clone(), None, credentials.clone()).await;
        let answer: proto::AuthenticateResponse = match answer {
            Ok(answer) => answer,
            // Harmless, and it happens when an operator switches authentication on: users come first.
            Err(status) if status.message().contains("authentication is not enabled") => return Ok(None),
            Err(status) => return Err(judge(&status, &self.service)),
        };
        let token = Token::try_from(answer.token)
            .map_err(|_| Verdict::Final(self.service.refuses("it gave a malformed token").into()))?;
        *enter(&self.token) = Some(token.clone());
        Ok(Some(token))
    }
}

/// The revision of the store when it answered.
pub(super) fn revision(header: Option<&proto::ResponseHeader>) -> Revision {
    Revision(header.map_or(0, |header| header.revision))
}

fn request<T>(message: T, token: Option<Token>) -> Request<T> {
    let mut request = Request::new(message);
    // A member that is cut off from the others shall say so, also to a watch that is under way.
    request
        .metadata_mut()
        .insert("hasleader", MetadataValue::from_static("true"));
    if let Some(token) = token {
        request.metadata_mut().insert("token", token);
    }
    request
}

fn unary<Q, A>(
    method: Method,
    channel: Channel,
    token: Option<Token>,
    question: Q,
) -> BoxFuture<'static, std::result::Result<A, Status>>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    Box::pin(async move {
        let mut grpc = ready(channel).await?;
        let path = PathAndQuery::from_static(method.path);
        let answer = grpc
            .unary(request(question, token), path, ProstCodec::default())
            .await?;
        Ok(answer.into_inner())
    })
}

async fn streaming<S, Q, A>(
    method: Method,
    channel: Channel,
    questions: Request<S>,
) -> std::result::Result<Streaming<A>, Status>
where
    S: futures_util::Stream<Item = Q> + Send + 'static,
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut grpc = ready(channel).await?;
    let path = PathAndQuery::from_static(method.path);
    let answers = grpc.streaming(questions, path, ProstCodec::default()).await?;
    Ok(answers.into_inner())
}

async fn ready(channel: Channel) -> std::result::Result<Grpc<Channel>, Status> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
    grpc.ready()
        .await
        .map_err(|error| Status::from_error(Box::new(error)))?;
    Ok(grpc)
}

fn enter<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

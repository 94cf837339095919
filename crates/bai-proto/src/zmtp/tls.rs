//! Mutual TLS below the same frames, between our own processes (`docs/adr/0010-encrypted-transport.md`).
//!
//! Invariants: both ends show a certificate of the cluster's own authority; whoever connects also checks that the
//! certificate names the host it went to; nothing older than TLS 1.3.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

const HANDSHAKE: Duration = Duration::from_secs(10);

/// This process's certificate, and whose certificates it trusts.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{what} cannot be used: {reason}")]
    Setting { what: &'static str, reason: String },
    #[error(
        "the TLS handshake failed ({0}); both ends need tls turned on, with certificates of the same authority"
    )]
    Handshake(io::Error),
    #[error("the TLS handshake took too long; does the other end have tls turned on?")]
    Timeout,
    #[error("{0:?} is no name that a certificate can have")]
    Name(String),
}

impl Tls {
    /// `authority`: certificates (PEM) of those who sign for the cluster; `chain` and `key` (PEM): this process's own,
    /// with the names and addresses under which others connect to it.
    ///
    /// # Errors
    /// [`TlsError::Setting`] when one of the three is unusable, saying which.
    pub fn new(authority: &[u8], chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        fn setting<E: ToString>(what: &'static str) -> impl Fn(E) -> TlsError {
            move |reason| TlsError::Setting {
                what,
                reason: reason.to_string(),
            }
        }
        let certificates = |pem: &[u8], what| -> Result<Vec<CertificateDer<'static>>, TlsError> {
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let read = read.map_err(setting(what))?;
            if read.is_empty() {
                return Err(setting(what)("there is no certificate in it"));
            }
            Ok(read)
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(authority, "the cluster's authority")? {
            roots
                .add(certificate)
                .map_err(setting("the cluster's authority"))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(chain, "the certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(setting("the private key"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(setting("the cluster's authority"))?;
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(setting("TLS 1.3"))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(setting("the certificate"))?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(setting("TLS 1.3"))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(setting("the certificate"))?;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(client)),
            acceptor: TlsAcceptor::from(Arc::new(server)),
        })
    }

    pub(super) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> Result<client::TlsStream<TcpStream>, TlsError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name(host.to_owned()))?;
        let shaken = tokio::time::timeout(HANDSHAKE, self.connector.connect(name, stream)).await;
        shaken
            .map_err(|_| TlsError::Timeout)?
            .map_err(TlsError::Handshake)
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> Result<server::TlsStream<TcpStream>, TlsError> {
        let shaken = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream)).await;
        shaken
            .map_err(|_| TlsError::Timeout)?
            .map_err(TlsError::Handshake)
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

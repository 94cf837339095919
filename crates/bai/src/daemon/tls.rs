//! TLS for the API (`manager.ssl-cert`, `manager.ssl-privkey`): read at the start, and again on SIGHUP.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context as _, Result, bail};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The certificate that is shown, and the files that it comes from.
#[derive(Debug)]
pub struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads both files.
    ///
    /// # Errors
    /// For files that cannot be read, hold no such thing, or do not belong together.
    pub fn read(chain: &Path, key: &Path) -> Result<Arc<Self>> {
        let provider = Arc::new(ring::default_provider());
        let current = certified(chain, key, &provider)?;
        Ok(Arc::new(Self {
            chain: chain.to_owned(),
            key: key.to_owned(),
            provider,
            current: RwLock::new(Arc::new(current)),
        }))
    }

    /// Reads both files again, for connections to come.
    ///
    /// # Errors
    /// As [`Certificate::read`]; the one in use stays.
    pub fn reload(&self) -> Result<()> {
        let read = certified(&self.chain, &self.key, &self.provider)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read);
        Ok(())
    }

    /// How connections are encrypted with it: TLS 1.2 and 1.3, HTTP/1.1 above.
    ///
    /// # Errors
    /// Never for the library's own defaults.
    pub fn server(self: &Arc<Self>) -> Result<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider));
        let builder = builder
            .with_safe_default_protocol_versions()?
            .with_no_client_auth();
        let mut config = builder.with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current))
    }
}

fn certified(chain: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey> {
    let unusable = || format!("cannot use {} (manager.ssl-cert)", chain.display());
    let read = CertificateDer::pem_file_iter(chain).with_context(unusable)?;
    let certificates: Vec<_> = read.collect::<Result<_, _>>().with_context(unusable)?;
    if certificates.is_empty() {
        bail!(
            "{} holds no certificate in PEM (manager.ssl-cert)",
            chain.display()
        );
    }
    let unusable = || format!("cannot use {} (manager.ssl-privkey)", key.display());
    let key_read = PrivateKeyDer::from_pem_file(key).with_context(unusable)?;
    CertifiedKey::from_der(certificates, key_read, provider).with_context(|| {
        format!(
            "{} (manager.ssl-privkey) is not the key of the first certificate in {} (manager.ssl-cert)",
            key.display(),
            chain.display()
        )
    })
}

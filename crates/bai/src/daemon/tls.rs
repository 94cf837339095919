//! TLS for servers of HTTP (`manager.ssl-cert`, `watcher.ssl-cert` and their keys): read at the start, and again on SIGHUP.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context as _, Result, bail};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// A file, and the setting that names it.
type Named = (PathBuf, &'static str);

/// The certificate that is shown, and the files that it comes from.
#[derive(Debug)]
pub struct Certificate {
    chain: Named,
    key: Named,
    provider: Arc<CryptoProvider>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads both files; the settings that name them are for messages.
    ///
    /// # Errors
    /// For files that cannot be read, hold no such thing, or do not belong together.
    pub fn read(chain: (&Path, &'static str), key: (&Path, &'static str)) -> Result<Arc<Self>> {
        let (chain, key) = ((chain.0.to_owned(), chain.1), (key.0.to_owned(), key.1));
        let provider = Arc::new(ring::default_provider());
        let current = certified(&chain, &key, &provider)?;
        Ok(Arc::new(Self {
            chain,
            key,
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

fn certified(
    (chain, chain_setting): &Named,
    (key, key_setting): &Named,
    provider: &CryptoProvider,
) -> Result<CertifiedKey> {
    let unusable = || format!("cannot use {} ({chain_setting})", chain.display());
    let read = CertificateDer::pem_file_iter(chain).with_context(unusable)?;
    let certificates: Vec<_> = read.collect::<Result<_, _>>().with_context(unusable)?;
    if certificates.is_empty() {
        bail!(
            "{} holds no certificate in PEM ({chain_setting})",
            chain.display()
        );
    }
    let unusable = || format!("cannot use {} ({key_setting})", key.display());
    let key_read = PrivateKeyDer::from_pem_file(key).with_context(unusable)?;
    CertifiedKey::from_der(certificates, key_read, provider).with_context(|| {
        format!(
            "{} ({key_setting}) is not the key of the first certificate in {} ({chain_setting})",
            key.display(),
            chain.display()
        )
    })
}

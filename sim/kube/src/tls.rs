//! TLS with certificates made on the spot: clients such as kubectl send a token over TLS only.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto::ring};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A name is none, or the key could not be made.
    #[error("cannot make a certificate for {names}: {source}; give host names or IP addresses")]
    Certificate {
        /// The names asked for.
        names: String,
        /// What the generator said.
        source: rcgen::Error,
    },
    /// The certificate was made and then refused.
    #[error("cannot serve TLS with a new certificate: {0}")]
    Serve(#[source] tokio_rustls::rustls::Error),
}

/// A certificate authority of its own and a server certificate by it. Lives as long as the process and is stored
/// nowhere.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    authority: String,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Tls")
    }
}

impl Tls {
    /// Makes both for a server under these host names and IP addresses.
    ///
    /// # Errors
    /// When a name is malformed.
    pub fn new(names: &[String]) -> Result<Self, TlsError> {
        let certificate = |source| TlsError::Certificate { names: names.join(", "), source };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "loden kube-emulator CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(certificate)?)
            .map_err(certificate)?;
        let mut params = CertificateParams::new(names).map_err(certificate)?;
        params.distinguished_name.push(DnType::CommonName, "loden kube-emulator");
        let key = KeyPair::generate().map_err(certificate)?;
        let leaf = params.signed_by(&key, &authority).map_err(certificate)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Serve)?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .map_err(TlsError::Serve)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), authority: authority.pem() })
    }

    /// The authority's certificate, PEM, for clients to trust.
    #[must_use]
    pub fn authority_pem(&self) -> &str {
        &self.authority
    }

    pub(crate) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }
}

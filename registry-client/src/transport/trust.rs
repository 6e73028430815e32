//! Trust of one's own: the system's authorities and those of a host's [`Papers`], and our certificate for it.
//!
//! A registry's certificate that was made with `openssl req -x509` is its own authority (`CA:TRUE`). Such a one may be
//! put where authorities go, and clients written in Go take it; the rules of the web (RFC 5280, which webpki follows)
//! forbid a server to show it. It is taken here when it is, byte for byte, one of the host's papers: name, dates and
//! the proof of its key count as ever.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, InconsistentKeys, SignatureScheme,
};
use rustls_platform_verifier::Verifier;

use crate::config::{ConfigError, Pair, Papers};

/// TLS for a host with papers. [`Error`] is a trust store that cannot be used.
pub(super) fn client_config(papers: &Papers) -> Result<Result<ClientConfig, Error>, ConfigError> {
    let mut authorities = Vec::new();
    for path in &papers.authorities {
        authorities.extend(certificates(path)?);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let own = papers.pairs.first().map(|pair| client_certificate(pair, &provider)).transpose()?;
    let verifier = match Pinning::new(authorities, Arc::clone(&provider)) {
        Ok(verifier) => verifier,
        Err(error) => return Ok(Err(error)),
    };
    let builder = match ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions() {
        Ok(builder) => builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)),
        Err(error) => return Ok(Err(error)),
    };
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Ok(config))
}

/// Our certificate with its key.
///
/// Docker's own instructions (`openssl x509 -req`) make certificates of version 1, which rustls cannot look into: those
/// are shown unchecked, and the server judges them.
fn client_certificate(pair: &Pair, provider: &CryptoProvider) -> Result<CertifiedKey, ConfigError> {
    let path = pair.key.as_deref().unwrap_or(&pair.certificate);
    let key = PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|_| unusable(path))?;
    let key = provider.key_provider.load_private_key(key).map_err(|_| unusable(path))?;
    let own = CertifiedKey::new(certificates(&pair.certificate)?, key);
    match own.keys_match() {
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(unusable(&pair.certificate)),
        _ => Ok(own),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

fn unusable(path: &Path) -> ConfigError {
    ConfigError::Setting { setting: "certificate", value: path.display().to_string() }
}

/// All certificates of a PEM file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| unusable(path))
}

/// The system's verifier, and the exception above.
#[derive(Debug)]
struct Pinning {
    inner: Verifier,
    papers: Vec<CertificateDer<'static>>,
}

impl Pinning {
    fn new(papers: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        Ok(Self { inner: Verifier::new_with_extra_roots(papers.iter().cloned(), provider)?, papers })
    }
}

impl ServerCertVerifier for Pinning {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verdict {
            // webpki looks at the dates before it looks at this: an expired one is refused as such.
            Err(error) if is_authority(&error) && self.papers.iter().any(|paper| paper == end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Whether all that is wrong with a server's certificate is that it is an authority's.
fn is_authority(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(cause)) = error else { return false };
    matches!(cause.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

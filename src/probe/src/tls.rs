//! TLS for HTTPS checks. On loopback any certificate will do: it is usually self-signed, and who can answer there is the
//! process, or could read its key. Elsewhere the certificate has to be one that this machine trusts.

use std::sync::{Arc, OnceLock};

use ostler_core::verdict::Outcome;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Accepts every certificate, but not a wrong signature with it.
#[derive(Debug)]
struct Any(Arc<CryptoProvider>);

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn config(loopback: bool) -> Result<Arc<ClientConfig>, String> {
    static CONFIGS: [OnceLock<Result<Arc<ClientConfig>, String>>; 2] = [OnceLock::new(), OnceLock::new()];
    CONFIGS[usize::from(loopback)]
        .get_or_init(|| {
            let provider = Arc::new(ring::default_provider());
            let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .map_err(|why| why.to_string())?;
            let config = if loopback {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Any(provider))).with_no_client_auth()
            } else {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                builder.with_root_certificates(roots).with_no_client_auth()
            };
            Ok(Arc::new(config))
        })
        .clone()
}

/// Begins TLS on a connection to `host`.
pub(crate) async fn connect(stream: TcpStream, host: &str) -> Result<TlsStream<TcpStream>, Outcome> {
    let cannot = |why: String| Outcome::CannotRun(format!("no TLS: {why}"));
    let loopback = stream.peer_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
    let config = config(loopback).map_err(cannot)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|why| cannot(why.to_string()))?;
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|why| Outcome::Failed(format!("TLS handshake failed: {why}")))
}

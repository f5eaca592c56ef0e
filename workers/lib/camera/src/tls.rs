//! Whom to trust: the system's authorities, and the camera's own by its file.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::Verifier;

use crate::error::CameraError;

/// Largest file of authorities, bytes.
const MAX_AUTHORITY_BYTES: u64 = 1 << 20;

/// The authorities in a file, if one is named.
///
/// # Errors
/// The file cannot be read, or holds no certificate.
pub(crate) async fn read_authority(path: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, CameraError> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let unreadable = |why: String| CameraError::Unreadable { address: path.display().to_string(), why };
    let metadata = tokio::fs::metadata(path).await.map_err(|error| unreadable(error.to_string()))?;
    if metadata.len() > MAX_AUTHORITY_BYTES {
        return Err(unreadable(format!("it has {} bytes, too many for certificates", metadata.len())));
    }
    let bytes = tokio::fs::read(path).await.map_err(|error| unreadable(error.to_string()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|error| unreadable(format!("it is no PEM file: {error}")))?;
    match certificates.is_empty() {
        true => Err(unreadable("it holds no certificate in PEM form".into())),
        false => Ok(certificates),
    }
}

/// Settings of a TLS client that trusts `authority` beside the system's authorities.
///
/// # Errors
/// There is nobody to trust, or a certificate in `authority` cannot be used.
pub(crate) fn client_config(
    authority: Vec<CertificateDer<'static>>,
    address: &str,
) -> Result<ClientConfig, CameraError> {
    let refused = |error: rustls::Error| CameraError::Certificate { address: address.into(), why: error.to_string() };
    let provider = Arc::new(default_provider());
    let verifier = Verifier::new_with_extra_roots(authority, provider.clone()).map_err(refused)?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(refused)?.dangerous();
    Ok(builder.with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

/// What a connection that failed says about the camera's certificate, if that was the reason.
pub(crate) fn certificate_fault(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        // An I/O error gives the reason it wraps, and not that one itself, as its source.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = error.downcast_ref::<rustls::Error>().or_else(|| wrapped.and_then(|inner| inner.downcast_ref()));
        if let Some(rustls::Error::InvalidCertificate(why)) = tls {
            return Some(why.to_string());
        }
        next = match wrapped {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The innermost reason of an error, on one line.
pub(crate) fn innermost_reason(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let reason = innermost.to_string();
    reason.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect()
}

//! The fleet's own certificate authority, and the hub's certificate.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use streams::server::write_private;
use time::{Duration, OffsetDateTime};

use crate::error::FleetError;

/// Validity of the authority and of a hub certificate, days.
const AUTHORITY_DAYS: i64 = 3650;
const HUB_DAYS: i64 = 365;
/// Expiry is reported from this many days before it.
pub const RENEW_WITHIN_DAYS: i64 = 30;

/// A certificate and its key, both PEM, and when it expires, milliseconds since the epoch.
pub(crate) struct IssuedCertificate {
    pub certificate: String,
    pub key: String,
    pub ends_at_ms: u64,
}

fn not_made(what: &'static str) -> impl FnOnce(rcgen::Error) -> FleetError {
    move |error| FleetError::NotMade { what, why: error.to_string() }
}

fn params(name: &str, days: i64) -> (CertificateParams, u64) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    // Clocks of sites may be behind.
    params.not_before = now - Duration::days(1);
    params.not_after = now + Duration::days(days);
    let ends_at_ms = u64::try_from(params.not_after.unix_timestamp()).unwrap_or(0) * 1000;
    (params, ends_at_ms)
}

/// Makes a new authority.
pub(crate) fn make_authority() -> Result<IssuedCertificate, FleetError> {
    const WHAT: &str = "the certificate authority";
    let (mut params, ends_at_ms) = params("Tributary fleet", AUTHORITY_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(not_made(WHAT))?;
    let certificate = params.self_signed(&key).map_err(not_made(WHAT))?;
    Ok(IssuedCertificate { certificate: certificate.pem(), key: key.serialize_pem(), ends_at_ms })
}

/// Issues a certificate of that authority for the hub, valid for these names and addresses.
pub(crate) fn issue_hub(
    authority: &str,
    authority_key: &str,
    names: &[String],
) -> Result<IssuedCertificate, FleetError> {
    const WHAT: &str = "the hub's certificate";
    let signing = KeyPair::from_pem(authority_key).map_err(not_made(WHAT))?;
    let issuer = Issuer::from_ca_cert_pem(authority, signing).map_err(not_made(WHAT))?;
    let (mut params, ends_at_ms) = params("Tributary hub", HUB_DAYS);
    let named = CertificateParams::new(names.to_vec()).map_err(not_made(WHAT))?;
    params.subject_alt_names = named.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(not_made(WHAT))?;
    let certificate = params.signed_by(&key, &issuer).map_err(not_made(WHAT))?;
    Ok(IssuedCertificate { certificate: certificate.pem(), key: key.serialize_pem(), ends_at_ms })
}

/// Files of the certificate of a site's server, for clients on other machines, and of its authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerCertificate {
    /// The authority, PEM.
    pub authority: PathBuf,
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// Issues a certificate for a site's server under the site's own authority, which is made if there is none. Each call
/// issues a new one, valid for a year; clients that trust the authority need no change.
///
/// # Errors
/// A name that no certificate can hold, or a folder that cannot be written.
pub fn certify_site(folder: &Path, names: &[String]) -> Result<ServerCertificate, FleetError> {
    fs::create_dir_all(folder).map_err(FleetError::written(folder))?;
    let path = |name: &str| folder.join(name);
    let (authority, authority_key) = (path("ca.pem"), path("ca.key"));
    let write = |path: &Path, text: &str| write_private(path, text).map_err(FleetError::written(path));
    if !authority.exists() {
        let new = make_authority()?;
        write(&authority_key, &new.key)?;
        write(&authority, &new.certificate)?;
    }
    let read = |path: &Path| fs::read_to_string(path).map_err(FleetError::read(path));
    let issued = issue_hub(&read(&authority)?, &read(&authority_key)?, names)?;
    let (certificate, key) = (path("server.pem"), path("server.key"));
    write(&key, &issued.key)?;
    write(&certificate, &issued.certificate)?;
    Ok(ServerCertificate { authority, certificate, key })
}

/// When a certificate expires, milliseconds since the epoch; of several in one file the first, which is the server's
/// own.
///
/// # Errors
/// The file cannot be read or contains no certificate.
pub fn certificate_end(path: &Path) -> Result<u64, FleetError> {
    let invalid = |why: String| FleetError::Unreadable { path: path.into(), why };
    let text = fs::read(path).map_err(FleetError::read(path))?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&text).map_err(|_| invalid("it contains no certificate".into()))?;
    let certificate =
        pem.parse_x509().map_err(|error| invalid(format!("its certificate could not be parsed: {error}")))?;
    Ok(u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0).saturating_mul(1000))
}

/// Whole days until a time, negative after it.
pub fn days_left(ends_at_ms: u64, now_ms: u64) -> i64 {
    let left = i128::from(ends_at_ms) - i128::from(now_ms);
    i64::try_from(left.div_euclid(86_400_000)).unwrap_or(i64::MAX)
}

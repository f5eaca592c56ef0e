//! Keys as openssl writes them: a public one as SubjectPublicKeyInfo, a private one as PKCS#8 or SEC1, all in PEM.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ring::digest;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, EcdsaVerificationAlgorithm, KeyPair, UnparsedPublicKey,
};

use crate::error::{KeyFault, SignatureError};
use crate::pem::{self, BIT_STRING, DerReader, INTEGER, OBJECT, OCTET_STRING, SEQUENCE};
use crate::{folder, read_bounded};

/// Largest key file in bytes; openssl may write a description before the key.
const MAX_KEY_BYTES: u64 = 64 << 10;
const PUBLIC: &str = "PUBLIC KEY";
/// 1.2.840.10045.2.1, an elliptic-curve key.
const EC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// First byte of an uncompressed point.
const UNCOMPRESSED: u8 = 4;

/// A curve, and the hash for signatures on it.
#[derive(Debug)]
struct Curve {
    object: &'static [u8],
    /// The part of a SubjectPublicKeyInfo before the point.
    prefix: &'static [u8],
    point_bytes: usize,
    verifying: &'static EcdsaVerificationAlgorithm,
    signing: &'static EcdsaSigningAlgorithm,
}

static CURVES: [Curve; 2] = [
    Curve {
        object: &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        prefix: &[
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
            0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ],
        point_bytes: 65,
        verifying: &ECDSA_P256_SHA256_ASN1,
        signing: &ECDSA_P256_SHA256_ASN1_SIGNING,
    },
    Curve {
        object: &[0x2b, 0x81, 0x04, 0x00, 0x22],
        prefix: &[
            0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04,
            0x00, 0x22, 0x03, 0x62, 0x00,
        ],
        point_bytes: 97,
        verifying: &ECDSA_P384_SHA384_ASN1,
        signing: &ECDSA_P384_SHA384_ASN1_SIGNING,
    },
];

impl Curve {
    fn by_object(object: &[u8]) -> Option<&'static Curve> {
        CURVES.iter().find(|curve| curve.object == object)
    }
}

/// A public key on P-256 (with SHA-256) or P-384 (with SHA-384).
#[derive(Debug, Clone)]
pub struct EcPublicKey {
    curve: &'static Curve,
    point: Vec<u8>,
    fingerprint: String,
}

impl EcPublicKey {
    /// Reads a PEM file.
    ///
    /// # Errors
    /// The file cannot be read, or is not such a key.
    pub fn read(path: &Path) -> Result<Self, SignatureError> {
        let text = read_bounded(path, MAX_KEY_BYTES)?;
        let key = Self::from_pem(&String::from_utf8_lossy(&text));
        key.map_err(|fault| SignatureError::Key { path: path.to_owned(), fault })
    }

    /// Parses PEM.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn from_pem(text: &str) -> Result<Self, KeyFault> {
        let absent = if text.contains("PRIVATE KEY-----") {
            KeyFault::Private
        } else {
            KeyFault::Absent { wanted: "public", remedy: "pkey -in KEY -pubout -out PUBLIC.pem" }
        };
        let der = pem::block(text, PUBLIC).ok_or(absent)??;
        let of_curve = |curve: &'static Curve| {
            let point = der.strip_prefix(curve.prefix)?;
            Self::of_point(curve, point)
        };
        CURVES.iter().find_map(of_curve).ok_or(KeyFault::WrongKind)
    }

    fn of_point(curve: &'static Curve, point: &[u8]) -> Option<Self> {
        if point.len() != curve.point_bytes || point.first() != Some(&UNCOMPRESSED) {
            return None;
        }
        let whole = pem::write(PUBLIC, &[curve.prefix, point].concat());
        let fingerprint = folder::hex(digest::digest(&digest::SHA256, whole.as_bytes()).as_ref());
        Some(Self { curve, point: point.to_owned(), fingerprint })
    }

    /// SHA-256 of its PEM in 64 hexadecimal digits, by which a signature names it: the output of `sha256sum PUBLIC.pem`
    /// for a file that openssl wrote.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether this key signed the message.
    pub(crate) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.curve.verifying, &self.point).verify(message, signature).is_ok()
    }
}

/// A private key with its public half. It is only stored in its file.
pub struct EcPrivateKey {
    pair: EcdsaKeyPair,
    public: EcPublicKey,
}

impl EcPrivateKey {
    /// Reads a PEM file that only its owner may read.
    ///
    /// # Errors
    /// The file cannot be read, may be read by others, or is not such a key.
    pub fn read(path: &Path) -> Result<Self, SignatureError> {
        let refused = |fault| SignatureError::Key { path: path.to_owned(), fault };
        let text = read_bounded(path, MAX_KEY_BYTES)?;
        let key = Self::from_pem(&String::from_utf8_lossy(&text)).map_err(refused)?;
        let mode = std::fs::metadata(path).map(|metadata| metadata.permissions().mode()).unwrap_or(0);
        // Its group may read it: clusters hand secrets that way to processes that are not root.
        match mode & 0o027 {
            0 => Ok(key),
            _ => Err(refused(KeyFault::Open { mode: mode & 0o777 })),
        }
    }

    /// Parses PEM: PKCS#8 (`PRIVATE KEY`) or SEC1 (`EC PRIVATE KEY`).
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn from_pem(text: &str) -> Result<Self, KeyFault> {
        if let Some(der) = pem::block(text, "PRIVATE KEY") {
            let der = der?;
            let (curve, inner) = unwrap_pkcs8(&der)?;
            return Self::from_sec1(inner, Some(curve));
        }
        if let Some(der) = pem::block(text, "EC PRIVATE KEY") {
            return Self::from_sec1(&der?, None);
        }
        Err(match text {
            text if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") => KeyFault::Encrypted,
            text if text.contains("PRIVATE KEY-----") => KeyFault::WrongKind,
            _ => KeyFault::Absent { wanted: "private", remedy: "ecparam -name prime256v1 -genkey -noout -out KEY.pem" },
        })
    }

    /// From RFC 5915's ECPrivateKey. PKCS#8 names the curve around it, SEC1 inside it.
    fn from_sec1(der: &[u8], curve: Option<&'static Curve>) -> Result<Self, KeyFault> {
        let damaged = || KeyFault::Damaged { why: "DER" };
        let mut key = DerReader(der).enter(SEQUENCE).ok_or_else(damaged)?;
        key.take(INTEGER).filter(|version| *version == [1]).ok_or_else(damaged)?;
        let secret = key.take(OCTET_STRING).ok_or_else(damaged)?;
        let named = match key.enter(pem::context(0)) {
            Some(mut parameters) => {
                Some(parameters.take(OBJECT).and_then(Curve::by_object).ok_or(KeyFault::WrongKind)?)
            }
            None => None,
        };
        let curve = curve.or(named).ok_or(KeyFault::WrongKind)?;
        let point = key.enter(pem::context(1)).and_then(|mut half| half.take(BIT_STRING)).ok_or(KeyFault::Half)?;
        // A bit string begins with the number of unused bits in its last byte.
        let point = point.strip_prefix(&[0]).ok_or_else(damaged)?;
        let public = EcPublicKey::of_point(curve, point).ok_or(KeyFault::WrongKind)?;
        let pair = EcdsaKeyPair::from_private_key_and_public_key(curve.signing, secret, point, &SystemRandom::new());
        pair.map(|pair| Self { pair, public })
            .map_err(|_| KeyFault::Damaged { why: "its private and public half do not match" })
    }

    /// Its public half.
    pub fn public(&self) -> &EcPublicKey {
        &self.public
    }

    /// Its public half in PEM, for verifiers.
    pub fn public_pem(&self) -> String {
        pem::write(PUBLIC, &[self.public.curve.prefix, self.pair.public_key().as_ref()].concat())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let signed = self.pair.sign(&SystemRandom::new(), message);
        let signed = signed.map_err(|_| SignatureError::NotMade { why: "the system has no random numbers".into() })?;
        Ok(signed.as_ref().to_vec())
    }
}

/// The curve and the ECPrivateKey in RFC 5958's PrivateKeyInfo.
fn unwrap_pkcs8(der: &[u8]) -> Result<(&'static Curve, &[u8]), KeyFault> {
    let damaged = || KeyFault::Damaged { why: "DER" };
    let mut key = DerReader(der).enter(SEQUENCE).ok_or_else(damaged)?;
    key.take(INTEGER).filter(|version| matches!(version, [0] | [1])).ok_or_else(damaged)?;
    let mut algorithm = key.enter(SEQUENCE).ok_or_else(damaged)?;
    algorithm.take(OBJECT).filter(|object| *object == EC_KEY).ok_or(KeyFault::WrongKind)?;
    let curve = algorithm.take(OBJECT).and_then(Curve::by_object).ok_or(KeyFault::WrongKind)?;
    Ok((curve, key.take(OCTET_STRING).ok_or_else(damaged)?))
}

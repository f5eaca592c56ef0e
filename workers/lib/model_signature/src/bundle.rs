//! The outer layers of a signature: a Sigstore bundle around a DSSE envelope around the signed bytes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::error::SignatureError;
use crate::key::{EcPrivateKey, EcPublicKey};

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SigstoreBundle {
    media_type: String,
    verification_material: VerificationMaterial,
    dsse_envelope: DsseEnvelope,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VerificationMaterial {
    #[serde(default)]
    public_key: Option<KeyHint>,
    /// Always empty for a key: nothing is logged.
    #[serde(default)]
    tlog_entries: Option<Vec<serde_json::Value>>,
}

#[derive(Serialize, Deserialize)]
struct KeyHint {
    /// Fingerprint of the key; absent before version 1.1 of the tool, which stored the key itself here.
    #[serde(default)]
    hint: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DsseEnvelope {
    payload: String,
    payload_type: String,
    signatures: Vec<DsseSignature>,
}

#[derive(Serialize, Deserialize)]
struct DsseSignature {
    sig: String,
    /// Empty, or null before version 1.1 of the tool.
    #[serde(default)]
    keyid: Option<String>,
}

/// The signed bytes, and which of these keys signed them. The bytes themselves are not examined. Pure.
pub(crate) fn read_bundle<'a>(
    bytes: &[u8],
    keys: &'a [EcPublicKey],
) -> Result<(Vec<u8>, &'a EcPublicKey), SignatureError> {
    let no_bundle = |why: String| SignatureError::NoBundle { why };
    let bundle: SigstoreBundle = serde_json::from_slice(bytes).map_err(|error| no_bundle(error.to_string()))?;
    if bundle.media_type != MEDIA_TYPE {
        return Err(SignatureError::UnknownMethod { part: "media type", value: bundle.media_type });
    }
    let Some(KeyHint { hint }) = bundle.verification_material.public_key else {
        return Err(SignatureError::OtherScheme { scheme: "a certificate or a Sigstore identity" });
    };
    let envelope = bundle.dsse_envelope;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(SignatureError::UnknownMethod { part: "payload type", value: envelope.payload_type });
    }
    let [DsseSignature { sig, .. }] = &envelope.signatures[..] else {
        return Err(no_bundle(format!("it has {} signatures instead of one", envelope.signatures.len())));
    };
    let decode = |what: &str, text: &str| STANDARD.decode(text).map_err(|error| no_bundle(format!("{what}: {error}")));
    let (payload, signature) = (decode("its payload", &envelope.payload)?, decode("its signature", sig)?);
    let given = || keys.iter().map(EcPublicKey::fingerprint).collect::<Vec<_>>().join(", ");
    let candidates: Vec<&EcPublicKey> = match &hint {
        Some(hint) => keys.iter().filter(|key| key.fingerprint() == hint).collect(),
        None => keys.iter().collect(),
    };
    if let (Some(hint), []) = (&hint, &candidates[..]) {
        return Err(SignatureError::OtherKey { named: format!("{hint:?}"), given: given() });
    }
    let message = authenticated(&payload);
    let signer = candidates.into_iter().find(|key| key.has_signed(&message, &signature));
    match signer {
        Some(key) => Ok((payload, key)),
        None => Err(SignatureError::NotSigned { given: given() }),
    }
}

/// The signature file of these bytes.
pub(crate) fn write_bundle(payload: &[u8], key: &EcPrivateKey) -> Result<Vec<u8>, SignatureError> {
    let signature = key.sign(&authenticated(payload))?;
    let bundle = SigstoreBundle {
        media_type: MEDIA_TYPE.into(),
        verification_material: VerificationMaterial {
            public_key: Some(KeyHint { hint: Some(key.public().fingerprint().to_owned()) }),
            tlog_entries: Some(Vec::new()),
        },
        dsse_envelope: DsseEnvelope {
            payload: STANDARD.encode(payload),
            payload_type: PAYLOAD_TYPE.into(),
            signatures: vec![DsseSignature { sig: STANDARD.encode(signature), keyid: Some(String::new()) }],
        },
    };
    serde_json::to_vec(&bundle).map_err(|error| SignatureError::NotMade { why: error.to_string() })
}

/// DSSE's pre-authentication encoding: type and payload, each preceded by its length, so that neither can pass for the
/// other.
fn authenticated(payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

//! Signatures of model folders in the format of OpenSSF Model Signing (OMS) 1.0, by an elliptic-curve key: what the tool
//! `model_signing sign key` writes and `model_signing verify key` reads (PyPI `model-signing`). No network, no Sigstore.
//!
//! A signature is a file of JSON, in four layers from the outside in:
//!
//! - a Sigstore bundle 0.3, which names the key by a digest (`verificationMaterial.publicKey.hint`);
//! - a DSSE envelope: what is signed is `DSSEv1 <length> <payload type> <length> <payload>`, by ECDSA;
//! - an in-toto statement of type `https://model_signing/signature/v1.0`, whose subject is the digest of all digests;
//! - its predicate: how the folder was read (`serialization`), and the digest of every file (`resources`).
//!
//! Sources: <https://github.com/sigstore/model-transparency> (`docs/model_signing_format.md` and the payload that
//! `model_signing` 1.1.1 documents), <https://docs.sigstore.dev/about/bundle/>,
//! <https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md>,
//! <https://github.com/in-toto/attestation/tree/main/spec/v1>. Keys: RFC 5280 and 5480 (public), RFC 5958 and 5915 (private).
//!
//! Deliberately stricter than the tool: no symbolic link is followed, whatever the signature allows; a file that the
//! signer ignored is never copied as a signed one ([`SignedFolder::copy_files`]); there must be exactly one signature,
//! over SHA-256 digests of whole files. Digests of shards, BLAKE2 and BLAKE3, single files, certificates, Sigstore
//! identities and formats before 1.0 are refused by name.

mod bundle;
mod error;
mod folder;
mod key;
mod pem;
mod statement;

use std::io::Read;
use std::path::Path;

pub use error::{KeyFault, SignatureError};
pub use folder::SignedFolder;
pub use key::{EcPrivateKey, EcPublicKey};

/// Path of a signature in the folder it covers.
pub const SIGNATURE_FILE: &str = "model.sig";
/// Most files and folders in a signed folder.
pub const MAX_FILES: usize = 10_000;
/// Largest signature file in bytes: enough for [`MAX_FILES`] names of ordinary length.
pub const MAX_SIGNATURE_BYTES: u64 = 4 << 20;

/// Verifies a folder against a signature file, which one of these keys must have made: every file in the folder is
/// signed, every signed file is present, and none was changed.
///
/// # Errors
/// What is wrong with the signature, or the first file that does not match it.
pub fn verify_folder(folder: &Path, signature: &Path, keys: &[EcPublicKey]) -> Result<SignedFolder, SignatureError> {
    let bytes = read_bounded(signature, MAX_SIGNATURE_BYTES)?;
    let (payload, key) = bundle::read_bundle(&bytes, keys)?;
    let list = statement::read(&payload)?;
    folder::check(folder, signature, &list)?;
    Ok(SignedFolder::new(folder, key.fingerprint().to_owned(), list.files))
}

/// Signs every file of a folder except git's and an earlier signature; the result belongs in a file [`SIGNATURE_FILE`]
/// there.
///
/// # Errors
/// The folder has something that cannot be signed or read.
pub fn sign_folder(folder: &Path, key: &EcPrivateKey) -> Result<Vec<u8>, SignatureError> {
    let files = folder::digest_files(folder)?;
    let payload = statement::write(&folder::name_of(folder), &files)?;
    let signed = bundle::write_bundle(&payload, key)?;
    match signed.len() as u64 {
        0..=MAX_SIGNATURE_BYTES => Ok(signed),
        size_bytes => Err(SignatureError::TooLarge { path: folder.join(SIGNATURE_FILE), size_bytes }),
    }
}

fn read_bounded(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, SignatureError> {
    let unreadable = |source| SignatureError::Unreadable { path: path.to_owned(), source };
    let file = folder::open_regular(path, folder::LinkPolicy::Followed).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    match bytes.len() as u64 {
        size_bytes if size_bytes > limit_bytes => Err(SignatureError::TooLarge { path: path.to_owned(), size_bytes }),
        _ => Ok(bytes),
    }
}

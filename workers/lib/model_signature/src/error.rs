//! Why a folder counts as unsigned, or cannot be signed.

use std::path::PathBuf;

use crate::{MAX_FILES, MAX_SIGNATURE_BYTES};

/// Why a folder counts as unsigned, or cannot be signed. File names are quoted, because whoever made the folder chose
/// them.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// A file or folder cannot be read or written.
    #[error("could not read or write {path}", path = path.display())]
    Unreadable {
        /// Path of the file or folder.
        path: PathBuf,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than a signature can be.
    #[error(
        "{path} is not a signature: it has at least {size_bytes} bytes, at most {MAX_SIGNATURE_BYTES} are accepted; sign fewer files",
        path = path.display()
    )]
    TooLarge {
        /// Path of the file.
        path: PathBuf,
        /// Its size in bytes, at least.
        size_bytes: u64,
    },
    /// The file is not a signature.
    #[error("it is not a signature of a model ({why}); name the file that `model_signing sign key` wrote")]
    NoBundle {
        /// What is wrong with it.
        why: String,
    },
    /// The signature was not made by a key.
    #[error(
        "it was signed by {scheme}, which is not supported; ask the signer for a signature by an elliptic-curve key (`model_signing sign key`)"
    )]
    OtherScheme {
        /// The signing scheme.
        scheme: &'static str,
    },
    /// The signature names another key.
    #[error(
        "it was not signed by this key: it names key {named}, but {given} was given; get the signer's public key from the signer, not from where the model came from"
    )]
    OtherKey {
        /// The key named in the signature, quoted.
        named: String,
        /// The given keys.
        given: String,
    },
    /// The key did not sign these bytes.
    #[error(
        "it was not signed by this key ({given}): the signature is of other bytes or by another key; fetch the model and its signature again"
    )]
    NotSigned {
        /// The given keys.
        given: String,
    },
    /// The signature uses an unknown method.
    #[error(
        "the signature uses {part} {value:?}, which is not supported; sign the model again with `model_signing sign key` 1.0 or later and its defaults"
    )]
    UnknownMethod {
        /// Which part of the signature.
        part: &'static str,
        /// Its value.
        value: String,
    },
    /// The signature is of a single file.
    #[error("the signature is of a single file; sign its folder instead")]
    SingleFile,
    /// The signature contradicts itself.
    #[error("the signature contradicts itself ({why}); ask the signer for another one")]
    Inconsistent {
        /// The contradiction.
        why: String,
    },
    /// The folder has too many files.
    #[error("the folder has more than {MAX_FILES} files and folders; sign the model's files alone")]
    TooMany,
    /// A file was changed after it was signed.
    #[error("file {file:?} was changed after it was signed; fetch it again")]
    Changed {
        /// Its path relative to the folder.
        file: String,
    },
    /// A file is not in the signature.
    #[error("file {file:?} is not in the signature; remove it, or ask the signer to sign it too")]
    Unlisted {
        /// Its path relative to the folder.
        file: String,
    },
    /// A signed file is missing.
    #[error("file {file:?} is missing: it was signed but is not in the folder; fetch it again")]
    Missing {
        /// Its path relative to the folder.
        file: String,
    },
    /// An entry that a signed folder may not have.
    #[error(
        "{file:?} in the folder is {kind}; a signed folder may only have regular files and folders with UTF-8 names"
    )]
    Special {
        /// Its path relative to the folder.
        file: String,
        /// What it is.
        kind: &'static str,
    },
    /// A key is not usable.
    #[error("could not use key {path}: {fault}", path = path.display())]
    Key {
        /// Path of its file.
        path: PathBuf,
        /// Reason.
        fault: KeyFault,
    },
    /// Signing failed.
    #[error("could not sign ({why}); try again")]
    NotMade {
        /// Reason.
        why: String,
    },
}

/// What is wrong with a key file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// It has no key.
    #[error("it has no {wanted} key in PEM; `openssl {remedy}` writes one")]
    Absent {
        /// The wanted half: `public` or `private`.
        wanted: &'static str,
        /// Arguments of openssl that create one.
        remedy: &'static str,
    },
    /// It is a private key where a public one is needed.
    #[error(
        "it is a private key; `openssl pkey -in KEY -pubout -out PUBLIC.pem` writes its public half, and the private key stays with the signer"
    )]
    Private,
    /// It is encrypted.
    #[error("it is encrypted; `openssl pkey -in KEY -out PLAIN.pem` writes it without a password")]
    Encrypted,
    /// Its base64 or DER is invalid.
    #[error("it is damaged ({why}); write it again")]
    Damaged {
        /// What is wrong with it.
        why: &'static str,
    },
    /// It is RSA, Ed25519, on another curve, or on a curve given by its parameters.
    #[error(
        "it is of the wrong kind; only keys on the named curve P-256 or P-384, uncompressed, are accepted (`openssl ecparam -name prime256v1 -genkey -noout`)"
    )]
    WrongKind,
    /// It is a private key without its public half.
    #[error("its public half is missing; `openssl ec -in KEY -out WHOLE.pem` writes both")]
    Half,
    /// Other users may read it.
    #[error("it has mode {mode:o}, so others can use it; run `chmod 600` on it")]
    Open {
        /// Its file permissions.
        mode: u32,
    },
}

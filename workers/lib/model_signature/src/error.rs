//! Why a folder counts as not signed, or cannot be signed.

use std::path::PathBuf;

use crate::{MAX_FILES, MAX_SIGNATURE_BYTES};

/// Why a folder counts as not signed, or cannot be signed. Names of files are quoted, for whoever made the folder chose them.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// A file or folder that cannot be read or written.
    #[error("{path} cannot be read or written", path = path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// More bytes than a signature has.
    #[error(
        "{path} is no signature: it has {size_bytes} bytes or more, at most {MAX_SIGNATURE_BYTES} are accepted; sign fewer files",
        path = path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size, bytes; at least this.
        size_bytes: u64,
    },
    /// Something else than a signature.
    #[error("it is no signature of a model ({why}): name the file that `model_signing sign key` wrote")]
    NoBundle {
        /// What is wrong with it.
        why: String,
    },
    /// A signature of another kind than by a key.
    #[error(
        "it was signed by {scheme}, which is not read here: ask the signer for one by an elliptic-curve key (`model_signing sign key`)"
    )]
    OtherScheme {
        /// Which.
        scheme: &'static str,
    },
    /// A key that none of the given ones is.
    #[error(
        "it was not signed by this key: it names key {named}, and given was {given}; get the signer's public key from the signer, not from where the model came from"
    )]
    OtherKey {
        /// As the signature says, quoted.
        named: String,
        /// Those that would do.
        given: String,
    },
    /// Bytes that the key did not sign.
    #[error(
        "it was not signed by this key ({given}): the signature is of other bytes or by another key; fetch the model and its signature again"
    )]
    NotSigned {
        /// Those that would do.
        given: String,
    },
    /// A way of reading the folder that is not known here.
    #[error(
        "the signature uses {part} {value:?}, which is not read here: sign the model again with `model_signing sign key` 1.0 or later and its defaults"
    )]
    UnknownMethod {
        /// Of what.
        part: &'static str,
        /// What it says.
        value: String,
    },
    /// A signature of one file.
    #[error("the signature is of a single file: sign the folder that it lies in")]
    SingleFile,
    /// A list that contradicts itself.
    #[error("the signature contradicts itself ({why}): ask the signer for another one")]
    Inconsistent {
        /// How.
        why: String,
    },
    /// More files than a signed folder has.
    #[error("more than {MAX_FILES} files and folders: sign the model's files alone")]
    TooMany,
    /// A file that is not as it was signed.
    #[error("file {file:?} was changed: it is not what was signed; fetch it again")]
    Changed {
        /// Relative to the folder.
        file: String,
    },
    /// A file that nobody signed.
    #[error("file {file:?} is not in the signature: remove it, or ask the signer to sign it too")]
    Unlisted {
        /// Relative to the folder.
        file: String,
    },
    /// A signed file that is not there.
    #[error("file {file:?} is missing: it was signed and is not in the folder; fetch it again")]
    Missing {
        /// Relative to the folder.
        file: String,
    },
    /// Something that may not lie in a signed folder.
    #[error("{file:?} in the folder is {kind}: a signed folder holds regular files and folders with names in UTF-8")]
    Special {
        /// Relative to the folder.
        file: String,
        /// What it is.
        kind: &'static str,
    },
    /// A key that cannot be used.
    #[error("key {path} cannot be used: {fault}", path = path.display())]
    Key {
        /// Its file.
        path: PathBuf,
        /// Why.
        fault: KeyFault,
    },
    /// The system's chance, or what a signature is made of, failed.
    #[error("no signature was made ({why}): try again")]
    NotMade {
        /// Why.
        why: String,
    },
}

/// What is wrong with a key's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// No key in it.
    #[error("it holds no {wanted} key in PEM: `openssl {remedy}` writes one")]
    Absent {
        /// `public` or `private`.
        wanted: &'static str,
        /// How one is made.
        remedy: &'static str,
    },
    /// A secret where everybody's half is wanted.
    #[error(
        "it is a private key: `openssl pkey -in KEY -pubout -out PUBLIC.pem` writes its public half, and the private one stays with the signer"
    )]
    Private,
    /// Under a password.
    #[error("it is encrypted: `openssl pkey -in KEY -out PLAIN.pem` writes it without a password")]
    Encrypted,
    /// Base64 or DER that is none.
    #[error("it is damaged ({why}): write it again")]
    Damaged {
        /// What is wrong.
        why: &'static str,
    },
    /// RSA, Ed25519, another curve, or a curve written out.
    #[error(
        "it is of the wrong kind: keys on the curve P-256 or P-384, by name and uncompressed, are accepted (`openssl ecparam -name prime256v1 -genkey -noout`)"
    )]
    WrongKind,
    /// A private key without the public one.
    #[error("its public half is missing: `openssl ec -in KEY -out WHOLE.pem` writes both")]
    Half,
    /// Others may read it.
    #[error("it has mode {mode:o}, so others can use it: run `chmod 600` on it")]
    Open {
        /// Its permissions.
        mode: u32,
    },
}

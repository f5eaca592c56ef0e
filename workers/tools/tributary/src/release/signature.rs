//! Signed models, in the format of OpenSSF Model Signing.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use model_signature::{EcPublicKey, SIGNATURE_FILE, SignedFolder, verify_folder};

use crate::{format, stdout};

/// The signature that a folder must have.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct SignatureArgs {
    /// Import only what this public key signed (PEM, P-256 or P-384).
    ///
    /// The format is that of OpenSSF Model Signing (`model_signing sign key`).
    #[arg(long, value_name = "PUBLIC.pem")]
    signed_by: Option<PathBuf>,
    /// File of the signature [default: model.sig in the folder].
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
}

/// Verifies a folder's signature where one is required, by --signed-by or by releaser.trusted_keys.
pub(super) async fn verify(
    args: &SignatureArgs,
    trusted: &[PathBuf],
    folder: &Path,
) -> anyhow::Result<Option<SignedFolder>> {
    let beside = folder.join(SIGNATURE_FILE);
    let keys = accepted(args, trusted)?;
    if keys.is_empty() {
        if args.signature.is_some() {
            bail!("--signature needs the signer's public key: name it with --signed-by PUBLIC.pem");
        }
        if beside.exists() {
            stdout::print_note(format_args!(
                "{} was not verified: name the signer's public key with --signed-by PUBLIC.pem",
                beside.display()
            ));
        }
        return Ok(None);
    }
    let signature = args.signature.clone().unwrap_or(beside);
    if !signature.exists() {
        bail!(
            "{} is not signed: there is no {}; ask its maker for a signature, or name its file with --signature",
            folder.display(),
            signature.display()
        );
    }
    let folder = folder.to_owned();
    let verify = move || {
        let verified = verify_folder(&folder, &signature, &keys);
        verified.with_context(|| format!("{} does not match its signature {}", folder.display(), signature.display()))
    };
    tokio::task::spawn_blocking(verify).await?.map(Some)
}

/// The keys of which one must have signed; empty if no signature is required.
fn accepted(args: &SignatureArgs, trusted: &[PathBuf]) -> anyhow::Result<Vec<EcPublicKey>> {
    let trusted = trusted.iter().map(|path| EcPublicKey::read(path)).collect::<Result<Vec<_>, _>>();
    let trusted = trusted.context("setting releaser.trusted_keys")?;
    let Some(path) = &args.signed_by else { return Ok(trusted) };
    let key = EcPublicKey::read(path)?;
    if !trusted.is_empty() && !trusted.iter().any(|trusted| trusted.fingerprint() == key.fingerprint()) {
        bail!(
            "{} is not one of releaser.trusted_keys: add it there, or import a folder signed by one of those",
            path.display()
        );
    }
    Ok(vec![key])
}

/// Prints how a recipient verifies the folder. `key`: fingerprint of the key that signed it.
pub(super) fn print_check(folder: &Path, key_file: &Path, key: &str) -> anyhow::Result<()> {
    let (folder, signature) = (folder.display(), folder.join(SIGNATURE_FILE));
    stdout::print_line(format_args!(
        "signed   by key {}; its public key: openssl pkey -in {} -pubout -out PUBLIC.pem",
        key,
        key_file.display()
    ))?;
    stdout::print_line(format_args!(
        "check    model_signing verify key --public_key PUBLIC.pem --signature {} {folder}",
        signature.display()
    ))?;
    stdout::print_line(format_args!("import   tributary release import {folder} --signed-by PUBLIC.pem"))
}

/// Prints who signed a release, if anybody did.
pub(super) fn print_signer(fingerprint: Option<&String>) -> anyhow::Result<()> {
    fingerprint.map_or(Ok(()), |key| stdout::print_line(format_args!("signed   by key {}", format::plain_text(key))))
}

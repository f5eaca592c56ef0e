//! Models that their makers signed, in the format of OpenSSF Model Signing.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use model_signature::{EcPrivateKey, EcPublicKey, SIGNATURE_FILE, SignedFolder, sign_folder, verify_folder};
use vision::Model;

use crate::{format, stdout};

/// Whose signature a folder has to bear.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SignatureArgs {
    /// Public key in PEM (P-256 or P-384): refuse the folder unless its signature is by this key and every file is as it was
    /// signed. The format is that of OpenSSF Model Signing (`model_signing sign key`).
    #[arg(long, value_name = "PUBLIC.pem")]
    signed_by: Option<PathBuf>,
    /// The signature; model.sig in the folder if absent.
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
}

/// Holds a folder against its signature, where one is asked for: by its caller, or by releaser.trusted_keys.
pub async fn verify(args: &SignatureArgs, trusted: &[PathBuf], folder: &Path) -> anyhow::Result<Option<SignedFolder>> {
    let beside = folder.join(SIGNATURE_FILE);
    let keys = accepted(args, trusted)?;
    if keys.is_empty() {
        if args.signature.is_some() {
            bail!("a signature is checked with its maker's key: name it with --signed-by PUBLIC.pem");
        }
        if beside.exists() {
            stdout::print_note(format_args!(
                "{} was not checked: --signed-by PUBLIC.pem names the key of whoever made it",
                beside.display()
            ));
        }
        return Ok(None);
    }
    let signature = args.signature.clone().unwrap_or(beside);
    if !signature.exists() {
        bail!(
            "{} is not signed: there is no {}; ask its maker for one, or name where it lies with --signature",
            folder.display(),
            signature.display()
        );
    }
    let folder = folder.to_owned();
    let verify = move || {
        let verified = verify_folder(&folder, &signature, &keys);
        verified.with_context(|| format!("{} is refused by its signature {}", folder.display(), signature.display()))
    };
    tokio::task::spawn_blocking(verify).await?.map(Some)
}

/// The keys of which one must have signed; none where no signature is asked for.
fn accepted(args: &SignatureArgs, trusted: &[PathBuf]) -> anyhow::Result<Vec<EcPublicKey>> {
    let trusted = trusted.iter().map(|path| EcPublicKey::read(path)).collect::<Result<Vec<_>, _>>();
    let trusted = trusted.context("setting releaser.trusted_keys")?;
    let Some(path) = &args.signed_by else { return Ok(trusted) };
    let key = EcPublicKey::read(path)?;
    if !trusted.is_empty() && !trusted.iter().any(|trusted| trusted.fingerprint() == key.fingerprint()) {
        bail!("{} is none of releaser.trusted_keys: add it there, or import what one of those signed", path.display());
    }
    Ok(vec![key])
}

/// Reads the model of a signed folder from a copy that holds what was signed and nothing else.
pub async fn load(signed: &SignedFolder, folder: &Path, copy: &Path) -> anyhow::Result<Model> {
    let (signed, folder, copy) = (signed.clone(), folder.to_owned(), copy.to_owned());
    let load = move || {
        let named = Model::load(&folder).with_context(|| format!("model {}", folder.display()))?;
        signed
            .copy_files(&named.files, &copy)
            .with_context(|| format!("{} cannot be imported as it was signed", folder.display()))?;
        let model = Model::load(&copy).with_context(|| format!("signed files of {}", folder.display()))?;
        if model.release != named.release {
            bail!(
                "{} is another model with the files that were not signed than without them: remove those",
                folder.display()
            );
        }
        Ok(model)
    };
    tokio::task::spawn_blocking(load).await?
}

/// Signs a folder where it lies.
pub fn sign(folder: &Path, key: &EcPrivateKey) -> anyhow::Result<()> {
    let signature = sign_folder(folder, key)?;
    let path = folder.join(SIGNATURE_FILE);
    std::fs::write(&path, signature).with_context(|| format!("{} cannot be written", path.display()))
}

/// How whoever gets a signed folder checks it.
pub fn print_check(folder: &Path, key_file: &Path, key: &EcPrivateKey) -> anyhow::Result<()> {
    let (folder, signature) = (folder.display(), folder.join(SIGNATURE_FILE));
    stdout::print_line(format_args!(
        "signed   by key {}; its public half: openssl pkey -in {} -pubout -out PUBLIC.pem",
        key.public().fingerprint(),
        key_file.display()
    ))?;
    stdout::print_line(format_args!(
        "check    model_signing verify key --public_key PUBLIC.pem --signature {} {folder}",
        signature.display()
    ))?;
    stdout::print_line(format_args!("import   tributary release import {folder} --signed-by PUBLIC.pem"))
}

/// Who signed a release, in words.
pub fn print_signer(fingerprint: Option<&String>) -> anyhow::Result<()> {
    fingerprint.map_or(Ok(()), |key| stdout::print_line(format_args!("signed   by key {}", format::plain_number(key))))
}

//! Writing a release's model folder, or an OCI image layout with it.

use std::path::{Path, PathBuf};

use aggregator::ModelReleases;
use aggregator::release::ReleaseError;
use model_signature::{EcPrivateKey, SIGNATURE_FILE, SignatureError, sign_folder};
use releases::oci::{self, OciError};
use releases::package::{self, PackageError};
use schemas::{ModelName, ReleaseId};
use vision::Model;

/// What is written.
pub enum ExportForm {
    /// The model's folder.
    Folder,
    /// The model's folder, signed with this key (OpenSSF Model Signing).
    SignedFolder(Box<EcPrivateKey>),
    /// An OCI image layout under this reference, such as `fish:3fa71d`.
    OciLayout(String),
}

/// Why a release was not exported.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseExportError {
    /// The release cannot be read.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// It has no package.
    #[error("release {} has no package: its trial failed, or an older version made it", .0.short())]
    Unpackaged(ReleaseId),
    /// The folder is taken.
    #[error("{} is not empty: name a folder that is empty or does not exist", .0.display())]
    NotEmpty(PathBuf),
    /// There is no place for temporary files.
    #[error("a folder for temporary files")]
    Temporary(#[source] std::io::Error),
    /// A folder was not made.
    #[error("{} cannot be created", path.display())]
    Create {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        why: std::io::Error,
    },
    /// A file was not written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        why: std::io::Error,
    },
    /// The package is damaged or missing.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The layout was not written.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// The folder was not signed.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// A blocking task panicked.
    #[error("a blocking task stopped unexpectedly; report it")]
    Broke(#[from] tokio::task::JoinError),
}

/// Writes a release, named by its first digits, into a folder that is empty or does not exist.
pub async fn export_release(
    releases: &ModelReleases,
    name: &ModelName,
    release: &str,
    folder: &Path,
    form: ExportForm,
) -> Result<ReleaseId, ReleaseExportError> {
    let manifest = releases.find(release).await?;
    if manifest.package.is_empty() {
        return Err(ReleaseExportError::Unpackaged(manifest.release));
    }
    if folder.exists() && std::fs::read_dir(folder).map_or(true, |mut found| found.next().is_some()) {
        return Err(ReleaseExportError::NotEmpty(folder.to_owned()));
    }
    let work = tempfile::tempdir().map_err(ReleaseExportError::Temporary)?;
    let file = work.path().join("package.tar");
    package::fetch(releases.store(), name, &manifest.package, &file).await?;
    let (into, release) = (folder.to_owned(), manifest.release.clone());
    let write = move || {
        let model = package::unpack(&file, &release, &work.path().join(release.as_str()))?;
        match &form {
            ExportForm::OciLayout(reference) => Ok(oci::export(&model, &into, reference)?),
            ExportForm::Folder => copy_model(&model, &into),
            ExportForm::SignedFolder(key) => copy_model(&model, &into).and_then(|()| sign(&into, key)),
        }
    };
    tokio::task::spawn_blocking(write).await?.map(|()| manifest.release)
}

fn copy_model(model: &Model, into: &Path) -> Result<(), ReleaseExportError> {
    for file in &model.files {
        let to = into.join(file);
        if let Some(parent) = to.parent() {
            let made = std::fs::create_dir_all(parent);
            made.map_err(|why| ReleaseExportError::Create { path: parent.to_owned(), why })?;
        }
        let copied = std::fs::copy(model.folder.join(file), &to);
        copied.map_err(|why| ReleaseExportError::Write { path: to, why })?;
    }
    Ok(())
}

/// Signs a folder in place.
fn sign(folder: &Path, key: &EcPrivateKey) -> Result<(), ReleaseExportError> {
    let (signature, path) = (sign_folder(folder, key)?, folder.join(SIGNATURE_FILE));
    std::fs::write(&path, signature).map_err(|why| ReleaseExportError::Write { path, why })
}

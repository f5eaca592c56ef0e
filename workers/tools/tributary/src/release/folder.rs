//! Import a model's folder as a release, and export a release as a folder.

use std::path::Path;

use aggregator::ModelReleases;
use model_signature::{EcPrivateKey, SignedFolder};
use operations::release_export::{ExportForm, export_release};
use operations::release_import::{ImportedRelease, LoadedFolder};
use releases::trial::TrialRunner;
use runtime::settings::LoadedSettings;
use schemas::ModelName;
use streams::ReleaseStore;

use super::signature;
use crate::settings::Settings;
use crate::{format, site_target, stdout};

/// Imports a folder as a release; of a signed folder, the signed files only.
pub(super) async fn import(
    loaded: &LoadedSettings<Settings>,
    store: ReleaseStore,
    name: Option<ModelName>,
    (folder, signed): (&Path, Option<SignedFolder>),
    json: bool,
) -> anyhow::Result<()> {
    let read = LoadedFolder::load(folder, signed.as_ref()).await?;
    let cloud = site_target::cloud(loaded, "release").await?;
    let checked = read.check(&cloud, store, name).await?;
    stdout::print_note(format_args!("trying {} in a separate process …", folder.display()));
    let trial = TrialRunner::of_this_program(loaded.settings.onnxruntime.clone());
    let imported = checked.import(&trial).await?;
    if imported.had_another_signer {
        stdout::print_note("The release was already in the store: `tributary release show` names who signed it then.");
    }
    if json { stdout::json(&imported) } else { print_imported(&imported) }
}

fn print_imported(imported: &ImportedRelease) -> anyhow::Result<()> {
    let (release, name, stage) = (imported.release.short(), &imported.model, imported.stage.as_str());
    stdout::print_line(format_args!("release {release} of {name} is {stage}"))?;
    signature::print_signer(imported.signed_by.as_ref())?;
    let needs = &imported.needs;
    stdout::print_line(format_args!(
        "package  {} in {}; ONNX opset {}, {} MiB of memory, tried with ONNX Runtime {}",
        format::format_size(imported.package_bytes),
        format::count(imported.package_pieces as u64, "piece"),
        needs.opset,
        needs.memory_mib,
        needs.runtime
    ))?;
    let relabelled = imported.relabelled.as_ref();
    relabelled.map_or(Ok(()), |relabelled| stdout::print_line(format_args!("labels   {relabelled}")))
}

/// Writes a release's model folder, signed if a key is named, or an OCI image layout with it.
pub(super) async fn export(
    releases: &ModelReleases,
    name: &ModelName,
    release: &str,
    folder: &Path,
    (reference, key_file): (Option<&str>, Option<&Path>),
) -> anyhow::Result<()> {
    let key = key_file.map(EcPrivateKey::read).transpose()?;
    let fingerprint = key.as_ref().map(|key| key.public().fingerprint().to_owned());
    let form = match (reference, key) {
        (Some(reference), _) => ExportForm::OciLayout(reference.to_owned()),
        (None, Some(key)) => ExportForm::SignedFolder(Box::new(key)),
        (None, None) => ExportForm::Folder,
    };
    let exported = export_release(releases, name, release, folder, form).await?;
    stdout::print_line(format_args!("release {} is in {}", exported.short(), folder.display()))?;
    let signed = key_file.zip(fingerprint);
    signed.map_or(Ok(()), |(file, fingerprint)| signature::print_check(folder, file, &fingerprint))
}

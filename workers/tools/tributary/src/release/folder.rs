//! Import a model's folder as a release, and export a release as a folder.

use std::path::Path;
use std::time::Duration;

use aggregator::ModelReleases;
use aggregator::release::Manifest;
use aggregator::release_builder;
use anyhow::{Context, bail};
use model_signature::{EcPrivateKey, SignedFolder};
use recognizer::RecognizerSettings;
use releases::prepare::{self, ReleaseOrigin};
use releases::stage::{self, DecisionContext};
use releases::trial::TrialRunner;
use releases::{decision_log, oci, package};
use runtime::clock;
use runtime::settings::LoadedSettings;
use schemas::{DecisionOrigin, ModelName, ReleaseId, Rollout, SiteName, Swap};
use serde_json::json;
use streams::store::PutOutcome;
use streams::{Blobs, Bus, CarryError, Publisher, ReleaseStore};
use vision::Model;

use super::signature;
use crate::settings::Settings;
use crate::{audit, format, site_target, stdout};

/// Imports a folder as a release; of a signed folder, the signed files only.
pub async fn import(
    loaded: &LoadedSettings<Settings>,
    store: ReleaseStore,
    name: Option<ModelName>,
    (folder, signed): (&Path, Option<SignedFolder>),
    json: bool,
) -> anyhow::Result<()> {
    let work = tempfile::tempdir().context("a folder for temporary files")?;
    let model = match &signed {
        Some(signed) => signature::load(signed, folder, &work.path().join("signed")).await?,
        None => Model::load(folder).with_context(|| format!("model {}", folder.display()))?,
    };
    let name = name.unwrap_or_else(|| ModelName::from_name(&model.description.name));
    let cloud = site_target::cloud(loaded, "release").await?;
    let blobs = Blobs::open_in_cloud(&cloud).await?;
    let releases = ModelReleases::new(store, name.clone());
    let now = decision_log::latest(&cloud, &name).await?;
    let relabelled = match &now {
        Some(now) => {
            if let Some(stage) = stage::stage_of(now, &model.release) {
                bail!("release {} is already {}", model.release.short(), stage.as_str());
            }
            relabelled(&releases, now, &model.labels).await?
        }
        None => {
            check_first(&cloud, &name, &model.release).await?;
            None
        }
    };
    stdout::print_note(format_args!("trying {} in a separate process …", folder.display()));
    let parent = now.as_ref().map(|now| now.stable.release.clone());
    let origin = ReleaseOrigin { parent: parent.clone(), words: "imported".into(), ..ReleaseOrigin::default() };
    let trial = TrialRunner::of_this_program(loaded.settings.onnxruntime.clone());
    let prepared = prepare::prepare(&model, origin, &trial, work.path()).await;
    let (release, file) =
        prepared.map_err(|fault| anyhow::anyhow!("{} ({}): {}", fault.reason, fault.kind, fault.remedy))?;
    let (weights, weights_file) = {
        let (model, work) = (model.clone(), work.path().to_owned());
        tokio::task::spawn_blocking(move || release_builder::weights_of(&model, &work)).await??
    };
    prepare::keep_and_offer(releases.store(), &blobs, &name, &release, &file).await?;
    let manifest = Manifest::first(name.clone(), model.release.clone(), model.labels.clone(), weights);
    let signed_by = signed.map(|signed| signed.fingerprint().to_owned());
    let manifest = Manifest { parent, signed_by, ..manifest.packaged(release.package.clone()) };
    if releases.put(&manifest, &weights_file).await? == PutOutcome::Already {
        let kept = releases.manifest(&model.release).await?;
        if kept.is_some_and(|kept| kept.signed_by != manifest.signed_by) {
            stdout::print_note(
                "The release was already in the store: `tributary release show` names who signed it then.",
            );
        }
    }
    let publisher = Publisher::new(cloud.clone(), Duration::from_secs(10));
    let decided = decision_log::decide(&cloud, &publisher, &name, |now| {
        let context = |why| DecisionContext::new(DecisionOrigin::Hand, why, clock::now_ms());
        Ok::<_, CarryError>(match now {
            None => Some(stage::first(name.clone(), release.clone(), context("imported as the first"))),
            Some(now) => stage::candidate(now, release.clone(), context("imported")).ok(),
        })
    });
    let decided = decided.await?.context("it was imported by someone else at the same moment")?;
    let by = manifest.signed_by.as_ref().map_or(String::new(), |key| format!(", signed by key {key}"));
    audit::record_command(
        &cloud,
        &SiteName::cloud(),
        "release import",
        format!("{name} {}{by}", release.release.as_str()),
    )
    .await;
    let stage = decided.decision.stage.as_str();
    if json {
        return stdout::json(&json!({
            "release": release.release, "model": name, "stage": stage, "needs": release.needs,
            "package_bytes": release.size_bytes(), "relabelled": relabelled,
            "signed_by": manifest.signed_by,
        }));
    }
    stdout::print_line(format_args!("release {} of {name} is {stage}", release.release.short()))?;
    signature::print_signer(manifest.signed_by.as_ref())?;
    let needs = &release.needs;
    stdout::print_line(format_args!(
        "package  {} in {}; ONNX opset {}, {} MiB of memory, tried with ONNX Runtime {}",
        format::format_size(release.size_bytes()),
        format::count(release.package.len() as u64, "piece"),
        needs.opset,
        needs.memory_mib,
        needs.runtime
    ))?;
    relabelled.map_or(Ok(()), |relabelled| stdout::print_line(format_args!("labels   {relabelled}")))
}

/// A first release must be what the sites already run, or they could not return to it.
async fn check_first(cloud: &Bus, model: &ModelName, release: &ReleaseId) -> anyhow::Result<()> {
    let reports = decision_log::reports(cloud).await?;
    let others = reports.iter().filter(|swap| swap.model == *model && swap.release != *release);
    match others.min_by_key(|swap| (&swap.site, &swap.release)) {
        None => Ok(()),
        Some(Swap { site, release: runs, .. }) => bail!(
            "site {site} runs release {} of {model}, which is not in the store: import that one first, so that sites can return to it",
            runs.short()
        ),
    }
}

/// How the labels differ from those of the stable release, in words; an error if one is missing.
async fn relabelled(releases: &ModelReleases, now: &Rollout, labels: &[String]) -> anyhow::Result<Option<String>> {
    let Some(stable) = releases.manifest(&now.stable.release).await? else { return Ok(None) };
    let missing: Vec<&String> = stable.labels.iter().filter(|label| !labels.contains(label)).collect();
    if !missing.is_empty() {
        bail!(
            "it has no label {}, which {} has: a release may add and reorder labels, but must not drop one, because sites, thresholds and training go by their names",
            format::list(&missing),
            now.stable.release.short()
        );
    }
    let place = |label: &String| stable.labels.iter().position(|known| known == label);
    let added: Vec<&String> = labels.iter().filter(|label| place(label).is_none()).collect();
    let moved = labels.iter().enumerate().filter_map(|(to, label)| Some((label, place(label)?, to)));
    let moved: Vec<String> =
        moved.filter(|(_, from, to)| from != to).map(|(label, from, to)| format!("{label} {from} to {to}")).collect();
    let mut words = Vec::new();
    if !added.is_empty() {
        words.push(format!("new: {}", format::list(&added)));
    }
    if !moved.is_empty() {
        words.push(format!("moved in the output: {}", format::list(&moved)));
    }
    Ok((!words.is_empty()).then(|| words.join("; ")))
}

/// Refuses to write where recognizers look for their model: the next `up` would run what was only exported.
pub fn check_not_default(loaded: &LoadedSettings<Settings>, folder: &Path) -> anyhow::Result<()> {
    let default = match site_target::is_set(loaded, "recognizer.model") {
        true => loaded.settings.recognizer.model.clone(),
        false => RecognizerSettings::default().model,
    };
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if absolute(folder) == absolute(&default) {
        bail!(
            "{} is where `tributary up` and `tributary recognizer` take their model from when none is named (recognizer.model): export to another folder",
            folder.display()
        );
    }
    Ok(())
}

/// Writes a release's model folder, signed if a key is named, or an OCI image layout with it.
pub async fn export(
    releases: &ModelReleases,
    name: &ModelName,
    release: &str,
    folder: &Path,
    (reference, key_file): (Option<&str>, Option<&Path>),
) -> anyhow::Result<()> {
    let key = key_file.map(EcPrivateKey::read).transpose()?;
    let manifest = releases.find(release).await?;
    if manifest.package.is_empty() {
        bail!("release {} has no package: its trial failed, or an older version made it", manifest.release.short());
    }
    if folder.exists() && std::fs::read_dir(folder).map_or(true, |mut found| found.next().is_some()) {
        bail!("{} is not empty: name a folder that is empty or does not exist", folder.display());
    }
    let work = tempfile::tempdir().context("a folder for temporary files")?;
    let file = work.path().join("package.tar");
    package::fetch(releases.store(), name, &manifest.package, &file).await?;
    let (into, release, reference) = (folder.to_owned(), manifest.release.clone(), reference.map(str::to_owned));
    let written = move || -> anyhow::Result<Option<EcPrivateKey>> {
        let model = package::unpack(&file, &release, &work.path().join(release.as_str()))?;
        if let Some(reference) = &reference {
            oci::export(&model, &into, reference)?;
            return Ok(None);
        }
        for file in &model.files {
            let to = into.join(file);
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("{} cannot be created", parent.display()))?;
            }
            std::fs::copy(model.folder.join(file), &to)
                .with_context(|| format!("{} cannot be written", to.display()))?;
        }
        if let Some(key) = &key {
            signature::sign(&into, key)?;
        }
        Ok(key)
    };
    let key = tokio::task::spawn_blocking(written).await??;
    stdout::print_line(format_args!("release {} is in {}", manifest.release.short(), folder.display()))?;
    key_file.zip(key).map_or(Ok(()), |(file, key)| signature::print_check(folder, file, &key))
}

//! `tributary release`: a model's releases, their rollout, and decisions by hand.

mod decide;
mod folder;
mod remake;
mod signature;
mod standing;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aggregator::ModelReleases;
use aggregator::audit::AccuracyChange;
use aggregator::public_set::PublicSet;
use aggregator::release::{self, Manifest, RemakeOrigin};
use aggregator::verify::{self, ReleaseWorkspace, verify_release};
use anyhow::{Context, bail};
use operations::release_stage;
use runtime::settings::LoadedSettings;
use schemas::{ModelName, ReleaseId, Rollout};
use streams::ReleaseStore;
use vision::{Model, OnnxRuntime};

use crate::settings::Settings;
use crate::{format, roles, round, stdout};

const EXAMPLES: &str = "\
A release is named by its digest, of which the first digits suffice. It starts as a candidate; `tributary releaser` \
lets a few sites try it (canary), compares them with the others, and then promotes it for all sites (stable) or \
withdraws it. Decisions by hand take effect at once.

Releases are kept in aggregator.store: a folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix, with \
credentials from the environment as for the provider's own tools (AWS_ACCESS_KEY_ID, …).

Examples:
  tributary release list
  tributary release show 3fa71d                   its lineage and every rollout decision
  tributary release import ./trained              a model trained elsewhere, as a candidate
  tributary release promote 3fa71d                all sites, without a canary
  tributary release rollback                      all sites, to the previous stable release
  tributary release pin reef 3fa71d               one site, whatever the rollout decides
  tributary release export 3fa71d ./model
  tributary release export 3fa71d ./image --oci fish:3fa71d
  tributary release import ./theirs --signed-by their.pem
                                                  only with a valid ./theirs/model.sig
  tributary release export 3fa71d ./model --sign our-key.pem
  tributary release verify 3fa71d --model ./model --public ./public
  tributary release remake 3fa71d --exclude reef --why 'its camera was mislabelled'";

/// Heading of the options that every `tributary release` command takes.
const ALL_COMMANDS: &str = "Options of every release command";

/// List, inspect, import and export releases, and decide their rollout by hand.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReleaseArgs {
    /// Release store [default: aggregator.store].
    #[arg(long, global = true, value_name = "URL", help_heading = ALL_COMMANDS)]
    release_store: Option<String>,
    /// Name of the model; required if the store has several.
    #[arg(long, global = true, value_name = "NAME", help_heading = ALL_COMMANDS)]
    name: Option<ModelName>,
    /// Print JSON.
    #[arg(long, global = true, help_heading = ALL_COMMANDS)]
    json: bool,
    #[command(subcommand)]
    what: ReleaseCommand,
}

#[derive(clap::Subcommand)]
enum ReleaseCommand {
    /// List all releases, with parent, stage and accuracy.
    List,
    /// Show how a release was produced and every rollout decision, with the supporting metrics.
    Show {
        /// First digits of the release.
        release: String,
    },
    /// Show how far two releases are apart, tensor by tensor.
    Diff {
        /// First digits of the first release.
        one: String,
        /// First digits of the second release.
        other: String,
    },
    /// Rebuild a release from the updates of its sites, and compare it bit by bit.
    Verify {
        /// First digits of the release.
        release: String,
        /// Folder of the baseline model that sites were set up with [default: aggregator.model].
        #[arg(long, value_name = "DIR")]
        model: Option<PathBuf>,
        /// Folder of the public set that the release was made with [default: aggregator.public].
        #[arg(long, value_name = "DIR")]
        public: Option<PathBuf>,
    },
    /// Derive a release again without some of its updates, as a new candidate.
    Remake(remake::RemakeArgs),
    /// Import an externally trained model as a candidate; the first release of a model becomes its baseline.
    Import {
        /// Folder of the model: model.toml, graph.onnx and labels.txt, or a Hugging Face export.
        folder: PathBuf,
        #[command(flatten)]
        signature: signature::SignatureArgs,
    },
    /// Write a release's model folder, or an OCI image layout with it.
    Export {
        /// First digits of the release.
        release: String,
        /// Folder to write; it must be empty or not exist.
        folder: PathBuf,
        /// Write an OCI image layout under this reference, such as fish:3fa71d, for registries and Kubernetes image
        /// volumes.
        #[arg(long, value_name = "REFERENCE")]
        oci: Option<String>,
        /// Sign the folder with this private key (PEM, P-256 or P-384): writes model.sig in the format of OpenSSF Model
        /// Signing.
        #[arg(long, value_name = "KEY.pem", conflicts_with = "oci")]
        sign: Option<PathBuf>,
    },
    /// Promote a release to all sites.
    Promote(decide::ReleaseDecisionArgs),
    /// Withdraw a candidate or canary.
    Withdraw(decide::ReleaseDecisionArgs),
    /// Return all sites to the previous stable release, and withdraw the current one.
    Rollback(decide::ReasonArgs),
    /// Pin a site to a release, overriding the rollout.
    Pin(decide::PinArgs),
    /// Unpin a site, so that it follows the rollout again.
    Unpin(decide::UnpinArgs),
}

/// Imports a folder that this program made itself into the store of the settings; no signature is required.
pub(crate) async fn import(
    loaded: &LoadedSettings<Settings>,
    name: ModelName,
    folder: &Path,
    json: bool,
) -> anyhow::Result<()> {
    let store = roles::release_store(&loaded.settings)?;
    folder::import(loaded, store, Some(name), (folder, None), json).await
}

/// Shows releases and decides about them.
pub(crate) async fn command(loaded: &LoadedSettings<Settings>, args: &ReleaseArgs) -> anyhow::Result<()> {
    let url = args.release_store.clone().unwrap_or_else(|| loaded.settings.aggregator.store.clone());
    let store = ReleaseStore::open(&url).with_context(|| format!("release store {url}"))?;
    if let ReleaseCommand::Import { folder, signature } = &args.what {
        let signed = signature::verify(signature, &loaded.settings.releaser.trusted_keys, folder).await?;
        return folder::import(loaded, store, args.name.clone(), (folder, signed), args.json).await;
    }
    let model = match &args.name {
        Some(name) => name.clone(),
        None => only(&store, &url).await?,
    };
    let releases = ModelReleases::new(store, model.clone());
    match &args.what {
        ReleaseCommand::List => list(&releases, &standing::read_history(loaded, &model).await, args.json).await,
        ReleaseCommand::Show { release } => {
            let (manifest, history) = (releases.find(release).await?, standing::read_history(loaded, &model).await);
            if args.json {
                let mut all = serde_json::to_value(&manifest)?;
                let stage = release_stage::stage_word(&history, &manifest.release);
                stdout::set_field(&mut all, "stage", stage.into());
                let decisions = release_stage::decisions_about(&history, &manifest.release);
                stdout::set_field(&mut all, "decisions", serde_json::to_value(decisions)?);
                return stdout::json(&all);
            }
            show(&manifest)?;
            standing::print_standing(&history, &manifest.release)
        }
        ReleaseCommand::Diff { one, other } => diff(&releases, one, other, args.json).await,
        ReleaseCommand::Verify { release, model, public } => {
            let model = round::model(loaded, model.as_ref())?;
            let manifest = releases.find(release).await?;
            let public = public.clone().or_else(|| loaded.settings.aggregator.public.clone());
            verify_command(loaded, &releases, &manifest, model, public, args.json).await
        }
        ReleaseCommand::Remake(remake) => remake::command(loaded, &releases, &model, remake, args.json).await,
        ReleaseCommand::Import { .. } => Ok(()),
        ReleaseCommand::Export { release, folder, oci, sign } => {
            folder::export(&releases, &model, release, folder, (oci.as_deref(), sign.as_deref())).await
        }
        ReleaseCommand::Promote(one) => decide::promote(loaded, &releases, &model, one, args.json).await,
        ReleaseCommand::Withdraw(one) => decide::withdraw(loaded, &releases, &model, one, args.json).await,
        ReleaseCommand::Rollback(why) => decide::roll_back(loaded, &model, why, args.json).await,
        ReleaseCommand::Pin(pin) => decide::pin(loaded, &releases, &model, pin, args.json).await,
        ReleaseCommand::Unpin(unpin) => decide::unpin(loaded, &model, unpin, args.json).await,
    }
}

async fn only(store: &ReleaseStore, url: &str) -> anyhow::Result<ModelName> {
    let models = release::models(store).await?;
    match &models[..] {
        [only] => Ok(only.clone()),
        [] => bail!(
            "there is no release in {url} yet: a running aggregator or `tributary release import` adds them; name another store with --release-store"
        ),
        several => bail!("{url} has releases of several models ({}): choose one with --name", format::list(several)),
    }
}

async fn list(releases: &ModelReleases, history: &[Rollout], json: bool) -> anyhow::Result<()> {
    let all = releases.list().await?;
    let stage = |release: &ReleaseId| release_stage::stage_word(history, release);
    if json {
        let rows = all.iter().map(|manifest| {
            let mut row = serde_json::to_value(manifest)?;
            stdout::set_field(&mut row, "stage", stage(&manifest.release).into());
            Ok(row)
        });
        return stdout::json(&rows.collect::<anyhow::Result<Vec<_>>>()?);
    }
    let row = |manifest: &Manifest| {
        let made = manifest.made.as_ref();
        let reported = made.and_then(|made| made.record.reported);
        let percent = |measured: schemas::ModelAccuracy| format!("{:.1} %", measured.accuracy_ratio * 100.0);
        let after = |reported: AccuracyChange| match reported.is_measured() {
            true => percent(reported.after),
            false => format!("{}, no change measured", percent(reported.after)),
        };
        vec![
            manifest.release.short().to_owned(),
            stage(&manifest.release).to_owned(),
            if manifest.round == 0 { String::new() } else { manifest.round.to_string() },
            manifest.parent.as_ref().map_or(String::new(), |parent| parent.short().to_owned()),
            made.map_or(String::new(), |made| format::format_time(made.closed_at_ms)),
            made.map_or(String::new(), |made| made.updates.len().to_string()),
            made.map_or(String::new(), |made| made.refused.len().to_string()),
            made.map_or(String::new(), |made| made.record.rule.clone()),
            reported.map_or(String::new(), |reported| percent(reported.before)),
            reported.map_or(String::new(), after),
        ]
    };
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    let head = ["release", "stage", "round", "parent", "closed", "updates", "refused", "rule", "before", "after"];
    stdout::print_line(format::table(&head, &rows))
}

fn show(manifest: &Manifest) -> anyhow::Result<()> {
    stdout::print_line(format_args!("release  {}", manifest.release))?;
    stdout::print_line(format_args!(
        "model    {}, {}",
        manifest.model,
        format::count(manifest.labels.len() as u64, "label")
    ))?;
    stdout::print_line(format_args!(
        "weights  {}, SHA-256 {}",
        format::format_size(manifest.weights.size_bytes),
        manifest.weights.sha256
    ))?;
    signature::print_signer(manifest.signed_by.as_ref())?;
    let (Some(made), Some(parent)) = (&manifest.made, &manifest.parent) else {
        return match &manifest.parent {
            Some(parent) => stdout::print_line(format_args!("parent   {parent}; trained elsewhere")),
            None => stdout::print_line("It is the baseline that sites were set up with, not the result of a round."),
        };
    };
    stdout::print_line(format_args!("parent   {parent}"))?;
    stdout::print_line(format_args!(
        "round    {}, {} to {}: {}",
        manifest.round,
        format::format_time(made.opened_at_ms),
        format::format_time(made.closed_at_ms),
        made.closed_because
    ))?;
    stdout::print_line(format_args!("trained  {}", made.trainable))?;
    if let Some(remade) = &manifest.remade {
        show_remade(remade)?;
    }
    let rule = match &made.record.instead {
        Some(why) => format!("{} ({why})", made.record.rule),
        None => made.record.rule.clone(),
    };
    stdout::print_line(format_args!("rule     {rule}"))?;
    if let Some(reported) = made.record.reported {
        stdout::print_line(format_args!("public   {reported}"))?;
        let (before, after) = (reported.before.loss, reported.after.loss);
        stdout::print_line(format_args!(
            "         on images that nothing was fitted on or selected by; loss {after:.3}, {before:.3} before"
        ))?;
    }
    let classes = |accuracy: &[Option<f64>]| {
        let one = |accuracy: &Option<f64>| accuracy.map_or("-".into(), |accuracy| format!("{:.0}", accuracy * 100.0));
        accuracy.iter().map(one).collect::<Vec<String>>().join(" ")
    };
    let rows: Vec<Vec<String>> = made
        .record
        .parts
        .iter()
        .map(|part| {
            vec![
                part.site.to_string(),
                part.samples.to_string(),
                format!("{:.3}", part.norm),
                part.loss.map_or(String::new(), |loss| format!("{loss:.3}")),
                format!("{:.3}", part.share),
                classes(&part.accuracy),
                part.note.clone().unwrap_or_default(),
            ]
        })
        .collect();
    stdout::print_line(format::table(&["site", "images", "norm", "loss", "share", "accuracy by class, %", ""], &rows))?;
    for candidate in &made.record.candidates {
        stdout::print_line(format_args!(
            "tried    {:<18} loss {:.4}, accuracy {:.1} %",
            candidate.rule,
            candidate.loss,
            candidate.accuracy_ratio * 100.0
        ))?;
    }
    for refused in &made.refused {
        stdout::print_line(format_args!(
            "refused  {}: {} ({})",
            refused.site, refused.fault.reason, refused.fault.kind
        ))?;
    }
    Ok(())
}

fn show_remade(remade: &RemakeOrigin) -> anyhow::Result<()> {
    stdout::print_line(format_args!(
        "remade   {} from the updates of release {}: {}",
        format::format_time(remade.at_ms),
        remade.of.short(),
        format::plain_text(&remade.why)
    ))?;
    for left_out in &remade.without {
        stdout::print_line(format_args!("excluded update {} of site {}", left_out.id, left_out.site))?;
    }
    Ok(())
}

async fn diff(releases: &ModelReleases, one: &str, other: &str, json: bool) -> anyhow::Result<()> {
    let work = tempfile::tempdir().context("a folder for temporary files")?;
    let mut read = Vec::new();
    for digits in [one, other] {
        let manifest = releases.find(digits).await?;
        let path = work.path().join(manifest.release.as_str());
        releases.fetch(&manifest, &path).await?;
        let bytes = tokio::fs::read(&path).await.with_context(|| format!("{} cannot be read", path.display()))?;
        read.push((manifest, training::weights::decode(&bytes)?.0));
    }
    let [(one, first), (other, second)] = &read[..] else { bail!("name two releases") };
    let apart = verify::weight_differences(first, second);
    if json {
        let rows: Vec<_> = apart
            .iter()
            .map(|(name, size, moved)| serde_json::json!({ "tensor": name, "rms": size, "rms_of_difference": moved }))
            .collect();
        return stdout::json(&rows);
    }
    stdout::print_line(format_args!(
        "{} and {}: root mean square of the weights and of their difference",
        one.release.short(),
        other.release.short()
    ))?;
    let ratio =
        |size: f64, moved: f64| if size > 0.0 { format!("{:.2} %", moved / size * 100.0) } else { String::new() };
    let rows: Vec<Vec<String>> = apart
        .iter()
        .map(|(name, size, moved)| {
            vec![name.clone(), format!("{size:.5}"), format!("{moved:.5}"), ratio(*size, *moved)]
        })
        .collect();
    stdout::print_line(format::table(&["tensor", "size", "difference", ""], &rows))
}

/// The public set, if a folder is named.
async fn public_set(
    loaded: &LoadedSettings<Settings>,
    model: &Model,
    folder: Option<PathBuf>,
) -> anyhow::Result<Option<Arc<PublicSet>>> {
    let aggregator = &loaded.settings.aggregator;
    let (most, room) = (aggregator.public_max_per_class as usize, (aggregator.public_max_mib as usize) << 20);
    let Some(folder) = folder else { return Ok(None) };
    let root = model.clone();
    let read = tokio::task::spawn_blocking(move || PublicSet::read(&folder, &root, most, room));
    Ok(Some(Arc::new(read.await??)))
}

async fn verify_command(
    loaded: &LoadedSettings<Settings>,
    releases: &ModelReleases,
    manifest: &Manifest,
    model: Model,
    public: Option<PathBuf>,
    json: bool,
) -> anyhow::Result<()> {
    let runtime = OnnxRuntime::find_and_load(loaded.settings.onnxruntime.as_deref())?;
    let public = public_set(loaded, &model, public).await?;
    let work = tempfile::tempdir().context("a folder for temporary files")?;
    let place = ReleaseWorkspace { runtime, root: Arc::new(model), work: work.path().to_owned() };
    let verified = verify_release(&place, releases, manifest, public).await?;
    if json {
        let (made, same, updates) = (&verified.made, verified.same, verified.updates);
        stdout::json(
            &serde_json::json!({ "release": manifest.release, "made_again": made, "same": same, "updates": updates }),
        )?;
    }
    match verified.same {
        true if json => Ok(()),
        true => stdout::print_line(format_args!(
            "release {} rebuilt from {}: the same, bit by bit",
            manifest.release.short(),
            format::count(verified.updates as u64, "update")
        )),
        false => bail!(
            "rebuilt from its {} updates, release {} becomes {}: it was made on another kind of processor or with another ONNX Runtime, or something was changed",
            verified.updates,
            manifest.release.short(),
            verified.made.short()
        ),
    }
}

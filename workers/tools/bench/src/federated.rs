//! Compares merge rules: ten sites with pictures divided in many variants, ten rounds, several seeds, using the aggregator's
//! own modules without NATS. Measures accuracy, not time, so other load on the machine does not matter.

mod experiment;
mod pool;
mod results;
mod scheme;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use aggregator::MergeSettings;
use aggregator::filter::UpdateFilter;
use aggregator::score::ScoringModel;
use aggregator::server_optimizer::ServerOptimizerKind;
use aggregator::weigh::{CapabilityMeasure, WeighSettings};
use autograd::TrainableSelection;
use runtime::Shutdown;
use vision::OnnxRuntime;

use crate::error::BenchError;
use crate::experiments;
use crate::report::BenchReport;
use experiment::{ExperimentResult, ExperimentRunner};
pub(crate) use experiment::{initial_weights, site};
use pool::PicturePool;
use scheme::SCHEMES;
pub(crate) use scheme::{DivisionScheme, gamma, normal};

/// Looks up a division scheme by name.
pub(crate) fn scheme_named(name: &str) -> Option<&'static DivisionScheme> {
    SCHEMES.iter().find(|scheme| scheme.name == name)
}

/// Options of `bench federated`.
#[derive(Debug, Clone, Default)]
pub(crate) struct FederatedBenchOptions {
    /// One seed, with few schemes and rules.
    pub quick: bool,
    /// Folders of labelled images; the project's own images if empty.
    pub data: Vec<PathBuf>,
    /// Column of the index that groups pictures.
    pub groups: String,
    /// Names of the rules to run; all if empty.
    pub rules: Vec<String>,
    /// Number of seeds, at least 1.
    pub seeds: u64,
    /// The ONNX Runtime library; searched for if absent.
    pub onnxruntime: Option<PathBuf>,
}

/// A merge rule under test: its name in tables, and its settings; `None` learns from the public set only.
#[derive(Debug, Clone)]
struct RuleVariant {
    name: String,
    merge: Option<MergeSettings>,
}

fn variant(name: &str, change: impl FnOnce(&mut MergeSettings)) -> RuleVariant {
    let mut merge = MergeSettings { rule: "fedavg".into(), ..MergeSettings::default() };
    change(&mut merge);
    RuleVariant { name: name.into(), merge: Some(merge) }
}

/// All merge rules, filters and server optimizers, and the control.
fn variants() -> Vec<RuleVariant> {
    let rule = |name: &str| variant(name, |merge| merge.rule = name.into());
    let filter = |name: &str, filter: UpdateFilter| variant(name, |merge| merge.filter.names = vec![filter]);
    let server = |name: &str, kind: ServerOptimizerKind, rate: f64| {
        variant(name, |merge| (merge.server_optimizer.kind, merge.server_optimizer.rate) = (kind, rate))
    };
    let rules = [
        "fedavg",
        "uniform",
        "agreement",
        "classes",
        "paper",
        "quality",
        "law",
        "fedavg+head",
        "paper+head",
        "law+head",
        "fedavg+tune",
        "paper+tune",
        "quality+tune",
        "classes+tune",
        "quality-classes+tune",
        "quality+distill",
        "pick",
    ];
    let mut variants = rules.map(rule).to_vec();
    variants.insert(
        4,
        variant("paper literal", |merge| {
            merge.rule = "paper".into();
            merge.weigh.floor_ratio = 0.0;
        }),
    );
    variants.extend([
        filter("norm-clip", UpdateFilter::NormClip),
        filter("loss-gate", UpdateFilter::LossGate),
        filter("krum", UpdateFilter::Krum),
        filter("trimmed", UpdateFilter::Trimmed),
        filter("median", UpdateFilter::Median),
        server("momentum", ServerOptimizerKind::Momentum, 0.5),
        server("adam", ServerOptimizerKind::Adam, 0.01),
        server("yogi", ServerOptimizerKind::Yogi, 0.01),
        RuleVariant { name: "val-only".into(), merge: None },
    ]);
    variants
}

/// Ablation of the paper's formula: exponents of stability, capability and size, the floor, and the capability measure.
fn ablation() -> Vec<RuleVariant> {
    let paper = |name: &str, change: &dyn Fn(&mut WeighSettings)| {
        variant(name, |merge| {
            merge.rule = "paper".into();
            change(&mut merge.weigh);
        })
    };
    let exponents = |name: &str, a: f64, b: f64, c: f64| {
        paper(name, &move |weigh| (weigh.stability, weigh.capability, weigh.size) = (a, b, c))
    };
    vec![
        exponents("paper (1, 0, 0)", 1.0, 0.0, 0.0),
        exponents("paper (0, 1, 0)", 0.0, 1.0, 0.0),
        exponents("paper (0, 0, 1)", 0.0, 0.0, 1.0),
        exponents("paper (2, 1, 1)", 2.0, 1.0, 1.0),
        exponents("paper (1, 2, 1)", 1.0, 2.0, 1.0),
        exponents("paper (1, 1, 2)", 1.0, 1.0, 2.0),
        paper("paper floor 0.05", &|weigh| weigh.floor_ratio = 0.05),
        paper("paper floor 0.6", &|weigh| weigh.floor_ratio = 0.6),
        paper("paper mean", &|weigh| weigh.capability_measure = CapabilityMeasure::Mean),
        paper("paper mean (1, 2, 1)", &|weigh| {
            (weigh.capability_measure, weigh.capability) = (CapabilityMeasure::Mean, 2.0);
        }),
    ]
}

/// Runs the bench: more than an hour per folder with all rules, a minute if `quick`.
pub(crate) async fn run(options: &FederatedBenchOptions, shutdown: Shutdown) -> Result<BenchReport, BenchError> {
    let (options, stop) = (options.clone(), std::sync::Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let work = tokio::task::spawn_blocking(move || measure(&options, &stopped));
    tokio::select! {
        report = work => report?,
        () = shutdown.wait_for_request() => {
            stop.store(true, Ordering::Relaxed);
            Err(BenchError::Stopped)
        }
    }
}

fn measure(options: &FederatedBenchOptions, stop: &AtomicBool) -> Result<BenchReport, BenchError> {
    let runtime = OnnxRuntime::find_and_load(options.onnxruntime.as_deref())?;
    let folders: Vec<Option<&PathBuf>> = match options.data.as_slice() {
        [] => vec![None],
        named => named.iter().map(Some).collect(),
    };
    let mut variants: Vec<RuleVariant> =
        if options.quick { variants() } else { variants().into_iter().chain(ablation()).collect() };
    let quick = ["fedavg", "paper literal", "paper", "pick"].map(str::to_owned);
    let named: &[String] = if options.quick && options.rules.is_empty() { &quick } else { &options.rules };
    variants.retain(|variant| named.is_empty() || named.contains(&variant.name));
    let mut sets = Vec::new();
    for folder in folders {
        let pool = PicturePool::read(folder.map(PathBuf::as_path), &options.groups)?;
        let results = run_all(&runtime, &pool, &variants, options, stop)?;
        sets.push(results::ExperimentSet {
            name: pool.name.clone(),
            classes: pool.classes,
            pictures: [pool.learn.len(), pool.test.len()],
            results,
        });
    }
    Ok(results::report(&sets, &variants, options))
}

/// Runs every rule on every scheme with every seed, on all cores.
fn run_all(
    runtime: &OnnxRuntime,
    pool: &PicturePool,
    variants: &[RuleVariant],
    options: &FederatedBenchOptions,
    stop: &AtomicBool,
) -> Result<Vec<ExperimentResult>, BenchError> {
    let scoring = ScoringModel::for_model(runtime, &pool.model, &TrainableSelection::All, &[])?;
    let grouped = pool.learn.iter().any(|(_, _, group)| group.is_some());
    let schemes = SCHEMES.iter().filter(|scheme| grouped || !scheme.needs_groups());
    let schemes: Vec<&DivisionScheme> = if options.quick { schemes.step_by(3).collect() } else { schemes.collect() };
    let mut experiments: Vec<(u64, &DivisionScheme, &RuleVariant)> = Vec::new();
    for seed in 1..=options.seeds {
        for scheme in &schemes {
            experiments.extend(variants.iter().map(|variant| (seed, *scheme, variant)));
        }
    }
    experiments::run_experiments(
        &experiments,
        ("experiments", 50),
        || stop.load(Ordering::Relaxed),
        || ExperimentRunner::open(runtime, pool, &scoring),
        |runner, (seed, scheme, variant)| runner.run_experiment(scheme, &variant.name, variant.merge.as_ref(), *seed),
    )
}

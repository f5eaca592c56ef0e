//! Turns a base and the sites' updates into the next weights: score → filter → weigh → merge → server optimizer. The
//! same base, updates, public set and settings give the same weights on the same machine, in whatever order the updates
//! arrived.
//!
//! The public set has three fixed parts: one that weights are fitted on, one that candidates are chosen by and one that
//! is reported. `pick` replaces the base only by a candidate that is better on the second part: it is right more often
//! by more than chance, or equally right with a loss that is lower by more than chance, each model taken at its best
//! temperature. Such a threshold keeps the choice honest although it is applied to the same pictures round after round
//! (the Ladder, arXiv 1502.04585). While recent releases were clear improvements, a candidate that is at least as right
//! with a lower loss is enough, because many small gains are each within chance.

use schemas::SiteName;
use training::TrainError;
use training::holdout::HoldoutComparison;

use crate::audit::{AccuracyChange, AggregateAudit, RuleTrial, SiteAudit};
use crate::filter::{self, FilterSettings, UpdateFilter};
use crate::merge::{self, SiteDelta, WeightedRow};
use crate::parameter_layout::ParameterLayout;
use crate::public_set::PublicSet;
use crate::rule::{CLASSES, COMMAND, LAW, MergeSettings, PICK, PREVIOUS, PostMergeStep, QUALITY_CLASSES, split_rule};
use crate::score::{HeadLearning, ModelScore, ModelScorer, Tuning};
use crate::server_optimizer::{self, ServerOptimizerState};
use crate::weigh::command::{self, RuleCommandError, SiteScores};
use crate::weigh::share_learning::{self, ShareLearning};
use crate::weigh::{self, SiteMeasures, agreement};
use crate::weights_file::WeightRow;

/// One site's update, as the merge sees it.
#[derive(Debug, Clone)]
pub struct SiteContribution<'a> {
    /// The site that sent it.
    pub site: SiteName,
    /// Its weights, or their difference from `base`.
    pub values: WeightRow<'a>,
    /// The weights it started from: those of the round's base or of an older release.
    pub base: &'a [f32],
    /// Releases between its start and the round's base; 0 for the base itself.
    pub behind: u32,
    /// Number of images it learned from.
    pub samples: u64,
    /// Number of those that the site found doubtful.
    pub hard: u64,
    /// Images per class, in the order of the model's labels; empty where that is not known.
    pub of_class: Vec<u64>,
}

/// New weights, and how they were produced.
#[derive(Debug, Clone, PartialEq)]
pub struct AggregateResult {
    /// The new weights.
    pub row: Vec<f32>,
    /// State of the server optimizer after this round.
    pub memory: ServerOptimizerState,
    /// How they were produced, for the manifest.
    pub record: AggregateAudit,
}

/// Why no weights could be merged.
#[derive(Debug, thiserror::Error)]
pub enum AggregateError {
    /// No update is left to merge.
    #[error("no update is left to merge; look at the refused updates in `tributary dead-letters list --cloud`")]
    NoUpdates,
    /// The rule needs a public set and there is none.
    #[error("{0} needs a public set; set aggregator.public to a folder of labelled pictures")]
    NoPublic(String),
    /// A setting does not fit together with the rest.
    #[error("invalid setting: {0}")]
    Settings(String),
    /// The merged weights contain NaN or infinity.
    #[error(
        "the merged weights are not finite; lower aggregator.merge.server_optimizer.rate, or refuse long updates with aggregator.check.norm_over_base_max"
    )]
    NotFinite,
    /// The weighing program failed.
    #[error(transparent)]
    Command(#[from] RuleCommandError),
    /// A model could not be scored.
    #[error(transparent)]
    Train(#[from] TrainError),
}

/// What an aggregation works with: the layout of the weights, the public set, and the scorers.
pub struct AggregateContext<'a> {
    /// Which number of a row belongs to which tensor.
    pub layout: &'a ParameterLayout,
    /// Pictures with true labels; absent without a public set.
    pub public: Option<&'a PublicSet>,
    /// Scorers that run in parallel; at least one where there is a public set.
    pub judges: &'a mut [ModelScorer],
    /// Number of the round, the seed of all random choices.
    pub round: u64,
    /// Whether one of the last [`LEARNING_RELEASES`] releases, the base included, was clearly better than its own base.
    pub is_learning: bool,
}

/// For this many releases after one that was clearly better than its base, a candidate is also taken if it is at least
/// as right as its base with a lower loss (decision 0030).
pub const LEARNING_RELEASES: usize = 5;

/// Whether the loop is still learning, so that a release as good as its base is good enough: one of the last
/// [`LEARNING_RELEASES`] was better than its base by more than chance. `clear`: for every release, oldest first,
/// whether it was.
pub fn is_learning(clear: &[bool]) -> bool {
    clear.iter().rev().take(LEARNING_RELEASES).any(|clear| *clear)
}

/// Computes the next weights.
pub fn aggregate(
    base: &[f32],
    mut sent: Vec<SiteContribution<'_>>,
    memory: ServerOptimizerState,
    settings: &MergeSettings,
    context: &mut AggregateContext<'_>,
) -> Result<AggregateResult, AggregateError> {
    settings.check().map_err(AggregateError::Settings)?;
    if sent.is_empty() {
        return Err(AggregateError::NoUpdates);
    }
    if context.public.is_none() && settings.needs_public() {
        return Err(AggregateError::NoPublic(format!("rule {}", settings.rule)));
    }
    // Sums of floats depend on their order, so updates are ordered by site, not by arrival.
    sent.sort_by(|a, b| a.site.cmp(&b.site));
    let parts = context.public.map(PublicSet::parts).unwrap_or_default();
    let learn = if settings.rule == PICK { parts.fit.clone() } else { parts.fit_and_choose() };
    let (scored, predictions) = scored(&sent, settings, &learn, context)?;
    let mut round = AggregateRound {
        base,
        sent,
        scored,
        predictions,
        settings,
        learn,
        times: Vec::new(),
        counts: Vec::new(),
        notes: Vec::new(),
    };
    round.compare(context.layout);
    round.filter(context.layout);
    let (merged, tried) = match settings.rule.as_str() {
        PICK => round.pick(context, &parts.choose)?,
        rule => (round.make(rule, context)?, PickTrials::default()),
    };
    let PickTrials { candidates, weakest, is_clear } = tried;
    let MergedModel { mut row, rule, shares, instead } = merged;
    let mut memory = memory;
    if rule != PREVIOUS {
        server_optimizer::apply_optimizer(base, &mut row, &mut memory, &settings.server_optimizer);
    }
    if !row.iter().all(|value| value.is_finite()) {
        return Err(AggregateError::NotFinite);
    }
    let reported = match (context.public, context.judges.first_mut()) {
        (Some(public), Some(judge)) => {
            let before = judge.score(base, public, &parts.report)?.holdout();
            let after = judge.score(&row, public, &parts.report)?.holdout();
            AccuracyChange::of(&before, &after)
        }
        _ => None,
    };
    let record = AggregateAudit {
        parts: round.parts(&shares, context.layout),
        rule,
        candidates,
        weakest,
        is_clear,
        instead,
        reported,
    };
    Ok(AggregateResult { row, memory, record })
}

/// Scores every site's model on these pictures of the public set, as many at a time as there are scorers. Also returns
/// their predictions in the order of the whole set.
fn scored(
    sent: &[SiteContribution<'_>],
    settings: &MergeSettings,
    of: &[usize],
    context: &mut AggregateContext<'_>,
) -> Result<(Vec<SiteMeasures>, Vec<Vec<f32>>), AggregateError> {
    let unscored = |sent: &SiteContribution<'_>| SiteMeasures {
        samples: sent.samples,
        hard: sent.hard,
        ..SiteMeasures::default()
    };
    let Some(public) = context.public.filter(|_| settings.uses_public()) else {
        return Ok((sent.iter().map(unscored).collect(), Vec::new()));
    };
    let layout = context.layout;
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = |judge: &mut ModelScorer| -> Result<Vec<(usize, ModelScore)>, TrainError> {
        let mut tried = Vec::new();
        loop {
            let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(sent) = sent.get(index) else { return Ok(tried) };
            tried.push((index, judge.score(&model(sent, layout), public, of)?));
        }
    };
    let tried = std::thread::scope(|scope| {
        let threads: Vec<_> = context.judges.iter_mut().map(|judge| scope.spawn(|| work(judge))).collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    let mut scored: Vec<SiteMeasures> = sent.iter().map(unscored).collect();
    let mut predictions = vec![Vec::new(); sent.len()];
    for tried in tried {
        let tried = tried.map_err(|_| AggregateError::Settings("a scorer stopped unexpectedly".into()))??;
        for (index, ModelScore { loss, accuracy, probabilities, .. }) in tried {
            (scored[index].loss, scored[index].accuracy) = (Some(loss), accuracy);
            predictions[index] = vec![0.0; public.len() * public.count];
            for (picture, own) in of.iter().zip(probabilities.chunks_exact(public.count)) {
                predictions[index][picture * public.count..][..public.count].copy_from_slice(own);
            }
        }
    }
    Ok((scored, predictions))
}

/// The weights of one site's model, all of them.
fn model(sent: &SiteContribution<'_>, layout: &ParameterLayout) -> Vec<f32> {
    let mut row = sent.values.row(layout);
    if sent.values.are_added() {
        row.iter_mut().zip(sent.base).for_each(|(row, base)| *row += base);
    }
    row
}

struct AggregateRound<'a> {
    base: &'a [f32],
    sent: Vec<SiteContribution<'a>>,
    scored: Vec<SiteMeasures>,
    /// For each site, its model's predictions on the public pictures.
    predictions: Vec<Vec<f32>>,
    settings: &'a MergeSettings,
    /// The public pictures that rules learn from.
    learn: Vec<usize>,
    /// Factor for each change; below 1 where it was clipped.
    times: Vec<f64>,
    /// Which updates count.
    counts: Vec<bool>,
    notes: Vec<Option<String>>,
}

/// Index of the candidate to take: the first, unless the one with the lowest loss beats it by more than the standard
/// error of the difference, picture by picture. `None` if no loss is finite.
fn choice(tried: &[&ModelScore]) -> Option<usize> {
    let finite = |index: &usize| tried[*index].loss.is_finite();
    let best = (0..tried.len()).filter(finite).min_by(|a, b| tried[*a].loss.total_cmp(&tried[*b].loss))?;
    if best == 0 || !finite(&0) {
        return Some(best);
    }
    let differences: Vec<f64> =
        tried[0].said.iter().zip(&tried[best].said).map(|(first, best)| first.loss - best.loss).collect();
    let count = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / count;
    let variance = differences.iter().map(|difference| (difference - mean).powi(2)).sum::<f64>() / count;
    Some(if mean > (variance / count).sqrt() { best } else { 0 })
}

struct MergedModel {
    row: Vec<f32>,
    rule: String,
    shares: Vec<f64>,
    instead: Option<String>,
}

/// What `pick` tried.
#[derive(Default)]
struct PickTrials {
    candidates: Vec<RuleTrial>,
    /// The class the base does worst on, and the share of its pictures it gets right.
    weakest: Option<(usize, f64)>,
    /// Whether the result is better than the base by more than chance.
    is_clear: Option<bool>,
}

impl<'a> AggregateRound<'a> {
    fn changes(&self) -> Vec<SiteDelta<'a>> {
        let change = |sent: &SiteContribution<'a>| SiteDelta { values: sent.values, base: sent.base, times: 1.0 };
        self.sent.iter().map(change).collect()
    }

    /// Compares the updates with each other, where a rule needs it.
    fn compare(&mut self, layout: &ParameterLayout) {
        if !self.settings.compares() {
            return;
        }
        let changes = self.changes();
        let norms: Vec<f64> = changes.iter().map(|change| change.norm(layout).0).collect();
        let samples: Vec<u64> = self.sent.iter().map(|sent| sent.samples).collect();
        let cosines = agreement::cosines(&merge::distances(&changes, layout), &norms, &samples);
        for (scored, cosine) in self.scored.iter_mut().zip(cosines) {
            scored.agreement = Some(cosine);
        }
    }

    /// Drops or clips updates that stand out.
    fn filter(&mut self, layout: &ParameterLayout) {
        let count = self.sent.len();
        (self.times, self.counts, self.notes) = (vec![1.0; count], vec![true; count], vec![None; count]);
        let FilterSettings { clip_over_median, loss_over_median, suspects_ratio, .. } = self.settings.filter;
        for name in &self.settings.filter.names {
            match name {
                UpdateFilter::NormClip => {
                    let norms: Vec<f64> = self.changes().iter().map(|change| change.norm(layout).0).collect();
                    self.times = filter::clip(&norms, clip_over_median);
                }
                UpdateFilter::LossGate => {
                    let losses: Vec<f64> =
                        self.scored.iter().map(|scored| scored.loss.unwrap_or(f64::INFINITY)).collect();
                    let why = "its loss on the public set is far above the others'";
                    self.keep(&filter::gate(&losses, loss_over_median), why);
                }
                UpdateFilter::Krum => {
                    let squares = merge::distances(&self.changes(), layout);
                    self.keep(&filter::krum(&squares, suspects_ratio), "it is far from the other updates (krum)");
                }
                UpdateFilter::Trimmed | UpdateFilter::Median => {}
            }
        }
        for (times, note) in self.times.iter().zip(&mut self.notes) {
            if *times < 1.0 && note.is_none() {
                *note = Some(format!("its update norm is above the limit; clipped to {:.0} %", times * 100.0));
            }
        }
    }

    fn keep(&mut self, kept: &[bool], why: &str) {
        for (index, kept) in kept.iter().enumerate() {
            if !kept && self.counts[index] {
                (self.counts[index], self.notes[index]) = (false, Some(why.into()));
            }
        }
    }

    /// Shares by this rule, one for each site; 0 for updates that do not count.
    fn weigh(
        &self,
        rule: &str,
        context: &mut AggregateContext<'_>,
    ) -> Result<(Vec<f64>, Option<String>), AggregateError> {
        let counting: Vec<usize> = (0..self.sent.len()).filter(|index| self.counts[*index]).collect();
        let scored: Vec<SiteMeasures> = counting.iter().map(|index| self.scored[*index].clone()).collect();
        let weighed = match (rule, &self.settings.command) {
            (COMMAND, Some(program)) => {
                let scores = |(index, scored): (&usize, &SiteMeasures)| SiteScores {
                    site: self.sent[*index].site.clone(),
                    behind: self.sent[*index].behind,
                    scored: scored.clone(),
                };
                let sites: Vec<SiteScores> = counting.iter().zip(&scored).map(scores).collect();
                let values = command::run_rule_command(program, context.round, &sites)?;
                weigh::normalize_weights(rule, values, &scored, &self.settings.weigh)
            }
            _ => {
                let by_scores = match rule {
                    LAW | CLASSES => "fedavg",
                    QUALITY_CLASSES => "quality",
                    rule => rule,
                };
                weigh::weigh(by_scores, &scored, &self.settings.weigh).map_err(AggregateError::Settings)?
            }
        };
        let mut shares = weighed.shares;
        let fresh = |index: &usize| (1.0 + f64::from(self.sent[*index].behind)).powf(-self.settings.staleness);
        let discounted: Vec<f64> = shares.iter().zip(&counting).map(|(share, index)| share * fresh(index)).collect();
        shares = weigh::shares(&discounted);
        if rule == LAW {
            let (Some(public), Some(judge)) = (context.public, context.judges.first_mut()) else {
                return Err(AggregateError::NoPublic(format!("rule {LAW}")));
            };
            let (mut row, changes) = (vec![0.0; context.layout.len()], self.changes());
            shares =
                share_learning::learn_shares(&shares, ShareLearning::default(), |shares| -> Result<_, TrainError> {
                    self.merge(&self.spread(shares, &counting), context.layout, &mut row);
                    let (loss, slope) = judge.slope(&row, public, &self.learn, None)?;
                    // How much the loss grows with each site's share.
                    let by_share =
                        counting.iter().map(|index| changes[*index].along(&slope, context.layout) * self.times[*index]);
                    Ok((loss, by_share.collect()))
                })?;
        }
        Ok((self.spread(&shares, &counting), weighed.instead))
    }

    fn spread(&self, shares: &[f64], counting: &[usize]) -> Vec<f64> {
        let mut all = vec![0.0; self.sent.len()];
        counting.iter().zip(shares).for_each(|(index, share)| all[*index] = *share);
        all
    }

    /// Adds each site's change, times its share, to the base. A change is the site's weights minus those it started
    /// from, so the whole is one weighted sum of rows: sites, base and older bases.
    fn merge(&self, shares: &[f64], layout: &ParameterLayout, row: &mut [f32]) {
        let mut terms = Vec::with_capacity(self.sent.len() + 1);
        let mut of_base = 1.0;
        for (index, sent) in self.sent.iter().enumerate() {
            let times = shares[index] * self.times[index];
            terms.push(WeightedRow { values: sent.values, times });
            if sent.values.are_added() {
                continue;
            }
            match sent.behind {
                0 => of_base -= times,
                _ => terms.push(WeightedRow { values: WeightRow::Memory(sent.base), times: -times }),
            }
        }
        terms.push(WeightedRow { values: WeightRow::Memory(self.base), times: of_base });
        merge::sum_into(&terms, layout, row);
    }

    /// Merges the last layer class by class: a site's weight for a class is its number of samples of that class times
    /// what one of its samples counts by these shares.
    fn merge_classes(&self, shares: &[f64], layout: &ParameterLayout, row: &mut [f32]) {
        let classes = self.sent.iter().map(|sent| sent.of_class.len()).max().unwrap_or(0);
        let count = |index: usize, class: usize| {
            let SiteContribution { of_class, samples, .. } = &self.sent[index];
            let of_class = of_class.get(class).copied().unwrap_or(0);
            if self.counts[index] { of_class as f64 * shares[index] / (*samples).max(1) as f64 } else { 0.0 }
        };
        let of_class = |class: usize| {
            let values: Vec<f64> = (0..self.sent.len()).map(|index| count(index, class)).collect();
            if values.iter().sum::<f64>() > 0.0 { weigh::shares(&values) } else { values }
        };
        let shares: Vec<Vec<f64>> = (0..classes).map(of_class).collect();
        let changes: Vec<SiteDelta<'_>> = self
            .changes()
            .into_iter()
            .zip(&self.times)
            .map(|(change, times)| SiteDelta { times: *times, ..change })
            .collect();
        merge::by_class(row, self.base, &changes, &shares, layout);
    }

    /// The weights that this rule produces.
    fn make(&self, rule: &str, context: &mut AggregateContext<'_>) -> Result<MergedModel, AggregateError> {
        let (plain, then) = split_rule(rule);
        let (shares, instead) = self.weigh(plain, context)?;
        let mut row = vec![0.0; context.layout.len()];
        match self.without_extremes(context.layout) {
            Some(merged) => row = merged,
            None => self.merge(&shares, context.layout, &mut row),
        }
        if matches!(plain, CLASSES | QUALITY_CLASSES) {
            self.merge_classes(&shares, context.layout, &mut row);
        }
        let rule = rule.to_owned();
        let merged = MergedModel { row, rule, shares, instead };
        match then {
            PostMergeStep::Done => Ok(merged),
            PostMergeStep::Head => self.with_head(merged, context),
            PostMergeStep::Tune => self.tuned(merged, context, None),
            PostMergeStep::Distill => {
                let teacher = self.together(&merged.shares);
                self.tuned(merged, context, Some(&teacher))
            }
        }
    }

    /// Mean prediction of the sites' models for every public picture, weighted by their shares.
    fn together(&self, shares: &[f64]) -> Vec<f32> {
        let length = self.predictions.iter().map(Vec::len).max().unwrap_or(0);
        let mut mean = vec![0.0; length];
        for (own, share) in self.predictions.iter().zip(shares) {
            mean.iter_mut().zip(own).for_each(|(mean, own)| *mean += own * *share as f32);
        }
        mean
    }

    fn tuned(
        &self,
        merged: MergedModel,
        context: &mut AggregateContext<'_>,
        teacher: Option<&[f32]>,
    ) -> Result<MergedModel, AggregateError> {
        let (Some(public), Some(judge)) = (context.public, context.judges.first_mut()) else {
            return Err(AggregateError::NoPublic(format!("rule {}", merged.rule)));
        };
        let row = judge.tune_model(&merged.row, public, &self.learn, teacher, Tuning::default(), context.round)?;
        Ok(MergedModel { row, ..merged })
    }

    fn with_head(
        &self,
        merged: MergedModel,
        context: &mut AggregateContext<'_>,
    ) -> Result<MergedModel, AggregateError> {
        let (Some(public), Some(judge)) = (context.public, context.judges.first_mut()) else {
            return Err(AggregateError::NoPublic(format!("rule {}", merged.rule)));
        };
        let instead = match judge.has_head() {
            true => merged.instead,
            false => Some("the model has no last layer that can be trained alone".into()),
        };
        let row = judge.train_head(&merged.row, public, &self.learn, HeadLearning::default())?;
        Ok(MergedModel { row, instead, ..merged })
    }

    /// The median or trimmed mean of the updates that count; `None` where no such filter is set.
    fn without_extremes(&self, layout: &ParameterLayout) -> Option<Vec<f32>> {
        let names = &self.settings.filter.names;
        let count = self.counts.iter().filter(|counts| **counts).count();
        let left_out = match (names.contains(&UpdateFilter::Median), names.contains(&UpdateFilter::Trimmed)) {
            (true, _) => count.saturating_sub(1) / 2,
            (_, true) => merge::trimmed_of(count, self.settings.filter.trim_ratio),
            _ => return None,
        };
        let all = self.changes().into_iter().zip(&self.times).zip(&self.counts);
        let counting = all.filter(|(_, counts)| **counts);
        let changes: Vec<SiteDelta<'_>> =
            counting.map(|((change, times), _)| SiteDelta { times: *times, ..change }).collect();
        Some(merge::without_extremes(self.base, &changes, layout, left_out))
    }

    /// Tries the candidates and compares the winner with the base. `choose`: public pictures that no rule learned from.
    fn pick(
        &self,
        context: &mut AggregateContext<'_>,
        choose: &[usize],
    ) -> Result<(MergedModel, PickTrials), AggregateError> {
        let Some(public) = context.public else { return Err(AggregateError::NoPublic(format!("rule {PICK}"))) };
        let try_one = |row: &[f32], context: &mut AggregateContext<'_>| match context.judges.first_mut() {
            Some(judge) => Ok(judge.score(row, public, choose)?),
            None => Err(AggregateError::NoPublic(format!("rule {PICK}"))),
        };
        let previous = try_one(self.base, context)?;
        let weakest = previous.accuracy.iter().enumerate().filter_map(|(class, right)| Some((class, (*right)?)));
        let weakest = weakest.min_by(|a, b| a.1.total_cmp(&b.1));
        let mut candidates = vec![RuleTrial::of(PREVIOUS, &previous)];
        let (mut merged, mut tried) = (Vec::new(), Vec::new());
        for rule in &self.settings.candidates {
            let one = self.make(rule, context)?;
            let score = try_one(&one.row, context)?;
            candidates.push(RuleTrial::of(rule, &score));
            merged.push(one);
            tried.push(score);
        }
        let taken = choice(&tried.iter().collect::<Vec<_>>()).ok_or(AggregateError::NotFinite)?;
        let (best, base) = (tried[taken].tempered_holdout(), previous.tempered_holdout());
        let is_clear = best.judge(&base) == HoldoutComparison::Better;
        let (new, old) = (best.measured(), base.measured());
        let is_as_good = new.accuracy_ratio >= old.accuracy_ratio && new.loss < old.loss;
        if is_clear || context.is_learning && is_as_good {
            return Ok((merged.swap_remove(taken), PickTrials { candidates, weakest, is_clear: Some(is_clear) }));
        }
        let right = |tried: &ModelScore| tried.holdout().measured().accuracy_ratio * 100.0;
        let instead = format!(
            "nothing gained: on {} public pictures that nothing was fitted on, the best candidate ({}) is {:.1} % right with \
             loss {:.3}, the base {:.1} % with {:.3}; the difference is within chance",
            choose.len(),
            self.settings.candidates[taken],
            right(&tried[taken]),
            tried[taken].loss,
            right(&previous),
            previous.loss
        );
        let (row, shares) = (self.base.to_vec(), vec![0.0; self.sent.len()]);
        Ok((
            MergedModel { row, rule: PREVIOUS.into(), shares, instead: Some(instead) },
            PickTrials { candidates, weakest, is_clear: None },
        ))
    }

    fn parts(&self, shares: &[f64], layout: &ParameterLayout) -> Vec<SiteAudit> {
        let norms: Vec<f64> = self.changes().iter().map(|change| change.norm(layout).0).collect();
        let part = |index: usize| SiteAudit {
            site: self.sent[index].site.clone(),
            samples: self.sent[index].samples,
            norm: norms[index],
            loss: self.scored[index].loss,
            accuracy: self.scored[index].accuracy.clone(),
            share: shares[index] * self.times[index],
            note: self.notes[index].clone(),
        };
        (0..self.sent.len()).map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::PictureScores;

    fn tried(losses: &[f64]) -> ModelScore {
        let said = losses.iter().map(|loss| PictureScores { class: 0, shows: 0, loss: *loss }).collect();
        let loss = losses.iter().sum::<f64>() / losses.len() as f64;
        ModelScore { loss, said, ..ModelScore::default() }
    }

    #[test]
    fn a_later_candidate_must_be_better_by_more_than_chance() {
        let first = tried(&[1.0, 1.0, 1.0, 1.0]);
        // A little better everywhere, against better on average because of one picture.
        let (surely, perhaps) = (tried(&[0.9, 0.9, 0.9, 0.9]), tried(&[0.0, 1.2, 1.2, 1.2]));
        assert!(perhaps.loss < first.loss);
        assert_eq!(choice(&[&first, &surely]), Some(1));
        assert_eq!(choice(&[&first, &perhaps]), Some(0));
        assert_eq!(choice(&[&surely, &first]), Some(0));
    }

    #[test]
    fn the_loop_is_learning_until_five_releases_bring_no_clear_gain() {
        assert!(!is_learning(&[]), "a model that came from no round");
        assert!(is_learning(&[true]) && is_learning(&[true, false, false, false, false]));
        assert!(!is_learning(&[true, false, false, false, false, false]));
    }

    #[test]
    fn a_candidate_with_a_loss_that_is_not_finite_is_not_taken() {
        let (broken, fine) = (tried(&[f64::NAN]), tried(&[9.0]));
        assert_eq!(choice(&[&broken, &fine]), Some(1));
        assert_eq!(choice(&[&broken]), None);
    }
}

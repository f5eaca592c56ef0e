//! From a base and what sites sent to the next weights: score → filter → weigh → merge → follow. The same base, updates,
//! public set and settings give the same weights on the same machine, in whatever order updates came.
//!
//! What weights are fitted on, what they are chosen by and what they are scored by are three parts of the public set, the
//! same in every round. `pick` takes another candidate than the base only if it is better on pictures that neither was ever
//! fitted on: more right by more than chance, or as right with a loss that is lower by more than chance, each at its best
//! temperature. Asked again and again, round after round, such a threshold keeps the choice honest (the Ladder, arXiv
//! 1502.04585). Where releases of late were clearly better, at least as many right and a lower loss will do, for many small
//! gains are each within chance.

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

/// What one site sent.
#[derive(Debug, Clone)]
pub struct SiteContribution<'a> {
    /// The site.
    pub site: SiteName,
    /// Its weights.
    pub values: WeightRow<'a>,
    /// Where it started: the base, or an older one.
    pub base: &'a [f32],
    /// Releases between where it started and the base.
    pub behind: u32,
    /// Pictures it learned from.
    pub samples: u64,
    /// Of those, pictures it was in doubt about.
    pub hard: u64,
    /// Of those, pictures of each class, in the order of the model's labels; empty where that is not known.
    pub of_class: Vec<u64>,
}

/// New weights and how they were come by.
#[derive(Debug, Clone, PartialEq)]
pub struct AggregateResult {
    /// The weights.
    pub row: Vec<f32>,
    /// What the server's optimizer remembers.
    pub memory: ServerOptimizerState,
    /// How they were come by.
    pub record: AggregateAudit,
}

/// Why no weights were made.
#[derive(Debug, thiserror::Error)]
pub enum AggregateError {
    /// No update counts.
    #[error("there is no update to merge")]
    NoUpdates,
    /// What was asked for needs a public set.
    #[error("{0} needs a public set: name a folder of labelled pictures with aggregator.public")]
    NoPublic(String),
    /// Settings that make no sense.
    #[error("setting {0}")]
    Settings(String),
    /// The weights are no numbers any more.
    #[error("the merged weights are not finite: the server's rate is too high, or updates are too large")]
    NotFinite,
    /// The program that weighs gave no weights.
    #[error(transparent)]
    Command(#[from] RuleCommandError),
    /// A model could not be tried.
    #[error(transparent)]
    Train(#[from] TrainError),
}

/// What a derivation is made in: where numbers are, what models are tried on, and who tries them, one for each core.
pub struct AggregateContext<'a> {
    /// Where numbers are.
    pub layout: &'a ParameterLayout,
    /// Pictures with true labels, if there are any.
    pub public: Option<&'a PublicSet>,
    /// At least one where there are pictures.
    pub judges: &'a mut [ModelScorer],
    /// The round: of all chance.
    pub round: u64,
    /// Whether one of the last [`LEARNING_RELEASES`], the base among them, was clearly better than the one before it.
    pub is_learning: bool,
}

/// Up to so many releases after one that is clearly better than its base, a candidate is taken that is at least as right as
/// its base with a lower loss (decision 0030).
pub const LEARNING_RELEASES: usize = 5;

/// Whether a loop is still learning, so that a release as good as its base is good enough: one of the last
/// [`LEARNING_RELEASES`] was better than its base by more than chance. `clear`: of every release, the oldest first.
pub fn is_learning(clear: &[bool]) -> bool {
    clear.iter().rev().take(LEARNING_RELEASES).any(|clear| *clear)
}

/// Makes the next weights.
pub fn aggregate(
    base: &[f32],
    mut sent: Vec<SiteContribution<'_>>,
    memory: ServerOptimizerState,
    settings: &MergeSettings,
    around: &mut AggregateContext<'_>,
) -> Result<AggregateResult, AggregateError> {
    settings.check().map_err(AggregateError::Settings)?;
    if sent.is_empty() {
        return Err(AggregateError::NoUpdates);
    }
    if around.public.is_none() && settings.needs_public() {
        return Err(AggregateError::NoPublic(format!("rule {}", settings.rule)));
    }
    // Sums of floats depend on their order: it is the sites', not that of arrival.
    sent.sort_by(|a, b| a.site.cmp(&b.site));
    let parts = around.public.map(PublicSet::parts).unwrap_or_default();
    let learn = if settings.rule == PICK { parts.fit.clone() } else { parts.fit_and_choose() };
    let (scored, said) = scored(&sent, settings, &learn, around)?;
    let mut round = AggregateRound {
        base,
        sent,
        scored,
        said,
        settings,
        learn,
        times: Vec::new(),
        counts: Vec::new(),
        notes: Vec::new(),
    };
    round.compare(around.layout);
    round.filter(around.layout);
    let (made, tried) = match settings.rule.as_str() {
        PICK => round.pick(around, &parts.choose)?,
        rule => (round.make(rule, around)?, PickTrials::default()),
    };
    let PickTrials { candidates, weakest, is_clear } = tried;
    let MergedModel { mut row, rule, shares, instead } = made;
    let mut memory = memory;
    if rule != PREVIOUS {
        server_optimizer::apply_optimizer(base, &mut row, &mut memory, &settings.server_optimizer);
    }
    if !row.iter().all(|value| value.is_finite()) {
        return Err(AggregateError::NotFinite);
    }
    let reported = match (around.public, around.judges.first_mut()) {
        (Some(public), Some(judge)) => {
            let before = judge.score(base, public, &parts.report)?.holdout();
            let after = judge.score(&row, public, &parts.report)?.holdout();
            AccuracyChange::of(&before, &after)
        }
        _ => None,
    };
    let record = AggregateAudit {
        parts: round.parts(&shares, around.layout),
        rule,
        candidates,
        weakest,
        is_clear,
        instead,
        reported,
    };
    Ok(AggregateResult { row, memory, record })
}

/// Every site's model on these pictures of the public set, as many at a time as there are judges; and what it says of them,
/// in the order of the whole set.
fn scored(
    sent: &[SiteContribution<'_>],
    settings: &MergeSettings,
    of: &[usize],
    around: &mut AggregateContext<'_>,
) -> Result<(Vec<SiteMeasures>, Vec<Vec<f32>>), AggregateError> {
    let unscored = |sent: &SiteContribution<'_>| SiteMeasures {
        samples: sent.samples,
        hard: sent.hard,
        ..SiteMeasures::default()
    };
    let Some(public) = around.public.filter(|_| settings.uses_public()) else {
        return Ok((sent.iter().map(unscored).collect(), Vec::new()));
    };
    let layout = around.layout;
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = |judge: &mut ModelScorer| -> Result<Vec<(usize, ModelScore)>, TrainError> {
        let mut tried = Vec::new();
        loop {
            let place = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(sent) = sent.get(place) else { return Ok(tried) };
            tried.push((place, judge.score(&model(sent, layout), public, of)?));
        }
    };
    let tried = std::thread::scope(|scope| {
        let threads: Vec<_> = around.judges.iter_mut().map(|judge| scope.spawn(|| work(judge))).collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    let mut scored: Vec<SiteMeasures> = sent.iter().map(unscored).collect();
    let mut said = vec![Vec::new(); sent.len()];
    for tried in tried {
        let tried = tried.map_err(|_| AggregateError::Settings("a judge ended by itself".into()))??;
        for (place, ModelScore { loss, accuracy, probabilities, .. }) in tried {
            (scored[place].loss, scored[place].accuracy) = (Some(loss), accuracy);
            said[place] = vec![0.0; public.len() * public.count];
            for (picture, own) in of.iter().zip(probabilities.chunks_exact(public.count)) {
                said[place][picture * public.count..][..public.count].copy_from_slice(own);
            }
        }
    }
    Ok((scored, said))
}

/// A site's own model, whole.
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
    /// Of each site, what its model says of the public pictures.
    said: Vec<Vec<f32>>,
    settings: &'a MergeSettings,
    /// The public pictures that rules learn from.
    learn: Vec<usize>,
    /// What each change is multiplied by.
    times: Vec<f64>,
    /// Which updates count.
    counts: Vec<bool>,
    notes: Vec<Option<String>>,
}

/// Which candidate is taken: the first, unless the one with the lowest loss is better by more than the standard error of
/// the difference, picture by picture. `None` if no loss is a number.
fn choice(tried: &[&ModelScore]) -> Option<usize> {
    let finite = |place: &usize| tried[*place].loss.is_finite();
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

/// What `pick` found on the way.
#[derive(Default)]
struct PickTrials {
    candidates: Vec<RuleTrial>,
    /// The class that the base is least right about, and in what share of its pictures.
    weakest: Option<(usize, f64)>,
    /// Whether what is taken is better than the base by more than chance.
    is_clear: Option<bool>,
}

impl<'a> AggregateRound<'a> {
    fn changes(&self) -> Vec<SiteDelta<'a>> {
        let change = |sent: &SiteContribution<'a>| SiteDelta { values: sent.values, base: sent.base, times: 1.0 };
        self.sent.iter().map(change).collect()
    }

    /// Holds updates against each other, where a rule asks for it.
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

    /// What counts at all, and how far it may reach.
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
                    self.keep(&filter::krum(&squares, suspects_ratio), "it lies apart from the others");
                }
                UpdateFilter::Trimmed | UpdateFilter::Median => {}
            }
        }
        for (times, note) in self.times.iter().zip(&mut self.notes) {
            if *times < 1.0 && note.is_none() {
                *note = Some(format!("its change is long and was shortened to {:.0} %", times * 100.0));
            }
        }
    }

    fn keep(&mut self, kept: &[bool], why: &str) {
        for (place, kept) in kept.iter().enumerate() {
            if !kept && self.counts[place] {
                (self.counts[place], self.notes[place]) = (false, Some(why.into()));
            }
        }
    }

    /// Shares by a rule, for all sites; 0 for those that do not count.
    fn weigh(
        &self,
        rule: &str,
        around: &mut AggregateContext<'_>,
    ) -> Result<(Vec<f64>, Option<String>), AggregateError> {
        let counting: Vec<usize> = (0..self.sent.len()).filter(|place| self.counts[*place]).collect();
        let scored: Vec<SiteMeasures> = counting.iter().map(|place| self.scored[*place].clone()).collect();
        let weighed = match (rule, &self.settings.command) {
            (COMMAND, Some(program)) => {
                let scores = |(place, scored): (&usize, &SiteMeasures)| SiteScores {
                    site: self.sent[*place].site.clone(),
                    behind: self.sent[*place].behind,
                    scored: scored.clone(),
                };
                let sites: Vec<SiteScores> = counting.iter().zip(&scored).map(scores).collect();
                let values = command::run_rule_command(program, around.round, &sites)?;
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
        let fresh = |place: &usize| (1.0 + f64::from(self.sent[*place].behind)).powf(-self.settings.staleness);
        let discounted: Vec<f64> = shares.iter().zip(&counting).map(|(share, place)| share * fresh(place)).collect();
        shares = weigh::shares(&discounted);
        if rule == LAW {
            let (Some(public), Some(judge)) = (around.public, around.judges.first_mut()) else {
                return Err(AggregateError::NoPublic(format!("rule {LAW}")));
            };
            let (mut row, changes) = (vec![0.0; around.layout.len()], self.changes());
            shares =
                share_learning::learn_shares(&shares, ShareLearning::default(), |shares| -> Result<_, TrainError> {
                    self.merge(&self.spread(shares, &counting), around.layout, &mut row);
                    let (loss, slope) = judge.slope(&row, public, &self.learn, None)?;
                    // How much the loss grows with a site's share.
                    let by_share =
                        counting.iter().map(|place| changes[*place].along(&slope, around.layout) * self.times[*place]);
                    Ok((loss, by_share.collect()))
                })?;
        }
        Ok((self.spread(&shares, &counting), weighed.instead))
    }

    fn spread(&self, shares: &[f64], counting: &[usize]) -> Vec<f64> {
        let mut all = vec![0.0; self.sent.len()];
        counting.iter().zip(shares).for_each(|(place, share)| all[*place] = *share);
        all
    }

    /// The base and each site's change times its share. A change is what a site sent less where it started, so that the
    /// whole is one sum of rows: sites, the base, and older bases.
    fn merge(&self, shares: &[f64], layout: &ParameterLayout, row: &mut [f32]) {
        let mut terms = Vec::with_capacity(self.sent.len() + 1);
        let mut of_base = 1.0;
        for (place, sent) in self.sent.iter().enumerate() {
            let times = shares[place] * self.times[place];
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

    /// Merges the last layer class by class, by the samples of each that a site learned from, times what a sample of that site
    /// counts by these shares.
    fn merge_classes(&self, shares: &[f64], layout: &ParameterLayout, row: &mut [f32]) {
        let classes = self.sent.iter().map(|sent| sent.of_class.len()).max().unwrap_or(0);
        let count = |place: usize, class: usize| {
            let SiteContribution { of_class, samples, .. } = &self.sent[place];
            let of_class = of_class.get(class).copied().unwrap_or(0);
            if self.counts[place] { of_class as f64 * shares[place] / (*samples).max(1) as f64 } else { 0.0 }
        };
        let of_class = |class: usize| {
            let values: Vec<f64> = (0..self.sent.len()).map(|place| count(place, class)).collect();
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

    /// The weights that a rule makes.
    fn make(&self, rule: &str, around: &mut AggregateContext<'_>) -> Result<MergedModel, AggregateError> {
        let (plain, then) = split_rule(rule);
        let (shares, instead) = self.weigh(plain, around)?;
        let mut row = vec![0.0; around.layout.len()];
        match self.without_extremes(around.layout) {
            Some(made) => row = made,
            None => self.merge(&shares, around.layout, &mut row),
        }
        if matches!(plain, CLASSES | QUALITY_CLASSES) {
            self.merge_classes(&shares, around.layout, &mut row);
        }
        let rule = rule.to_owned();
        let made = MergedModel { row, rule, shares, instead };
        match then {
            PostMergeStep::Done => Ok(made),
            PostMergeStep::Head => self.with_head(made, around),
            PostMergeStep::Tune => self.tuned(made, around, None),
            PostMergeStep::Distill => {
                let teacher = self.together(&made.shares);
                self.tuned(made, around, Some(&teacher))
            }
        }
    }

    /// What the sites' models say of every public picture, by their shares.
    fn together(&self, shares: &[f64]) -> Vec<f32> {
        let length = self.said.iter().map(Vec::len).max().unwrap_or(0);
        let mut said = vec![0.0; length];
        for (own, share) in self.said.iter().zip(shares) {
            said.iter_mut().zip(own).for_each(|(said, own)| *said += own * *share as f32);
        }
        said
    }

    fn tuned(
        &self,
        made: MergedModel,
        around: &mut AggregateContext<'_>,
        teacher: Option<&[f32]>,
    ) -> Result<MergedModel, AggregateError> {
        let (Some(public), Some(judge)) = (around.public, around.judges.first_mut()) else {
            return Err(AggregateError::NoPublic(format!("rule {}", made.rule)));
        };
        let row = judge.tune_model(&made.row, public, &self.learn, teacher, Tuning::default(), around.round)?;
        Ok(MergedModel { row, ..made })
    }

    fn with_head(&self, made: MergedModel, around: &mut AggregateContext<'_>) -> Result<MergedModel, AggregateError> {
        let (Some(public), Some(judge)) = (around.public, around.judges.first_mut()) else {
            return Err(AggregateError::NoPublic(format!("rule {}", made.rule)));
        };
        let instead = match judge.has_head() {
            true => made.instead,
            false => Some("the model has no last layer that can be trained alone".into()),
        };
        let row = judge.train_head(&made.row, public, &self.learn, HeadLearning::default())?;
        Ok(MergedModel { row, instead, ..made })
    }

    /// The median or trimmed mean of what counts, if that is asked for.
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

    /// Tries the candidates, and the base against the one that is taken. `choose`: public pictures that none learns from.
    fn pick(
        &self,
        around: &mut AggregateContext<'_>,
        choose: &[usize],
    ) -> Result<(MergedModel, PickTrials), AggregateError> {
        let Some(public) = around.public else { return Err(AggregateError::NoPublic(format!("rule {PICK}"))) };
        let try_one = |row: &[f32], around: &mut AggregateContext<'_>| match around.judges.first_mut() {
            Some(judge) => Ok(judge.score(row, public, choose)?),
            None => Err(AggregateError::NoPublic(format!("rule {PICK}"))),
        };
        let previous = try_one(self.base, around)?;
        let weakest = previous.accuracy.iter().enumerate().filter_map(|(class, right)| Some((class, (*right)?)));
        let weakest = weakest.min_by(|a, b| a.1.total_cmp(&b.1));
        let mut candidates = vec![RuleTrial::of(PREVIOUS, &previous)];
        let (mut made, mut tried) = (Vec::new(), Vec::new());
        for rule in &self.settings.candidates {
            let one = self.make(rule, around)?;
            let said = try_one(&one.row, around)?;
            candidates.push(RuleTrial::of(rule, &said));
            made.push(one);
            tried.push(said);
        }
        let taken = choice(&tried.iter().collect::<Vec<_>>()).ok_or(AggregateError::NotFinite)?;
        let (best, base) = (tried[taken].tempered_holdout(), previous.tempered_holdout());
        let is_clear = best.judge(&base) == HoldoutComparison::Better;
        let (new, old) = (best.measured(), base.measured());
        let is_as_good = new.accuracy_ratio >= old.accuracy_ratio && new.loss < old.loss;
        if is_clear || around.is_learning && is_as_good {
            return Ok((made.swap_remove(taken), PickTrials { candidates, weakest, is_clear: Some(is_clear) }));
        }
        let right = |tried: &ModelScore| tried.holdout().measured().accuracy_ratio * 100.0;
        let instead = format!(
            "nothing gained: of {} public pictures that nothing was fitted on the best candidate ({}) has {:.1} % right with \
             loss {:.3}, the base {:.1} % with {:.3}: it is not better by more than chance",
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
        let part = |place: usize| SiteAudit {
            site: self.sent[place].site.clone(),
            samples: self.sent[place].samples,
            norm: norms[place],
            loss: self.scored[place].loss,
            accuracy: self.scored[place].accuracy.clone(),
            share: shares[place] * self.times[place],
            note: self.notes[place].clone(),
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
    fn another_candidate_than_the_first_must_be_better_by_more_than_chance() {
        let first = tried(&[1.0, 1.0, 1.0, 1.0]);
        // A little better everywhere, and better on the whole for one picture alone.
        let (surely, perhaps) = (tried(&[0.9, 0.9, 0.9, 0.9]), tried(&[0.0, 1.2, 1.2, 1.2]));
        assert!(perhaps.loss < first.loss);
        assert_eq!(choice(&[&first, &surely]), Some(1));
        assert_eq!(choice(&[&first, &perhaps]), Some(0));
        assert_eq!(choice(&[&surely, &first]), Some(0));
    }

    #[test]
    fn a_loop_learns_until_five_releases_in_a_row_were_not_clearly_better() {
        assert!(!is_learning(&[]), "a model that came of no round");
        assert!(is_learning(&[true]) && is_learning(&[true, false, false, false, false]));
        assert!(!is_learning(&[true, false, false, false, false, false]));
    }

    #[test]
    fn a_loss_that_is_no_number_is_not_taken() {
        let (broken, fine) = (tried(&[f64::NAN]), tried(&[9.0]));
        assert_eq!(choice(&[&broken, &fine]), Some(1));
        assert_eq!(choice(&[&broken]), None);
    }
}

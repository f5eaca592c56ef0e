//! How much each site's update counts: scores and sample counts in, one share per site out. Pure.
//!
//! A rule by scores is a function in a file of its own and one line in [`RULES`]; it gives each site a value of 0 or
//! more. What rules have in common is here: values become shares that add up to 1, and if all values are 0, sites count
//! by their samples and the audit says so. The rule `law` ([`share_learning`]) learns shares by scoring models; it and
//! the choice among several rules need a public set and are in [`aggregate`](crate::aggregate).

pub mod agreement;
pub mod command;
mod fedavg;
mod paper;
mod quality;
pub mod share_learning;
mod uniform;

use serde::{Deserialize, Serialize};

/// Measurements of one site's update.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SiteMeasures {
    /// Accuracy on the public set by class, 0 to 1; absent for a class without pictures.
    pub accuracy: Vec<Option<f64>>,
    /// Mean cross-entropy on the public set; absent if it was not scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Number of images it learned from.
    pub samples: u64,
    /// Number of those that the site found doubtful.
    #[serde(default)]
    pub hard: u64,
    /// How far its change points the same way as the others', 0 to 1; absent if they were not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
}

impl SiteMeasures {
    fn seen(&self) -> impl Iterator<Item = f64> {
        self.accuracy.iter().flatten().copied()
    }

    /// Mean accuracy over the classes; 0 without classes.
    pub fn mean(&self) -> f64 {
        let (sum, count) = self.seen().fold((0.0, 0.0), |(sum, count), accuracy| (sum + accuracy, count + 1.0));
        if count > 0.0 { sum / count } else { 0.0 }
    }

    /// Standard deviation of the accuracy over the classes, of the population; 0 without classes.
    pub fn spread(&self) -> f64 {
        let mean = self.mean();
        let (sum, count) =
            self.seen().fold((0.0, 0.0), |(sum, count), accuracy| (sum + (accuracy - mean).powi(2), count + 1.0));
        if count > 0.0 { f64::sqrt(sum / count) } else { 0.0 }
    }

    /// Accuracy of its best class; 0 without classes.
    pub fn best(&self) -> f64 {
        self.seen().fold(0.0, f64::max)
    }
}

/// Settings of the weighing rules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WeighSettings {
    /// For `paper`: exponent of stability, 0 to 8.
    pub stability: f64,
    /// For `paper`: exponent of capability, 0 to 8.
    pub capability: f64,
    /// For `paper`: exponent of size, 0 to 8.
    pub size: f64,
    /// For `paper`: what the worst site keeps of each factor, 0 (as published) to 1.
    pub floor_ratio: f64,
    /// For `paper`: how a site's capability is measured.
    pub capability_measure: CapabilityMeasure,
    /// For `paper`: how a site's size is measured.
    pub size_measure: SizeMeasure,
    /// For every rule: exponent of the number of hard images a site learned from, 0 (ignored) to 8.
    pub coverage: f64,
}

impl Default for WeighSettings {
    fn default() -> Self {
        Self {
            stability: 1.0,
            capability: 1.0,
            size: 1.0,
            floor_ratio: 0.3,
            capability_measure: CapabilityMeasure::Max,
            size_measure: SizeMeasure::Range,
            coverage: 0.0,
        }
    }
}

/// How a site's capability is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CapabilityMeasure {
    /// Accuracy of its best class, as published. A model that always predicts one class gets 1.
    Max,
    /// Mean accuracy over the classes.
    Mean,
}

/// How a site's size is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SizeMeasure {
    /// Its position between the fewest and the most samples of all sites, as published.
    Range,
    /// Its share of all samples.
    Share,
}

/// A weighing rule: returns a value of 0 or more for each site.
pub type WeighRule = fn(&[SiteMeasures], &WeighSettings) -> Vec<f64>;

/// The rules by scores, by name.
pub const RULES: &[(&str, WeighRule)] = &[
    ("fedavg", fedavg::values),
    ("uniform", uniform::values),
    ("agreement", agreement::values),
    ("paper", paper::values),
    ("quality", quality::values),
];

/// Names of the rules by scores.
pub fn names() -> impl Iterator<Item = &'static str> {
    RULES.iter().map(|(name, _)| *name)
}

/// How much each site counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteWeights {
    /// One share per site, in their order; they add up to 1.
    pub shares: Vec<f64>,
    /// Why another rule than the configured one was used; absent if it was not.
    pub instead: Option<String>,
}

/// Weighs sites by the rule of this name. Returns an error text for an unknown rule, or for no sites.
pub fn weigh(rule: &str, sites: &[SiteMeasures], settings: &WeighSettings) -> Result<SiteWeights, String> {
    let known = RULES.iter().find(|(name, _)| *name == rule).map(|(_, rule)| rule);
    let values = known
        .ok_or_else(|| format!("rule is {rule:?}; it must be one of {}", names().collect::<Vec<_>>().join(", ")))?;
    if sites.is_empty() {
        return Err("there is no update to weigh".into());
    }
    Ok(normalize_weights(rule, values(sites, settings), sites, settings))
}

/// Turns a rule's values into shares. `values`: one per site, at least one.
pub fn normalize_weights(
    rule: &str,
    values: Vec<f64>,
    sites: &[SiteMeasures],
    settings: &WeighSettings,
) -> SiteWeights {
    let hard: Vec<f64> = sites.iter().map(|site| site.hard as f64).collect();
    let covered = paper::ranged(&hard, settings.floor_ratio);
    let values = values.into_iter().zip(covered);
    let values: Vec<f64> = values.map(|(value, covered)| value * covered.powf(settings.coverage)).collect();
    let (by_samples, equal) = (fedavg::values(sites, settings), vec![1.0; sites.len()]);
    let tried = [(values, None), (by_samples, Some("samples")), (equal, Some("equal shares"))];
    let usable = |values: &[f64]| {
        let sum: f64 = values.iter().sum();
        sum > 0.0 && sum.is_finite() && values.iter().all(|value| *value >= 0.0)
    };
    let (values, instead) = tried.into_iter().find(|(values, _)| usable(values)).unwrap_or_default();
    let instead = instead.map(|by| format!("rule {rule} gave every site 0, so sites count by {by}"));
    SiteWeights { shares: shares(&values), instead }
}

/// Values divided by their sum.
pub fn shares(values: &[f64]) -> Vec<f64> {
    let sum: f64 = values.iter().sum();
    values.iter().map(|value| value / sum).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain() -> WeighSettings {
        WeighSettings::default()
    }

    fn site(accuracy: &[f64], samples: u64) -> SiteMeasures {
        SiteMeasures {
            accuracy: accuracy.iter().map(|accuracy| Some(*accuracy)).collect(),
            samples,
            ..SiteMeasures::default()
        }
    }

    fn sites() -> impl Strategy<Value = Vec<SiteMeasures>> {
        let accuracy = prop::collection::vec(prop::option::weighted(0.9, 0.0_f64..=1.0), 3);
        prop::collection::vec((accuracy, 0_u64..10_000), 1..8).prop_map(|sites| {
            sites
                .into_iter()
                .map(|(accuracy, samples)| SiteMeasures { accuracy, samples, ..SiteMeasures::default() })
                .collect()
        })
    }

    fn near(a: &[f64], b: &[f64]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9)
    }

    #[test]
    fn the_published_formula_gives_the_smallest_site_nothing() {
        let sites = [site(&[0.9, 0.5], 100), site(&[0.8, 0.8], 50), site(&[0.4, 0.6], 10)];
        let literal = WeighSettings { floor_ratio: 0.0, ..plain() };
        // Stability 1 - 0.2, 1, 1 - 0.1: 0, 1, 0.5. Capability 0.9, 0.8, 0.6: 1, 2/3, 0. Size 1, 4/9, 0.
        assert!(near(&weigh("paper", &sites, &literal).unwrap().shares, &[0.0, 1.0, 0.0]));
        let floored = weigh("paper", &sites, &plain()).unwrap().shares;
        let values = [0.3 * 1.0 * 1.0, 1.0 * (0.3 + 0.7 * 2.0 / 3.0) * (0.3 + 0.7 * 4.0 / 9.0), 0.65 * 0.3 * 0.3];
        let sum: f64 = values.iter().sum();
        assert!(near(&floored, &values.map(|value| value / sum)), "{floored:?}");
    }

    #[test]
    fn a_rule_that_gives_all_zeros_falls_back_to_samples() {
        // Each site is the worst in one factor.
        let sites = [site(&[1.0, 0.0], 30), site(&[0.5, 0.5], 10)];
        let literal = WeighSettings { floor_ratio: 0.0, ..plain() };
        let weighed = weigh("paper", &sites, &literal).unwrap();
        assert!(near(&weighed.shares, &[0.75, 0.25]) && weighed.instead.unwrap().contains("samples"));
        let nobody = [site(&[0.5], 0), site(&[0.5], 0)];
        let weighed = weigh("fedavg", &nobody, &plain()).unwrap();
        assert!(near(&weighed.shares, &[0.5, 0.5]) && weighed.instead.unwrap().contains("equal"));
    }

    #[test]
    fn hard_pictures_raise_the_share_if_coverage_is_set() {
        let mut sites = [site(&[0.5], 10), site(&[0.5], 10)];
        sites[1].hard = 8;
        assert!(near(&weigh("fedavg", &sites, &plain()).unwrap().shares, &[0.5, 0.5]));
        let asked = WeighSettings { coverage: 1.0, ..plain() };
        assert!(near(&weigh("fedavg", &sites, &asked).unwrap().shares, &[0.3 / 1.3, 1.0 / 1.3]));
    }

    #[test]
    fn an_unknown_rule_and_no_update_are_refused() {
        assert!(weigh("best", &[site(&[1.0], 1)], &plain()).unwrap_err().contains("fedavg, uniform"));
        assert!(weigh("fedavg", &[], &plain()).is_err());
    }

    proptest! {
        #[test]
        fn shares_add_up_to_one_and_follow_their_sites(sites in sites(), turn in 0_usize..8) {
            for name in names() {
                let weighed = weigh(name, &sites, &plain()).unwrap();
                prop_assert!((weighed.shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{name}");
                prop_assert!(weighed.shares.iter().all(|share| (0.0..=1.0).contains(share)), "{name}");
                let (mut turned, mut expected) = (sites.clone(), weighed.shares);
                let by = turn % sites.len();
                turned.rotate_left(by);
                expected.rotate_left(by);
                prop_assert!(near(&weigh(name, &turned, &plain()).unwrap().shares, &expected), "{name}");
            }
        }

        #[test]
        fn equal_sites_count_equally(accuracy in prop::collection::vec(0.0_f64..=1.0, 3), samples in 1_u64..1000, count in 1_usize..6) {
            let sites = vec![site(&accuracy, samples); count];
            for name in names() {
                let expected = vec![1.0 / count as f64; count];
                prop_assert!(near(&weigh(name, &sites, &plain()).unwrap().shares, &expected), "{name}");
            }
        }

        #[test]
        fn ten_times_the_samples_everywhere_change_nothing(sites in sites()) {
            let more: Vec<SiteMeasures> =
                sites.iter().map(|site| SiteMeasures { samples: site.samples * 10, ..site.clone() }).collect();
            for name in names() {
                let (a, b) = (weigh(name, &sites, &plain()).unwrap(), weigh(name, &more, &plain()).unwrap());
                prop_assert!(near(&a.shares, &b.shares), "{name}");
            }
        }

        #[test]
        fn paper_without_stability_and_capability_equals_fedavg(sites in sites()) {
            let alone = WeighSettings { stability: 0.0, capability: 0.0, size_measure: SizeMeasure::Share, ..plain() };
            let (paper, fedavg) = (weigh("paper", &sites, &alone).unwrap(), weigh("fedavg", &sites, &plain()).unwrap());
            prop_assert!(near(&paper.shares, &fedavg.shares));
        }
    }
}

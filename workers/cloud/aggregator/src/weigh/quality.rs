//! `quality`: mean accuracy times one minus its spread over the classes, squared, times samples. Good against
//! attackers, poor where sites lack classes.

use super::{SiteMeasures, WeighSettings};

pub(super) fn values(sites: &[SiteMeasures], _settings: &WeighSettings) -> Vec<f64> {
    sites.iter().map(|site| (site.mean() * (1.0 - site.spread())).powi(2) * site.samples as f64).collect()
}

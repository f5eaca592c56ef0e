//! `fedavg`: by samples (McMahan et al., arXiv 1602.05629).

use super::{SiteMeasures, WeighSettings};

pub(super) fn values(sites: &[SiteMeasures], _settings: &WeighSettings) -> Vec<f64> {
    sites.iter().map(|site| site.samples as f64).collect()
}

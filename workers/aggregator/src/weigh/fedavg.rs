//! `fedavg`: by samples (McMahan et al., arXiv 1602.05629).

use super::{Scored, WeighSettings};

pub(super) fn values(sites: &[Scored], _settings: &WeighSettings) -> Vec<f64> {
    sites.iter().map(|site| site.samples as f64).collect()
}

//! `uniform`: every site counts equally.

use super::{SiteMeasures, WeighSettings};

pub(super) fn values(sites: &[SiteMeasures], _settings: &WeighSettings) -> Vec<f64> {
    vec![1.0; sites.len()]
}

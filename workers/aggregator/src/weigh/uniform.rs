//! `uniform`: every site counts equally.

use super::{Scored, WeighSettings};

pub(super) fn values(sites: &[Scored], _settings: &WeighSettings) -> Vec<f64> {
    vec![1.0; sites.len()]
}

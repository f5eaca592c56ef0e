//! `law`: shares learned on public pictures (FedLAW, arXiv 2302.10911, without its shrinking factor, which lost
//! accuracy when it was tried). Shares are the softmax of one number per site, optimized with Adam. The gradient by the
//! shares needs no second framework: it is the product of the gradient by the weights with each site's row.

/// Settings of learning shares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShareLearning {
    /// Number of Adam steps.
    pub steps: u32,
    /// Learning rate.
    pub rate: f64,
}

impl Default for ShareLearning {
    fn default() -> Self {
        Self { steps: 60, rate: 0.1 }
    }
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;

/// Learns shares from a starting point and returns those with the lowest loss seen. `slope`: for given shares, the loss
/// and its gradient by each share.
pub fn learn_shares<E>(
    start: &[f64],
    learning: ShareLearning,
    mut slope: impl FnMut(&[f64]) -> Result<(f64, Vec<f64>), E>,
) -> Result<Vec<f64>, E> {
    let mut numbers: Vec<f64> = start.iter().map(|share| share.max(1e-6).ln()).collect();
    let (mut mean, mut square) = (vec![0.0; start.len()], vec![0.0; start.len()]);
    let mut best = (f64::INFINITY, start.to_vec());
    for step in 1..=learning.steps {
        let shares = softmax(&numbers);
        let (loss, by_share) = slope(&shares)?;
        if !loss.is_finite() || by_share.iter().any(|slope| !slope.is_finite()) {
            break;
        }
        let common: f64 = shares.iter().zip(&by_share).map(|(share, slope)| share * slope).sum();
        for (place, number) in numbers.iter_mut().enumerate() {
            let gradient = shares[place] * (by_share[place] - common);
            mean[place] = BETA1 * mean[place] + (1.0 - BETA1) * gradient;
            square[place] = BETA2 * square[place] + (1.0 - BETA2) * gradient * gradient;
            let (bias1, bias2) = (1.0 - BETA1.powf(step.into()), 1.0 - BETA2.powf(step.into()));
            *number -= learning.rate * (mean[place] / bias1) / ((square[place] / bias2).sqrt() + 1e-8);
        }
        if loss < best.0 {
            best = (loss, shares);
        }
    }
    Ok(best.1)
}

fn softmax(numbers: &[f64]) -> Vec<f64> {
    let most = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    super::shares(&numbers.iter().map(|number| (number - most).exp()).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_minimize_the_loss() {
        // The model is the shares themselves; the target is 0.7, 0.2, 0.1.
        let aim = [0.7, 0.2, 0.1];
        let slope = |shares: &[f64]| -> Result<_, ()> {
            let off: Vec<f64> = shares.iter().zip(aim).map(|(share, aim)| share - aim).collect();
            Ok((off.iter().map(|off| off * off).sum(), off.iter().map(|off| 2.0 * off).collect()))
        };
        let found = learn_shares(&[1.0 / 3.0; 3], ShareLearning { steps: 300, rate: 0.1 }, slope).unwrap();
        assert!(found.iter().zip(aim).all(|(found, aim)| (found - aim).abs() < 0.02), "{found:?}");
        assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_loss_that_is_not_finite_keeps_the_start() {
        let found =
            learn_shares(&[0.25, 0.75], ShareLearning::default(), |_| Ok::<_, ()>((f64::NAN, vec![0.0; 2]))).unwrap();
        assert_eq!(found, [0.25, 0.75]);
    }
}

//! How pictures are divided among sites, and what a bad site does.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

/// Number of sites.
pub(super) const SITES: usize = 10;
/// Minimum pictures per site; a smaller site gets pictures of the largest.
const LEAST: usize = 6;
/// Share of random labels at a noisy site.
const NOISY_RATIO: f64 = 0.8;

/// How pictures are divided.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Division {
    /// At random, with equal sizes.
    Even,
    /// Each class by a Dirichlet distribution; a smaller parameter is more uneven.
    Dirichlet(f64),
    /// At random, with sizes in the ratio 1 to 100.
    Sizes,
    /// Two sites have most pictures of half the classes; the others share the rest.
    FewLarge,
    /// Each site has three tenths of the classes.
    Missing,
    /// Whole groups go to one site.
    Natural,
}

/// The fault of one site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SiteHarm {
    /// No site is bad.
    None,
    /// The largest site labels most of its pictures at random.
    Noisy,
    /// One site sends its update negated and tripled.
    Flipped,
    /// One site sends random weights.
    Random,
}

/// A way to divide pictures, and the fault of one site.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct DivisionScheme {
    /// Name in tables.
    pub name: &'static str,
    division: Division,
    /// The fault of one site.
    pub harm: SiteHarm,
}

const fn scheme(name: &'static str, division: Division, harm: SiteHarm) -> DivisionScheme {
    DivisionScheme { name, division, harm }
}

/// All schemes; the first is the even one.
pub(super) static SCHEMES: [DivisionScheme; 12] = [
    scheme("iid", Division::Even, SiteHarm::None),
    scheme("dirichlet 1.0", Division::Dirichlet(1.0), SiteHarm::None),
    scheme("dirichlet 0.3", Division::Dirichlet(0.3), SiteHarm::None),
    scheme("dirichlet 0.1", Division::Dirichlet(0.1), SiteHarm::None),
    scheme("sizes 1:100", Division::Sizes, SiteHarm::None),
    scheme("few large", Division::FewLarge, SiteHarm::None),
    scheme("missing classes", Division::Missing, SiteHarm::None),
    scheme("natural", Division::Natural, SiteHarm::None),
    scheme("dirichlet 0.3, noisy", Division::Dirichlet(0.3), SiteHarm::Noisy),
    scheme("sizes 1:100, noisy", Division::Sizes, SiteHarm::Noisy),
    scheme("dirichlet 0.3, flipped", Division::Dirichlet(0.3), SiteHarm::Flipped),
    scheme("dirichlet 0.3, random", Division::Dirichlet(0.3), SiteHarm::Random),
];

/// One site's pictures: index and assigned label of each.
pub(super) type SitePictures = Vec<(usize, usize)>;

impl DivisionScheme {
    /// Whether the scheme needs grouped pictures.
    pub(crate) fn needs_groups(&self) -> bool {
        self.division == Division::Natural
    }

    /// Divides pictures among at least 2 sites. `pictures`: index, class and group of each.
    pub(crate) fn divide(
        &self,
        pictures: &[(usize, usize, Option<&str>)],
        classes: usize,
        sites: usize,
        seed: u64,
    ) -> Vec<SitePictures> {
        let mut random = StdRng::seed_from_u64(seed ^ 0x6469_7669);
        let mut shares: Vec<SitePictures> = vec![Vec::new(); sites];
        let mut all: Vec<(usize, usize, Option<&str>)> = pictures.to_vec();
        all.shuffle(&mut random);
        let of_class = |class: usize| all.iter().filter(move |(_, other, _)| *other == class);
        match self.division {
            Division::Even => {
                for (number, (place, class, _)) in all.iter().enumerate() {
                    shares[number % sites].push((*place, *class));
                }
            }
            Division::Dirichlet(alpha) => {
                for class in 0..classes {
                    let parts: Vec<f64> = (0..sites).map(|_| gamma(alpha, &mut random)).collect();
                    deal(of_class(class), &parts, &mut shares);
                }
            }
            Division::Sizes => {
                let parts: Vec<f64> = (0..sites).map(|site| 100_f64.powf(site as f64 / (sites - 1) as f64)).collect();
                deal(all.iter(), &parts, &mut shares);
            }
            Division::FewLarge => {
                for class in 0..classes {
                    let parts: Vec<f64> = (0..sites)
                        .map(|site| match (site < 2, class < classes.div_ceil(2)) {
                            (true, true) => 4.5,
                            (true, false) => 0.0,
                            // The small sites have few pictures of every class.
                            (false, true) => 0.125,
                            (false, false) => 0.125,
                        })
                        .collect();
                    let own: Vec<&(usize, usize, Option<&str>)> = of_class(class).collect();
                    let kept = if class < classes.div_ceil(2) { own.len() } else { own.len() / 4 };
                    deal(own.into_iter().take(kept.max(1)), &parts, &mut shares);
                }
            }
            Division::Missing => {
                let each = (classes * 3).div_ceil(10).max(1);
                let first: Vec<usize> = (0..sites).map(|site| (site * classes) / sites).collect();
                for class in 0..classes {
                    let has = |site: usize| (0..each).any(|step| (first[site] + step * step.max(1)) % classes == class);
                    let parts: Vec<f64> = (0..sites).map(|site| f64::from(u8::from(has(site)))).collect();
                    deal(of_class(class), &parts, &mut shares);
                }
            }
            Division::Natural => {
                let mut groups: BTreeMap<&str, SitePictures> = BTreeMap::new();
                for (place, class, group) in &all {
                    groups.entry(group.unwrap_or_default()).or_default().push((*place, *class));
                }
                let mut groups: Vec<SitePictures> = groups.into_values().collect();
                groups.shuffle(&mut random);
                for (number, group) in groups.into_iter().enumerate() {
                    shares[number % sites].extend(group);
                }
            }
        }
        fill_small_sites(&mut shares);
        if self.harm == SiteHarm::Noisy {
            let largest = (0..sites).max_by_key(|site| shares[*site].len()).unwrap_or_default();
            for (_, class) in &mut shares[largest] {
                if random.random_range(0.0..1.0) < NOISY_RATIO {
                    *class = random.random_range(0..classes);
                }
            }
        }
        shares
    }
}

/// Distributes pictures to sites in these proportions.
fn deal<'a>(
    pictures: impl Iterator<Item = &'a (usize, usize, Option<&'a str>)>,
    parts: &[f64],
    shares: &mut [SitePictures],
) {
    let pictures: Vec<_> = pictures.collect();
    let sum: f64 = parts.iter().sum();
    let (mut upto, mut from) = (0.0, 0);
    for (part, share) in parts.iter().zip(shares) {
        upto += part / sum;
        let to = ((upto * pictures.len() as f64).round() as usize).clamp(from, pictures.len());
        share.extend(pictures[from..to].iter().map(|(place, class, _)| (*place, *class)));
        from = to;
    }
}

/// Moves pictures from the largest site to sites below the minimum.
fn fill_small_sites(shares: &mut [SitePictures]) {
    for site in 0..shares.len() {
        while shares[site].len() < LEAST {
            let largest = (0..shares.len()).max_by_key(|site| shares[*site].len()).unwrap_or_default();
            match shares[largest].pop() {
                Some(picture) if largest != site => shares[site].push(picture),
                _ => break,
            }
        }
    }
}

/// Draws from the gamma distribution (G. Marsaglia and W. W. Tsang, 2000).
pub(crate) fn gamma(alpha: f64, random: &mut StdRng) -> f64 {
    if alpha < 1.0 {
        let uniform: f64 = random.random_range(f64::MIN_POSITIVE..1.0);
        return gamma(alpha + 1.0, random) * uniform.powf(1.0 / alpha);
    }
    let d = alpha - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let normal = normal(random);
        let v = (1.0 + c * normal).powi(3);
        let uniform: f64 = random.random_range(f64::MIN_POSITIVE..1.0);
        if v > 0.0 && uniform.ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

/// Draws from the standard normal distribution (Box and Muller).
pub(crate) fn normal(random: &mut StdRng) -> f64 {
    let (a, b): (f64, f64) = (random.random_range(f64::MIN_POSITIVE..1.0), random.random_range(0.0..1.0));
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_site_gets_pictures_and_no_picture_is_used_twice() {
        let groups: Vec<String> = (0..60).map(|group| group.to_string()).collect();
        let pictures: Vec<(usize, usize, Option<&str>)> =
            (0..1200).map(|place| (place, place % 10, Some(groups[place % 60].as_str()))).collect();
        for scheme in SCHEMES {
            for seed in 0..3 {
                let shares = scheme.divide(&pictures, 10, SITES, seed);
                let mut places: Vec<usize> = shares.iter().flatten().map(|(place, _)| *place).collect();
                let count = places.len();
                places.sort_unstable();
                places.dedup();
                assert_eq!(places.len(), count, "{}: a picture is used twice", scheme.name);
                assert!(shares.iter().all(|share| share.len() >= LEAST), "{}", scheme.name);
            }
        }
    }

    #[test]
    fn schemes_are_as_uneven_as_named() {
        let pictures: Vec<(usize, usize, Option<&str>)> = (0..2000).map(|place| (place, place % 10, None)).collect();
        let sizes = |name: &str| {
            let scheme = SCHEMES.iter().find(|scheme| scheme.name == name).unwrap();
            scheme.divide(&pictures, 10, SITES, 1).iter().map(Vec::len).collect::<Vec<_>>()
        };
        let (least, most) = (sizes("sizes 1:100")[0], sizes("sizes 1:100")[9]);
        assert!(most > 80 * least, "{least} to {most}");
        assert!(sizes("iid").iter().all(|size| *size == 200));
        let few = sizes("few large");
        assert!(few[..2].iter().sum::<usize>() > few[2..].iter().sum(), "{few:?}");
    }
}

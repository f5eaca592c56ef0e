//! Novelty: how unlike the pictures a model was calibrated on another picture is, from 0 to 1. Pure.
//!
//! A picture's features, relative to the centre of the class means, point towards the mean of its class if the model
//! knows such pictures, and elsewhere if not. The distance is one minus the cosine of the angle to the nearest class
//! mean, as in Liu and Qin, "Detecting Out-of-Distribution Through the Lens of Neural Collapse" (arXiv 2311.01479). The
//! score is the share of held-out pictures with a smaller distance, so that 0.99 means the same for every model.
//! Decision 0032 compares it with other scores.
//!
//! In: features, or the logits of a model without features. Out: a share. [`fit`] makes a score from pictures, and
//! `novelty.json` in the model's folder stores it; it only belongs to the weights it was made with.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

pub mod fit;

/// Its file in a model's folder.
pub const FILE: &str = "novelty.json";
/// The only version of the file so far.
const VERSION: u32 = 1;
/// Most distances of held-out pictures that are kept; of more, as many are taken evenly.
const MAX_DISTANCES: usize = 2000;

/// What the distance is measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoveltySource {
    /// The output that the description names as features.
    Features,
    /// The logits, for a model without features.
    Logits,
}

/// A calibrated measure of how unlike a model's known pictures another one is.
#[derive(Debug, Clone, PartialEq)]
pub struct Novelty {
    source: NoveltySource,
    /// Number of pictures it was made from.
    pictures: u64,
    /// The centre of the class means.
    center: Vec<f32>,
    /// Unit vectors from the centre to each class mean.
    directions: Vec<Vec<f32>>,
    /// Distances of held-out pictures, ascending, 0 to 2.
    distances: Vec<f32>,
}

/// Why a file is not a valid novelty score.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoveltyError {
    /// It cannot be parsed.
    #[error("line {line}, column {column}: {why}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// Message of the parser.
        why: String,
    },
    /// A value is invalid.
    #[error("{key} {why}")]
    Value {
        /// Its key.
        key: &'static str,
        /// What is wrong and what to do, in words that follow the key.
        why: String,
    },
}

/// The file. Rows of numbers are 32-bit floats, little-endian, in base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoveltyFile {
    version: u32,
    /// Digest of the graph and its weights.
    weights: String,
    source: NoveltySource,
    pictures: u64,
    center: String,
    directions: Vec<String>,
    distances: String,
}

impl Novelty {
    /// What the distance is measured on.
    pub fn source(&self) -> NoveltySource {
        self.source
    }

    /// Number of pictures it was made from, including held-out ones.
    pub fn pictures(&self) -> u64 {
        self.pictures
    }

    /// Number of held-out pictures that calibrate it; at most 2,000 are kept.
    pub fn held_out(&self) -> usize {
        self.distances.len()
    }

    /// Share of the held-out pictures that are closer to a class mean than these numbers, 0 to 1. Numbers that are not
    /// finite are further than everything. `None` for a different count of numbers than it was made for.
    pub fn score(&self, features: Option<&[f32]>, logits: &[f32]) -> Option<f32> {
        let numbers = match self.source {
            NoveltySource::Features => features?,
            NoveltySource::Logits => logits,
        };
        let distance = self.distance(numbers)?;
        let nearer = self.distances.partition_point(|held_out| *held_out < distance);
        Some(nearer as f32 / self.distances.len().max(1) as f32)
    }

    /// One minus the cosine to the nearest class mean, 0 to 2; `None` for a different count of numbers.
    fn distance(&self, numbers: &[f32]) -> Option<f32> {
        if numbers.len() != self.center.len() {
            return None;
        }
        let sides: Vec<f32> = numbers.iter().zip(&self.center).map(|(number, center)| number - center).collect();
        let length = dot(&sides, &sides).sqrt();
        let nearest = self.directions.iter().map(|direction| dot(&sides, direction)).fold(f32::NEG_INFINITY, f32::max);
        let cosine = nearest / length;
        Some(match cosine.is_finite() {
            true => 1.0 - cosine.clamp(-1.0, 1.0),
            // At the centre no class is closer than another; numbers that are not finite have no direction.
            false if length == 0.0 => 1.0,
            false => f32::INFINITY,
        })
    }

    /// Its file, for a model whose graph and weights have this digest.
    pub(crate) fn write(&self, weights: &str) -> String {
        let file = NoveltyFile {
            version: VERSION,
            weights: weights.to_owned(),
            source: self.source,
            pictures: self.pictures,
            center: to_text(&self.center),
            directions: self.directions.iter().map(|direction| to_text(direction)).collect(),
            distances: to_text(&self.distances),
        };
        // Cannot fail: text and numbers in named fields.
        serde_json::to_string_pretty(&file).unwrap_or_default() + "\n"
    }

    /// Parses a file; also returns the digest of the graph and weights it belongs to.
    pub(crate) fn parse(text: &str) -> Result<(Self, String), NoveltyError> {
        let file: NoveltyFile = serde_json::from_str(text).map_err(|error| NoveltyError::Syntax {
            line: error.line(),
            column: error.column(),
            why: error.to_string(),
        })?;
        let wrong = |key, why: &str| {
            let why = format!("{why}; recreate it with `tributary model novelty`");
            Err(NoveltyError::Value { key, why })
        };
        if file.version != VERSION {
            return wrong("version", &format!("is {}; this program reads version {VERSION}", file.version));
        }
        let Some(center) = from_text(&file.center).filter(|center| !center.is_empty()) else {
            return wrong("center", "is not a row of numbers");
        };
        let directions: Option<Vec<Vec<f32>>> = file.directions.iter().map(|text| from_text(text)).collect();
        let fits = |rows: &Vec<Vec<f32>>| !rows.is_empty() && rows.iter().all(|row| row.len() == center.len());
        let Some(directions) = directions.filter(fits) else {
            return wrong("directions", &format!("are not rows of {} numbers like center", center.len()));
        };
        let Some(distances) = from_text(&file.distances).filter(|row| !row.is_empty() && row.is_sorted()) else {
            return wrong("distances", "are not numbers in ascending order");
        };
        let (source, pictures) = (file.source, file.pictures);
        Ok((Self { source, pictures, center, directions, distances }, file.weights))
    }
}

/// Dot product in eight parallel sums, so that the processor does not wait for each addition.
fn dot(one: &[f32], other: &[f32]) -> f32 {
    let ((one, one_rest), (other, other_rest)) = (one.as_chunks::<8>(), other.as_chunks::<8>());
    let mut sums = [0.0_f32; 8];
    for (one, other) in one.iter().zip(other) {
        for (sum, (one, other)) in sums.iter_mut().zip(one.iter().zip(other)) {
            *sum += one * other;
        }
    }
    let rest: f32 = one_rest.iter().zip(other_rest).map(|(one, other)| one * other).sum();
    sums.iter().sum::<f32>() + rest
}

fn to_text(numbers: &[f32]) -> String {
    STANDARD.encode(numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>())
}

/// `None` unless it is a row of finite numbers.
fn from_text(text: &str) -> Option<Vec<f32>> {
    let bytes = STANDARD.decode(text).ok()?;
    let (numbers, rest) = bytes.as_chunks::<4>();
    let numbers: Vec<f32> = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    (rest.is_empty() && numbers.iter().all(|number| number.is_finite())).then_some(numbers)
}

/// How well a score separates unknown from known pictures: the chance that an unknown one has the higher score (area
/// under the ROC curve), with ties counting half. 0.5 is chance; `None` without pictures of both kinds.
pub fn auroc(known: &[f32], other: &[f32]) -> Option<f64> {
    if known.is_empty() || other.is_empty() {
        return None;
    }
    let mut sorted = known.to_vec();
    sorted.sort_by(f32::total_cmp);
    let wins = |score: &f32| {
        let lower = sorted.partition_point(|known| known.total_cmp(score).is_lt());
        let not_higher = sorted.partition_point(|known| known.total_cmp(score).is_le());
        (lower + not_higher) as f64 / 2.0
    };
    Some(other.iter().map(wins).sum::<f64>() / (known.len() as f64 * other.len() as f64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::fit::NoveltyFit;
    use super::*;

    /// Three classes, each around its own corner.
    fn fitted() -> Novelty {
        let mut fit = NoveltyFit::new(NoveltySource::Features);
        for number in 0..300_usize {
            let class = number % 3;
            let spread = (number / 3) as f32 / 100.0;
            let mut features = vec![0.1 * spread, 0.05, 0.2 * spread];
            features[class] += 1.0 + spread;
            match number / 3 % 3 {
                0 => fit.hold_out(features),
                _ => fit.add(&features, class),
            }
        }
        fit.finish().unwrap()
    }

    #[test]
    fn known_pictures_have_low_novelty_and_others_high() {
        let novelty = fitted();
        assert!(novelty.score(Some(&[0.1, 0.05, 1.6]), &[]).unwrap() < 1.0);
        assert_eq!(novelty.score(Some(&[-3.0, -3.0, -3.0]), &[]), Some(1.0));
        assert_eq!(novelty.score(Some(&[f32::NAN, 0.0, 0.0]), &[]), Some(1.0));
        assert_eq!(novelty.score(Some(&[0.0, 0.0]), &[]), None, "another number of features");
        assert_eq!(novelty.score(None, &[0.0, 0.0, 0.0]), None, "no features");
    }

    #[test]
    fn the_score_is_the_share_of_closer_held_out_pictures() {
        let novelty = fitted();
        let highest = novelty.distances.last().copied().unwrap();
        let below = novelty.distances.partition_point(|distance| *distance < highest);
        assert!(below >= novelty.held_out() * 9 / 10, "{below} of {}", novelty.held_out());
    }

    #[test]
    fn a_file_that_is_broken_is_refused_with_the_key() {
        let text = fitted().write("abc");
        assert_eq!(Novelty::parse(&text), Ok((fitted(), "abc".to_owned())));
        let key = |text: &str| match Novelty::parse(text) {
            Err(NoveltyError::Value { key, .. }) => key.to_owned(),
            Err(NoveltyError::Syntax { line, .. }) => format!("line {line}"),
            Ok(_) => "none".to_owned(),
        };
        assert_eq!(key(&text.replace("\"version\": 1", "\"version\": 2")), "version");
        assert_eq!(key(&text.replace("\"center\": \"", "\"center\": \"!")), "center");
        assert_eq!(key(&text.replace("\"directions\": [", "\"directions\": [ \"AAAAAA==\",")), "directions");
        assert_eq!(key(&text.replace("\"distances\": \"", "\"distances\": \"AACAfw==")), "distances");
        assert_eq!(key("{\n\"version\": }"), "line 2");
    }

    proptest! {
        #[test]
        fn a_score_is_a_share_and_grows_with_the_distance(
            one in prop::collection::vec(-5_f32..5.0, 3), other in prop::collection::vec(-5_f32..5.0, 3),
        ) {
            let novelty = fitted();
            let of = |numbers: &[f32]| (novelty.distance(numbers).unwrap(), novelty.score(Some(numbers), &[]).unwrap());
            let (one, other) = (of(&one), of(&other));
            prop_assert!((0.0..=1.0).contains(&one.1));
            prop_assert!(one.0 > other.0 || one.1 <= other.1);
        }

        #[test]
        fn the_area_is_that_of_all_pairs(
            known in prop::collection::vec(0_u8..20, 1..30), other in prop::collection::vec(0_u8..20, 1..30),
        ) {
            let floats = |numbers: &[u8]| numbers.iter().map(|number| f32::from(*number)).collect::<Vec<_>>();
            let (known, other) = (floats(&known), floats(&other));
            let pairs = known.iter().flat_map(|known| other.iter().map(move |other| (known, other)));
            let won: f64 = pairs.map(|(known, other)| match other.total_cmp(known) {
                std::cmp::Ordering::Greater => 1.0,
                std::cmp::Ordering::Equal => 0.5,
                std::cmp::Ordering::Less => 0.0,
            }).sum();
            let expected = won / (known.len() * other.len()) as f64;
            prop_assert!((auroc(&known, &other).unwrap() - expected).abs() < 1e-9);
        }

        #[test]
        fn no_file_makes_the_reader_panic(text in "\\PC{0,200}") {
            let _ = Novelty::parse(&text);
        }
    }

    #[test]
    fn novelty_files_that_were_bent_are_read_or_refused() {
        let written = fitted().write("ab89aefb0cd1");
        bend::bend_all("novelty files", &bend::texts([written]), bend::turns() / 2, |bytes| {
            if let Ok((novelty, _)) = Novelty::parse(&String::from_utf8_lossy(bytes)) {
                for numbers in [&[0.0_f32, 1.0, 2.0][..], &[f32::NAN; 3], &[]] {
                    let score = novelty.score(Some(numbers), numbers);
                    assert!(score.is_none_or(|score| (0.0..=1.0).contains(&score)), "{score:?}");
                }
            }
            1
        });
    }
}

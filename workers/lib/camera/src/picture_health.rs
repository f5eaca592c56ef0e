//! Whether one can see anything in a camera's pictures. Pure: time comes in.
//!
//! Brightness and white areas are judged by themselves; sharpness, contrast and the view are compared with what is usual
//! for this camera, which is learned from its own healthy pictures: a camera before a white wall is not covered, and one
//! with a soft lens is not blurred.

use std::collections::VecDeque;
use std::hash::Hasher;
use std::time::Duration;

use schemas::{PictureFault, PictureReport};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use vision::thumbnail::{THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, Thumbnail};

/// Below this brightness and contrast a picture is black. Fractions of white; a moonlit street is brighter.
const BLACK_BRIGHTNESS: f32 = 0.06;
const BLACK_CONTRAST: f32 = 0.03;
/// A level of 255 from which a pixel counts as white.
const WHITE_LEVEL: u8 = 250;
/// Share of white pixels from which a picture is overexposed.
const WHITE_RATIO: f32 = 0.5;
/// Contrast below which a picture shows nothing, and the share of the usual contrast that it must be below, too.
const COVERED_CONTRAST: f32 = 0.05;
const COVERED_OF_USUAL: f32 = 0.4;
/// Share of the usual sharpness below which a picture is blurred.
const BLURRED_OF_USUAL: f32 = 0.4;
/// Likeness of the edges to those of the usual view, -1 to 1, below which the camera looks elsewhere.
const MOVED_LIKENESS: f32 = 0.25;
/// Likeness of pictures in a row, from which the view counts as standing still.
const STILL_LIKENESS: f32 = 0.7;
/// Pictures in a row for a fault that one picture cannot show: something passes close to the lens.
const LASTING_PICTURES: u32 = 5;
/// Healthy pictures from which is known what is usual.
const KNOWN_AFTER: u32 = 10;
/// Weight of a new picture in what is usual, once that is known: night falls over hundreds of pictures.
const LEARNING_RATE: f32 = 0.02;
/// Rows between those whose fine structure is measured.
const ROW_STEP: usize = 4;

/// Settings of picture health.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PictureSettings {
    /// Seconds of the very same pixels after which the picture counts as frozen, 1 to 86400; 0 never does, for cameras
    /// that repeat a picture by design.
    pub frozen_after_s: u32,
    /// Seconds after which another view is taken for the usual one, 1 to 604800.
    pub new_view_after_s: u32,
}

impl Default for PictureSettings {
    fn default() -> Self {
        Self { frozen_after_s: 60, new_view_after_s: 3600 }
    }
}

impl PictureSettings {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence that begins with the name of the invalid setting.
    pub fn check(&self) -> Result<(), String> {
        if self.frozen_after_s > 86_400 {
            return Err(format!("frozen_after_s is {}; it must be between 0 and 86400", self.frozen_after_s));
        }
        match self.new_view_after_s {
            1..=604_800 => Ok(()),
            other => Err(format!("new_view_after_s is {other}; it must be between 1 and 604800")),
        }
    }
}

/// What is measured of one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct PictureMeasures {
    /// A small gray copy.
    pub thumbnail: Thumbnail,
    /// Mean brightness, 0 to 1.
    pub brightness_ratio: f32,
    /// Standard deviation of the brightness, 0 to 0.5.
    pub contrast_ratio: f32,
    /// Mean step between neighbouring pixels beyond a straight slope, divided by the contrast.
    pub structure: f32,
    /// Share of white pixels.
    pub white_ratio: f32,
    /// Digest of the pixels: the same only for the same picture.
    pub digest: u64,
}

impl PictureMeasures {
    /// Measures a plane of gray samples, one byte each, with `stride` bytes from row to row. `None` if it has fewer
    /// samples than that, or is narrower than three pixels.
    pub fn of_gray(plane: &[u8], stride: usize, width_px: usize, height_px: usize) -> Option<Self> {
        let thumbnail = Thumbnail::from_gray(plane, stride, width_px, height_px)?;
        let (mut sum, mut squares, mut white, mut steps) = (0u64, 0u64, 0u64, 0u64);
        let (mut count, mut step_count) = (0u64, 0u64);
        // Not for secrets, only to tell pictures apart.
        #[expect(deprecated, reason = "fast, and stable within a process, which is all that is compared")]
        let mut digest = std::hash::SipHasher::new();
        for row in (0..height_px).step_by(ROW_STEP) {
            let row = plane.get(row * stride..row * stride + width_px)?;
            digest.write(row);
            for gray in row {
                let level = u64::from(*gray);
                sum += level;
                squares += level * level;
                white += u64::from(*gray >= WHITE_LEVEL);
            }
            count += row.len() as u64;
            for three in row.windows(3) {
                if let [left, middle, right] = three {
                    let bend = 2 * i32::from(*middle) - i32::from(*left) - i32::from(*right);
                    steps += u64::from(bend.unsigned_abs());
                    step_count += 1;
                }
            }
        }
        if step_count == 0 {
            return None;
        }
        let mean = sum as f64 / count as f64;
        let deviation = (squares as f64 / count as f64 - mean * mean).max(0.0).sqrt();
        // One level more, so that a flat picture does not divide by zero.
        let structure = steps as f64 / step_count as f64 / (deviation + 1.0);
        Some(Self {
            thumbnail,
            brightness_ratio: (mean / 255.0) as f32,
            contrast_ratio: (deviation / 255.0) as f32,
            structure: structure as f32,
            white_ratio: (white as f64 / count as f64) as f32,
            digest: digest.finish(),
        })
    }
}

/// What is usual for a camera.
#[derive(Debug, Clone)]
struct UsualPicture {
    structure: f32,
    contrast: f32,
    view: Vec<f32>,
    /// Healthy pictures it was learned from.
    pictures: u32,
}

/// Follows the health of one camera's pictures.
#[derive(Debug, Clone)]
pub struct PictureHealth {
    settings: PictureSettings,
    usual: Option<UsualPicture>,
    /// Digest of the latest picture, and since when it is the same.
    same: Option<(u64, Instant)>,
    blurred: u32,
    covered: u32,
    moved: u32,
    /// Since when the view is another.
    moved_since: Option<Instant>,
    /// Views of the latest pictures, for whether the camera stands still.
    views: VecDeque<Vec<f32>>,
}

impl PictureHealth {
    /// Of a camera that was never seen.
    pub fn new(settings: PictureSettings) -> Self {
        Self {
            settings,
            usual: None,
            same: None,
            blurred: 0,
            covered: 0,
            moved: 0,
            moved_since: None,
            views: VecDeque::new(),
        }
    }

    /// Judges a picture, and learns from it if it is healthy. `is_scene_changed` stays false: the motion gate knows.
    pub fn observe(&mut self, measures: &PictureMeasures, now: Instant) -> PictureReport {
        let mut faults = Vec::new();
        if self.is_frozen(measures.digest, now) {
            faults.push(PictureFault::Frozen);
        }
        let is_black = measures.brightness_ratio < BLACK_BRIGHTNESS && measures.contrast_ratio < BLACK_CONTRAST;
        if is_black {
            faults.push(PictureFault::Black);
        } else if measures.white_ratio > WHITE_RATIO {
            faults.push(PictureFault::Overexposed);
        }
        let known = self.usual.as_ref().filter(|usual| usual.pictures >= KNOWN_AFTER);
        let sharpness_ratio = known.map(|usual| measures.structure / usual.structure.max(f32::EPSILON));
        let view = edges(&measures.thumbnail);
        // In the dark, and in glaring light, nothing else can be told.
        if faults.iter().all(|fault| *fault == PictureFault::Frozen) {
            let is_flat = measures.contrast_ratio < COVERED_CONTRAST
                && known.is_some_and(|usual| measures.contrast_ratio < COVERED_OF_USUAL * usual.contrast);
            let is_soft = !is_flat && sharpness_ratio.is_some_and(|ratio| ratio < BLURRED_OF_USUAL);
            let is_elsewhere = !is_flat
                && !is_soft
                && known.is_some_and(|usual| likeness(&view, &usual.view) < MOVED_LIKENESS)
                && self.views.iter().all(|before| likeness(&view, before) > STILL_LIKENESS);
            self.covered = if is_flat { self.covered.saturating_add(1) } else { 0 };
            self.blurred = if is_soft { self.blurred.saturating_add(1) } else { 0 };
            self.moved = if is_elsewhere { self.moved.saturating_add(1) } else { 0 };
            for (count, fault) in [
                (self.covered, PictureFault::Covered),
                (self.blurred, PictureFault::Blurred),
                (self.moved, PictureFault::Moved),
            ] {
                if count >= LASTING_PICTURES {
                    faults.push(fault);
                }
            }
        }
        self.follow_view(&faults, now);
        let is_suspect = self.covered + self.blurred + self.moved > 0;
        if faults.is_empty() && !is_suspect {
            self.learn(measures, &view);
        }
        self.views.push_back(view);
        while self.views.len() >= LASTING_PICTURES as usize {
            self.views.pop_front();
        }
        PictureReport {
            brightness_ratio: measures.brightness_ratio,
            contrast_ratio: measures.contrast_ratio,
            sharpness_ratio,
            white_ratio: measures.white_ratio,
            faults: faults.into_iter().map(Into::into).collect(),
            is_scene_changed: false,
        }
    }

    fn is_frozen(&mut self, digest: u64, now: Instant) -> bool {
        let since = match self.same {
            Some((same, since)) if same == digest => since,
            _ => now,
        };
        self.same = Some((digest, since));
        let limit = Duration::from_secs(self.settings.frozen_after_s.into());
        !limit.is_zero() && now.saturating_duration_since(since) >= limit
    }

    /// Takes another view for the usual one after long enough: somebody turned the camera on purpose.
    fn follow_view(&mut self, faults: &[PictureFault], now: Instant) {
        if !faults.contains(&PictureFault::Moved) {
            self.moved_since = None;
            return;
        }
        let since = *self.moved_since.get_or_insert(now);
        let limit = Duration::from_secs(self.settings.new_view_after_s.into());
        if now.saturating_duration_since(since) >= limit {
            (self.usual, self.moved_since, self.moved) = (None, None, 0);
        }
    }

    fn learn(&mut self, measures: &PictureMeasures, view: &[f32]) {
        let Some(usual) = &mut self.usual else {
            self.usual = Some(UsualPicture {
                structure: measures.structure,
                contrast: measures.contrast_ratio,
                view: view.to_vec(),
                pictures: 1,
            });
            return;
        };
        usual.pictures = usual.pictures.saturating_add(1);
        // The plain mean at first, then a slow running mean.
        let rate = (1.0 / usual.pictures as f32).max(LEARNING_RATE);
        usual.structure += rate * (measures.structure - usual.structure);
        usual.contrast += rate * (measures.contrast_ratio - usual.contrast);
        for (usual, now) in usual.view.iter_mut().zip(view) {
            *usual += rate * (now - *usual);
        }
    }
}

/// Steps between neighbouring pixels, across and down: they stay where they are when the light changes.
fn edges(thumbnail: &Thumbnail) -> Vec<f32> {
    let gray = thumbnail.gray();
    let level = |x: usize, y: usize| gray.get(y * THUMBNAIL_WIDTH + x).copied().map_or(0.0, f32::from);
    let mut edges = Vec::with_capacity(2 * gray.len());
    for y in 0..THUMBNAIL_HEIGHT - 1 {
        for x in 0..THUMBNAIL_WIDTH - 1 {
            edges.push(level(x + 1, y) - level(x, y));
            edges.push(level(x, y + 1) - level(x, y));
        }
    }
    edges
}

/// Cosine of two views, -1 to 1; 1 where one of them has no edges.
fn likeness(one: &[f32], other: &[f32]) -> f32 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let size = (product(one, one) * product(other, other)).sqrt();
    if size < 1.0 { 1.0 } else { product(one, other) / size }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 320;
    const HEIGHT: usize = 240;

    /// A scene of stripes and blocks with a little noise that differs from picture to picture.
    fn scene(seed: u64, shift: usize) -> Vec<u8> {
        let mut noise = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut plane = Vec::with_capacity(WIDTH * HEIGHT);
        for y in 0..HEIGHT {
            for x in 0..WIDTH {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                let at = x + shift;
                let block = if (at / 40 + y / 30).is_multiple_of(3) { 60 } else { 0 };
                let stripe = if at % 16 < 8 { 30 } else { 0 };
                plane.push((70 + block + stripe + (at * y) % 37 + (noise % 5) as usize) as u8);
            }
        }
        plane
    }

    fn measures(plane: &[u8]) -> PictureMeasures {
        PictureMeasures::of_gray(plane, WIDTH, WIDTH, HEIGHT).unwrap()
    }

    fn blurred(plane: &[u8]) -> Vec<u8> {
        let mut soft = plane.to_vec();
        for _ in 0..3 {
            let before = soft.clone();
            for (at, pixel) in soft.iter_mut().enumerate() {
                let window = &before[at.saturating_sub(6)..(at + 7).min(before.len())];
                *pixel = (window.iter().map(|gray| usize::from(*gray)).sum::<usize>() / window.len()) as u8;
            }
        }
        soft
    }

    /// A camera that has seen its usual scene, and the time.
    fn known() -> (PictureHealth, Instant) {
        let mut health = PictureHealth::new(PictureSettings::default());
        let mut now = Instant::now();
        for seed in 0..20 {
            now += Duration::from_secs(1);
            let report = health.observe(&measures(&scene(seed, 0)), now);
            assert!(report.is_healthy(), "{report:?}");
        }
        (health, now)
    }

    fn faults_after(pictures: impl Fn(u64) -> Vec<u8>) -> Vec<String> {
        let (mut health, mut now) = known();
        let mut last = Vec::new();
        for seed in 100..110 {
            now += Duration::from_secs(1);
            let report = health.observe(&measures(&pictures(seed)), now);
            last = report.faults.iter().map(|fault| fault.as_str().to_owned()).collect();
        }
        last
    }

    #[test]
    fn each_fault_is_named_and_a_healthy_scene_has_none() {
        assert!(faults_after(|seed| scene(seed, 0)).is_empty());
        assert_eq!(faults_after(|seed| vec![(seed % 3) as u8; WIDTH * HEIGHT]), ["black"]);
        assert_eq!(faults_after(|seed| vec![253 + (seed % 2) as u8; WIDTH * HEIGHT]), ["overexposed"]);
        assert_eq!(faults_after(|seed| vec![120 + (seed % 3) as u8; WIDTH * HEIGHT]), ["covered"]);
        assert_eq!(faults_after(|seed| blurred(&scene(seed, 0))), ["blurred"]);
        assert_eq!(faults_after(|seed| scene(seed, 60)), ["moved"]);
    }

    #[test]
    fn a_change_of_light_is_no_fault() {
        let darker = |seed| scene(seed, 0).iter().map(|gray| gray / 2 + 10).collect();
        assert!(faults_after(darker).is_empty());
    }

    #[test]
    fn one_strange_picture_is_no_lasting_fault() {
        let (mut health, now) = known();
        let report = health.observe(&measures(&blurred(&scene(1, 0))), now + Duration::from_secs(1));
        assert!(report.is_healthy() && report.sharpness_ratio.unwrap() < 0.4, "{report:?}");
    }

    #[test]
    fn the_same_pixels_for_a_minute_are_frozen_and_new_ones_thaw_it() {
        let (mut health, start) = known();
        let same = measures(&scene(7, 0));
        let mut at = |s: u64, measures: &PictureMeasures| {
            health
                .observe(measures, start + Duration::from_secs(s))
                .faults
                .iter()
                .any(|fault| fault.as_str() == "frozen")
        };
        assert!(!at(1, &same) && !at(60, &same));
        assert!(at(61, &same));
        assert!(!at(62, &measures(&scene(8, 0))));
    }

    #[test]
    fn another_view_becomes_the_usual_one_in_time() {
        let (mut health, mut now) = known();
        let mut faulty = 0;
        for step in 0..4000 {
            now += Duration::from_secs(1);
            faulty += u32::from(!health.observe(&measures(&scene(step % 50, 60)), now).is_healthy());
        }
        assert!((3590..3620).contains(&faulty), "{faulty}");
    }

    #[test]
    fn a_picture_of_nothing_is_not_measured() {
        assert_eq!(PictureMeasures::of_gray(&[], 0, 0, 0), None);
        assert_eq!(PictureMeasures::of_gray(&[1, 2], 2, 2, 1), None);
        assert!(PictureMeasures::of_gray(&[1, 2, 3], 3, 3, 1).is_some());
    }
}

//! Pictures of still cameras, made here: textured ground, things on it, light that changes slowly, and a sensor's noise.
//! How much a picture costs to code and to decode depends on its texture and its noise, which test patterns lack.

use std::f32::consts::TAU;
use std::path::Path;

use camera::YuvPicture;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::camera::read_picture;
use crate::error::BenchError;

/// Standard deviation of the noise, levels of 255.
const NOISE_LEVELS: f32 = 2.0;
/// Values of noise that are made beforehand; each row takes them from another place.
const NOISE: usize = 1 << 16;
/// Gray of a thing from which it covers the ground entirely; its edge is softer.
const OPAQUE_GRAY: f32 = 40.0;
/// Black and the range up to white, as video codes them.
const BLACK: f32 = 16.0;
const RANGE: f32 = 219.0;

/// What the ground looks like.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroundStyle {
    /// Mean brightness, levels of 255.
    pub mean: f32,
    /// Height of the coarsest texture, levels; each finer one has six tenths of it.
    pub texture: f32,
    /// Whether it has colours.
    pub is_colored: bool,
}

/// A yard by day.
pub(super) const YARD: GroundStyle = GroundStyle { mean: 110.0, texture: 40.0, is_colored: true };
/// A dark tray, as the classifier of the fixtures knows it.
pub(super) const TRAY: GroundStyle = GroundStyle { mean: 4.0, texture: 2.0, is_colored: false };

/// A gray cut-out on black.
#[derive(Debug, Clone)]
pub(super) struct Thing {
    gray: Vec<f32>,
    width_px: usize,
    height_px: usize,
}

impl Thing {
    /// Reads a picture.
    pub(super) fn read(path: &Path) -> Result<Self, BenchError> {
        let pixels = read_picture(path)?;
        let gray =
            pixels.rgb.as_chunks::<3>().0.iter().map(|[red, green, blue]| {
                0.299 * f32::from(*red) + 0.587 * f32::from(*green) + 0.114 * f32::from(*blue)
            });
        Ok(Self { gray: gray.collect(), width_px: pixels.width_px as usize, height_px: pixels.height_px as usize })
    }

    /// Its gray at a place, as fractions of it; 0 outside.
    fn at(&self, x: f32, y: f32) -> f32 {
        if !(0.0..1.0).contains(&x) || !(0.0..1.0).contains(&y) {
            return 0.0;
        }
        bilinear(
            &self.gray,
            (self.width_px, self.height_px),
            x * self.width_px as f32 - 0.5,
            y * self.height_px as f32 - 0.5,
        )
    }
}

/// A thing and where it lies: left and upper edge, width and height, as fractions of the picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlacedThing<'a> {
    pub thing: &'a Thing,
    pub left: f32,
    pub top: f32,
    pub width: f32,
    pub height: f32,
}

/// What a camera looks at.
#[derive(Debug)]
pub(super) struct Scene {
    ground: YuvPicture,
    noise: Vec<i8>,
    random: StdRng,
}

impl Scene {
    /// Of `size`, width and height, both even.
    pub(super) fn new(size: (usize, usize), style: GroundStyle, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let (width_px, height_px) = size;
        // The same ground at any size: more pixels show it sharper.
        let scale = width_px as f32 / 640.0;
        let texture = texture(size, scale, style.texture, &mut random);
        let y = texture.iter().map(|level| level_of(style.mean + level)).collect();
        let mut chroma = || -> Vec<u8> {
            let half = (width_px / 2, height_px / 2);
            match style.is_colored {
                true => {
                    let levels = octave(half, 48.0 * scale, 16.0, &mut random);
                    levels.iter().map(|level| (128.0 + level).round() as u8).collect()
                }
                false => vec![128; half.0 * half.1],
            }
        };
        let ground = YuvPicture { width_px, height_px, y, u: chroma(), v: chroma() };
        // The sum of four uniform values is close to normal, with a variance of a third.
        let mut normal = || {
            let sum: f32 = (0..4).map(|_| random.random_range(-0.5..0.5_f32)).sum();
            (sum * 3f32.sqrt() * NOISE_LEVELS).round() as i8
        };
        let noise = (0..NOISE).map(|_| normal()).collect();
        Self { ground, noise, random }
    }

    /// The ground with things on it, without noise.
    pub(super) fn place(&self, things: &[PlacedThing<'_>]) -> YuvPicture {
        let mut picture = self.ground.clone();
        let (width, height) = (picture.width_px, picture.height_px);
        for placed in things {
            let columns = pixels(placed.left, placed.width, width);
            for row in pixels(placed.top, placed.height, height) {
                for column in columns.clone() {
                    let x = (column as f32 / width as f32 - placed.left) / placed.width;
                    let y = (row as f32 / height as f32 - placed.top) / placed.height;
                    let gray = placed.thing.at(x, y);
                    let cover = (gray / OPAQUE_GRAY).min(1.0);
                    let pixel = &mut picture.y[row * width + column];
                    *pixel = (f32::from(*pixel) * (1.0 - cover) + f32::from(level_of(gray)) * cover).round() as u8;
                }
            }
        }
        picture
    }

    /// A picture that the camera takes of it: `light` multiplies its brightness.
    pub(super) fn take(&mut self, placed: &YuvPicture, light: f32) -> YuvPicture {
        let mut picture = placed.clone();
        let lit: Vec<i16> =
            (0..=255u8).map(|level| (BLACK + (f32::from(level) - BLACK) * light).round() as i16).collect();
        for row in picture.y.chunks_exact_mut(picture.width_px) {
            let from = self.random.random_range(0..NOISE);
            let noise = self.noise[from..].iter().chain(self.noise.iter().cycle());
            for (pixel, noise) in row.iter_mut().zip(noise) {
                *pixel = (lit[usize::from(*pixel)] + i16::from(*noise)).clamp(0, 255) as u8;
            }
        }
        picture
    }

    /// A short video that can be repeated: things that go to and fro.
    pub(super) fn film(&mut self, things: &[Thing], pictures: usize) -> Vec<YuvPicture> {
        let film = (0..pictures).map(|number| {
            let turn = TAU * number as f32 / pictures as f32;
            let placed = things.iter().enumerate().map(|(index, thing)| {
                let phase = turn + index as f32;
                let left = (index as f32 + 0.5) / things.len() as f32 - 0.1 + 0.04 * phase.sin();
                PlacedThing { thing, left, top: 0.3 + 0.2 * (index % 2) as f32, width: 0.15, height: 0.2 }
            });
            let placed = self.place(&placed.collect::<Vec<_>>());
            self.take(&placed, 1.0)
        });
        film.collect()
    }
}

/// The pixels that a part from `from` of `size` covers, of `all`.
fn pixels(from: f32, size: f32, all: usize) -> std::ops::Range<usize> {
    let pixel = |at: f32| ((at * all as f32).max(0.0) as usize).min(all);
    pixel(from)..pixel(from + size)
}

/// A level of 255 as video codes it.
fn level_of(gray: f32) -> u8 {
    (BLACK + gray.clamp(0.0, 255.0) * RANGE / 255.0).round() as u8
}

/// Texture from coarse to fine.
fn texture(size: (usize, usize), scale: f32, height: f32, random: &mut StdRng) -> Vec<f32> {
    let mut sum = vec![0.0; size.0 * size.1];
    let mut height = height;
    for cell_px in [96.0, 48.0, 24.0, 12.0, 6.0, 3.0] {
        let levels = octave(size, cell_px * scale, height, random);
        sum.iter_mut().zip(levels).for_each(|(sum, level)| *sum += level);
        height *= 0.6;
    }
    sum
}

/// Random levels between minus and plus `height` every `cell_px`, and what lies between them.
fn octave(size: (usize, usize), cell_px: f32, height: f32, random: &mut StdRng) -> Vec<f32> {
    let cells = |pixels: usize| (pixels as f32 / cell_px) as usize + 2;
    let grid = (cells(size.0), cells(size.1));
    let corners: Vec<f32> = (0..grid.0 * grid.1).map(|_| random.random_range(-height..height)).collect();
    let level = |at: usize| bilinear(&corners, grid, (at % size.0) as f32 / cell_px, (at / size.0) as f32 / cell_px);
    (0..size.0 * size.1).map(level).collect()
}

/// The value of a grid between its points; outside, that of the nearest.
fn bilinear(grid: &[f32], size: (usize, usize), x: f32, y: f32) -> f32 {
    let (x, y) = (x.clamp(0.0, (size.0 - 1) as f32), y.clamp(0.0, (size.1 - 1) as f32));
    let (left, top) = (x as usize, y as usize);
    let (right, bottom) = ((left + 1).min(size.0 - 1), (top + 1).min(size.1 - 1));
    let (part_x, part_y) = (x - left as f32, y - top as f32);
    let row = |row: usize| grid[row * size.0 + left] * (1.0 - part_x) + grid[row * size.0 + right] * part_x;
    row(top) * (1.0 - part_y) + row(bottom) * part_y
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(picture: &YuvPicture) -> f32 {
        picture.y.iter().map(|level| f32::from(*level)).sum::<f32>() / picture.y.len() as f32
    }

    #[test]
    fn a_scene_has_texture_things_light_and_noise() {
        let mut scene = Scene::new((64, 48), YARD, 1);
        let ground = scene.place(&[]);
        assert!(ground.y.iter().max().unwrap() - ground.y.iter().min().unwrap() > 40, "it has no texture");
        assert_eq!((ground.u.len(), ground.v.len()), (32 * 24, 32 * 24));
        let thing = Thing { gray: vec![255.0; 4], width_px: 2, height_px: 2 };
        let placed = scene.place(&[PlacedThing { thing: &thing, left: 0.5, top: 0.0, width: 0.5, height: 1.0 }]);
        assert!(placed.y.chunks(64).all(|row| row[40..].iter().all(|level| *level == 235)));
        assert_eq!(placed.y[..32], ground.y[..32]);
        let (one, other) = (scene.take(&ground, 1.0), scene.take(&ground, 1.0));
        assert_ne!(one, other);
        let apart: f32 = one.y.iter().zip(&other.y).map(|(one, other)| f32::from(one.abs_diff(*other)).powi(2)).sum();
        let deviation = (apart / one.y.len() as f32 / 2.0).sqrt();
        assert!((1.5..2.5).contains(&deviation), "noise of {deviation} levels");
        assert!((mean(&one) - mean(&ground)).abs() < 1.0);
        assert!(mean(&scene.take(&ground, 0.5)) < 0.8 * mean(&ground));
    }
}

//! Converts samples that are not 8-bit, and transparent ones, to levels from 0 to 255. Pure.

/// Bits of 16 that cameras use when they do not use all.
const USED_BITS: [u32; 3] = [10, 12, 14];

/// What is known about 16-bit samples.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BitDepthHint {
    /// Largest value according to the file.
    pub(super) declared_max: Option<u32>,
    /// Used bits according to the settings.
    pub(super) bits: Option<u8>,
}

/// Scale from 16-bit samples to 8-bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SampleScale {
    most: u32,
}

impl SampleScale {
    /// From the file's declaration, else the setting, else the largest sample: cameras that count to 1023, 4095 or
    /// 16383 store that in 16 bits, and the picture would come out nearly black.
    pub(super) fn from_samples(values: &[u16], deep: BitDepthHint) -> Self {
        let by_bits = |bits: u32| (1 << bits.clamp(1, 16)) - 1;
        let found = || {
            let largest = u32::from(values.iter().copied().max().unwrap_or(0));
            USED_BITS.into_iter().map(by_bits).find(|most| largest <= *most).unwrap_or(65_535)
        };
        let most = deep.declared_max.or(deep.bits.map(|bits| by_bits(bits.into()))).unwrap_or_else(found);
        Self { most: most.clamp(1, 65_535) }
    }

    pub(super) fn to_eight(self, values: impl IntoIterator<Item = u16>) -> Vec<u8> {
        let half = self.most / 2;
        values.into_iter().map(|value| ((u32::from(value) * 255 + half) / self.most).min(255) as u8).collect()
    }
}

/// Converts samples of 1, 2 or 4 bits, with rows padded to whole bytes, to levels.
pub(super) fn unpack_bits(packed: &[u8], bits: u8, samples_a_row: usize, rows: usize) -> Vec<u8> {
    let (most, a_byte) = ((1u16 << bits) - 1, usize::from(8 / bits));
    let row_bytes = samples_a_row.div_ceil(a_byte);
    let mut levels = Vec::with_capacity(samples_a_row * rows);
    for row in packed.chunks(row_bytes.max(1)).take(rows) {
        levels.extend((0..samples_a_row).map(|sample| {
            let shift = 8 - bits as usize * (sample % a_byte + 1);
            let value = (u16::from(row.get(sample / a_byte).copied().unwrap_or(0)) >> shift) & most;
            (value * 255 / most) as u8
        }));
    }
    levels
}

/// Undoes the multiplication of a colour by its alpha.
pub(super) fn unpremultiply(rgb: [u8; 3], alpha: u8) -> [u8; 3] {
    match alpha {
        0 => rgb,
        alpha => rgb.map(|level| (u16::from(level) * 255 / u16::from(alpha)).min(255) as u8),
    }
}

/// Blends a transparent colour over a background; without one, returns the colour itself.
pub(super) fn blend_over(rgb: [u8; 3], alpha: u8, background: Option<[u8; 3]>) -> [u8; 3] {
    let Some(background) = background else { return rgb };
    let alpha = u32::from(alpha);
    let blend =
        |above: u8, below: u8| ((u32::from(above) * alpha + u32::from(below) * (255 - alpha) + 127) / 255) as u8;
    let ([red, green, blue], [under_red, under_green, under_blue]) = (rgb, background);
    [blend(red, under_red), blend(green, under_green), blend(blue, under_blue)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twelve_bits_in_sixteen_keep_their_brightness() {
        let values = [0, 2048, 4095];
        assert_eq!(SampleScale::from_samples(&values, BitDepthHint::default()).to_eight(values), [0, 128, 255]);
        let dark = [0, 100, 1000];
        let by = |deep| SampleScale::from_samples(&dark, deep).to_eight(dark)[2];
        assert_eq!(by(BitDepthHint { bits: Some(12), ..BitDepthHint::default() }), 62);
        assert_eq!(by(BitDepthHint { declared_max: Some(2000), bits: Some(12) }), 128);
        let full = [0, 32_768, 65_535];
        assert_eq!(SampleScale::from_samples(&full, BitDepthHint::default()).to_eight(full), [0, 128, 255]);
    }

    #[test]
    fn packed_rows_begin_at_whole_bytes() {
        assert_eq!(unpack_bits(&[0b1010_0000, 0b0100_0000], 1, 3, 2), [255, 0, 255, 0, 255, 0]);
        assert_eq!(unpack_bits(&[0x1f, 0x80], 4, 3, 1), [17, 255, 136]);
    }

    #[test]
    fn a_background_shows_where_a_picture_is_clear() {
        assert_eq!(blend_over([10, 20, 30], 0, Some([255; 3])), [255; 3]);
        assert_eq!(blend_over([10, 20, 30], 0, None), [10, 20, 30]);
        assert_eq!(blend_over([0, 0, 0], 128, Some([255; 3])), [127; 3]);
        assert_eq!(unpremultiply([50, 64, 128], 128), [99, 127, 255]);
    }
}

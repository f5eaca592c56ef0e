//! Merges many rows into one: a weighted sum, a median or a trimmed mean. One pass over all of them in blocks with one
//! accumulator, so memory does not grow with their number. Pure. The same rows in the same order give the same bits;
//! callers sort them by site.

use crate::parameter_layout::ParameterLayout;
use crate::weights_file::{BLOCK, ReadBuffer, WeightRow, each_block};

/// A row and its weight in a sum.
#[derive(Debug, Clone, Copy)]
pub struct WeightedRow<'a> {
    /// The row's numbers.
    pub values: WeightRow<'a>,
    /// Its weight.
    pub times: f64,
}

/// The weighted sum of the terms. A term of weight 0 is not read.
pub fn sum(terms: &[WeightedRow<'_>], layout: &ParameterLayout) -> Vec<f32> {
    let mut row = vec![0.0; layout.len()];
    sum_into(terms, layout, &mut row);
    row
}

/// Like [`sum`], added into an existing row.
pub fn sum_into(terms: &[WeightedRow<'_>], layout: &ParameterLayout, row: &mut [f32]) {
    let terms: Vec<WeightedRow<'_>> = terms.iter().copied().filter(|term| term.times.abs() > 1e-12).collect();
    let mut buffer = ReadBuffer::default();
    each_block(layout, |place, from, at, len| {
        let sum = &mut row[at..at + len];
        sum.fill(0.0);
        let mut left = &terms[..];
        while let Some((first, others)) = left.split_first() {
            let raw: Vec<&[u8]> =
                left.iter().map_while(|term| term.values.raw((place, from, len))).take(MOST_AT_ONCE).collect();
            let added = match raw.len() {
                MOST_AT_ONCE => add::<MOST_AT_ONCE>(sum, &raw, left),
                4.. => add::<4>(sum, &raw, left),
                2.. => add::<2>(sum, &raw, left),
                1 => add::<1>(sum, &raw, left),
                _ => {
                    let times = first.times as f32;
                    let values = first.values.block(layout, (place, from, len), &mut buffer);
                    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += times * value);
                    left = others;
                    continue;
                }
            };
            left = &left[added..];
        }
    });
}

/// Rows added in one pass.
const MOST_AT_ONCE: usize = 8;

/// Adds the first `COUNT` blocks of little-endian floats together, so that the sum is read and written less often. The
/// order of additions is that of one row after another, so the bits are the same. Returns how many were added.
fn add<const COUNT: usize>(sum: &mut [f32], blocks: &[&[u8]], terms: &[WeightedRow<'_>]) -> usize {
    let len = sum.len();
    let blocks: [&[[u8; 4]]; COUNT] = std::array::from_fn(|row| &blocks[row].as_chunks::<4>().0[..len]);
    let times: [f32; COUNT] = std::array::from_fn(|row| terms[row].times as f32);
    for (at, sum) in sum.iter_mut().enumerate() {
        for row in 0..COUNT {
            *sum += times[row] * f32::from_le_bytes(blocks[row][at]);
        }
    }
    COUNT
}

/// A site's change: its row minus the row it started from, unless the site sent the difference itself.
#[derive(Debug, Clone, Copy)]
pub struct SiteDelta<'a> {
    /// The numbers the site sent.
    pub values: WeightRow<'a>,
    /// The weights it started from.
    pub base: &'a [f32],
    /// Factor of the change: 1, or less where it was clipped.
    pub times: f64,
}

impl SiteDelta<'_> {
    fn block(
        &self,
        layout: &ParameterLayout,
        (place, from, at, len): (usize, usize, usize, usize),
        buffer: &mut ReadBuffer,
        out: &mut [f32],
    ) {
        let values = self.values.block(layout, (place, from, len), buffer);
        let times = self.times as f32;
        if self.values.are_added() {
            out.iter_mut().zip(values).for_each(|(out, value)| *out = value * times);
        } else {
            let base = &self.base[at..at + len];
            out.iter_mut().zip(values).zip(base).for_each(|((out, value), base)| *out = (value - base) * times);
        }
    }

    /// Its norm (root of the sum of squares), and whether every number is finite.
    pub fn norm(&self, layout: &ParameterLayout) -> (f64, bool) {
        let (mut square, mut finite) = (0.0_f64, true);
        let (mut buffer, mut out) = (ReadBuffer::default(), vec![0.0; BLOCK]);
        each_block(layout, |place, from, at, len| {
            let out = &mut out[..len];
            self.block(layout, (place, from, at, len), &mut buffer, out);
            // Without an early exit and with separate lanes, the compiler vectorizes this.
            finite &= out.iter().fold(true, |finite, value| finite & value.is_finite());
            square += squares(out);
        });
        (square.sqrt(), finite)
    }
}

impl SiteDelta<'_> {
    /// Dot product with another row: how much a loss with this slope grows along the change.
    pub fn along(&self, slope: &[f32], layout: &ParameterLayout) -> f64 {
        let (mut buffer, mut out, mut sum) = (ReadBuffer::default(), vec![0.0; BLOCK], 0.0);
        each_block(layout, |place, from, at, len| {
            let out = &mut out[..len];
            self.block(layout, (place, from, at, len), &mut buffer, out);
            sum += f64::from(out.iter().zip(&slope[at..at + len]).map(|(out, slope)| out * slope).sum::<f32>());
        });
        sum
    }
}

/// Sum of squares.
fn squares(values: &[f32]) -> f64 {
    let (eights, rest) = values.as_chunks::<8>();
    let mut lanes = [0.0_f64; 8];
    for eight in eights {
        for (lane, value) in lanes.iter_mut().zip(eight) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    let rest = rest.iter().map(|value| f64::from(*value) * f64::from(*value));
    lanes.iter().copied().chain(rest).sum()
}

/// Squared distances between all changes, one row each.
pub fn distances(changes: &[SiteDelta<'_>], layout: &ParameterLayout) -> Vec<Vec<f64>> {
    let count = changes.len();
    let mut squares = vec![vec![0.0; count]; count];
    let (mut buffer, mut blocks) = (ReadBuffer::default(), vec![0.0; BLOCK * count]);
    each_block(layout, |place, from, at, len| {
        for (change, out) in changes.iter().zip(blocks.chunks_exact_mut(BLOCK)) {
            change.block(layout, (place, from, at, len), &mut buffer, &mut out[..len]);
        }
        for one in 0..count {
            for other in 0..one {
                let (a, b) = (&blocks[one * BLOCK..][..len], &blocks[other * BLOCK..][..len]);
                let square: f64 = a.iter().zip(b).map(|(a, b)| f64::from((a - b) * (a - b))).sum();
                squares[one][other] += square;
                squares[other][one] += square;
            }
        }
    });
    squares
}

/// Merges the last layer class by class: the numbers of a class become the base plus each change times its share of
/// that class. A class in which nobody has a share keeps the numbers in `row`. `shares`: for each class, one value per
/// change.
pub fn by_class(
    row: &mut [f32],
    base: &[f32],
    changes: &[SiteDelta<'_>],
    shares: &[Vec<f64>],
    layout: &ParameterLayout,
) {
    let (mut buffer, mut out) = (ReadBuffer::default(), vec![0.0; BLOCK]);
    let has_shares: Vec<bool> = shares.iter().map(|shares| shares.iter().any(|share| *share > 0.0)).collect();
    each_block(layout, |place, from, at, len| {
        let class =
            |offset: usize| layout.class_of(place, from + offset).filter(|class| has_shares.get(*class) == Some(&true));
        let own: Vec<usize> = (0..len).filter(|offset| class(*offset).is_some()).collect();
        if own.is_empty() {
            return;
        }
        own.iter().for_each(|offset| row[at + offset] = base[at + offset]);
        for (number, change) in changes.iter().enumerate() {
            let out = &mut out[..len];
            change.block(layout, (place, from, at, len), &mut buffer, out);
            for (offset, value) in out.iter().enumerate() {
                if let Some(class) = class(offset) {
                    row[at + offset] += shares[class][number] as f32 * value;
                }
            }
        }
    });
}

/// How many values are dropped at either end of each weight; for a median, all but the middle one or two.
pub fn trimmed_of(count: usize, ratio: f64) -> usize {
    ((count as f64 * ratio) as usize).min(count.saturating_sub(1) / 2)
}

/// The base plus the mean of the changes, weight by weight, without the `left_out` smallest and largest; if that leaves
/// one or two, it is the median. `left_out` must be below half of the changes.
pub fn without_extremes(
    base: &[f32],
    changes: &[SiteDelta<'_>],
    layout: &ParameterLayout,
    left_out: usize,
) -> Vec<f32> {
    let mut row = vec![0.0; layout.len()];
    let count = changes.len();
    if count == 0 {
        return base.to_vec();
    }
    let left_out = left_out.min((count - 1) / 2);
    let swaps = swaps(count, left_out);
    let share = 1.0 / (count - 2 * left_out) as f32;
    let (mut buffer, mut blocks) = (ReadBuffer::default(), vec![0.0; BLOCK * count]);
    each_block(layout, |place, from, at, len| {
        for (change, out) in changes.iter().zip(blocks.chunks_exact_mut(BLOCK)) {
            change.block(layout, (place, from, at, len), &mut buffer, &mut out[..len]);
        }
        for (low, high) in &swaps {
            let (before, after) = blocks.split_at_mut(high * BLOCK);
            let rows = before[low * BLOCK..][..len].iter_mut().zip(&mut after[..len]);
            // All are finite, which was checked: one comparison each, where `f32::min` must also handle NaN.
            rows.for_each(|(low, high)| {
                let (a, b) = (*low, *high);
                (*low, *high) = (if a < b { a } else { b }, if a < b { b } else { a });
            });
        }
        let sum = &mut row[at..at + len];
        sum.copy_from_slice(&base[at..at + len]);
        for kept in left_out..count - left_out {
            let values = &blocks[kept * BLOCK..][..len];
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += share * value);
        }
    });
    row
}

/// Comparisons, in order, after which the rows from `left_out` to `count - left_out` hold the same values as after a
/// full sort, as far as their sums go: Batcher's odd-even merge sort (K. E. Batcher, 1968) for any number of rows,
/// without the comparisons that no kept row depends on.
fn swaps(count: usize, left_out: usize) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    let mut width = 1;
    while width < count {
        let mut step = width;
        while step >= 1 {
            let mut start = step % width;
            while start + step < count {
                for low in start..(start + step).min(count - step) {
                    if low / (2 * width) == (low + step) / (2 * width) {
                        all.push((low, low + step));
                    }
                }
                start += 2 * step;
            }
            step /= 2;
        }
        width *= 2;
    }
    // From the end: a comparison matters if one of its rows does, unless both are on the same side of the kept range.
    let mut needed: Vec<bool> = (0..count).map(|row| row >= left_out && row < count - left_out).collect();
    let mut kept = Vec::new();
    for (low, high) in all.into_iter().rev() {
        if needed[low] || needed[high] {
            (needed[low], needed[high]) = (true, true);
            kept.push((low, high));
        }
    }
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(len: usize) -> ParameterLayout {
        ParameterLayout::new([("a".to_owned(), vec![len / 3]), ("b".to_owned(), vec![len - len / 3])].into())
    }

    fn rows() -> impl Strategy<Value = Vec<Vec<f32>>> {
        (1_usize..14, 3_usize..40)
            .prop_flat_map(|(count, len)| prop::collection::vec(prop::collection::vec(-10.0_f32..10.0, len), count))
    }

    fn changes<'a>(rows: &'a [Vec<f32>], base: &'a [f32]) -> Vec<SiteDelta<'a>> {
        rows.iter().map(|row| SiteDelta { values: WeightRow::Memory(row), base, times: 1.0 }).collect()
    }

    proptest! {
        #[test]
        fn a_sum_is_what_adding_number_by_number_gives(rows in rows(), times in prop::collection::vec(-2.0_f64..2.0, 14)) {
            let layout = layout(rows[0].len());
            let terms: Vec<WeightedRow<'_>> =
                rows.iter().zip(&times).map(|(row, times)| WeightedRow { values: WeightRow::Memory(row), times: *times }).collect();
            for (at, found) in sum(&terms, &layout).into_iter().enumerate() {
                let wanted: f64 = rows.iter().zip(&times).map(|(row, times)| f64::from(row[at]) * times).sum();
                prop_assert!((f64::from(found) - wanted).abs() < 1e-3);
            }
        }

        #[test]
        fn without_extremes_equals_sorting_each_column(rows in rows(), left_out in 0_usize..7) {
            let (layout, base) = (layout(rows[0].len()), vec![1.0; rows[0].len()]);
            let left_out = left_out.min((rows.len() - 1) / 2);
            let found = without_extremes(&base, &changes(&rows, &base), &layout, left_out);
            for (at, found) in found.into_iter().enumerate() {
                let mut column: Vec<f32> = rows.iter().map(|row| row[at] - 1.0).collect();
                column.sort_by(f32::total_cmp);
                let kept = &column[left_out..rows.len() - left_out];
                let wanted = 1.0 + kept.iter().sum::<f32>() / kept.len() as f32;
                prop_assert!((found - wanted).abs() < 1e-4, "{found} instead of {wanted}");
            }
        }

        #[test]
        fn distances_are_symmetric_and_equal_those_of_the_rows(rows in rows()) {
            let (layout, base) = (layout(rows[0].len()), vec![0.5; rows[0].len()]);
            let found = distances(&changes(&rows, &base), &layout);
            for (one, a) in rows.iter().enumerate() {
                for (other, b) in rows.iter().enumerate() {
                    let wanted: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
                    prop_assert!((found[one][other] - f64::from(wanted)).abs() < 1e-2);
                    prop_assert_eq!(found[one][other], found[other][one]);
                }
            }
        }
    }

    #[test]
    fn only_finite_numbers_count_as_finite() {
        let (layout, base) = (layout(9), vec![0.0; 9]);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut row = vec![1.0; 9];
            row[7] = bad;
            assert!(!SiteDelta { values: WeightRow::Memory(&row), base: &base, times: 1.0 }.norm(&layout).1);
        }
        let row = vec![2.0; 9];
        assert_eq!(SiteDelta { values: WeightRow::Memory(&row), base: &base, times: 0.5 }.norm(&layout), (3.0, true));
    }
}

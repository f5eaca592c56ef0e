//! Picking messages out of a stream by their sequences: neighbours are read in one go, others one by one.

use futures::StreamExt;

use crate::connect::Bus;
use crate::error::CarryError;
use crate::reader::{self, MessageReader, StoredMessage, StreamRange};

/// Sequences no further apart than this are neighbours: what lies between them is read too, and dropped.
const NEAR: u64 = 2;
/// So many neighbours are worth a reader of their own.
const WORTH: usize = 64;
/// Messages asked for one by one at a time.
const ASKED: usize = 16;

/// Hands over the messages under these sequences, which rise, in their order; `None` for each that is gone.
/// Holds a few messages ahead and no more while `each` takes its time. Stops with the first error of `each`.
pub async fn fetch_many<E: From<CarryError>>(
    bus: &Bus,
    stream: &str,
    sequences: &[u64],
    mut each: impl AsyncFnMut(usize, Option<StoredMessage>) -> Result<(), E>,
) -> Result<(), E> {
    let mut done = 0;
    for run in runs(sequences) {
        let part = sequences.get(run.clone()).unwrap_or_default();
        if part.len() < WORTH {
            let asked = part.iter().map(|sequence| reader::message_at(bus, stream, *sequence));
            let mut answered = futures::stream::iter(asked).buffered(ASKED);
            while let Some(record) = answered.next().await {
                each(done, record?).await?;
                done += 1;
            }
        } else {
            neighbours(bus, stream, part, done, &mut each).await?;
            done += part.len();
        }
    }
    Ok(())
}

async fn neighbours<E: From<CarryError>>(
    bus: &Bus,
    stream: &str,
    wanted: &[u64],
    first: usize,
    each: &mut impl AsyncFnMut(usize, Option<StoredMessage>) -> Result<(), E>,
) -> Result<(), E> {
    let mut left = wanted.iter().copied().zip(first..).peekable();
    let (Some(from), Some(until)) = (wanted.first(), wanted.last()) else { return Ok(()) };
    let part = StreamRange { from_sequence: Some(*from), ..StreamRange::default() };
    let mut reader = MessageReader::open(bus, stream, part, *until).await?;
    while let Some(record) = reader.next().await? {
        // What lies before it was purged meanwhile.
        while let Some((_, place)) = left.next_if(|(sequence, _)| *sequence < record.sequence) {
            each(place, None).await?;
        }
        if let Some((_, place)) = left.next_if(|(sequence, _)| *sequence == record.sequence) {
            each(place, Some(record)).await?;
        }
    }
    for (_, place) in left {
        each(place, None).await?;
    }
    Ok(())
}

/// Where neighbours lie; everything else in pieces between them.
fn runs(sequences: &[u64]) -> Vec<std::ops::Range<usize>> {
    let mut dense: Vec<std::ops::Range<usize>> = Vec::new();
    let mut begun = 0;
    for end in 1..=sequences.len() {
        let apart = match (sequences.get(end - 1), sequences.get(end)) {
            (Some(before), Some(after)) => after.saturating_sub(*before) > NEAR,
            _ => true,
        };
        if apart {
            dense.push(begun..end);
            begun = end;
        }
    }
    // Short runs beside one another are one piece, asked for one by one.
    let mut all: Vec<std::ops::Range<usize>> = Vec::new();
    for run in dense {
        match all.last_mut() {
            Some(last) if last.len() < WORTH && run.len() < WORTH && last.len() + run.len() < WORTH => {
                last.end = run.end
            }
            _ => all.push(run),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_read_together_and_others_one_by_one() {
        let mut sequences: Vec<u64> = (100..300).collect();
        sequences.extend([1000, 2000, 3000]);
        assert_eq!(runs(&sequences), [0..200, 200..203]);
        assert!(runs(&[]).is_empty());
        assert_eq!(runs(&[5]).len(), 1);
        let apart: Vec<u64> = (0..100).map(|at| at * 10).collect();
        let pieces = runs(&apart);
        assert!(pieces.iter().all(|piece| piece.len() < WORTH));
        assert_eq!(pieces.iter().map(std::ops::Range::len).sum::<usize>(), 100);
    }
}

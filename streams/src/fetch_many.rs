//! Fetches messages of a stream by their sequences: near ones with one reader, others one by one.

use futures::StreamExt;

use crate::connect::Bus;
use crate::error::CarryError;
use crate::reader::{self, MessageReader, StoredMessage, StreamRange};

/// Sequences at most this far apart count as near: messages between them are read too, and dropped.
const NEAR: u64 = 2;
/// Fewest near messages for which a reader of their own pays.
const MIN_RUN: usize = 64;
/// Single messages requested at a time.
const CONCURRENT_GETS: usize = 16;

/// Passes the messages of these ascending sequences to `each`, in order; `None` for each that is gone.
/// Fetches only a few messages ahead while `each` takes its time. Stops at the first error of `each`.
pub async fn fetch_many<E: From<CarryError>>(
    bus: &Bus,
    stream: &str,
    sequences: &[u64],
    mut each: impl AsyncFnMut(usize, Option<StoredMessage>) -> Result<(), E>,
) -> Result<(), E> {
    let mut done = 0;
    for run in runs(sequences) {
        let part = sequences.get(run.clone()).unwrap_or_default();
        if part.len() < MIN_RUN {
            let requests = part.iter().map(|sequence| reader::message_at(bus, stream, *sequence));
            let mut replies = futures::stream::iter(requests).buffered(CONCURRENT_GETS);
            while let Some(record) = replies.next().await {
                each(done, record?).await?;
                done += 1;
            }
        } else {
            read_run(bus, stream, part, done, &mut each).await?;
            done += part.len();
        }
    }
    Ok(())
}

async fn read_run<E: From<CarryError>>(
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
        // Messages before it were purged meanwhile.
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

/// Splits the sequences into runs of near ones, and into the rest between them.
fn runs(sequences: &[u64]) -> Vec<std::ops::Range<usize>> {
    let mut dense: Vec<std::ops::Range<usize>> = Vec::new();
    let mut begun = 0;
    for end in 1..=sequences.len() {
        let ends_run = match (sequences.get(end - 1), sequences.get(end)) {
            (Some(before), Some(after)) => after.saturating_sub(*before) > NEAR,
            _ => true,
        };
        if ends_run {
            dense.push(begun..end);
            begun = end;
        }
    }
    // Short runs side by side are merged, and read one by one.
    let mut all: Vec<std::ops::Range<usize>> = Vec::new();
    for run in dense {
        match all.last_mut() {
            Some(last) if last.len() < MIN_RUN && run.len() < MIN_RUN && last.len() + run.len() < MIN_RUN => {
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
    fn near_messages_are_read_together_and_others_one_by_one() {
        let mut sequences: Vec<u64> = (100..300).collect();
        sequences.extend([1000, 2000, 3000]);
        assert_eq!(runs(&sequences), [0..200, 200..203]);
        assert!(runs(&[]).is_empty());
        assert_eq!(runs(&[5]).len(), 1);
        let apart: Vec<u64> = (0..100).map(|at| at * 10).collect();
        let pieces = runs(&apart);
        assert!(pieces.iter().all(|piece| piece.len() < MIN_RUN));
        assert_eq!(pieces.iter().map(std::ops::Range::len).sum::<usize>(), 100);
    }
}

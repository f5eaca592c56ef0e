//! Counts the site's final answers for as long as the site exists. Counts and the place up to which they go are one
//! note, so a restart counts no answer twice and omits none that the stream still has.

use runtime::Fault;
use schemas::{Answer, AnswerTotals, SiteName, decode};
use streams::fleet::Ledger;
use streams::reader::{self, MessageReader, StreamRange};
use streams::{Bus, subject, topology};

/// Key of the ledger note with the counts.
pub(crate) const TOTALS_NOTE: &str = "answer-totals";
/// Most answers counted in one pass; the others follow in the next.
const MAX_PER_PASS: u64 = 20_000;

/// Counts the answers that were stored since the note was written, and writes it again. Returns the counts.
pub(crate) async fn count_new_answers(bus: &Bus, site: &SiteName) -> Result<AnswerTotals, Fault> {
    let ledger = Ledger::open(bus).await?;
    let before = read_totals(&ledger).await?;
    let level = reader::stream_level(bus, topology::ANSWERS).await?;
    let mut totals = before.clone();
    // A server that crashed may have lost the last answers, and numbers new ones like those: none is counted twice.
    totals.counted_to = totals.counted_to.min(level.last_sequence);
    let from = (totals.counted_to + 1).max(level.first_sequence);
    let last = level.last_sequence.min(from.saturating_add(MAX_PER_PASS - 1));
    if level.messages == 0 || from > last {
        return Ok(before);
    }
    let range = StreamRange {
        subjects: vec![subject::final_answers(site, None)],
        from_sequence: Some(from),
        ..StreamRange::default()
    };
    let mut reader = MessageReader::open(bus, topology::ANSWERS, range, last).await?;
    while let Some(record) = reader.next().await? {
        match decode::<Answer>(&record.payload) {
            Ok(answer) => totals.add_answer(&answer),
            // Whoever may publish answers may publish anything else there.
            Err(error) => tracing::debug!(sequence = record.sequence, %error, "answer not counted"),
        }
    }
    totals.counted_to = last;
    write_totals(&ledger, &before, totals).await
}

/// The counts so far.
pub(crate) async fn read_totals(ledger: &Ledger) -> Result<AnswerTotals, Fault> {
    let note = ledger.read(TOTALS_NOTE).await?;
    Ok(note.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
}

/// Writes the counts, unless another janitor counted the same answers meanwhile: then its counts stand.
async fn write_totals(ledger: &Ledger, before: &AnswerTotals, totals: AnswerTotals) -> Result<AnswerTotals, Fault> {
    let text = serde_json::to_string(&totals).unwrap_or_default();
    let change = |now: Option<&str>| match now.map(serde_json::from_str::<AnswerTotals>) {
        Some(Ok(now)) if now != *before => serde_json::to_string(&now).unwrap_or_default(),
        _ => text.clone(),
    };
    ledger.update_note(TOTALS_NOTE, change).await?;
    read_totals(ledger).await
}

//! Before another model's eyes.

use std::collections::HashSet;
use std::path::Path;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use vision::{InferenceError, InferencePool};

use super::{ReplayRun, under_way};
use crate::compare::{self, ComparedPrediction, Comparison};
use crate::error::ReplayError;
use crate::index::IndexWriter;
use crate::row::TaskRow;

impl ReplayRun<'_> {
    /// Shown to another model.
    pub(super) async fn compare(
        &mut self,
        rows: Vec<TaskRow>,
        infer: &InferencePool,
        table: Option<&Path>,
    ) -> Result<(), ReplayError> {
        let mut comparison = Comparison::default();
        let mut index = None;
        let mut known = HashSet::new();
        if let Some(path) = table {
            let read = |cells: &csv::StringRecord| {
                comparison.add_cells(cells)?;
                cells.get(0)?.parse().ok()
            };
            let (opened, found) = IndexWriter::open(path, &compare::HEADS, read)?;
            (index, known) = (Some(opened), found);
        }
        let rows: Vec<TaskRow> = self.rest(rows, &known).into_iter().filter(|row| row.answer.is_some()).collect();
        // One batch in work and one that waits, for each replica.
        let most = infer.replicas() * infer.batch() * 2;
        let mut asked = FuturesOrdered::new();
        let mut heard =
            |run: &mut Self, heard: Result<(TaskRow, u64, Result<ComparedPrediction, InferenceError>), ReplayError>| {
                let (row, bytes, said) = heard?;
                match said {
                    Ok(said) => {
                        comparison.add(&row, &said);
                        if let Some(index) = &mut index {
                            index.add(compare::cells(&row, &said))?;
                        }
                    }
                    Err(error) if error.is_the_images_fault() => comparison.unreadable += 1,
                    Err(source) => return Err(ReplayError::Model { source }),
                }
                run.through(&row, bytes);
                Ok(())
            };
        let fetched = self
            .fetch(&rows, async |run, row, image, room| {
                while asked.len() >= most {
                    if let Some(said) = asked.next().await {
                        heard(run, said)?;
                    }
                }
                let (infer, row) = (infer.clone(), row.clone());
                asked.push_back(under_way(async move {
                    let _room = room;
                    let bytes = image.bytes.len() as u64;
                    let seen = infer.predict(image.bytes).await;
                    Ok((row, bytes, seen.map(|seen| said(&seen))))
                }));
                Ok(())
            })
            .await;
        while let Some(said) = asked.next().await {
            heard(self, said)?;
        }
        if let Some(index) = index {
            index.sync()?;
        }
        self.summary.comparison = Some(comparison);
        fetched?;
        self.note_end()
    }
}

fn said(seen: &vision::InferenceResult) -> ComparedPrediction {
    let description = &seen.model.description;
    let ratios = vision::probabilities(&seen.model, &seen.logits, description.gate.temperature.unwrap_or(1.0));
    let opinion = vision::prediction(&seen.model, &ratios);
    let (label, confidence) = opinion.map_or((String::new(), 0.0), |opinion| (opinion.label, opinion.confidence));
    ComparedPrediction { label, confidence, cost_ms: seen.timings.cost_ms() }
}

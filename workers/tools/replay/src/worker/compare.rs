//! Runs images through another model.

use std::collections::HashSet;
use std::path::Path;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use vision::{InferenceError, InferencePool};

use super::{ReplayRun, spawn_abortable};
use crate::compare::{self, ComparedPrediction, Comparison};
use crate::error::ReplayError;
use crate::index::IndexWriter;
use crate::row::TaskRow;

impl ReplayRun<'_> {
    /// Compares another model's predictions with the answers.
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
            let (opened, known_tasks) = IndexWriter::open(path, &compare::HEADS, read)?;
            (index, known) = (Some(opened), known_tasks);
        }
        let rows: Vec<TaskRow> = self.skip_done(rows, &known).into_iter().filter(|row| row.answer.is_some()).collect();
        // One batch in work and one waiting, for each replica.
        let max_pending = infer.replicas() * infer.batch() * 2;
        let mut pending = FuturesOrdered::new();
        let mut add_result =
            |run: &mut Self,
             result: Result<(TaskRow, u64, Result<ComparedPrediction, InferenceError>), ReplayError>| {
                let (row, bytes, prediction) = result?;
                match prediction {
                    Ok(prediction) => {
                        comparison.add(&row, &prediction);
                        if let Some(index) = &mut index {
                            index.add(compare::cells(&row, &prediction))?;
                        }
                    }
                    Err(error) if error.is_the_images_fault() => comparison.unreadable += 1,
                    Err(source) => return Err(ReplayError::Model { source }),
                }
                run.through(&row, bytes);
                Ok(())
            };
        let fetched = self
            .fetch(&rows, async |run, row, image, permit| {
                while pending.len() >= max_pending {
                    if let Some(prediction) = pending.next().await {
                        add_result(run, prediction)?;
                    }
                }
                let (infer, row) = (infer.clone(), row.clone());
                pending.push_back(spawn_abortable(async move {
                    let _permit = permit;
                    let bytes = image.bytes.len() as u64;
                    let result = infer.predict(image.bytes).await;
                    Ok((row, bytes, result.map(|result| to_prediction(&result))))
                }));
                Ok(())
            })
            .await;
        while let Some(prediction) = pending.next().await {
            add_result(self, prediction)?;
        }
        if let Some(index) = index {
            index.sync()?;
        }
        comparison.finish();
        self.summary.comparison = Some(comparison);
        fetched?;
        self.note_end()
    }
}

fn to_prediction(result: &vision::InferenceResult) -> ComparedPrediction {
    let description = &result.model.description;
    let prediction = vision::predict(result, description.gate.temperature.unwrap_or(1.0));
    let (label, confidence, objects) = prediction
        .map_or((String::new(), 0.0, None), |prediction| (prediction.label, prediction.confidence, prediction.objects));
    ComparedPrediction { label, confidence, objects, cost_ms: result.timings.cost_ms() }
}

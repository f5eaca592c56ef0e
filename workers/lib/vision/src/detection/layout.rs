//! Where boxes and scores are in a detector's outputs.

use std::borrow::Cow;

use schemas::model::{BackgroundClass, BoxLayout, BoxesDescription, InputDescription};

use super::Detector;

/// Numbers of a box.
const EDGES: usize = 4;
/// Numbers of a row with a final box: its edges, score and class.
const FINAL_NUMBERS: usize = 6;
/// Pixels between two cells of each grid, unless described.
const USUAL_STRIDES: [u32; 3] = [8, 16, 32];

/// Why outputs could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DetectorFault {
    /// They contradict the description.
    Mismatch {
        /// Both sides of the contradiction, in words that follow the graph.
        why: String,
        /// What to correct, in words that are followed by the name of a file.
        remedy: String,
    },
    /// No score, or no box with a high score, is finite.
    NotFinite {
        /// Index of the image in the batch, from 0.
        image: usize,
    },
}

impl DetectorFault {
    pub(super) fn mismatch(why: String, remedy: &str) -> Self {
        Self::Mismatch { why, remedy: remedy.to_owned() }
    }
}

/// An output of a run; integers are converted.
#[derive(Debug)]
pub(crate) struct OutputTensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) shape: Vec<usize>,
    pub(crate) numbers: Cow<'a, [f32]>,
}

/// An output as the description wants it.
#[derive(Debug, PartialEq)]
pub(crate) struct WantedOutput<'a> {
    pub(crate) name: &'a str,
    /// Sizes after the batch; `None` if any is right.
    pub(crate) sizes: Vec<Option<usize>>,
}

impl WantedOutput<'_> {
    /// Whether a shape fits, and has a batch; a negative size is only known in a run. `None` if it does not fit.
    pub(crate) fn fits(&self, shape: &[i64]) -> Option<bool> {
        let with_batch = shape.len() == self.sizes.len() + 1;
        let sizes = if with_batch { shape.get(1..)? } else { shape };
        let fits = |(given, wanted): (&i64, &Option<usize>)| {
            *given < 0 || wanted.is_none_or(|wanted| usize::try_from(*given) == Ok(wanted))
        };
        (sizes.len() == self.sizes.len() && sizes.iter().zip(&self.sizes).all(fits)).then_some(with_batch)
    }

    fn shown(&self) -> String {
        let sizes = self.sizes.iter().map(|size| size.map_or_else(|| "boxes".to_owned(), |size| size.to_string()));
        format!("[batch, {}]", sizes.collect::<Vec<_>>().join(", "))
    }
}

/// Numbers of a table, without copying it: `[row, column]` is `numbers[row * row_step + column * step]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct StridedNumbers<'a> {
    pub(super) numbers: &'a [f32],
    pub(super) row_step: usize,
    pub(super) step: usize,
}

impl StridedNumbers<'_> {
    /// One number; NaN beyond the end, which no checked shape reaches.
    pub(super) fn at(&self, row: usize, column: usize) -> f32 {
        self.numbers.get(row * self.row_step + column * self.step).copied().unwrap_or(f32::NAN)
    }
}

/// Scores of one image.
#[derive(Debug)]
pub(super) enum ImageScores<'a> {
    /// One per box and class, the background among the classes.
    PerClass { scores: StridedNumbers<'a>, classes: usize, objectness: Option<StridedNumbers<'a>> },
    /// One per box, with the number of its class.
    PerBox { scores: StridedNumbers<'a>, classes: StridedNumbers<'a> },
}

/// The outputs of one image.
#[derive(Debug)]
pub(super) struct ImageOutputs<'a> {
    /// Number of boxes.
    pub(super) rows: usize,
    /// Four numbers per box.
    pub(super) boxes: StridedNumbers<'a>,
    pub(super) scores: ImageScores<'a>,
}

impl Detector {
    /// Number of classes in the graph, with the background if it is one.
    fn classes(&self) -> usize {
        self.labels.len() + usize::from(self.boxes.background != BackgroundClass::None)
    }

    /// The outputs to ask for, with the shapes they must have. The number of boxes that count has any shape.
    pub(crate) fn wanted(&self) -> Vec<WantedOutput<'_>> {
        let width = EDGES + usize::from(self.boxes.objectness) + self.classes();
        let one = |name, sizes: &[Option<usize>]| WantedOutput { name, sizes: sizes.to_vec() };
        let first = |sizes: &[Option<usize>]| vec![one(self.output.as_str(), sizes)];
        match self.boxes.layout {
            BoxLayout::Rows => first(&[None, Some(width)]),
            BoxLayout::Columns => first(&[Some(width), None]),
            BoxLayout::Grid => first(&[Some(self.cells.len()), Some(width)]),
            BoxLayout::EndToEnd => first(&[None, Some(FINAL_NUMBERS)]),
            BoxLayout::Separate => {
                let mut wanted = first(&[None, Some(EDGES)]);
                let scores = self.boxes.scores.as_deref().unwrap_or_default();
                match self.boxes.labels.as_deref() {
                    Some(labels) => wanted.extend([one(scores, &[None]), one(labels, &[None])]),
                    None => wanted.push(one(scores, &[None, Some(self.classes())])),
                }
                wanted
            }
        }
    }

    /// Name of the output with the number of boxes that count, if there is one.
    pub(crate) fn count_output(&self) -> Option<&str> {
        self.boxes.count.as_deref()
    }

    /// An output has another shape than the description wants.
    pub(crate) fn misshapen(&self, wanted: &WantedOutput<'_>, shape: &[i64]) -> DetectorFault {
        let sizes = shape.iter().map(|size| if *size < 0 { "n".to_owned() } else { size.to_string() });
        let given = format!("[{}]", sizes.collect::<Vec<_>>().join(", "));
        let layout = self.boxes.layout.as_str();
        let labels = self.labels.len();
        let why = format!(
            "its output {:?} is {given}, but {labels} labels with layout = {layout:?} need {}",
            wanted.name,
            wanted.shown()
        );
        let remedy = match self.boxes.layout {
            BoxLayout::Grid => "write one label per class, or correct strides, objectness or the input's size",
            BoxLayout::EndToEnd => "correct layout",
            BoxLayout::Separate => "write one label per class, or correct background, scores or labels",
            BoxLayout::Rows | BoxLayout::Columns => {
                "write one label per class, or correct layout, objectness or background"
            }
        };
        DetectorFault::Mismatch { why, remedy: format!("{remedy} under [output.boxes] in") }
    }

    /// Finds boxes and scores of one image.
    pub(super) fn read<'a>(
        &self,
        outputs: &'a [OutputTensor<'_>],
        (image, images): (usize, usize),
    ) -> Result<ImageOutputs<'a>, DetectorFault> {
        let mut tables = Vec::with_capacity(3);
        for wanted in self.wanted() {
            let tensor = find(outputs, wanted.name)?;
            let shape: Vec<i64> = tensor.shape.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect();
            let misshapen = || self.misshapen(&wanted, &shape);
            let with_batch = wanted.fits(&shape).ok_or_else(misshapen)?;
            let given = if with_batch { tensor.shape.first().copied().unwrap_or_default() } else { 1 };
            if given != images {
                return Err(misshapen());
            }
            let len = tensor.numbers.len() / images.max(1);
            let numbers = tensor.numbers.get(image * len..(image + 1) * len).unwrap_or_default();
            let sizes = tensor.shape.get(usize::from(with_batch)..).unwrap_or_default();
            tables.push((numbers, sizes));
        }
        let size = |table: usize, axis: usize| {
            tables.get(table).and_then(|(_, sizes)| sizes.get(axis)).copied().unwrap_or_default()
        };
        let numbers = |table: usize, from: usize| {
            tables.get(table).and_then(|(numbers, _)| numbers.get(from..)).unwrap_or_default()
        };
        let row_major = |table, from, row_step| StridedNumbers { numbers: numbers(table, from), row_step, step: 1 };
        let (classes, before_classes) = (self.classes(), EDGES + usize::from(self.boxes.objectness));
        match self.boxes.layout {
            BoxLayout::Rows | BoxLayout::Grid => {
                let (rows, width) = (size(0, 0), size(0, 1));
                let objectness = self.boxes.objectness.then(|| row_major(0, EDGES, width));
                let scores = ImageScores::PerClass { scores: row_major(0, before_classes, width), classes, objectness };
                Ok(ImageOutputs { rows, boxes: row_major(0, 0, width), scores })
            }
            BoxLayout::Columns => {
                let rows = size(0, 1);
                let columns =
                    |from: usize| StridedNumbers { numbers: numbers(0, from * rows), row_step: 1, step: rows };
                let objectness = self.boxes.objectness.then(|| columns(EDGES));
                let scores = ImageScores::PerClass { scores: columns(before_classes), classes, objectness };
                Ok(ImageOutputs { rows, boxes: columns(0), scores })
            }
            BoxLayout::EndToEnd => {
                let rows = size(0, 0);
                let (scores, classes) = (row_major(0, EDGES, FINAL_NUMBERS), row_major(0, EDGES + 1, FINAL_NUMBERS));
                let scores = ImageScores::PerBox { scores, classes };
                Ok(ImageOutputs { rows, boxes: row_major(0, 0, FINAL_NUMBERS), scores })
            }
            BoxLayout::Separate => {
                let rows = size(0, 0);
                if (1..tables.len()).any(|table| size(table, 0) != rows) {
                    let names = self.wanted().iter().map(|wanted| format!("{:?}", wanted.name)).collect::<Vec<_>>();
                    let why = format!("its outputs {} have different numbers of boxes", names.join(" and "));
                    let remedy = "name outputs that belong together: output.name, scores and labels in";
                    return Err(DetectorFault::mismatch(why, remedy));
                }
                let scores = match self.boxes.labels {
                    Some(_) => ImageScores::PerBox { scores: row_major(1, 0, 1), classes: row_major(2, 0, 1) },
                    None => ImageScores::PerClass { scores: row_major(1, 0, classes), classes, objectness: None },
                };
                let rows = rows.min(self.count(outputs, image)?.unwrap_or(rows));
                Ok(ImageOutputs { rows, boxes: row_major(0, 0, EDGES), scores })
            }
        }
    }

    /// The number of boxes of an image that count, if an output gives it.
    fn count(&self, outputs: &[OutputTensor<'_>], image: usize) -> Result<Option<usize>, DetectorFault> {
        let Some(name) = self.count_output() else { return Ok(None) };
        let number = find(outputs, name)?.numbers.get(image).copied();
        match number.filter(|number| number.is_finite() && *number >= 0.0) {
            Some(number) => Ok(Some(number as usize)),
            None => {
                let why = format!("its output {name:?} gives no number of boxes");
                Err(DetectorFault::mismatch(why, "correct or remove count under [output.boxes] in"))
            }
        }
    }
}

fn find<'a, 'o>(outputs: &'a [OutputTensor<'o>], name: &str) -> Result<&'a OutputTensor<'o>, DetectorFault> {
    outputs
        .iter()
        .find(|output| output.name == name)
        .ok_or_else(|| DetectorFault::mismatch(format!("it gave no output {name:?}"), "name outputs of the graph in"))
}

/// Cells of the usual grids of an input.
pub(super) fn cell_count(width_px: u32, height_px: u32) -> usize {
    USUAL_STRIDES.iter().map(|stride| (width_px / stride) as usize * (height_px / stride) as usize).sum()
}

/// Column, row and stride of each cell: one grid after another, each row by row.
pub(super) fn cells(boxes: &BoxesDescription, input: &InputDescription) -> Vec<[f32; 3]> {
    let strides = if boxes.strides.is_empty() { &USUAL_STRIDES[..] } else { &boxes.strides };
    let grid = |stride: &u32| {
        let stride = (*stride).max(1);
        let columns = input.width_px / stride;
        (0..input.height_px / stride)
            .flat_map(move |row| (0..columns).map(move |column| [column as f32, row as f32, stride as f32]))
    };
    strides.iter().flat_map(grid).collect()
}

//! A line chart as an SVG, without fonts or libraries of the system.

use plotters::prelude::*;

const WIDTH_PX: u32 = 880;
const HEIGHT_PX: u32 = 540;
/// Colours that stay apart for most eyes (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(120, 120, 120),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];
const MARK: RGBColor = RGBColor(213, 94, 0);
/// Free space around the values, as a share of their range.
const MARGIN: f64 = 0.08;

/// A chart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chart {
    /// Above it.
    pub title: String,
    /// Below the horizontal axis.
    pub x_label: String,
    /// Beside the vertical axis.
    pub y_label: String,
    /// Lines, each with a name for the legend.
    pub lines: Vec<ChartLine>,
    /// Single points, each with a text beside it.
    pub marks: Vec<ChartPoint>,
}

/// A line of a chart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChartLine {
    /// In the legend.
    pub name: String,
    /// In order.
    pub points: Vec<(f64, f64)>,
}

/// A point of a chart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChartPoint {
    /// In the legend.
    pub name: String,
    /// Where it is.
    pub point: (f64, f64),
}

/// Why a chart could not be drawn.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChartError {
    /// Nothing, or values that are no numbers.
    #[error("chart {title:?} has no finite values to show")]
    Empty {
        /// Its title.
        title: String,
    },
    /// The library refused.
    #[error("chart {title:?} could not be drawn: {why}")]
    Refused {
        /// Its title.
        title: String,
        /// The library's words.
        why: String,
    },
}

impl Chart {
    /// The picture.
    pub(crate) fn svg(&self) -> Result<String, ChartError> {
        let lines = self.lines.iter().flat_map(|line| line.points.iter().copied());
        let points: Vec<(f64, f64)> = lines.chain(self.marks.iter().map(|mark| mark.point)).collect();
        let xs = range(points.iter().map(|point| point.0)).ok_or_else(|| self.empty())?;
        let ys = range(points.iter().map(|point| point.1)).ok_or_else(|| self.empty())?;
        let mut svg = String::new();
        self.draw(&mut svg, xs, ys)
            .map_err(|error| ChartError::Refused { title: self.title.clone(), why: error.to_string() })?;
        Ok(svg)
    }

    fn empty(&self) -> ChartError {
        ChartError::Empty { title: self.title.clone() }
    }

    fn draw(
        &self,
        svg: &mut String,
        (x_from, x_to): (f64, f64),
        (y_from, y_to): (f64, f64),
    ) -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::with_string(svg, (WIDTH_PX, HEIGHT_PX)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(48)
            .y_label_area_size(64)
            .build_cartesian_2d(x_from..x_to, y_from..y_to)?;
        chart
            .configure_mesh()
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .axis_desc_style(("sans-serif", 15))
            .label_style(("sans-serif", 13))
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(225, 225, 225))
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .draw()?;
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), style))?
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        }
        for mark in &self.marks {
            chart
                .draw_series([Circle::new(mark.point, 6, MARK.filled())])?
                .label(&mark.name)
                .legend(|(x, y)| Circle::new((x + 10, y), 5, MARK.filled()));
        }
        chart
            .configure_series_labels()
            .position(self.emptiest((x_from, x_to), (y_from, y_to)))
            .background_style(WHITE)
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 14))
            .draw()?;
        area.present()?;
        Ok(())
    }
}

impl Chart {
    /// The corner with the least of the lines in it, for the legend; of equal ones the first.
    fn emptiest(&self, (x_from, x_to): (f64, f64), (y_from, y_to): (f64, f64)) -> SeriesLabelPosition {
        const STEPS: usize = 20;
        let along = self.lines.iter().flat_map(|line| line.points.windows(2)).flat_map(|pair| {
            let ((x, y), (to_x, to_y)) = (pair[0], pair[1]);
            (0..=STEPS).map(move |step| {
                let share = step as f64 / STEPS as f64;
                (x + (to_x - x) * share, y + (to_y - y) * share)
            })
        });
        let places = along.map(|(x, y)| ((x - x_from) / (x_to - x_from), (y - y_from) / (y_to - y_from)));
        let places: Vec<(f64, f64)> = places.collect();
        // About the share of the picture that a legend takes.
        let (wide, high) = (0.45, 0.2);
        let within = |right: bool, upper: bool| {
            let here = |(x, y): &&(f64, f64)| {
                (if right { *x > 1.0 - wide } else { *x < wide }) && (if upper { *y > 1.0 - high } else { *y < high })
            };
            places.iter().filter(here).count()
        };
        let corners = [
            (within(true, false), SeriesLabelPosition::LowerRight),
            (within(true, true), SeriesLabelPosition::UpperRight),
            (within(false, false), SeriesLabelPosition::LowerLeft),
            (within(false, true), SeriesLabelPosition::UpperLeft),
        ];
        let least = corners.into_iter().min_by_key(|(count, _)| *count);
        least.map_or(SeriesLabelPosition::LowerRight, |(_, corner)| corner)
    }
}

/// Without the digits that are only rounding.
fn short(value: f64) -> String {
    ((value * 1e6).round() / 1e6).to_string()
}

/// From the least to the greatest with free space around; absent if there is none or one is no number.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (mut from, mut to) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in values {
        if !value.is_finite() {
            return None;
        }
        (from, to) = (from.min(value), to.max(value));
    }
    if from > to {
        return None;
    }
    let space = if to > from { (to - from) * MARGIN } else { 1.0 };
    Some((from - space, to + space))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        Chart {
            title: "Height < width & \"depth\"".into(),
            x_label: "width".into(),
            y_label: "height".into(),
            lines: vec![ChartLine { name: "all".into(), points }],
            marks: vec![ChartPoint { name: "here".into(), point: (0.5, 0.5) }],
        }
    }

    #[test]
    fn a_chart_is_an_svg_with_its_texts_and_lines() {
        let svg = chart(vec![(0.0, 0.0), (1.0, 1.0)]).svg().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for part in ["Height &lt; width &amp; ", "width", "height", "all", "here", "<polyline", "<circle"] {
            assert!(svg.contains(part), "{part:?} is not in {svg}");
        }
    }

    #[test]
    fn a_chart_of_one_value_has_a_range_and_one_of_none_is_refused() {
        assert!(chart(vec![(0.5, 0.5)]).svg().is_ok());
        assert!(matches!(chart(vec![(f64::NAN, 0.0)]).svg(), Err(ChartError::Empty { .. })));
        let none = Chart { marks: Vec::new(), ..chart(Vec::new()) };
        assert!(matches!(none.svg(), Err(ChartError::Empty { .. })));
    }
}

//! Draws a line chart as SVG, without system fonts or libraries.

use plotters::prelude::*;

const WIDTH_PX: u32 = 880;
const HEIGHT_PX: u32 = 540;
/// Colour-blind-safe palette (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(120, 120, 120),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];
const MARK: RGBColor = RGBColor(213, 94, 0);
/// Margin around the values, as a share of their range.
const MARGIN: f64 = 0.08;

/// A line chart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chart {
    /// Chart title.
    pub title: String,
    /// Label of the horizontal axis.
    pub x_label: String,
    /// Label of the vertical axis.
    pub y_label: String,
    /// Lines of the chart.
    pub lines: Vec<ChartLine>,
    /// Single points, each with a legend entry.
    pub marks: Vec<ChartPoint>,
}

/// A line of a chart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChartLine {
    /// Name in the legend.
    pub name: String,
    /// Points in drawing order.
    pub points: Vec<(f64, f64)>,
}

/// A point of a chart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChartPoint {
    /// Name in the legend.
    pub name: String,
    /// Position.
    pub point: (f64, f64),
}

/// Why a chart could not be drawn.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChartError {
    /// No values, or values that are not finite.
    #[error("chart {title:?} has no finite values to show")]
    Empty {
        /// Title of the chart.
        title: String,
    },
    /// The drawing library failed.
    #[error("chart {title:?} could not be drawn: {why}")]
    Refused {
        /// Title of the chart.
        title: String,
        /// The library's message.
        why: String,
    },
}

impl Chart {
    /// Renders the chart as SVG.
    pub(crate) fn svg(&self) -> Result<String, ChartError> {
        let lines = self.lines.iter().flat_map(|line| line.points.iter().copied());
        let points: Vec<(f64, f64)> = lines.chain(self.marks.iter().map(|mark| mark.point)).collect();
        let xs = axis_range(points.iter().map(|point| point.0)).ok_or_else(|| self.empty_error())?;
        let ys = axis_range(points.iter().map(|point| point.1)).ok_or_else(|| self.empty_error())?;
        let mut svg = String::new();
        self.draw(&mut svg, xs, ys)
            .map_err(|error| ChartError::Refused { title: self.title.clone(), why: error.to_string() })?;
        Ok(svg)
    }

    fn empty_error(&self) -> ChartError {
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
            .x_label_formatter(&|value| format_tick(*value))
            .y_label_formatter(&|value| format_tick(*value))
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
            .position(self.legend_corner((x_from, x_to), (y_from, y_to)))
            .background_style(WHITE)
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 14))
            .draw()?;
        area.present()?;
        Ok(())
    }
}

impl Chart {
    /// The corner crossed least by lines, for the legend; the first in case of a tie.
    fn legend_corner(&self, (x_from, x_to): (f64, f64), (y_from, y_to): (f64, f64)) -> SeriesLabelPosition {
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
        // Approximate size of the legend, as a share of the chart.
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

/// Formats a value without rounding artefacts.
fn format_tick(value: f64) -> String {
    ((value * 1e6).round() / 1e6).to_string()
}

/// Axis range with a margin; absent if there are no values or one is not finite.
fn axis_range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
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
    fn svg_contains_texts_and_lines() {
        let svg = chart(vec![(0.0, 0.0), (1.0, 1.0)]).svg().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for part in ["Height &lt; width &amp; ", "width", "height", "all", "here", "<polyline", "<circle"] {
            assert!(svg.contains(part), "{part:?} is not in {svg}");
        }
    }

    #[test]
    fn one_value_is_drawn_and_no_value_is_refused() {
        assert!(chart(vec![(0.5, 0.5)]).svg().is_ok());
        assert!(matches!(chart(vec![(f64::NAN, 0.0)]).svg(), Err(ChartError::Empty { .. })));
        let none = Chart { marks: Vec::new(), ..chart(Vec::new()) };
        assert!(matches!(none.svg(), Err(ChartError::Empty { .. })));
    }
}

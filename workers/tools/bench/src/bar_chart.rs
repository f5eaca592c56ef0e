//! Draws a grouped bar chart as SVG, without system fonts or libraries.

use plotters::prelude::*;

use crate::chart::ChartError;

const WIDTH_PX: u32 = 960;
const HEIGHT_PX: u32 = 480;
/// Colour-blind-safe palette (Okabe and Ito), one colour per bar of a group.
const COLOURS: [RGBColor; 7] = [
    RGBColor(213, 94, 0),
    RGBColor(150, 150, 150),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];
/// Bars taller than this multiple of the median are cut; their label still shows the height.
const CUT_RATIO: f64 = 4.0;
/// Space above the bars per legend entry, as a share of the axis top.
const LEGEND_ROW_RATIO: f64 = 0.065;

/// A grouped bar chart; all groups have the same kinds of bars.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BarChart {
    /// Chart title.
    pub title: String,
    /// Label of the vertical axis.
    pub y_label: String,
    /// Groups from left to right.
    pub groups: Vec<BarGroup>,
}

/// A group of bars.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BarGroup {
    /// Label below the group.
    pub name: String,
    /// Kind and height of each bar.
    pub bars: Vec<(String, f64)>,
}

impl BarChart {
    /// Renders the chart as SVG.
    pub(crate) fn svg(&self) -> Result<String, ChartError> {
        let mut svg = String::new();
        if self.groups.is_empty() {
            return Err(ChartError::Empty { title: self.title.clone() });
        }
        self.draw(&mut svg)
            .map_err(|error| ChartError::Refused { title: self.title.clone(), why: error.to_string() })?;
        Ok(svg)
    }

    /// Kinds of bars, in order of first appearance.
    fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<&str> = Vec::new();
        for (kind, _) in self.groups.iter().flat_map(|group| &group.bars) {
            if !kinds.contains(&kind.as_str()) {
                kinds.push(kind);
            }
        }
        kinds
    }

    fn axis_top(&self) -> f64 {
        let heights: Vec<f64> =
            self.groups.iter().flat_map(|group| group.bars.iter().map(|(_, height)| *height)).collect();
        let highest = heights.iter().copied().fold(0.0, f64::max);
        highest.min(crate::stats::median(&heights) * CUT_RATIO).max(1e-9)
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let (kinds, top) = (self.kinds(), self.axis_top());
        let area = SVGBackend::with_string(svg, (WIDTH_PX, HEIGHT_PX)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(
                0.0..self.groups.len() as f64,
                0.0..top * (1.1 + LEGEND_ROW_RATIO * kinds.len() as f64),
            )?;
        let name = |at: &f64| self.groups.get(*at as usize).map(|group| group.name.clone()).unwrap_or_default();
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .y_desc(&self.y_label)
            .axis_desc_style(("sans-serif", 14))
            .label_style(("sans-serif", 13))
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(225, 225, 225))
            .draw()?;
        let width = 0.86 / kinds.len().max(1) as f64;
        for (number, kind) in kinds.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let bars = self.groups.iter().enumerate().filter_map(|(place, group)| {
                let (_, height) = group.bars.iter().find(|(of, _)| of == kind)?;
                Some((place as f64 + 0.07 + width * number as f64, *height))
            });
            let bars: Vec<(f64, f64)> = bars.collect();
            let rectangle = |(left, height): &(f64, f64)| {
                Rectangle::new([(*left, 0.0), (left + width * 0.92, height.min(top))], colour.filled())
            };
            chart
                .draw_series(bars.iter().map(rectangle))?
                .label(*kind)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
            let written = bars.iter().map(|(left, height)| {
                let text = if *height < 10.0 { format!("{height:.1}") } else { format!("{height:.0}") };
                Text::new(text, (*left, height.min(top) + top * 0.035), ("sans-serif", 11))
            });
            chart.draw_series(written)?;
        }
        for place in 0..self.groups.len() {
            let at = place as f64 + 0.1;
            let text = Text::new(name(&at), (at, -top * 0.02), ("sans-serif", 14));
            chart.plotting_area().draw(&text)?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE)
            .border_style(RGBColor(200, 200, 200))
            .label_font(("sans-serif", 13))
            .draw()?;
        area.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svg_contains_every_bar_and_group() {
        let group =
            |name: &str| BarGroup { name: name.into(), bars: vec![("edge-only".into(), 1.0), ("paper".into(), 2.5)] };
        let bars = BarChart { title: "T".into(), y_label: "s".into(), groups: vec![group("batch"), group("burst")] };
        let svg = bars.svg().unwrap();
        for text in ["batch", "burst", "edge-only", "paper", "2.5"] {
            assert!(svg.contains(text), "{text} is missing");
        }
        assert!(BarChart { groups: Vec::new(), ..bars }.svg().is_err());
    }
}

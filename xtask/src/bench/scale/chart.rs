//! The picture of how runs converge: the share of nodes that are told that their network is available, over time.
//!
//! It is looked at on light and on dark pages, so it has no background of its own and every colour stands out from both.

use super::course::{Course, Run, Showed};
use super::thousands;
use super::world::Limits;
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::time::Duration;

const SIZE: (u32, u32) = (960, 620);
/// The height of what explains the lines, and how far its parts are from each other.
const LEGEND: u32 = 96;
const COLUMN: i32 = 470;
const ROW: i32 = 28;
/// Percent; beyond a hundred is room for words.
const TOP: f64 = 130.0;
const INK: RGBColor = RGBColor(0x80, 0x86, 0x90);
const FAINT: RGBAColor = RGBAColor(0x80, 0x86, 0x90, 0.28);
const VENDOR: RGBColor = RGBColor(0xd9, 0x53, 0x4f);
/// Seconds at both ends of the axis.
const SPAN: (f64, f64) = (0.2, 300.0);

/// What was measured of the vendor's controller: seconds, how high the words about it stand, and which of their ends is there.
const MEASURED: [(f64, f64, HPos, &str); 3] = [
    (25.0, 124.0, HPos::Left, "200 nodes: 25 s"),
    (30.0, 115.0, HPos::Left, "1,000 nodes, its client's limits lifted: 30 s"),
    (145.0, 106.0, HPos::Right, "1,000 nodes: 145 s"),
];

fn color(run: &Run) -> RGBColor {
    match (run.limits, run.course, run.nodes) {
        (_, Course::Restart, _) => RGBColor(0xc7, 0x8a, 0x12),
        (Limits::ZeroDelay, _, 0..=1000) => RGBColor(0x2f, 0x9e, 0x62),
        (Limits::ZeroDelay, ..) => RGBColor(0x1c, 0x8f, 0xa8),
        (Limits::Vendor, _, 0..=1000) => RGBColor(0x4a, 0x84, 0xe0),
        (Limits::Vendor, ..) => RGBColor(0x95, 0x6a, 0xdb),
    }
}

fn label(run: &Run, showed: &Showed) -> String {
    let nodes = thousands(run.nodes);
    let limits = match (run.course, run.limits) {
        (Course::Restart, _) => "vendor's limits, killed half-way",
        (_, Limits::ZeroDelay) => "no delay",
        (_, Limits::Vendor) => "vendor's limits",
    };
    format!("Loden, {nodes} nodes, {limits}: {:.1} s", showed.converged.as_secs_f64())
}

/// The picture, as SVG.
pub(super) fn draw(all: &[(Run, Showed)]) -> Result<String> {
    let mut svg = String::new();
    // A restart without delay is little but the wait for the dead leader's lease.
    let shown = |run: &Run| match run.course {
        Course::Join => true,
        Course::Restart => run.limits == Limits::Vendor,
        Course::Churn { .. } => false,
    };
    let drawn: Vec<&(Run, Showed)> = all.iter().filter(|(run, _)| shown(run)).collect();
    paint(&mut svg, &drawn).map_err(|error| anyhow!("cannot draw: {error}"))?;
    // A name for those who cannot see it.
    let open = svg.find("<svg").and_then(|at| svg.get(at..)?.find('>').map(|end| at + end + 1));
    let at = open.ok_or_else(|| anyhow!("what was drawn is no SVG"))?;
    svg.insert_str(at, "\n<title>How fast nodes get their routes: Loden's controller, and what was measured of the vendor's</title>");
    svg.push('\n');
    Ok(svg)
}

fn paint(svg: &mut String, drawn: &[&(Run, Showed)]) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let font = |size: u32, color: RGBColor, place: HPos| {
        ("sans-serif", size).into_font().color(&color).pos(Pos::new(place, VPos::Center))
    };
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let (plot, legend) = root.split_vertically(SIZE.1 - LEGEND);
    plot.draw_text("Nodes that have their route and know it", &font(20, INK, HPos::Left), (20, 26))?;
    let mut chart = ChartBuilder::on(&plot)
        .margin(16)
        .margin_top(40)
        .x_label_area_size(50)
        .y_label_area_size(58)
        .build_cartesian_2d((SPAN.0..SPAN.1).log_scale(), 0.0..TOP)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(FAINT)
        .y_labels(7)
        .x_labels(10)
        .y_label_formatter(&|share| if *share > 100.0 { String::new() } else { format!("{share:.0} %") })
        .x_label_formatter(&|at| if *at < 1.0 { format!("{at:.1} s") } else { format!("{at:.0} s") })
        .x_desc("after the controller's process was started, with all nodes there (logarithmic)")
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .draw()?;
    for (run, showed) in drawn {
        chart.draw_series(LineSeries::new(points(&showed.curve), color(run).stroke_width(3)))?;
    }
    for (at, height, place, text) in MEASURED {
        chart.draw_series(LineSeries::new([(at, 100.0), (at, height)], VENDOR.stroke_width(1)))?;
        chart.draw_series([Circle::new((at, 100.0), 5, VENDOR.filled())])?;
        let aside = if matches!(place, HPos::Left) { at * 1.03 } else { at / 1.03 };
        chart.draw_series([Text::new(text, (aside, height), font(14, VENDOR, place))])?;
    }
    let vendor = [(VENDOR, "The vendor's controller, as measured at no delay".to_owned())];
    let ours = drawn.iter().map(|(run, showed)| (color(run), label(run, showed)));
    for (place, (color, text)) in (0_i32..).zip(ours.chain(vendor)) {
        let (x, y) = (COLUMN * (place % 2) + 34, ROW * (place / 2) + 14);
        legend.draw(&PathElement::new([(x, y), (x + 26, y)], color.stroke_width(4)))?;
        legend.draw_text(&text, &font(15, INK, HPos::Left), (x + 36, y))?;
    }
    root.present()
}

/// The share of nodes in percent over seconds, in steps and no more of them than can be seen.
fn points(curve: &[Duration]) -> Vec<(f64, f64)> {
    let total = curve.len().max(1);
    let mut line = vec![];
    for (index, at) in curve.iter().enumerate() {
        if (index + 1) % total.div_ceil(400) != 0 && index + 1 != total {
            continue;
        }
        let share = |count: usize| {
            100.0 * u32::try_from(count).map_or(0.0, f64::from) / u32::try_from(total).map_or(1.0, f64::from)
        };
        let at = at.as_secs_f64().max(SPAN.0);
        if line.is_empty() {
            line.push((at, 0.0));
        }
        line.push((at, share(index + 1)));
    }
    line
}

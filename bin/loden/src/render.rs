//! What people see: tables, marks, progress. Colour and movement only where a terminal is.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use loden_lab::check::{Report, Row, Verdict};

/// Writes lines to standard output. A reader that went away (`| head`) is no error worth a message.
pub(crate) fn print(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Says why the command failed.
pub(crate) fn failure(error: &anyhow::Error) {
    let mark = paint("error:", Colour::Red, std::io::stderr().is_terminal());
    let _ = writeln!(std::io::stderr().lock(), "{mark} {error:#}");
}

/// Says something beside the answer.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints a value for a program to read.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?);
    Ok(())
}

#[derive(Clone, Copy)]
pub(crate) enum Colour {
    Red,
    Green,
    Yellow,
    Bold,
    Dim,
}

fn paint(text: &str, colour: Colour, terminal: bool) -> String {
    if !terminal || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Red => "31;1",
        Colour::Green => "32",
        Colour::Yellow => "33",
        Colour::Bold => "1",
        Colour::Dim => "2",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// Colours text meant for standard output.
pub(crate) fn coloured(text: &str, colour: Colour) -> String {
    paint(text, colour, std::io::stdout().is_terminal())
}

/// Long work: a moving line on a terminal, one line per step elsewhere. Everything on standard error, so that output can be piped.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    begun: Instant,
}

impl Progress {
    pub(crate) fn start() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar, begun: Instant::now() }
    }

    pub(crate) fn step(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => {
                let _ = writeln!(
                    std::io::stderr().lock(),
                    "[{:5.1} s] {text}",
                    self.begun.elapsed().as_secs_f32()
                );
            }
        }
    }

    pub(crate) fn finish(self) -> Duration {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        self.begun.elapsed()
    }
}

/// A table of left-aligned columns.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) {
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(title.chars().count())
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        padded.join("  ").trim_end().to_owned()
    };
    print(&coloured(&line(&mut head.iter().copied()), Colour::Bold));
    for row in rows {
        print(&line(&mut row.iter().map(String::as_str)));
    }
}

/// The table of checks.
pub(crate) fn report(report: &Report) {
    let title = report.rows.iter().map(|row| row.title.chars().count()).max().unwrap_or(0);
    let detail = report.rows.iter().map(|row| row.detail.chars().count()).max().unwrap_or(0);
    let head = format!("            {:<title$}  {:<detail$}   PROBES  MEDIAN", "CHECK", "HOW");
    print(&coloured(&head, Colour::Bold));
    for row in &report.rows {
        let mark = match row.verdict {
            Verdict::Passed => coloured("✔ ok    ", Colour::Green),
            Verdict::Failed => coloured("✘ FAILED", Colour::Red),
            Verdict::Skipped => coloured("- none  ", Colour::Yellow),
        };
        print(
            format!("  {mark}  {:<title$}  {:<detail$}  {}", row.title, row.detail, counts(row)).trim_end(),
        );
        for failure in &row.failures {
            print(&coloured(&format!("              {failure}"), Colour::Red));
        }
    }
    let failed = report.rows.iter().filter(|row| row.verdict == Verdict::Failed).count();
    let probes: usize = report.rows.iter().map(|row| row.total).sum();
    let seconds = Duration::from_millis(report.took_ms).as_secs_f32();
    let summary = if failed == 0 {
        coloured(&format!("{} checks, all green", report.rows.len()), Colour::Green)
    } else {
        coloured(&format!("{failed} of {} checks failed", report.rows.len()), Colour::Red)
    };
    print(&format!("  {summary} ({probes} probes in {seconds:.1} s)"));
}

fn counts(row: &Row) -> String {
    if row.total == 0 {
        return String::new();
    }
    let counted = format!("{:>4}/{:<4}", row.passed, row.total);
    match row.median_us {
        Some(median) => format!("{counted} {}", coloured(&short(median), Colour::Dim)),
        None => counted,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a time for people, with one digit after the point")]
fn short(micros: u64) -> String {
    if micros < 10_000 {
        format!("{:.2} ms", micros as f64 / 1_000.0)
    } else {
        format!("{:.0} ms", micros as f64 / 1_000.0)
    }
}

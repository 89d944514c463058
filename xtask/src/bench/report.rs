//! The tables as they are printed and kept: Markdown, one line per program, so that a figure never stands alone.

use super::statistics::{Sample, Summary, ms};
use std::fmt::{self, Write as _};

/// Whose program it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Ours,
    Debian,
    Floor,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ours => "Loden",
            Self::Debian => "Debian's plugins",
            Self::Floor => "floor",
        })
    }
}

/// One operation by everybody who does it.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    by: Vec<(Who, Summary)>,
}

impl Row {
    pub(crate) fn new(what: String) -> Self {
        Self { what, by: Vec::new() }
    }

    /// Nothing is added where nothing was measured.
    pub(crate) fn add(&mut self, who: Who, samples: &[Sample]) {
        self.by.extend(Summary::of(samples).map(|summary| (who, summary)));
    }

    fn lines(&self, out: &mut String) {
        let ours = self.by.iter().find(|(who, _)| *who == Who::Ours).map(|(_, summary)| summary.median);
        for (place, (who, summary)) in self.by.iter().enumerate() {
            let what = if place == 0 { self.what.as_str() } else { "" };
            let times = match ours {
                Some(ours) if !ours.is_zero() => {
                    format!("{:.2}", summary.median.as_secs_f64() / ours.as_secs_f64())
                }
                _ => "–".to_owned(),
            };
            let Summary { runs, median, min, p90, cpu, inside } = summary;
            let inside = inside.map_or_else(|| "–".to_owned(), ms);
            let (median, min, p90, cpu) = (ms(*median), ms(*min), ms(*p90), ms(*cpu));
            let _infallible = writeln!(
                out,
                "| {what} | {who} | {median} | {min} | {p90} | {cpu} | {inside} | {times} | {runs} |"
            );
        }
    }
}

/// The table of everything that was timed.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut out = String::from(
        "| operation | by | median ms | min ms | p90 ms | CPU ms | inside ms | ÷ Loden | runs |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for row in rows {
        row.lines(&mut out);
    }
    out
}

/// Puts `results` between the marks that `page` has for them.
pub(crate) fn replace_between_marks(page: &str, results: &str) -> Option<String> {
    const BEGIN: &str = "<!-- results -->\n";
    const END: &str = "<!-- end of results -->";
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{results}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_program_has_its_line_beside_ours() {
        let of = |wall| {
            let wall = Duration::from_millis(wall);
            vec![Sample { wall, cpu: Duration::from_millis(1), inside: None }; 3]
        };
        let mut row = Row::new("ADD".to_owned());
        row.add(Who::Ours, &of(2));
        row.add(Who::Debian, &of(9));
        row.add(Who::Floor, &[]);
        let text = table(&[row]);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| ADD | Loden | 2.00 | 2.00 | 2.00 | 1.00 | – | 1.00 | 3 |",
                "|  | Debian's plugins | 9.00 | 9.00 | 9.00 | 1.00 | – | 4.50 | 3 |",
            ]
        );
    }

    #[test]
    fn results_take_the_place_of_earlier_ones() {
        let page = "a\n<!-- results -->\nold\n<!-- end of results -->\nb\n";
        let once = replace_between_marks(page, "new\n").unwrap();
        assert_eq!(once, "a\n<!-- results -->\nnew\n<!-- end of results -->\nb\n");
        assert_eq!(replace_between_marks(&once, "new\n"), Some(once.clone()));
        assert_eq!(replace_between_marks("no marks", "new\n"), None);
    }
}

//! The tables as they are printed and kept: Markdown, one line per program, so that a figure never stands alone.

use super::statistics::{Sample, Summary, ms};
use std::fmt::{self, Write as _};
use std::time::Duration;

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

/// What the reference plugins v1.9.1 took on another machine of the same size: what Debian's older ones cannot do at all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reference {
    /// Milliseconds, the least of twenty runs.
    pub(crate) min: f64,
    /// Milliseconds of processor time.
    pub(crate) cpu: Option<f64>,
    pub(crate) processes: Option<usize>,
}

/// One program's part of a row.
#[derive(Debug)]
struct Part {
    who: Who,
    summary: Summary,
    /// Programs started, itself included.
    processes: Option<usize>,
}

/// One operation by everybody who does it.
#[derive(Debug)]
pub(crate) struct Row {
    what: String,
    by: Vec<Part>,
    reference: Option<Reference>,
}

impl Row {
    pub(crate) fn new(what: String) -> Self {
        Self { what, by: Vec::new(), reference: None }
    }

    /// Nothing is added where nothing was measured.
    pub(crate) fn add(&mut self, who: Who, samples: &[Sample]) {
        self.by.extend(Summary::of(samples).map(|summary| Part { who, summary, processes: None }));
    }

    /// With the number of programs that one run starts.
    pub(crate) fn add_counted(&mut self, who: Who, samples: &[Sample], processes: usize) {
        let processes = Some(processes);
        self.by.extend(Summary::of(samples).map(|summary| Part { who, summary, processes }));
    }

    /// A line of what somebody else measured elsewhere.
    #[must_use]
    pub(crate) fn beside(mut self, reference: Reference) -> Self {
        self.reference = Some(reference);
        self
    }

    fn lines(&self, out: &mut String) {
        let ours = self.by.iter().find(|part| part.who == Who::Ours).map(|part| part.summary);
        let ratio = |theirs: Duration, ours: Option<Duration>| match ours {
            Some(ours) if !ours.is_zero() => format!("{:.2}", theirs.as_secs_f64() / ours.as_secs_f64()),
            _ => "–".to_owned(),
        };
        let count = |number: Option<usize>| number.map_or_else(|| "–".to_owned(), |n| n.to_string());
        for (place, part) in self.by.iter().enumerate() {
            let Part { who, summary, processes } = part;
            let what = if place == 0 { self.what.as_str() } else { "" };
            let times = ratio(summary.median, ours.map(|ours| ours.median));
            let Summary { runs, median, min, p90, cpu, inside } = summary;
            let inside = inside.map_or_else(|| "–".to_owned(), ms);
            let (median, min, p90, cpu) = (ms(*median), ms(*min), ms(*p90), ms(*cpu));
            let processes = count(*processes);
            let _infallible = writeln!(
                out,
                "| {what} | {who} | {median} | {min} | {p90} | {cpu} | {inside} | {processes} | {times} | {runs} |"
            );
        }
        if let Some(Reference { min, cpu, processes }) = self.reference {
            let times = ratio(Duration::from_secs_f64(min / 1000.0), ours.map(|ours| ours.min));
            let cpu = cpu.map_or_else(|| "–".to_owned(), |cpu| format!("{cpu:.2}"));
            let _infallible = writeln!(
                out,
                "|  | v1.9.1, elsewhere | – | {min:.2} | – | {cpu} | – | {} | {times} of the minima | 20 |",
                count(processes)
            );
        }
    }
}

/// The table of everything that was timed.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut out = String::from(
        "| operation | by | median ms | min ms | p90 ms | CPU ms | inside ms | programs | ÷ Loden | runs |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for row in rows {
        row.lines(&mut out);
    }
    out
}

/// Puts `text` between the marks that `page` has for what is called `name`.
pub(crate) fn replace_between_marks(page: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{text}{end}{after}"))
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
        row.add_counted(Who::Debian, &of(9), 3);
        row.add(Who::Floor, &[]);
        let row = row.beside(Reference { min: 17.0, cpu: None, processes: Some(29) });
        let text = table(&[row]);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| ADD | Loden | 2.00 | 2.00 | 2.00 | 1.00 | – | – | 1.00 | 3 |",
                "|  | Debian's plugins | 9.00 | 9.00 | 9.00 | 1.00 | – | 3 | 4.50 | 3 |",
                "|  | v1.9.1, elsewhere | – | 17.00 | – | – | – | 29 | 8.50 of the minima | 20 |",
            ]
        );
    }

    #[test]
    fn results_take_the_place_of_earlier_ones() {
        let page = "a\n<!-- results -->\nold\n<!-- end of results -->\nb\n";
        let once = replace_between_marks(page, "results", "new\n").unwrap();
        assert_eq!(once, "a\n<!-- results -->\nnew\n<!-- end of results -->\nb\n");
        assert_eq!(replace_between_marks(&once, "results", "new\n"), Some(once.clone()));
        assert_eq!(replace_between_marks("no marks", "results", "new\n"), None);
    }
}

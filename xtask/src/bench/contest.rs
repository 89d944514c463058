//! Several programs at one operation and its undoing, in turns.

use super::report::{Row, Who};
use super::stage::{Namespace, counted, timed};
use super::statistics::Sample;
use anyhow::{Context as _, Result};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use std::process::Command;

/// What is asked of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Delete,
}

impl Verb {
    /// As the CNI protocol spells it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Delete => "DEL",
        }
    }
}

/// Makes the command of one run; the number tells the runs apart.
type Make<'a> = Box<dyn Fn(Verb, usize) -> Command + Send + Sync + 'a>;
/// Fails unless the work was done.
type Verify<'a> = Box<dyn Fn(Verb, usize) -> Result<()> + Send + Sync + 'a>;

/// One program.
pub(crate) struct Contender<'a> {
    who: Who,
    make: Make<'a>,
    stdin: Option<Utf8PathBuf>,
    verify: Verify<'a>,
    samples: [Vec<Sample>; 2],
    processes: [usize; 2],
}

impl<'a> Contender<'a> {
    pub(crate) fn new(
        who: Who,
        make: impl Fn(Verb, usize) -> Command + Send + Sync + 'a,
        stdin: Option<&Utf8Path>,
        verify: impl Fn(Verb, usize) -> Result<()> + Send + Sync + 'a,
    ) -> Self {
        Self {
            who,
            make: Box::new(make),
            stdin: stdin.map(Utf8Path::to_owned),
            verify: Box::new(verify),
            samples: [Vec::new(), Vec::new()],
            processes: [0; 2],
        }
    }

    /// The run with number zero is not timed: it makes what is shared and stays, and its processes are counted.
    fn round(&mut self, number: usize) -> Result<()> {
        for (place, verb) in [Verb::Add, Verb::Delete].into_iter().enumerate() {
            let mut command = (self.make)(verb, number);
            let (Some(samples), Some(processes)) =
                (self.samples.get_mut(place), self.processes.get_mut(place))
            else {
                continue;
            };
            match number {
                0 => *processes = counted(&command, self.stdin.as_deref())?,
                _ => samples.push(timed(&mut command, self.stdin.as_deref())?.0),
            }
            (self.verify)(verb, number)
                .with_context(|| format!("{} after {} number {number}", self.who, verb.as_str()))?;
        }
        Ok(())
    }
}

/// A B C A B C …, ADD and DEL of each; a row for each of the two.
pub(crate) fn contest(
    what: &str,
    node: &Namespace,
    mut contenders: Vec<Contender<'_>>,
    runs: usize,
) -> Result<[Row; 2]> {
    for number in 0..=runs {
        for contender in &mut contenders {
            node.run(|| contender.round(number))?;
        }
    }
    let mut rows = [Verb::Add, Verb::Delete].map(|verb| Row::new(format!("{what} {}", verb.as_str())));
    for contender in &contenders {
        for ((row, samples), processes) in rows.iter_mut().zip(&contender.samples).zip(contender.processes) {
            row.add_counted(contender.who, samples, processes);
        }
    }
    Ok(rows)
}

//! What many runs of one thing come to.

use std::time::Duration;

/// One run: how long it took, and how much processor time the program and everything it started used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    /// What the program itself says its work took, without its start and end; only our own programs say.
    pub(crate) inside: Option<Duration>,
}

/// Many runs in short. On a shared machine the minimum is the program, the median the program in its usual company.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) runs: usize,
    pub(crate) median: Duration,
    pub(crate) min: Duration,
    pub(crate) p90: Duration,
    pub(crate) cpu: Duration,
    pub(crate) inside: Option<Duration>,
}

impl Summary {
    /// `None` without samples. `inside` only when every sample has it.
    pub(crate) fn of(samples: &[Sample]) -> Option<Self> {
        let sorted = |pick: fn(&Sample) -> Option<Duration>| {
            let mut picked: Vec<Duration> = samples.iter().filter_map(pick).collect();
            picked.sort();
            picked
        };
        let wall = sorted(|sample| Some(sample.wall));
        let inside = sorted(|sample| sample.inside);
        Some(Self {
            runs: wall.len(),
            median: quantile(&wall, 50)?,
            min: *wall.first()?,
            p90: quantile(&wall, 90)?,
            cpu: quantile(&sorted(|sample| Some(sample.cpu)), 50)?,
            inside: quantile(&inside, 50).filter(|_| inside.len() == wall.len()),
        })
    }
}

/// The smallest value that `percent` of the values do not exceed (nearest rank), of values in order.
pub(crate) fn quantile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// The machine's processor time so far, in clock ticks: all of it, and what the hypervisor gave to others meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticks {
    total: u64,
    steal: u64,
}

impl Ticks {
    /// From `/proc/stat`.
    pub(crate) fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        // user nice system idle iowait irq softirq steal; what follows is part of user and nice already.
        let counted = fields.get(..8)?;
        Some(Self { total: counted.iter().sum(), steal: *counted.last()? })
    }

    /// Percent of the time since `earlier` that was stolen.
    pub(crate) fn stolen_since(self, earlier: Self) -> f64 {
        let total = self.total.saturating_sub(earlier.total);
        if total == 0 {
            return 0.0;
        }
        let share = |ticks: u64| u32::try_from(ticks).map_or(f64::INFINITY, f64::from);
        100.0 * share(self.steal.saturating_sub(earlier.steal)) / share(total)
    }
}

/// What our own programs print: `objects=15000 us=12345`.
pub(crate) fn inside(told: &str) -> Option<Duration> {
    let micros = told.split_whitespace().find_map(|word| word.strip_prefix("us="))?;
    micros.parse().ok().map(Duration::from_micros)
}

/// Milliseconds with two digits after the point, as all tables have them.
pub(crate) fn ms(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(wall: u64, cpu: u64, inside: Option<u64>) -> Sample {
        let of = Duration::from_millis;
        Sample { wall: of(wall), cpu: of(cpu), inside: inside.map(of) }
    }

    #[test]
    fn a_summary_is_by_rank_and_order_does_not_matter() {
        let samples: Vec<_> = [7, 1, 10, 4, 2, 9, 3, 8, 6, 5].map(|n| sample(n, 100 + n, Some(n))).into();
        let summary = Summary::of(&samples).unwrap();
        let of = Duration::from_millis;
        assert_eq!((summary.runs, summary.min, summary.median, summary.p90), (10, of(1), of(5), of(9)));
        assert_eq!((summary.cpu, summary.inside), (of(105), Some(of(5))));
        let one = Summary::of(&[sample(3, 2, None)]).unwrap();
        assert_eq!((one.min, one.median, one.p90, one.inside), (of(3), of(3), of(3), None));
        assert_eq!(Summary::of(&[]), None);
        let mixed = Summary::of(&[sample(3, 2, None), sample(3, 2, Some(1))]).unwrap();
        assert_eq!(mixed.inside, None, "a median of some of the runs would be a median of other runs");
    }

    #[test]
    fn stolen_time_is_a_share_of_all_time() {
        let before = Ticks::parse("cpu  100 0 50 800 10 0 0 40 7 7\ncpu0 1 2 3\n").unwrap();
        let after = Ticks::parse("cpu  150 0 50 1000 10 0 0 90 9 9\n").unwrap();
        assert_eq!(before, Ticks { total: 1000, steal: 40 });
        assert!((after.stolen_since(before) - 100.0 * 50.0 / 300.0).abs() < 1e-9);
        assert!(before.stolen_since(before).abs() < 1e-9);
        assert_eq!(Ticks::parse("cpu  1 2 3\n"), None);
        assert_eq!(Ticks::parse("intr 1 2 3\n"), None);
        assert!(Ticks::parse(&std::fs::read_to_string("/proc/stat").unwrap()).is_some());
    }

    #[test]
    fn the_programs_own_word_is_read() {
        assert_eq!(inside("objects=15000 us=12345\n"), Some(Duration::from_micros(12345)));
        assert_eq!(inside("objects=15000\n"), None);
        assert_eq!(inside("us=many"), None);
        assert_eq!(ms(Duration::from_micros(12_345)), "12.35");
    }
}

//! This process in numbers, under the names that Prometheus' own clients give them.
//!
//! They are read from `/proc` when somebody asks. What cannot be read keeps its last value: a scrape never fails for it.

use std::fs;
use std::str::FromStr;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Ticks a second in `/proc`: what the kernel shows to programs, whatever it counts in itself (`USER_HZ`).
const TICKS: f64 = 100.0;

/// The process's metrics and the registry they are in.
#[derive(Debug)]
pub(crate) struct ProcessMetrics {
    registry: Registry,
    cpu: Counter<f64, AtomicU64>,
    resident: Gauge,
    virtual_size: Gauge,
    open_files: Gauge,
    most_files: Gauge,
    started: Gauge<f64, AtomicU64>,
    /// CPU seconds counted so far; two scrapes at once must not count the same ones.
    counted: Mutex<f64>,
}

impl ProcessMetrics {
    pub(crate) fn new() -> Self {
        let (cpu, started) = (Counter::default(), Gauge::default());
        let [resident, virtual_size, open_files, most_files] = [(); 4].map(|()| Gauge::default());
        let mut registry = Registry::default();
        registry.register(
            "process_cpu_seconds",
            "Processor time of the process, user and system",
            cpu.clone(),
        );
        registry.register("process_resident_memory_bytes", "Memory that the process holds", resident.clone());
        registry.register(
            "process_virtual_memory_bytes",
            "Address space of the process",
            virtual_size.clone(),
        );
        registry.register("process_open_fds", "Open file descriptors", open_files.clone());
        registry.register(
            "process_max_fds",
            "Descriptors that the process may have open",
            most_files.clone(),
        );
        registry.register(
            "process_start_time_seconds",
            "Start of the process, in seconds since 1970",
            started.clone(),
        );
        let counted = Mutex::default();
        Self { registry, cpu, resident, virtual_size, open_files, most_files, started, counted }
    }

    /// The registry, its values read just now.
    pub(crate) fn now(&self) -> &Registry {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        if let Some((cpu, started)) = times(&read("/proc/self/stat")) {
            let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            self.cpu.inc_by((cpu - *counted).max(0.0));
            *counted = counted.max(cpu);
            if let Some(boot) = number_after::<f64>(&read("/proc/stat"), "btime ") {
                self.started.set(boot + started);
            }
        }
        let status = read("/proc/self/status");
        for (line, gauge) in [("VmRSS:", &self.resident), ("VmSize:", &self.virtual_size)] {
            if let Some(kibibytes) = number_after::<i64>(&status, line) {
                gauge.set(kibibytes.saturating_mul(1024));
            }
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory itself.
            self.open_files.set(i64::try_from(entries.count()).unwrap_or(i64::MAX).saturating_sub(1));
        }
        if let Some(most) = number_after(&read("/proc/self/limits"), "Max open files") {
            self.most_files.set(most);
        }
        &self.registry
    }
}

/// Processor time and start after boot, in seconds, from `/proc/<pid>/stat`. The second field is the program's name in parentheses, which may hold anything.
fn times(stat: &str) -> Option<(f64, f64)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    // Field 3 of proc(5) is the first of these; 14 and 15 are the times, 22 is the start.
    let field = |number: usize| rest.split_whitespace().nth(number - 3)?.parse::<f64>().ok();
    Some(((field(14)? + field(15)?) / TICKS, field(22)? / TICKS))
}

/// The first number behind a line's beginning.
fn number_after<N: FromStr>(text: &str, beginning: &str) -> Option<N> {
    let rest = text.lines().find_map(|line| line.strip_prefix(beginning))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_anything_in_it_shifts_no_field() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 4 0 1234 5 6";
        assert_eq!(times(stat), Some((3.0, 12.34)));
        assert_eq!(times("42 (a"), None);
    }

    #[test]
    fn this_process_is_seen() {
        let metrics = ProcessMetrics::new();
        let file = fs::File::open("/proc/self/stat").unwrap();
        metrics.now();
        assert!(metrics.resident.get() > 1 << 20 && metrics.virtual_size.get() >= metrics.resident.get());
        assert!(metrics.open_files.get() >= 4 && metrics.most_files.get() >= metrics.open_files.get());
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        assert!((now - 3600.0..=now + 1.0).contains(&metrics.started.get()), "{}", metrics.started.get());
        drop(file);
        let once = metrics.cpu.get();
        metrics.now();
        assert!(metrics.cpu.get() >= once && metrics.cpu.get() < once + 60.0);
    }
}

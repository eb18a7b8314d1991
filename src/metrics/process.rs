//! The process's own figures, by the names that Prometheus' client libraries share (prometheus.io, "Writing client libraries").

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{Counter, Gauge, IntGauge};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::Make;

#[derive(Debug)]
pub(super) struct Process {
    cpu_seconds: Counter,
    resident_bytes: IntGauge,
    virtual_bytes: IntGauge,
    threads: IntGauge,
    open_fds: IntGauge,
    max_fds: IntGauge,
}

impl Process {
    /// Makes the figures.
    ///
    /// # Errors
    /// Two metrics have the same name.
    pub fn new(make: &Make) -> prometheus::Result<Process> {
        let start =
            make.register(Gauge::new("process_start_time_seconds", "When the process started, in seconds since the Unix epoch."))?;
        start.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        Ok(Process {
            cpu_seconds: make.register(Counter::new("process_cpu_seconds_total", "Processor time of the process, user and system."))?,
            resident_bytes: make.gauge("process_resident_memory_bytes", "Memory of the process that is in RAM.")?,
            virtual_bytes: make.gauge("process_virtual_memory_bytes", "Address space of the process; WebAssembly reserves much of it.")?,
            threads: make.gauge("process_threads", "Threads of the process.")?,
            open_fds: make.gauge("process_open_fds", "Open file descriptors: sockets and files.")?,
            max_fds: make.gauge("process_max_fds", "The limit of open file descriptors.")?,
        })
    }

    /// Reads the figures. Those that the system doesn't tell stay as they were.
    pub fn read(&self) {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
        self.cpu_seconds.inc_by((seconds - self.cpu_seconds.get()).max(0.0));
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            for (name, gauge, unit) in
                [("VmRSS:", &self.resident_bytes, 1024), ("VmSize:", &self.virtual_bytes, 1024), ("Threads:", &self.threads, 1)]
            {
                if let Some(value) = number(&status, name) {
                    gauge.set(value * unit);
                }
            }
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            self.open_fds.set(i64::try_from(open.count()).unwrap_or(i64::MAX));
        }
        let max = getrlimit(Resource::Nofile).current;
        self.max_fds.set(max.and_then(|max| i64::try_from(max).ok()).unwrap_or(i64::MAX));
    }
}

/// Returns the number in the line of `/proc/self/status` that begins with a name.
fn number(status: &str, name: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_this_process() {
        let process = Process::new(&Make::default()).unwrap();
        process.read();
        let resident = process.resident_bytes.get();
        assert!((1 << 20..1 << 40).contains(&resident), "{resident}");
        assert!(process.virtual_bytes.get() >= resident && process.threads.get() >= 1);
        let open = process.open_fds.get();
        let _files: Vec<fs::File> = (0..10).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let before = process.cpu_seconds.get();
        assert!(before > 0.0);
        process.read();
        // Other tests of this process open and close files too.
        assert!(process.open_fds.get() > 0 && open > 0 && open < process.max_fds.get());
        assert!(process.cpu_seconds.get() > before);
        assert_eq!(number("Name:\tx\nVmRSS:\t    5124 kB\n", "VmRSS:"), Some(5124));
    }
}

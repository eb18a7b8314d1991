//! The processor time, memory and open files of a process and its descendants, from `/proc`, and the limit of open files of
//! this process.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Linux counts the time of processes in hundredths of a second, on every architecture that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process by its number. A process that has ended counts as zero.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    pid: u32,
}

/// The fields of `/proc/PID/stat` that are used here.
struct Stat {
    pid: u32,
    parent: u32,
    /// User and system time, with that of ended children.
    ticks: u64,
}

impl Process {
    /// Finds a running process.
    ///
    /// # Errors
    /// There is no such process, or no `/proc`.
    pub fn new(pid: u32) -> io::Result<Process> {
        let process = Process { pid };
        match Stat::read(pid) {
            Some(_) => Ok(process),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no process {pid} in /proc"))),
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the user and system time of the process and its descendants, to 10 ms.
    pub fn processor_time(&self) -> Duration {
        let ticks: u64 = self.tree().iter().map(|stat| stat.ticks).sum();
        Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND)
    }

    /// Returns the resident memory of the process and its descendants, in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.tree().iter().filter_map(|stat| resident_kib(stat.pid)).sum()
    }

    /// Counts the open file descriptors of the process, without its descendants.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).map_or(0, Iterator::count)
    }

    fn tree(&self) -> Vec<Stat> {
        let numbers = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut rest: Vec<Stat> = numbers.filter_map(Stat::read).collect();
        let mut tree: Vec<Stat> = rest.extract_if(.., |stat| stat.pid == self.pid).collect();
        loop {
            let children: Vec<Stat> = rest.extract_if(.., |stat| tree.iter().any(|parent| parent.pid == stat.parent)).collect();
            if children.is_empty() {
                return tree;
            }
            tree.extend(children);
        }
    }
}

impl Stat {
    fn read(pid: u32) -> Option<Stat> {
        Stat::parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Parses the file as proc(5) describes it. The second field is the program's name in parentheses and may contain any
    /// character, so the fields are counted from the last closing parenthesis.
    fn parse(pid: u32, text: &str) -> Option<Stat> {
        let (_, fields) = text.rsplit_once(')')?;
        let field = |number: usize| fields.split_whitespace().nth(number - 3);
        let ticks = [14, 15, 16, 17].into_iter().filter_map(|number| field(number)?.parse::<u64>().ok());
        Some(Stat { pid, parent: field(4)?.parse().ok()?, ticks: ticks.sum() })
    }
}

fn resident_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?.parse().ok()
}

/// Raises the soft limit of open files to the hard one, since each connection needs a descriptor.
pub fn raise_open_files_limit() {
    let limit = getrlimit(Resource::Nofile);
    // If this is refused, the first connection too many fails and says why.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Returns the user and system time of this process so far.
pub fn own_processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = Stat::parse(7, "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 10 20 3 4 20 0 1 0 5").unwrap();
        assert_eq!((stat.parent, stat.ticks), (1, 37));
    }

    #[test]
    fn a_process_is_seen_with_its_children() {
        let own = Process::new(std::process::id()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("10").spawn().unwrap();
        assert!(own.tree().iter().any(|stat| stat.pid == child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(own.resident_kib() > 100 && own.open_files() >= 3);
        let before = own_processor_time();
        while own_processor_time() < before + Duration::from_millis(50) {}
        assert!(own.processor_time() >= Duration::from_millis(30));
    }
}

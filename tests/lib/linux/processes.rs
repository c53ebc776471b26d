//! The processes behind a guest's components, for tests that kill them or look at their memory.

use std::collections::BTreeMap;
use std::fs;

/// A component's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ComponentProcess {
    pid: u32,
}

impl ComponentProcess {
    /// The process of the component whose program is called `name`, for tests with one guest at a time.
    ///
    /// # Panics
    /// Where there is not exactly one.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let all = Self::all();
        let mut found = all.iter().filter(|(_, program)| program.rsplit('/').next() == Some(name));
        match (found.next(), found.next()) {
            (Some((pid, _)), None) => Self { pid: *pid },
            _ => panic!("not one {name} in {all:?}"),
        }
    }

    /// The processes below this one, with their programs.
    fn all() -> BTreeMap<u32, String> {
        let mut parents = BTreeMap::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            // A process that has ended meanwhile, or only waits to be reaped, has no command line.
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let Some((_, fields)) = stat.rsplit_once(')') else { continue };
            let Some(parent) = fields.split(' ').nth(2).and_then(|field| field.parse().ok()) else {
                continue;
            };
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
            parents.insert(pid, (parent, String::from_utf8_lossy(program).into_owned()));
        }
        let is_ours = |mut pid: u32| {
            while let Some((parent, _)) = parents.get(&pid) {
                if *parent == std::process::id() {
                    return true;
                }
                pid = *parent;
            }
            false
        };
        let ours =
            parents.iter().filter(|(pid, (_, program))| !program.is_empty() && is_ours(**pid));
        ours.map(|(pid, (_, program))| (*pid, program.clone())).collect()
    }

    /// Kills it as nothing can refuse, and waits until it is gone.
    ///
    /// # Panics
    /// Where there is no such process any more.
    pub fn kill(self) {
        let pid = rustix::process::Pid::from_raw(self.pid as i32).unwrap();
        let gone = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let mut ends = [rustix::event::PollFd::new(&gone, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ends, None).unwrap();
    }

    /// Bytes of shared memory that it has resident: for a VMM, the guest's memory.
    ///
    /// # Panics
    /// Where there is no such process any more.
    #[must_use]
    pub fn resident_shared(self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssShmem:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }
}

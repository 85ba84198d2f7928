//! A part of a processor that a process is held to, by a control group of the system: a small machine stands for several
//! of which each has a processor of its own. Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;

/// Time over which the system counts, µs: short, so that what is held is held evenly.
const PERIOD: u32 = 10_000;
/// Where the first version of control groups has its controller of processor time, and where the second one is.
const FIRST: &str = "/sys/fs/cgroup/cpu";
const SECOND: &str = "/sys/fs/cgroup";

/// So that each has a name of its own.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A control group, removed when this is dropped; to be dropped after the process in it.
#[derive(Debug)]
pub(crate) struct Share {
    group: PathBuf,
}

impl Share {
    /// Of one processor, so many percent; nobody is held to it yet.
    pub(crate) fn of(percent: u32) -> anyhow::Result<Self> {
        let quota = PERIOD / 100 * percent;
        let own = std::process::id();
        let name = format!(
            "device-ota-bench-{own}-{}",
            MADE.fetch_add(1, Ordering::Relaxed)
        );
        let first = Path::new(FIRST);
        let made = if first.join("cpu.cfs_quota_us").exists() {
            Self::make(first.join(name)).and_then(|share| {
                share.write("cpu.cfs_period_us", &PERIOD)?;
                share.write("cpu.cfs_quota_us", &quota)?;
                Ok(share)
            })
        } else {
            Self::make(Path::new(SECOND).join(name)).and_then(|share| {
                share.write("cpu.max", &format!("{quota} {PERIOD}"))?;
                Ok(share)
            })
        };
        made.context(
            "shares of a processor need control groups: root, and /sys/fs/cgroup to write to",
        )
    }

    /// Holds a process to it from now on.
    pub(crate) fn hold(&self, pid: u32) -> anyhow::Result<()> {
        self.write("cgroup.procs", &pid)
    }

    fn make(group: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir(&group)?;
        Ok(Self { group })
    }

    fn write(&self, file: &str, value: &impl ToString) -> anyhow::Result<()> {
        let path = self.group.join(file);
        fs::write(&path, value.to_string()).with_context(|| path.display().to_string())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // A group that still holds a process stays.
        let _ = fs::remove_dir(&self.group);
    }
}

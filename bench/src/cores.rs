//! Which processors a server and the load generator run on.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Where the server runs when it has a core of its own.
const SERVER: usize = 1;
/// Where the generator runs then; it has one thread.
const GENERATOR: usize = 0;

/// How server and generator share the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cores {
    /// One core each, so that a server with several threads does not take turns with the generator, and a figure says
    /// what the server can do.
    Apart,
    /// Both cores for both.
    Shared,
}

impl Cores {
    pub(crate) const fn described(self) -> &'static str {
        match self {
            Self::Apart => "server and generator on one core each",
            Self::Shared => "both cores for server and generator",
        }
    }

    /// Starts a server, which inherits where it runs from this thread, and puts this thread where the generator runs.
    pub(crate) fn start<T>(self, server: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let (of_server, of_generator) = match self {
            Self::Apart => (&[SERVER][..], &[GENERATOR][..]),
            Self::Shared => (&[GENERATOR, SERVER][..], &[GENERATOR, SERVER][..]),
        };
        run_on(of_server)?;
        let started = server();
        run_on(of_generator)?;
        started
    }
}

/// Binds this thread, and the children that it starts from now on.
fn run_on(cores: &[usize]) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

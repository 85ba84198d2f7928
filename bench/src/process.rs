//! Children: started here, ended here by their own process id whatever happens, and what the system says of them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a child may take to end after it was asked to.
const END_TIME: Duration = Duration::from_secs(6);
/// How often a child that should end is looked at.
const END_POLL: Duration = Duration::from_millis(10);
/// How long a child may take to say that it is ready.
pub(crate) const READY_TIME: Duration = Duration::from_mins(2);
/// Linux's unit of processor time in `/proc`, parts of a second.
const TICKS_A_SECOND: f64 = 100.0;

/// A child that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
}

impl Running {
    pub(crate) fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child })
    }

    /// Its lines from the first that begins with `prefix`, which is cut off.
    pub(crate) fn lines_from(
        &mut self,
        prefix: &str,
    ) -> anyhow::Result<(String, BufReader<ChildStdout>)> {
        let stdout = self
            .child
            .stdout
            .take()
            .context("the child's output was taken before")?;
        let prefix = prefix.to_owned();
        let (send, received) = mpsc::channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = String::new();
            while matches!(reader.read_line(&mut line), Ok(1..)) {
                if let Some(rest) = line.strip_prefix(&prefix) {
                    let _ = send.send((rest.trim().to_owned(), reader));
                    return;
                }
                line.clear();
            }
        });
        received
            .recv_timeout(READY_TIME)
            .context("the child ended, or was not ready in time")
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// A figure of `/proc/<pid>/status`, in KiB: `VmRSS` or `VmHWM`.
    pub(crate) fn memory_kib(&self, field: &str) -> anyhow::Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let value = line
            .and_then(|rest| rest.split_whitespace().next())
            .context("no such figure")?;
        Ok(value.parse()?)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Processor time so far, seconds.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds_of(&self.child.id().to_string())
    }

    fn end(&mut self) {
        if self.has_ended() {
            return;
        }
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let asked = Instant::now();
        while asked.elapsed() < END_TIME {
            if self.has_ended() {
                return;
            }
            std::thread::sleep(END_POLL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// Processor time of this process so far, seconds.
pub(crate) fn own_cpu_seconds() -> anyhow::Result<f64> {
    cpu_seconds_of("self")
}

fn cpu_seconds_of(process: &str) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in parentheses, may hold anything; the fields after it are numbers, user and system time 12th and 13th.
    let (_, fields) = text
        .rsplit_once(')')
        .context("/proc/<pid>/stat has another form")?;
    let ticks = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<f64>)
        .sum::<Result<f64, _>>()?;
    Ok(ticks / TICKS_A_SECOND)
}

/// A port of the loopback interface that was free a moment ago, for programs that cannot be asked which they took.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}

//! Progress for people while a fleet runs: bars on a terminal, else a line when something changed.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::fleet::{Observer, Standing};

/// Least time between two lines.
const LINE_INTERVAL: Duration = Duration::from_secs(1);
/// The bars.
const BAR: &str = "{prefix:>9} [{bar:32}] {pos}/{len} {msg}";

/// The kind of progress that suits standard error.
pub fn progress() -> Box<dyn Observer> {
    if io::stderr().is_terminal() {
        Box::new(Bars::new())
    } else {
        Box::new(Lines::default())
    }
}

/// Bars for a terminal.
struct Bars {
    all: MultiProgress,
    online: ProgressBar,
    updates: ProgressBar,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template(BAR)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = |prefix: &'static str| {
            all.add(
                ProgressBar::new(0)
                    .with_style(style.clone())
                    .with_prefix(prefix),
            )
        };
        Self {
            online: bar("online"),
            updates: bar("updated"),
            all: all.clone(),
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.online.finish();
        self.updates.finish();
    }
}

impl Observer for Bars {
    fn said(&mut self, line: &str) {
        // A terminal that is gone is no reason to stop.
        let _ = self.all.println(line);
    }

    fn stands(&mut self, standing: &Standing) {
        let devices = standing.devices as u64;
        self.online.set_length(devices);
        self.online.set_position(standing.online as u64);
        self.online.set_message(names(&standing.versions));
        match &standing.campaign {
            Some(campaign) => {
                self.updates.set_length(campaign.total_devices);
                self.updates.set_position(campaign.completed_devices);
            }
            None => self.updates.set_length(devices),
        }
        self.updates.set_message(activity(standing));
    }
}

/// Lines for everything else.
#[derive(Default)]
struct Lines {
    last: Option<(Instant, String)>,
}

impl Observer for Lines {
    fn said(&mut self, line: &str) {
        // Whoever has read it is gone: no reason to stop.
        let _ = writeln!(io::stderr(), "{line}");
    }

    fn stands(&mut self, standing: &Standing) {
        let online = format!("{}/{} online", standing.online, standing.devices);
        let parts = [online, names(&standing.versions), activity(standing)];
        let said: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let line = said.join("; ");
        let due = match &self.last {
            Some((at, last)) => *last != line && at.elapsed() >= LINE_INTERVAL,
            None => true,
        };
        if due {
            self.said(&line);
            self.last = Some((Instant::now(), line));
        }
    }
}

fn names<K: std::fmt::Display>(counts: &std::collections::BTreeMap<K, usize>) -> String {
    let counts = counts
        .iter()
        .map(|(name, count)| format!("{name}: {count}"));
    counts.collect::<Vec<_>>().join(", ")
}

fn activity(standing: &Standing) -> String {
    let mut parts = Vec::new();
    if standing.bytes > 0 {
        parts.push(HumanBytes(standing.bytes).to_string());
    }
    if !standing.phases.is_empty() {
        parts.push(names(&standing.phases));
    }
    if let Some(campaign) = &standing.campaign {
        parts.push(format!(
            "campaign {}: {} completed, {} failed of {}",
            campaign.status,
            campaign.completed_devices,
            campaign.failed_devices,
            campaign.total_devices
        ));
    }
    if standing.violations > 0 {
        parts.push(format!("{} VIOLATIONS", standing.violations));
    }
    parts.join("; ")
}

//! Keeps a listener secured by what its files hold: looks at them every second, and hands on what has changed. What
//! cannot be used is told, and what was there before stays.

use std::sync::Arc;
use std::time::Duration;

use device_ota_engine::Engine;
use device_ota_engine::metrics::Metrics;
use device_ota_engine::ports::Clock as _;
use device_ota_http::Component;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::files::{Contents, Life};
use crate::config::{TlsFiles, TlsOf};
use crate::system::SystemClock;
use crate::tasks::Tasks;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long before a certificate expires that is told.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);
/// How often it is told again.
const WARN_EVERY: SignedDuration = SignedDuration::from_hours(24);

/// How a listener's certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    of: TlsOf,
    life: Life,
    /// The files as they are now cannot be used.
    fault: bool,
}

/// Follows the files of one listener.
pub(crate) struct Keeper {
    files: TlsFiles,
    /// What was seen last, whether it could be used or not.
    seen: Contents,
    /// Wrong with what was seen, and not told yet: the files may be half-way through being replaced.
    untold: Option<String>,
    warned: Option<Timestamp>,
    configs: watch::Sender<Arc<ServerConfig>>,
    standing: watch::Sender<Standing>,
}

impl Keeper {
    /// What the files hold now; what cannot be used is refused by its setting's name.
    pub(crate) fn open(files: &TlsFiles) -> anyhow::Result<Self> {
        let seen = files.read();
        let secured = seen.secure(files)?;
        let standing = Standing {
            of: files.of,
            life: secured.life,
            fault: false,
        };
        Ok(Self {
            files: files.clone(),
            seen,
            untold: None,
            warned: None,
            configs: watch::Sender::new(secured.config),
            standing: watch::Sender::new(standing),
        })
    }

    /// What new connections are secured by.
    pub(crate) fn configs(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.configs.subscribe()
    }

    /// How the certificate is, at any time.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Follows the files until `stop`, as a task of that name.
    pub(crate) fn spawn(
        self,
        name: &'static str,
        tasks: &mut Tasks,
        engine: &Engine,
        stop: &CancellationToken,
    ) {
        let (metrics, stop) = (Arc::clone(engine.metrics()), stop.clone());
        tasks.spawn(name, self.run(metrics, stop));
    }

    async fn run(mut self, metrics: Arc<Metrics>, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        while stop.run_until_cancelled(looks.tick()).await.is_some() {
            let files = self.files.clone();
            // A task that reads ends by itself; one that panicked has read nothing.
            if let Ok(seen) = tokio::task::spawn_blocking(move || files.read()).await {
                self.look(seen);
            }
            let life = self.standing.borrow().life;
            metrics.certificate_expires(self.files.of.listener(), life.expires);
            self.warn(SystemClock.now(), life);
        }
    }

    fn look(&mut self, seen: Contents) {
        if seen == self.seen {
            if let Some(fault) = self.untold.take() {
                error!(
                    listener = self.files.of.listener(),
                    error = fault,
                    "the changed certificate files cannot be used; what was there before stays"
                );
                self.standing.send_modify(|standing| standing.fault = true);
            }
            return;
        }
        match seen.secure(&self.files) {
            Ok(secured) => {
                info!(listener = self.files.of.listener(), expires = %secured.life.expires, "certificate files read anew");
                self.untold = None;
                self.warned = None;
                self.configs.send_replace(secured.config);
                self.standing.send_replace(Standing {
                    of: self.files.of,
                    life: secured.life,
                    fault: false,
                });
            }
            Err(error) => self.untold = Some(format!("{error:#}")),
        }
        self.seen = seen;
    }

    /// Says that the certificate is about to expire, once a day.
    fn warn(&mut self, now: Timestamp, life: Life) {
        let due = self
            .warned
            .is_none_or(|warned| now.duration_since(warned) >= WARN_EVERY);
        if due && life.expires.duration_since(now) < SOON {
            warn!(listener = self.files.of.listener(), expires = %life.expires, "the listener's certificate expires soon, or has expired");
            self.warned = Some(now);
        }
    }
}

impl Standing {
    /// For `/health/detailed`.
    pub(crate) fn component(&self, now: Timestamp) -> Component {
        let expires = self.life.expires;
        let left = expires.duration_since(now);
        let mut detail = if left <= SignedDuration::ZERO {
            format!("expired at {expires}")
        } else if left < SOON {
            format!("expires soon, in {} hours, at {expires}", left.as_hours())
        } else {
            format!("expires at {expires}")
        };
        // Everybody may read this; what is wrong with which file stands in the log.
        if self.fault {
            detail += "; the files have changed and cannot be used: the log says why";
        }
        Component {
            name: self.of.component(),
            healthy: !self.fault && left > SignedDuration::ZERO,
            essential: false,
            detail: Some(detail),
            address: None,
        }
    }
}

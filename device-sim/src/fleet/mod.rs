//! A fleet from birth to summary: registers its devices, lets them live, watches until they are
//! where they should be, and holds the service to what it acknowledged.

mod audit;
mod birth;
mod config;
mod goal;
mod limits;
mod summary;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use device_ota_protocol::agent::PersistentState;
use device_ota_protocol::objects::ObjectError;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::api::{self, Api, Campaign};
use crate::board::Board;
use crate::device::{Birth, Context, Device};
use crate::faults::{Faults, TooManyFlaws};
use crate::memory::{Memory, Remembered};
use crate::mqtt::Tls;
use crate::trust::{Trust, TrustError};

pub use config::{FleetConfig, Versions};
pub use goal::Until;
pub use summary::{Expectation, Summary, Verdict};

/// How often the fleet is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How often the campaign is looked at.
const CAMPAIGN_LOOK: Duration = Duration::from_secs(1);
/// How long devices may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(10);
/// Longest wait for an HTTP connection.
const HTTP_CONNECT: Duration = Duration::from_secs(10);

/// Why a fleet could not live. What the service does wrong afterwards is in the [`Summary`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service's HTTP interface does not do.
    #[error(transparent)]
    Api(#[from] api::Error),
    /// More flaws than devices.
    #[error(transparent)]
    Faults(#[from] TooManyFlaws),
    /// The HTTP client cannot be made.
    #[error("cannot make an HTTP client")]
    Http(#[source] reqwest::Error),
    /// The address of the MQTT server leads nowhere.
    #[error("cannot find the MQTT server at `{0}`")]
    Address(String),
    /// The trust root is not one.
    #[error("the service's trust root cannot be trusted")]
    Root(#[source] ObjectError),
    /// A file cannot be read or written.
    #[error("cannot use {what}")]
    File {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Too few open files are allowed.
    #[error(
        "{devices} devices need {needed} open files and only {limit} are allowed: \
         raise the limit (`ulimit -n {needed}`) or run fewer devices"
    )]
    OpenFiles {
        /// Devices of the fleet.
        devices: usize,
        /// Files they need.
        needed: u64,
        /// Files that may be open.
        limit: u64,
    },
    /// It cannot speak TLS.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It was stopped before there were devices.
    #[error("stopped before there were devices")]
    Stopped,
    /// A name that no device can have.
    #[error("`{0}` cannot be the name of a device")]
    Name(String),
    /// The service does not take a device.
    #[error("device `{device}` was not registered: {why}")]
    NotRegistered {
        /// Which.
        device: String,
        /// The service's words.
        why: String,
    },
}

/// How a fleet stands, for those who watch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Devices in all.
    pub devices: usize,
    /// Devices connected.
    pub online: usize,
    /// Devices by version.
    pub versions: std::collections::BTreeMap<String, usize>,
    /// Devices in an update, by phase.
    pub phases: std::collections::BTreeMap<&'static str, usize>,
    /// Bytes of images fetched.
    pub bytes: u64,
    /// The campaign that is watched.
    pub campaign: Option<Campaign>,
    /// Promises the service broke.
    pub violations: u64,
}

/// Someone who is told how a fleet stands, a few times a second.
pub trait Observer: Send {
    /// Something happened that is worth a line.
    fn said(&mut self, line: &str);
    /// How it stands now.
    fn stands(&mut self, standing: &Standing);
}

/// An observer that does not care.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Observer for Unwatched {
    fn said(&mut self, _line: &str) {}
    fn stands(&mut self, _standing: &Standing) {}
}

/// A fleet that is registered and about to live.
pub struct Fleet {
    config: FleetConfig,
    api: Api,
    ctx: Arc<Context>,
    memory: Memory,
    births: Vec<Birth>,
    faults: Vec<Faults>,
    /// What each device ran at the start.
    versions: Vec<String>,
    passwords: Vec<String>,
    campaign: Option<Campaign>,
    goal: goal::Goal,
    /// Whether the goal was reached.
    reached: bool,
}

impl Fleet {
    /// Brings a fleet to life and returns when it has reached its goal, its time is up, or `stop`
    /// says so.
    pub async fn run(
        config: FleetConfig,
        observer: &mut dyn Observer,
        stop: CancellationToken,
    ) -> Result<Summary, Error> {
        let started = Instant::now();
        limits::ensure_open_files(config.devices, config.downloads)?;
        let mut fleet = tokio::select! {
            fleet = Self::prepare(config, observer) => fleet?,
            () = stop.cancelled() => return Err(Error::Stopped),
        };
        let mut tasks = JoinSet::new();
        fleet.live(observer, &stop, &mut tasks).await?;
        fleet.ctx.stop.cancel();
        fleet.say_goodbye(tasks).await?;
        let audit = fleet.audit(observer).await;
        Ok(fleet.summarise(started.elapsed(), audit))
    }

    async fn prepare(config: FleetConfig, observer: &mut dyn Observer) -> Result<Self, Error> {
        let trust = Trust::read(config.ca.as_deref())?;
        let http = trust
            .http()
            .map_err(Error::Http)?
            .connect_timeout(HTTP_CONNECT)
            .pool_max_idle_per_host(config.downloads)
            .build()
            .map_err(Error::Http)?;
        let api = Api::new(http.clone(), &config.http, &config.admin_key);
        let faults = config.faults.assign(config.devices, config.seed)?;
        let memory = Memory::new(config.state_dir.clone());
        let births = birth::give_birth(&config, &api, &memory, &faults, observer).await?;
        let (server, tls) = server(&config.mqtt, &trust).await?;
        let ctx = Arc::new(Context {
            habits: config.habits.clone(),
            prefix: config.topics.clone(),
            server,
            tls,
            http,
            gate: Arc::new(Semaphore::new(config.downloads.max(1))),
            board: Board::new(config.devices),
            stop: CancellationToken::new(),
        });
        let running = |birth: &Birth| {
            let image = birth.state.image(birth.state.active);
            image.map_or_else(String::new, |image| image.version.clone())
        };
        Ok(Self {
            versions: births.iter().map(running).collect(),
            passwords: births.iter().map(|birth| birth.password.clone()).collect(),
            goal: goal::Goal::new(config.until.clone()),
            births,
            faults,
            api,
            ctx,
            memory,
            campaign: None,
            reached: false,
            config,
        })
    }

    /// Starts the devices and watches them.
    async fn live(
        &mut self,
        observer: &mut dyn Observer,
        stop: &CancellationToken,
        tasks: &mut JoinSet<(usize, Box<PersistentState>)>,
    ) -> Result<(), Error> {
        let end = self.config.timeout.map(|time| Instant::now() + time);
        let started = Instant::now();
        let mut births = std::mem::take(&mut self.births).into_iter();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked_at_campaign = started;
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = stop.cancelled() => break,
            }
            self.start_some(&mut births, started, tasks);
            let all_started = births.len() == 0;
            if all_started && looked_at_campaign.elapsed() >= CAMPAIGN_LOOK {
                looked_at_campaign = Instant::now();
                self.look_at_campaign(observer).await?;
            }
            let standing = self.standing();
            observer.stands(&standing);
            if all_started && self.is_over() {
                self.reached = true;
                break;
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                observer.said("the time is up");
                break;
            }
        }
        Ok(())
    }

    /// As many devices as the rate allows by now.
    fn start_some(
        &self,
        births: &mut std::vec::IntoIter<Birth>,
        started: Instant,
        tasks: &mut JoinSet<(usize, Box<PersistentState>)>,
    ) {
        let millis = (started.elapsed() + LOOK).as_millis();
        let allowed = millis * u128::from(self.config.connect_rate.max(1)) / 1_000;
        let allowed = usize::try_from(allowed).unwrap_or(usize::MAX);
        while tasks.len() < allowed
            && let Some(birth) = births.next()
        {
            tasks.spawn(Device::new(self.ctx.clone(), birth).run());
        }
    }

    /// Begins the rollout once devices are there, and follows the campaign.
    async fn look_at_campaign(&mut self, observer: &mut dyn Observer) -> Result<(), Error> {
        if let Some(campaign) = &self.campaign {
            // The service may be restarting; what is known stays until it is back.
            if let Ok(now) = self.api.campaign(&campaign.campaign_id).await {
                if now.status != campaign.status {
                    observer.said(&format!("campaign {} is {}", now.campaign_id, now.status));
                }
                self.campaign = Some(now);
            }
        } else if let Some(id) = &self.config.campaign {
            self.campaign = Some(self.api.campaign(id).await?);
        } else if let Some(rollout) = &self.config.rollout
            && self.are_all_seen()
        {
            observer.said(&format!("rolling out {}", rollout.version));
            let campaign = self.api.roll_out(rollout).await?;
            observer.said(&format!("campaign {} is started", campaign.campaign_id));
            self.campaign = Some(campaign);
        }
        Ok(())
    }

    fn are_all_seen(&self) -> bool {
        let mut all = true;
        self.ctx.board.each(|index, seat| {
            let offline = self.faults.get(index).is_some_and(|f| f.offline);
            all &= seat.seen || offline;
        });
        all
    }

    fn standing(&self) -> Standing {
        let totals = &self.ctx.board.totals;
        let mut standing = Standing {
            devices: self.config.devices,
            bytes: totals.http_bytes.get() + totals.chunk_bytes.get(),
            campaign: self.campaign.clone(),
            violations: self.ctx.board.violations().0,
            ..Standing::default()
        };
        self.ctx.board.each(|_, seat| {
            standing.online += usize::from(seat.online);
            if !seat.version.is_empty() {
                match standing.versions.get_mut(&seat.version) {
                    Some(count) => *count += 1,
                    None => drop(standing.versions.insert(seat.version.clone(), 1)),
                }
            }
            if let Some(phase) = seat.live {
                *standing.phases.entry(phase.as_str()).or_default() += 1;
            }
        });
        standing
    }

    /// Lets every device end, and remembers what it leaves.
    async fn say_goodbye(
        &self,
        mut tasks: JoinSet<(usize, Box<PersistentState>)>,
    ) -> Result<(), Error> {
        let mut states = vec![None; self.config.devices];
        let all = async {
            while let Some(ended) = tasks.join_next().await {
                match ended {
                    Ok((index, state)) => {
                        if let Some(place) = states.get_mut(index) {
                            *place = Some(state);
                        }
                    }
                    Err(error) => {
                        let text = format!("a simulated device broke down: {error}");
                        self.ctx.board.violation(text);
                    }
                }
            }
        };
        if timeout(GOODBYE, all).await.is_err() {
            tracing::warn!("some devices did not end in time");
        }
        let devices: Vec<Remembered> = self
            .passwords
            .iter()
            .zip(states)
            .enumerate()
            .map(|(index, (password, state))| Remembered {
                device_id: self.config.device_id(index),
                password: password.clone(),
                state,
            })
            .collect();
        birth::remember(&self.memory, &devices)
    }
}

/// An address of the server, the first one that its name leads to, and TLS if it is `mqtts://`.
async fn server(address: &str, trust: &Trust) -> Result<(SocketAddr, Option<Tls>), Error> {
    let unknown = || Error::Address(address.to_owned());
    let secured = address.strip_prefix("mqtts://");
    let plain = address.strip_prefix("mqtt://").unwrap_or(address);
    let place = secured.unwrap_or(plain);
    let mut found = tokio::net::lookup_host(place)
        .await
        .map_err(|_| unknown())?;
    let server = found.next().ok_or_else(unknown)?;
    let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let tls = secured.map(|_| trust.mqtt(host)).transpose()?;
    Ok((server, tls))
}

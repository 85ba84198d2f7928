//! A story from a file: a fleet and its faults, a campaign, what its operator does meanwhile, and how it has to end.
//! Played end to end against a running service.
//!
//! The file is TOML, and names what it does not know. `[campaign]` goes to the service as it stands, so its fields are
//! those of the API; `[[steps]]` and `[expect]` compare with what the service answers (see [`matching`]). All there is
//! to say is in `device-sim/scenarios/`, with an example of each.

pub mod matching;
mod network;
mod operator;
mod outcome;
mod parts;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use device_ota_protocol::topics::Prefix;
use serde::Deserialize;
use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::{self, Api};
use crate::faults::FaultPlan;
use crate::fleet::{self, Fleet, FleetConfig, Observer, Standing, Summary};
use matching::NoSuchField;
use network::Network;
use operator::{Deeds, Operator};
pub use outcome::Outcome;
use parts::{Act, Expect, FleetPart, SchedulePart, Step};

/// What a fleet runs when a story begins.
const OLD: &str = "1.0.0";
/// What it is to run.
const NEW: &str = "2.0.0";
/// Who makes the models of stories.
const MANUFACTURER: &str = "device-sim";

/// Why a story could not be read or played. That it ended otherwise than expected is in the [`Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the story in {file}")]
    File {
        /// Which.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a story.
    #[error("{file} is not a story")]
    Malformed {
        /// Which.
        file: String,
        /// Where, and what is wrong there.
        #[source]
        source: toml::de::Error,
    },
    /// The story makes no sense.
    #[error("{file}: {what}")]
    Senseless {
        /// Which.
        file: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// The story asks the service for something that it does not tell.
    #[error(transparent)]
    Field(#[from] NoSuchField),
    /// The service does not do.
    #[error(transparent)]
    Api(#[from] api::Error),
    /// The fleet could not live.
    #[error(transparent)]
    Fleet(#[from] fleet::Error),
    /// There is no network or no room for the image.
    #[error("cannot set the scene")]
    Scene(#[source] std::io::Error),
    /// Stopped from outside.
    #[error("stopped before the end of the story")]
    Stopped,
}

/// The service to play with.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its HTTP interface, such as `http://127.0.0.1:8216`.
    pub http: String,
    /// Where devices connect, as host and port.
    pub mqtt: String,
    /// The administrator's key.
    pub admin_key: String,
    /// Levels before each device's topics.
    pub topics: Prefix,
}

/// A story.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The file's name without its ending; devices, model and group are named after it.
    #[serde(skip)]
    name: String,
    /// What happens, in a sentence.
    about: String,
    /// Settings that the service has to run with, by their names.
    #[serde(default)]
    service: BTreeMap<String, String>,
    #[serde(default)]
    fleet: FleetPart,
    #[serde(default)]
    faults: FaultPlan,
    /// The campaign, by the API's fields; without `name`, `firmware_id` and targets, which are the story's own.
    campaign: serde_json::Map<String, Value>,
    /// When it may offer, counted from its start.
    schedule: Option<SchedulePart>,
    /// What the operator does, one after the other.
    #[serde(default)]
    steps: Vec<Step>,
    expect: Expect,
}

impl Scenario {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| Error::File {
            file: file.clone(),
            source,
        })?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &text).map_err(|error| match error {
            Error::Malformed { source, .. } => Error::Malformed { file, source },
            Error::Senseless { what, .. } => Error::Senseless { file, what },
            other => other,
        })
    }

    fn parse(name: &str, text: &str) -> Result<Self, Error> {
        let file = name.to_owned();
        let mut scenario: Self = toml::from_str(text).map_err(|source| Error::Malformed {
            file: file.clone(),
            source,
        })?;
        name.clone_into(&mut scenario.name);
        match scenario.nonsense() {
            Some(what) => Err(Error::Senseless { file, what }),
            None => Ok(scenario),
        }
    }

    /// What is wrong with it although each of its fields is right.
    fn nonsense(&self) -> Option<String> {
        let ours = ["name", "description", "firmware_id", "schedule"];
        if let Some(field) = ours
            .iter()
            .find(|field| self.campaign.contains_key(**field))
        {
            return Some(match *field {
                "schedule" => {
                    "[campaign] has no schedule here: say it in [schedule], counted from the start"
                        .to_owned()
                }
                field => format!("[campaign] must not have `{field}`: it is the story's own"),
            });
        }
        let timed = |step: &Step| step.lasts.is_some() && step.act != Act::CutNetwork;
        self.steps
            .iter()
            .any(timed)
            .then(|| "`for` is how long the network is cut; only `cut_network` takes it".to_owned())
    }

    /// Settings that the service has to run with, by their names in its configuration.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.service
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Plays it. Ends when all that is expected has come, when the time for that is up, or when `stop` says so.
    pub async fn play(
        &self,
        service: &Service,
        observer: &mut dyn Observer,
        stop: CancellationToken,
    ) -> Result<Outcome, Error> {
        let began = Instant::now();
        let network = Network::before(service.mqtt.clone())
            .await
            .map_err(Error::Scene)?;
        let factory = self.image_file().map_err(Error::Scene)?;
        let config = self.fleet_config(service, &network, factory.path());
        let http = reqwest::Client::builder()
            .no_proxy()
            .build()
            .map_err(fleet::Error::Http)?;
        let (tell, standing) = watch::channel(Standing::default());
        let operator = Operator {
            scenario: self,
            api: Api::new(http, &service.http, &service.admin_key),
            network: &network,
            standing,
        };
        let mut lookout = Lookout { observer, tell };
        let (deeds, summary) = live(config, operator, &mut lookout, stop).await?;
        Outcome::of(self, deeds, summary, began.elapsed())
    }

    fn fleet_config(&self, service: &Service, network: &Network, image: &Path) -> FleetConfig {
        let part = &self.fleet;
        let mut config = FleetConfig::new(&service.http, &network.address(), &service.admin_key);
        config.devices = part.devices;
        config.prefix = format!("{}-", self.name);
        config.model.clone_from(&self.name);
        config.manufacturer = Some(MANUFACTURER.to_owned());
        config.group.clone_from(&self.name);
        OLD.clone_into(&mut config.version);
        config.image = Some(image.to_owned());
        config.topics = service.topics.clone();
        config.seed = part.seed;
        config.chunks = part.chunks;
        config.faults = self.faults.clone();
        part.set(&mut config.habits);
        self.faults.set(&mut config.habits);
        config
    }

    /// The image that devices are born with.
    fn image_file(&self) -> std::io::Result<NamedTempFile> {
        let mut file = NamedTempFile::new()?;
        file.write_all(&self.image(OLD))?;
        Ok(file)
    }

    /// The bytes of a version of this story's image.
    fn image(&self, version: &str) -> Vec<u8> {
        let line = format!("{} {version}\n", self.name);
        line.bytes().cycle().take(self.fleet.image_bytes).collect()
    }

    /// The longest that the story may take from the campaign's start to its end.
    fn within(&self) -> Duration {
        self.expect.within.0
    }
}

/// The fleet lives for as long as its operator has something to do or to wait for.
async fn live(
    config: FleetConfig,
    operator: Operator<'_>,
    lookout: &mut Lookout<'_>,
    stop: CancellationToken,
) -> Result<(Deeds, Summary), Error> {
    let over = stop.child_token();
    let mut fleet = Box::pin(Fleet::run(config, lookout, over.clone()));
    let deeds = tokio::select! {
        deeds = operator.work() => deeds?,
        ended = &mut fleet => {
            ended?;
            return Err(Error::Stopped);
        }
    };
    over.cancel();
    Ok((deeds, fleet.await?))
}

/// Tells the operator how the fleet stands, beside whoever watches.
struct Lookout<'o> {
    observer: &'o mut dyn Observer,
    tell: watch::Sender<Standing>,
}

impl Observer for Lookout<'_> {
    fn said(&mut self, line: &str) {
        self.observer.said(line);
    }

    fn stands(&mut self, standing: &Standing) {
        self.observer.stands(standing);
        self.tell.send_replace(standing.clone());
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const STORY: &str = r#"
        about = "all of them"
        [campaign]
        deployment_strategy = "immediate"
        [expect]
        campaign = { status = "completed" }
    "#;

    fn refused(text: &str) -> String {
        let error = Scenario::parse("story", text).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    }

    #[test]
    fn a_story_needs_little() {
        let story = Scenario::parse("story", STORY).unwrap();
        assert_eq!(story.fleet.devices, FleetPart::default().devices);
        assert!(story.steps.is_empty());
    }

    #[test]
    fn what_it_does_not_know_is_named() {
        for (more, name) in [
            ("[fleets]\ndevices = 3", "fleets"),
            ("[fleet]\ndevcies = 3", "devcies"),
            ("[faults]\nslient = 3", "slient"),
            ("[faults]\nfail = { rebooting = 3 }", "rebooting"),
            ("[schedule]\nstart_at = \"2s\"", "start_at"),
            ("[[steps]]\ndo = \"explode\"", "explode"),
            ("[[steps]]\ndo = \"pause\"\nif = {}", "if"),
        ] {
            let said = refused(&format!("{STORY}\n{more}"));
            assert!(said.contains(&format!("`{name}`")), "{said}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (more, what) in [
            (
                "[[steps]]\ndo = \"pause\"\nfor = \"2s\"",
                "only `cut_network`",
            ),
            ("[fleet]\nheartbeat = \"soon\"", "`soon` is not a time"),
            ("[faults]\nsilent = \"200%\"", "a share is"),
        ] {
            let said = refused(&format!("{STORY}\n{more}"));
            assert!(said.contains(what), "{said}");
        }
        let said = refused(&STORY.replace("deployment_strategy", "firmware_id"));
        assert!(said.contains("must not have `firmware_id`"), "{said}");
        let said = refused("about = \"no end\"\n[campaign]");
        assert!(said.contains("`expect`"), "{said}");
    }
}

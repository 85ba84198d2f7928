//! The operator of a story: makes the campaign once the fleet is there, does each step when its time has come, and
//! watches for the end.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::multipart::Part;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::matching::holds;
use super::network::Network;
use super::parts::{Act, Step};
use super::{Error, MANUFACTURER, NEW, OLD, Scenario};
use crate::api::{Api, metadata};
use crate::fleet::Standing;

/// How often the campaign is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a fleet may take to connect.
const GATHERING: Duration = Duration::from_secs(30);
/// How long the network is cut when the story does not say.
const CUT: Duration = Duration::from_secs(2);

pub(super) struct Operator<'s> {
    pub(super) scenario: &'s Scenario,
    pub(super) api: Api,
    pub(super) network: &'s Network,
    pub(super) standing: watch::Receiver<Standing>,
}

/// A step that was done.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    /// What.
    pub step: String,
    /// How long after the campaign's start, in seconds.
    pub after_s: f64,
}

/// What the operator did and saw.
#[derive(Debug)]
pub(super) struct Deeds {
    pub(super) done: Vec<Done>,
    /// The campaign at the end.
    pub(super) campaign: Value,
}

impl Operator<'_> {
    pub(super) async fn work(mut self) -> Result<Deeds, Error> {
        self.gather().await;
        let id = self.begin().await?;
        let began = Instant::now();
        let mut done = Vec::new();
        loop {
            let campaign = self.api.campaign_in_full(&id).await?;
            let next = self.scenario.steps.get(done.len());
            let over = match next {
                Some(step) if self.is_so(&step.when, &step.versions, &campaign)? => {
                    let after_s = began.elapsed().as_secs_f64();
                    self.take(step, &id).await?;
                    let step = step.act.name().to_owned();
                    done.push(Done { step, after_s });
                    continue;
                }
                Some(_) => false,
                None => {
                    let expect = &self.scenario.expect;
                    self.is_so(&expect.campaign, &expect.versions, &campaign)?
                }
            };
            if over || began.elapsed() >= self.scenario.within() {
                return Ok(Deeds { done, campaign });
            }
            sleep(LOOK).await;
        }
    }

    /// Waits for those who are not to be late. A story goes on without who does not come: the end tells.
    async fn gather(&mut self) {
        let devices = self.scenario.fleet.devices;
        let present = devices - self.scenario.faults.offline.of(devices);
        let all = self
            .standing
            .wait_for(|standing| standing.online >= present);
        let _ = timeout(GATHERING, all).await;
    }

    /// Uploads both images, makes the campaign and starts it.
    async fn begin(&self) -> Result<String, Error> {
        let scenario = self.scenario;
        let mut firmware = String::new();
        for version in [OLD, NEW] {
            let file = Part::bytes(scenario.image(version)).file_name("image.bin");
            let metadata = metadata(&scenario.name, MANUFACTURER, version);
            firmware = self.api.upload(&metadata, file).await?.firmware_id;
        }
        let mut fields = scenario.campaign.clone();
        fields.insert("name".to_owned(), json!(scenario.name));
        fields.insert("description".to_owned(), json!(scenario.about));
        fields.insert("firmware_id".to_owned(), json!(firmware));
        let targets = ["target_devices", "target_groups", "target_filters"];
        if !targets.iter().any(|field| fields.contains_key(*field)) {
            fields.insert("target_groups".to_owned(), json!([scenario.name]));
        }
        if let Some(schedule) = &scenario.schedule {
            fields.insert("schedule".to_owned(), schedule.counted_from(now()));
        }
        let id = self.api.create_campaign(&fields.into()).await?;
        self.api.act(&id, "start").await?;
        Ok(id)
    }

    async fn take(&self, step: &Step, campaign: &str) -> Result<(), Error> {
        let act = match step.act {
            Act::See => return Ok(()),
            Act::CutNetwork => {
                let lasts = step.lasts.map_or(CUT, |time| time.0);
                self.network.cut(lasts).await;
                return Ok(());
            }
            Act::RollBack => "rollback",
            act => act.name(),
        };
        Ok(self.api.act(campaign, act).await?)
    }

    /// Whether the campaign is like this, and the devices run these versions, if any are named.
    fn is_so(
        &self,
        fields: &Map<String, Value>,
        versions: &BTreeMap<String, usize>,
        campaign: &Value,
    ) -> Result<bool, Error> {
        let runs = versions.is_empty() || self.standing.borrow().versions == *versions;
        Ok(holds(&fields.clone().into(), campaign)? && runs)
    }
}

/// A story is played in the service's own time.
#[expect(
    clippy::disallowed_methods,
    reason = "the schedule is told to a service that lives in real time"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

//! A campaign that names each of its devices, beside one that means the same devices by their model: what follows the start
//! is to cost the same.

use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use super::runtime;
use crate::Plan;
use crate::fleet::{self, Database, MODEL};
use crate::http::{Admin, Image};
use crate::service::Service;
use crate::stats::{Series, Target as Wanted, ratio, title};

/// Reads, and pairs of pause and resume, of each campaign in a round.
const REQUESTS: usize = 20;

/// How many.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Registered devices, all of which are named.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub(crate) devices: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { devices: 100_000 }
    }
}

pub(crate) fn run(plan: Plan, options: &Options) -> anyhow::Result<()> {
    title(&format!(
        "a campaign of {} devices, named one by one or meant by their model; SQLite",
        options.devices
    ));
    runtime()?.block_on(measure(plan, usize::try_from(options.devices)?))
}

/// What each request took, ms.
struct Side {
    created: Series,
    started: Series,
    update: Series,
    list: Series,
    paused: Series,
}

impl Side {
    fn new(how: &str) -> Self {
        let series = |what: &str| Series::new(format!("{how}: {what}"), "ms");
        Self {
            created: series("created"),
            started: series("started"),
            update: series("read of an update that waits"),
            list: series("list of campaigns"),
            paused: series("paused, resumed"),
        }
    }

    fn print(&self) {
        for series in [
            &self.created,
            &self.started,
            &self.update,
            &self.list,
            &self.paused,
        ] {
            series.print();
        }
    }
}

async fn measure(plan: Plan, devices: usize) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let database = Database::file_in(folder.path());
    Service::make_keys(folder.path(), &database.url())?;
    database.fill(devices).await?;
    let service = Service::start(folder.path(), &database.url())?;
    let admin = Admin {
        addr: service.http,
        key: &service.key,
    };
    let image = Image {
        name: "Bench",
        version: "2.0.0",
        model: MODEL,
        size: 64 * 1_024,
        piece: &[0x33; 4_096],
    };
    let firmware = text(&admin.upload(&image)?, "firmware_id")?;
    let all = fleet::names(devices);
    let (mut named, mut meant) = (Side::new("named"), Side::new("by model"));
    for _ in 0..plan.rounds {
        for (side, ids) in [(&mut named, Some(&all)), (&mut meant, None)] {
            let draft = match ids {
                Some(ids) => json!({
                    "name": "bench", "firmware_id": firmware, "deployment_strategy": "immediate", "target_devices": ids,
                }),
                None => json!({
                    "name": "bench", "firmware_id": firmware, "deployment_strategy": "immediate",
                }),
            };
            round(&admin, side, &draft)?;
        }
    }
    named.print();
    meant.print();
    named.created.judge(Wanted::AtMost(500.0));
    named.update.judge(Wanted::AtMost(50.0));
    named.paused.judge(Wanted::AtMost(100.0));
    for (what, ours, theirs) in [
        ("read of an update", &named.update, &meant.update),
        ("list", &named.list, &meant.list),
        ("pause", &named.paused, &meant.paused),
    ] {
        let what = format!("{what}, named over by model");
        ratio(&what, ours, theirs, Wanted::AtMost(1.5));
    }
    Ok(())
}

fn round(admin: &Admin<'_>, side: &mut Side, draft: &Value) -> anyhow::Result<()> {
    let path = "/api/v1/ota/campaigns";
    let made = timed(&mut side.created, || admin.post(path, Some(draft)))?;
    let campaign = format!("{path}/{}", text(&made, "campaign_id")?);
    let act = |action: &str| admin.post(&format!("{campaign}/{action}"), None);
    timed(&mut side.started, || act("start"))?;
    let updates = admin.get(&format!("{campaign}/devices?limit=1"))?;
    let update = updates.pointer("/devices/0").context("no update")?;
    let update = format!("/api/v1/ota/updates/{}", text(update, "update_id")?);
    for _ in 0..REQUESTS {
        timed(&mut side.update, || admin.get(&update))?;
        timed(&mut side.list, || admin.get(path))?;
        timed(&mut side.paused, || act("pause"))?;
        timed(&mut side.paused, || act("resume"))?;
    }
    act("cancel").map(drop)
}

fn timed(
    series: &mut Series,
    request: impl FnOnce() -> anyhow::Result<Value>,
) -> anyhow::Result<Value> {
    let began = Instant::now();
    let answer = request()?;
    series.push(began.elapsed().as_secs_f64() * 1e3);
    Ok(answer)
}

fn text(value: &Value, name: &str) -> anyhow::Result<String> {
    let field = value.get(name).and_then(Value::as_str);
    Ok(field.with_context(|| format!("no {name}"))?.to_owned())
}

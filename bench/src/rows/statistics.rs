//! The figures of everything over HTTP, with a million updates in the database; beside warp answering a constant.

use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use super::runtime;
use crate::Plan;
use crate::fleet::{Database, MODEL};
use crate::http::{self, Admin, Image};
use crate::peers::start_constant;
use crate::service::Service;
use crate::stats::{Series, Target as Wanted, title, verdict};

/// Devices, each with an update of every campaign.
const DEVICES: usize = 100_000;
/// Requests of a round, a connection each.
const READS: u32 = 200;
/// How soon the slowest but one of twenty is to be answered, in milliseconds (PRD, NFR-1).
const SOON: f64 = 200.0;

/// How much.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Campaigns of 100,000 devices each.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) campaigns: u32,
}

pub(crate) fn run(plan: Plan, options: &Options) -> anyhow::Result<()> {
    title(&format!(
        "statistics over {} campaigns of {DEVICES} devices each; SQLite",
        options.campaigns
    ));
    let folder = tempfile::tempdir()?;
    let database = Database::file_in(folder.path());
    Service::make_keys(folder.path(), &database.url())?;
    runtime()?.block_on(database.fill(DEVICES))?;
    let service = Service::start(folder.path(), &database.url())?;
    let admin = Admin {
        addr: service.http,
        key: &service.key,
    };
    fill(&admin, options.campaigns)?;
    let (_constant, constant) = start_constant()?;
    let mut ours = Series::new("GET /api/v1/ota/stats", "ms");
    let mut theirs = Series::new("warp, a constant", "ms");
    for _ in 0..plan.rounds * READS {
        let began = Instant::now();
        let stats = admin.get("/api/v1/ota/stats")?;
        ours.push(began.elapsed().as_secs_f64() * 1e3);
        let total = stats.get("total_updates").and_then(Value::as_u64);
        let wanted = u64::from(options.campaigns) * DEVICES as u64;
        anyhow::ensure!(total == Some(wanted), "counted {total:?} updates");
        let began = Instant::now();
        anyhow::ensure!(http::is_ok(constant, "/")?, "the constant is not answered");
        theirs.push(began.elapsed().as_secs_f64() * 1e3);
    }
    for series in [&ours, &theirs] {
        series.print();
    }
    verdict(
        "19 of 20 within",
        ours.slowest_of_20(),
        "ms",
        Wanted::AtMost(SOON),
    );
    verdict(
        "the constant: 19 of 20 within",
        theirs.slowest_of_20(),
        "ms",
        Wanted::AtMost(SOON),
    );
    Ok(())
}

/// Starts the campaigns, and cancels every other one, so that figures of more than one kind are there.
fn fill(admin: &Admin<'_>, campaigns: u32) -> anyhow::Result<()> {
    let image = admin.upload(&Image {
        name: "bench",
        version: "9.0.0",
        model: MODEL,
        size: 1_000,
        piece: b"bench",
    })?;
    let firmware = image.get("firmware_id").context("no firmware_id")?;
    for number in 0..campaigns {
        let spec = json!({ "name": format!("campaign {number}"), "firmware_id": firmware });
        let made = admin.post("/api/v1/ota/campaigns", Some(&spec))?;
        let id = made.get("campaign_id").and_then(Value::as_str);
        let path = format!("/api/v1/ota/campaigns/{}", id.context("no campaign_id")?);
        admin.post(&format!("{path}/start"), None)?;
        if number % 2 == 1 {
            admin.post(&format!("{path}/cancel"), None)?;
        }
    }
    Ok(())
}

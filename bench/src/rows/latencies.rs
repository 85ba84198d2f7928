//! How long each request of the requirements' table takes while reports come in: one request at a time over a kept
//! connection, from the first byte sent to the last one read.

mod setting;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use device_ota_domain::UpdateId;
use serde_json::{Value, json};

use super::runtime;
use crate::Plan;
use crate::fleet::{Database, MODEL};
use crate::http::{Admin, Image, answer_length, head_length};
use crate::load::{Load, offered};
use crate::mqtt::Target;
use crate::service::Service;
use crate::stats::{Target as Wanted, title, verdict};
use setting::{complete, fail, moved_on, named};

/// Devices that report.
const REPORTING: usize = 1_000;
/// Devices that are registered beside them and that requests name.
const NAMED: usize = 200;
/// Devices of one bulk request (PRD, E3-US5).
const BULK: usize = 100;

/// The version that devices are registered with.
const REGISTERED: &str = "1.0.0";
/// The version that they say later, see [`moved_on`].
const MOVED_ON: &str = "2.0.0";
/// Size of an image whose upload is measured, bytes.
const UPLOADED: u64 = 8 * 1_024 * 1_024;

/// Kinds of requests that several parts make, and the milliseconds that each is allowed.
const SINGLE: (&str, u64) = ("update of one device (E3-US1)", 500);
const CANCEL: (&str, u64) = ("cancel of an update (E3-US3)", 100);
const CREATED: (&str, u64) = ("campaign created (NFR-1, E2-US1)", 500);

/// How much.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Requests of each kind.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(20..=10_000))]
    pub(crate) requests: u16,
    /// Reports a second.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1_000..=50_000))]
    pub(crate) reports: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            requests: 200,
            reports: 10_000,
        }
    }
}

pub(crate) fn run(_: Plan, options: &Options) -> anyhow::Result<()> {
    title(&format!(
        "time of a request, {} of each kind, while {} reports a second come in; SQLite",
        options.requests, options.reports
    ));
    runtime()?.block_on(measure(options))
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let database = Database::file_in(folder.path());
    Service::make_keys(folder.path(), &database.url())?;
    database.fill(REPORTING + NAMED).await?;
    let service = Service::start(folder.path(), &database.url())?;
    let updates = offered(&service, &database, REPORTING).await?;
    let reading = format!(
        "/api/v1/ota/updates/{}",
        updates.first().context("no update")?.id
    );
    let load = Load::start(Target::of_devices(service.mqtt), updates, options.reports);
    load.reach(options.reports).await?;
    let (began, before) = (Instant::now(), load.acknowledged());
    let mut desk = Desk::new(&service)?;
    let count = usize::from(options.requests);
    desk.read(count, &reading)?;
    desk.single_devices(count)?;
    let failed = desk.fated()?;
    fail(&database, &failed).await?;
    desk.retried(count, &failed)?;
    moved_on(&database).await?;
    desk.rolled_back(count)?;
    desk.bulk(count / 20)?;
    desk.campaigns(count)?;
    desk.campaigns_back(count / 4, &database).await?;
    desk.images(&service, count / 20)?;
    let rate = crate::stats::real(load.acknowledged() - before) / began.elapsed().as_secs_f64();
    load.end()?;
    println!("  {rate:.0} reports a second were committed meanwhile");
    desk.print();
    Ok(())
}

/// What a kind of request took, and what the requirements allow: a percentile and its bound.
struct Kind {
    name: &'static str,
    allowed: (u8, Duration),
    took: Vec<Duration>,
}

impl Kind {
    /// The time that so many percent of the requests stayed within.
    fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.took.len() * percent).div_ceil(100).max(1);
        self.took
            .get(rank - 1)
            .map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }
}

/// Two admins, one connection, and what each kind of request took.
struct Desk {
    stream: TcpStream,
    author: String,
    approver: String,
    firmware: String,
    campaign: String,
    kinds: Vec<Kind>,
}

impl Desk {
    fn new(service: &Service) -> anyhow::Result<Self> {
        let admin = Admin {
            addr: service.http,
            key: &service.key,
        };
        upload(&admin, REGISTERED)?;
        upload(&admin, MOVED_ON)?;
        let firmware = upload(&admin, "3.0.0")?;
        let key = json!({"name": "bench", "subject": "approver", "roles": ["approver"]});
        let key = admin.post("/api/v1/ota/keys", Some(&key))?;
        let stream = TcpStream::connect(service.http)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            author: service.key.clone(),
            approver: text(&key, "secret")?,
            firmware,
            campaign: String::new(),
            kinds: Vec::new(),
        })
    }

    fn read(&mut self, count: usize, update: &str) -> anyhow::Result<()> {
        let firmware = format!("/api/v1/ota/firmware/{}", self.firmware);
        for _ in 0..count {
            self.get("health (NFR-1)", (99, 20), "/health")?;
            self.get("progress of an update (NFR-1, E3-US2)", (95, 50), update)?;
            self.get("statistics (NFR-1)", (95, 200), "/api/v1/ota/stats")?;
            self.get("firmware (E1-US2)", (95, 50), &firmware)?;
            let list = "/api/v1/ota/firmware?device_model=BENCH-1&limit=50";
            self.get("firmware list (E1-US3)", (95, 200), list)?;
            let link = format!("{firmware}/download");
            self.get("link to the bytes (E1-US4)", (95, 50), &link)?;
            self.get("health in detail", (95, 50), "/health/detailed")?;
        }
        Ok(())
    }

    fn single_devices(&mut self, count: usize) -> anyhow::Result<()> {
        let request = json!({"firmware_id": self.firmware});
        for device in named().iter().cycle().take(count) {
            let history = format!("/api/v1/ota/devices/{device}/updates");
            self.get("history of a device (E5-US3)", (95, 100), &history)?;
            let path = format!("/api/v1/ota/devices/{device}/update");
            let made = self.post(SINGLE.0, SINGLE.1, &path, Some(&request))?;
            let path = format!("/api/v1/ota/updates/{}/cancel", text(&made, "update_id")?);
            self.post(CANCEL.0, CANCEL.1, &path, None)?;
        }
        Ok(())
    }

    /// Updates that shall fail; see [`fail`].
    fn fated(&mut self) -> anyhow::Result<Vec<UpdateId>> {
        let request = json!({"firmware_id": self.firmware, "max_retries": 0});
        let mut updates = Vec::new();
        for device in named() {
            let path = format!("/api/v1/ota/devices/{device}/update");
            let made = self.post(SINGLE.0, SINGLE.1, &path, Some(&request))?;
            updates.push(text(&made, "update_id")?.parse()?);
        }
        Ok(updates)
    }

    fn retried(&mut self, count: usize, failed: &[UpdateId]) -> anyhow::Result<()> {
        for update in failed.iter().take(count) {
            let path = format!("/api/v1/ota/updates/{update}");
            self.post(
                "retry of an update (E3-US4)",
                100,
                &format!("{path}/retry"),
                None,
            )?;
            self.post(CANCEL.0, CANCEL.1, &format!("{path}/cancel"), None)?;
        }
        Ok(())
    }

    fn rolled_back(&mut self, count: usize) -> anyhow::Result<()> {
        let request = json!({"to_version": REGISTERED, "reason": "bench"});
        for device in named().iter().cycle().take(count) {
            let path = format!("/api/v1/ota/devices/{device}/rollback");
            let made = self.post(
                "rollback of one device (E4-US2)",
                200,
                &path,
                Some(&request),
            )?;
            let path = format!("/api/v1/ota/updates/{}/cancel", text(&made, "update_id")?);
            self.post(CANCEL.0, CANCEL.1, &path, None)?;
        }
        Ok(())
    }

    fn bulk(&mut self, count: usize) -> anyhow::Result<()> {
        let devices: Vec<_> = named().into_iter().take(BULK).collect();
        let request = json!({"firmware_id": self.firmware, "device_ids": devices});
        for _ in 0..count.max(1) {
            let path = "/api/v1/ota/devices/bulk/update";
            let kind = "updates of 100 devices (E3-US5)";
            let made = self.post(kind, 2_000, path, Some(&request))?;
            let results = made.get("results").and_then(Value::as_array);
            for result in results.context("no results")? {
                let path = format!("/api/v1/ota/updates/{}/cancel", text(result, "update_id")?);
                self.post(CANCEL.0, CANCEL.1, &path, None)?;
            }
        }
        Ok(())
    }

    fn campaigns(&mut self, count: usize) -> anyhow::Result<()> {
        let request = json!({
            "name": "bench", "firmware_id": self.firmware, "deployment_strategy": "staged",
            "target_devices": named(), "requires_approval": true,
        });
        for _ in 0..count {
            let path = "/api/v1/ota/campaigns";
            let made = self.post(CREATED.0, CREATED.1, path, Some(&request))?;
            self.campaign = format!("{path}/{}", text(&made, "campaign_id")?);
            self.act("campaign approved (E2-US6)", 100, "approve")?;
            self.act("campaign started (E2-US2)", 200, "start")?;
            let path = self.campaign.clone();
            self.get("campaign (E2-US3)", (95, 100), &path)?;
            let devices = format!("{path}/devices?limit=1");
            let found = self.call("devices of a campaign", (95, 100), "GET", &devices, "")?;
            let update = found.pointer("/devices/0").context("no update")?;
            let update = format!("/api/v1/ota/updates/{}", text(update, "update_id")?);
            let kind = "progress of an update that waits (NFR-1)";
            self.get(kind, (95, 50), &update)?;
            self.act("campaign paused (E2-US4)", 100, "pause")?;
            self.act("campaign resumed (E2-US4)", 100, "resume")?;
            self.act("campaign cancelled (E2-US5)", 200, "cancel")?;
            let list = "/api/v1/ota/campaigns?limit=50";
            self.get("campaign list (FR-18)", (95, 200), list)?;
            let stats = path.replacen("/campaigns/", "/stats/campaigns/", 1);
            self.get("statistics of a campaign (E5-US2)", (95, 100), &stats)?;
        }
        Ok(())
    }

    /// Campaigns whose every device has completed, and is taken back.
    async fn campaigns_back(&mut self, count: usize, database: &Database) -> anyhow::Result<()> {
        let store = database.open().await?;
        let request = json!({
            "name": "bench back", "firmware_id": self.firmware, "deployment_strategy": "immediate",
            "target_devices": named(),
        });
        for _ in 0..count.max(1) {
            let path = "/api/v1/ota/campaigns";
            let made = self.post(CREATED.0, CREATED.1, path, Some(&request))?;
            self.campaign = format!("{path}/{}", text(&made, "campaign_id")?);
            self.act("campaign started (E2-US2)", 200, "start")?;
            complete(store.as_ref(), &text(&made, "campaign_id")?.parse()?).await?;
            self.act("campaign rolled back (E4-US3)", 500, "rollback")?;
            self.act("campaign cancelled (E2-US5)", 200, "cancel")?;
        }
        Ok(())
    }

    /// Images that come in and are taken out of use.
    fn images(&mut self, service: &Service, count: usize) -> anyhow::Result<()> {
        let admin = Admin {
            addr: service.http,
            key: &service.key,
        };
        for n in 0..count.max(1) {
            let (began, version) = (Instant::now(), format!("9.{n}.0"));
            let firmware = upload_of(&admin, &version, UPLOADED)?;
            self.note(
                "image of 8 MiB uploaded (E1-US1)",
                (95, 30_000),
                began.elapsed(),
            );
            let path = format!("/api/v1/ota/firmware/{firmware}");
            self.call("firmware deleted (E1-US5)", (95, 100), "DELETE", &path, "")?;
        }
        Ok(())
    }

    fn act(&mut self, kind: &'static str, allowed: u64, action: &str) -> anyhow::Result<()> {
        let path = format!("{}/{action}", self.campaign);
        self.post(kind, allowed, &path, None).map(drop)
    }

    fn get(&mut self, kind: &'static str, allowed: (u8, u64), path: &str) -> anyhow::Result<()> {
        self.call(kind, allowed, "GET", path, "").map(drop)
    }

    fn post(
        &mut self,
        kind: &'static str,
        allowed: u64,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        self.call(kind, (95, allowed), "POST", path, &body)
    }

    /// Sends one request, waits for the whole answer, and notes the time between.
    fn call(
        &mut self,
        kind: &'static str,
        (percentile, millis): (u8, u64),
        method: &str,
        path: &str,
        body: &str,
    ) -> anyhow::Result<Value> {
        let key = if path.ends_with("/approve") {
            &self.approver
        } else {
            &self.author
        };
        let content = if body.is_empty() {
            ""
        } else {
            "Content-Type: application/json\r\n"
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: bench\r\nX-API-Key: {key}\r\n{content}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let began = Instant::now();
        self.stream.write_all(request.as_bytes())?;
        let answer = read_answer(&mut self.stream).with_context(|| format!("{method} {path}"))?;
        self.note(kind, (percentile, millis), began.elapsed());
        Ok(answer)
    }

    /// Notes the time that a request of this kind took.
    fn note(&mut self, kind: &'static str, (percentile, millis): (u8, u64), took: Duration) {
        match self.kinds.iter_mut().find(|known| known.name == kind) {
            Some(known) => known.took.push(took),
            None => self.kinds.push(Kind {
                name: kind,
                allowed: (percentile, Duration::from_millis(millis)),
                took: vec![took],
            }),
        }
    }

    fn print(&mut self) {
        for kind in &mut self.kinds {
            kind.took.sort_unstable();
            println!(
                "  {:<40} p50 {:>7.2}  p95 {:>7.2}  p99 {:>7.2}  ms ({} requests)",
                kind.name,
                kind.percentile(50),
                kind.percentile(95),
                kind.percentile(99),
                kind.took.len()
            );
        }
        for kind in &self.kinds {
            let (percentile, bound) = kind.allowed;
            let what = format!("{}, p{percentile}", kind.name);
            let seen = kind.percentile(percentile.into());
            verdict(&what, seen, "ms", Wanted::AtMost(bound.as_secs_f64() * 1e3));
        }
    }
}

fn upload(admin: &Admin<'_>, version: &str) -> anyhow::Result<String> {
    upload_of(admin, version, 64 * 1_024)
}

fn upload_of(admin: &Admin<'_>, version: &str, size: u64) -> anyhow::Result<String> {
    let piece = vec![0x77; 4_096];
    let image = Image {
        name: "Other",
        version,
        model: MODEL,
        size,
        piece: &piece,
    };
    text(&admin.upload(&image)?, "firmware_id")
}

fn text(value: &Value, name: &str) -> anyhow::Result<String> {
    let field = value.get(name).and_then(Value::as_str);
    Ok(field
        .with_context(|| format!("no {name} in {value}"))?
        .to_owned())
}

fn read_answer(stream: &mut TcpStream) -> anyhow::Result<Value> {
    let (mut answer, mut piece) = (Vec::new(), [0; 16 * 1_024]);
    loop {
        let count = stream.read(&mut piece)?;
        anyhow::ensure!(count > 0, "the server closed the connection");
        answer.extend_from_slice(piece.get(..count).unwrap_or_default());
        if answer_length(&answer).is_some_and(|length| answer.len() >= length) {
            break;
        }
    }
    let body = head_length(&answer).and_then(|at| answer.get(at..));
    anyhow::ensure!(
        answer.starts_with(b"HTTP/1.1 2"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    Ok(serde_json::from_slice(body.unwrap_or_default())?)
}

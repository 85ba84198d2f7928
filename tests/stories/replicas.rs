//! Several replicas on one PostgreSQL, each with its own gateway: they share a fleet, and one makes up for another.

use std::time::Duration;

use device_ota_objects::testing::S3Server;
use device_sim::fleet::Verdict;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::bus::Subscriber;
use crate::fleet::{arguments_at, image_file, run};
use crate::harness::{
    Admin, Balancer, Device, Event, Link, MqttVersion, Options, Service, Trust, device_json,
    eventually, within,
};
use crate::webhooks::{Receiver, campaign, hook};

matrix!(a_rollout_over_both_gateways_survives_the_kill_of_one: postgres_gateway);
matrix!(a_rolling_restart_loses_nothing: postgres_gateway);
matrix!(what_is_done_through_one_reaches_devices_at_the_other: postgres_gateway);
matrix!(a_device_that_changes_its_gateway_is_taken_over: postgres_gateway);
matrix!(a_replica_that_stood_still_finds_out_and_goes_on: postgres_gateway);
matrix!(who_does_not_fit_is_refused: postgres_gateway);
matrix!(events_are_on_each_bus_and_go_to_a_webhook_once: postgres_gateway);
matrix!(a_link_of_one_is_taken_by_the_other: postgres_gateway);
matrix!(replicas_that_claim_a_bucket_at_once_share_it: postgres_gateway);

const FLEET: usize = 40;
/// Well below the time after which what was not answered is said again by itself.
const SOON: Duration = Duration::from_secs(15);

/// Two replicas, the bucket that they share, and balancers before both.
struct Pair {
    one: Service,
    two: Service,
    http: Balancer,
    mqtt: Balancer,
    server: S3Server,
}

/// With images in a bucket.
fn on(server: &S3Server, options: Options) -> Options {
    let settings = server.settings();
    options
        .with("STORAGE_TYPE", "s3")
        .with("STORAGE_S3_ENDPOINT", settings.endpoint)
        .with("STORAGE_S3_BUCKET", settings.bucket)
        .with("STORAGE_S3_ACCESS_KEY", settings.access_key)
        .with("STORAGE_S3_SECRET_KEY", settings.secret_key)
}

async fn pair(options: Options) -> Pair {
    let (server, http, mqtt) = (
        S3Server::start().await,
        Balancer::start().await,
        Balancer::start().await,
    );
    let options = on(&server, options).with("PUBLIC_URL", format!("http://{}", http.address()));
    let one = Service::start(options.clone()).await;
    let two = one.beside(options).await;
    http.leads_to(&[one.ready().http.clone(), two.ready().http.clone()]);
    mqtt.leads_to(&[one.mqtt(), two.mqtt()]);
    Pair {
        one,
        two,
        http,
        mqtt,
        server,
    }
}

impl Pair {
    /// The same administrator at both: a key of the database.
    async fn admin(&self) -> (String, Admin) {
        let asked = json!({ "name": "fleet", "roles": ["admin"] });
        let made = self.one.admin().post("/api/v1/ota/keys", asked).await;
        let key = made.expect(201)["secret"].as_str().unwrap().to_owned();
        let admin = Admin::new(&self.http.address(), &key);
        (key, admin)
    }

    /// Begins a rollout of a simulated fleet that goes over both.
    async fn rollout(
        &self,
    ) -> (
        tokio::task::JoinHandle<device_sim::fleet::Summary>,
        Admin,
        String,
    ) {
        let (key, admin) = self.admin().await;
        let file = image_file(self.one.scratch(), "2.0.0");
        let more = ["--rollout", file.to_str().unwrap(), "--to-version", "2.0.0"];
        let pace = ["--seed", "5", "--speed", "200000", "--connect-rate", "100"];
        let more = [more.as_slice(), pace.as_slice()].concat();
        let at = (admin.url(""), self.mqtt.address(), key);
        let fleet = tokio::spawn(run(arguments_at(at, FLEET, &more)));
        let campaign = started(&admin).await;
        (fleet, admin, campaign)
    }
}

/// Neither knows which bucket it is, and both ask while it is far away: one claims it, and the other is content with that.
async fn replicas_that_claim_a_bucket_at_once_share_it(options: Options) {
    let mut pair = pair(options).await;
    pair.one.stop().await;
    pair.two.stop().await;
    let forgotten = "DELETE FROM shared_keys WHERE name = 'bucket'";
    pair.one.tamper(forgotten).await.unwrap();
    pair.server.is_far(Duration::from_millis(500));
    tokio::join!(pair.one.start_again(), pair.two.start_again());
    pair.server.is_far(Duration::ZERO);
    for replica in [&pair.one, &pair.two] {
        replica.admin().is_ready(true).await;
    }
}

/// The campaign that the fleet has started.
async fn started(admin: &Admin) -> String {
    eventually("the fleet has started its campaign", async || {
        let list = admin.get("/api/v1/ota/campaigns").await.expect(200);
        match list["campaigns"][0]["campaign_id"].as_str() {
            Some(id) if list["campaigns"][0]["status"] == "in_progress" => Ok(id.to_owned()),
            _ => Err(list.to_string()),
        }
    })
    .await
}

/// Waits until so many devices have completed.
async fn completed(admin: &Admin, campaign: &str, many: u64) {
    let seen = |campaign: &Value| campaign["completed_devices"].as_u64() >= Some(many);
    admin.campaign_becomes(campaign, "on its way", seen).await;
}

/// How many updates a replica has given out.
async fn claimed(service: &Service) -> u64 {
    let health = service.admin().health().await;
    health["counters"]["updates_claimed"]["update"]
        .as_u64()
        .unwrap_or_default()
}

/// Everybody is on the new version, and the rows say so.
async fn all_well(
    fleet: tokio::task::JoinHandle<device_sim::fleet::Summary>,
    admin: &Admin,
    campaign: &str,
) {
    let summary = fleet.await.unwrap();
    assert_eq!(summary.violations, 0, "{summary:#?}");
    assert_eq!(summary.verdict, Verdict::Good, "{summary:#?}");
    assert_eq!(summary.by_version.get("2.0.0"), Some(&FLEET));
    let campaign = admin.campaign(campaign).await;
    assert_eq!(campaign["status"], "completed");
    assert_eq!(campaign["completed_devices"], FLEET, "{campaign:#}");
}

/// Waits until health tells of so many replicas, and of this one whether it leads; answers the number of the one that does.
async fn counted(service: &Service, live: u64, leads: bool) -> u64 {
    eventually("health tells of the replicas", async || {
        let replicas = service.admin().health().await["replicas"].clone();
        let is_so = replicas["live"] == live && (replicas["this"] == replicas["leader"]) == leads;
        let leader = replicas["leader"].as_u64().filter(|_| is_so);
        leader.ok_or(replicas.to_string())
    })
    .await
}

/// A figure of this one.
async fn figure(service: &Service, name: &str) -> String {
    let text = service.admin().figures().await;
    let line = text.lines().find(|line| line.starts_with(name));
    line.unwrap_or_default().to_owned()
}

async fn a_rollout_over_both_gateways_survives_the_kill_of_one(options: Options) {
    let mut pair = pair(options.with("LEASE_SECONDS", "10")).await;
    let leader = counted(&pair.one, 2, true).await;
    assert_eq!(counted(&pair.two, 2, false).await, leader);
    let figures = ["device_ota_replicas ", "device_ota_replica_leads "];
    assert_eq!(figure(&pair.two, figures[0]).await, "device_ota_replicas 2");
    assert_eq!(
        figure(&pair.two, figures[1]).await,
        "device_ota_replica_leads 0"
    );
    let (fleet, admin, campaign) = pair.rollout().await;
    completed(&admin, &campaign, FLEET as u64 / 4).await;
    for service in [&pair.one, &pair.two] {
        assert!(
            claimed(service).await > 0,
            "each gives out updates of its own"
        );
    }
    pair.one.kill();
    all_well(fleet, &admin, &campaign).await;
    let left = pair
        .two
        .log()
        .find(|line| line.contains("its devices are offline").then_some(()));
    within("the other finds out that it is dead", left)
        .await
        .unwrap();
    assert_ne!(counted(&pair.two, 1, true).await, leader);
    assert_eq!(
        figure(&pair.two, figures[1]).await,
        "device_ota_replica_leads 1"
    );
}

async fn a_rolling_restart_loses_nothing(options: Options) {
    let mut pair = pair(options).await;
    let (fleet, admin, campaign) = pair.rollout().await;
    completed(&admin, &campaign, FLEET as u64 / 5).await;
    pair.one.stop().await;
    pair.one.start_again().await;
    completed(&admin, &campaign, FLEET as u64 / 2).await;
    pair.two.stop().await;
    pair.two.start_again().await;
    all_well(fleet, &admin, &campaign).await;
}

async fn what_is_done_through_one_reaches_devices_at_the_other(options: Options) {
    let pair = pair(options).await;
    let admin = pair.one.admin();
    let credentials = pair.one.register(device_json("frame-1")).await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let mut device = Device::connect(&pair.two, MqttVersion::V5, &credentials).await;
    device.check("2.0.0", "boot").await;
    let firmware = admin.image("2.1.0").await;
    let asked = json!({ "firmware_id": firmware });
    let made = admin
        .post("/api/v1/ota/devices/frame-1/update", asked)
        .await;
    let update = made.expect(201)["update_id"].as_str().unwrap().to_owned();
    let offer = tokio::time::timeout(SOON, device.offer(&trust)).await;
    let offer = offer.expect("an offer comes soon");
    assert_eq!(offer.text("update_id"), update);
    let accepted = offer.progress(1, "accepted", &json!({}));
    device.report("progress", &accepted).await;
    let path = format!("/api/v1/ota/updates/{update}/cancel");
    admin.post(&path, json!({})).await.expect(200);
    let command = tokio::time::timeout(SOON, device.message("down/command")).await;
    let command: Value = serde_json::from_slice(&command.expect("the cancel comes soon")).unwrap();
    let command = trust.open(&command, "command", "dispatch");
    assert_eq!(command["command"], "cancel");
    device
        .report("progress", &offer.progress(2, "cancelled", &json!({})))
        .await;
    admin.update_becomes(&update, "cancelled").await;
    // A secret that is replaced here ends the session there.
    let path = "/api/v1/ota/devices/frame-1/credentials";
    admin.post(path, json!({})).await.expect(201);
    closes(device.link()).await;
    let (id, old) = (&credentials.username, &credentials.password);
    eventually("the old secret opens nowhere", async || {
        let mut tried = Link::open(MqttVersion::V5, &pair.two.mqtt(), id, id, old);
        match tried.event().await {
            Event::Closed(_) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// The connection is ended by its other end.
async fn closes(link: &mut Link) {
    let over = async { while !matches!(link.event().await, Event::Closed(_)) {} };
    let over = tokio::time::timeout(SOON, over).await;
    over.expect("the session ends soon");
}

async fn a_device_that_changes_its_gateway_is_taken_over(options: Options) {
    let pair = pair(options).await;
    let admin = pair.one.admin();
    let credentials = pair.one.register(device_json("frame-1")).await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let mut before = Device::connect(&pair.one, MqttVersion::V311, &credentials).await;
    before.check("2.0.0", "boot").await;
    let mut device = Device::connect(&pair.two, MqttVersion::V311, &credentials).await;
    closes(before.link()).await;
    // Its good-bye there is none of the session here.
    device.check("2.0.0", "boot").await;
    let firmware = admin.image("2.1.0").await;
    let spec = json!({ "name": "n", "firmware_id": firmware, "deployment_strategy": "immediate" });
    let campaign = admin.start_campaign(spec).await;
    let offer = device.offer(&trust).await;
    device.complete(&offer).await;
    let done = |campaign: &Value| campaign["status"] == "completed";
    admin.campaign_becomes(&campaign, "completed", done).await;
    assert_eq!((claimed(&pair.one).await, claimed(&pair.two).await), (0, 1));
}

async fn a_replica_that_stood_still_finds_out_and_goes_on(options: Options) {
    let pair = pair(options).await;
    let admin = pair.two.admin();
    let (stays, moves) = (
        pair.one.register(device_json("frame-1")).await,
        pair.one.register(device_json("frame-2")).await,
    );
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let mut first = Device::connect(&pair.one, MqttVersion::V5, &stays).await;
    first.check("2.0.0", "boot").await;
    let mut second = Device::connect(&pair.one, MqttVersion::V5, &moves).await;
    second.check("2.0.0", "boot").await;
    pair.one.signal(Signal::SIGSTOP);
    let ended = pair
        .two
        .log()
        .find(|line| line.contains("its devices are offline").then_some(()));
    within("it is taken for dead", ended).await.unwrap();
    // What is said to it now is not true any more when it hears it.
    let topic = second.topic("up/check");
    let late = json!({ "version": "2.0.0", "nonce": "late", "reason": "boot" });
    second.link().publish(&topic, late.to_string());
    let firmware = admin.image("2.1.0").await;
    let spec = json!({ "name": "n", "firmware_id": firmware, "deployment_strategy": "immediate" });
    let campaign = admin.start_campaign(spec).await;
    let mut elsewhere = Device::connect(&pair.two, MqttVersion::V5, &moves).await;
    elsewhere.check("2.0.0", "reconnect").await;
    let offer = elsewhere.offer(&trust).await;
    elsewhere.complete(&offer).await;
    elsewhere.check("2.1.0", "boot").await;
    pair.one.signal(Signal::SIGCONT);
    let found_out = pair
        .one
        .log()
        .find(|line| line.contains("was taken for dead").then_some(()));
    within("it finds out", found_out).await.unwrap();
    closes(second.link()).await;
    // Whoever stayed is there as before.
    let offer = first.offer(&trust).await;
    first.complete(&offer).await;
    let done = |campaign: &Value| campaign["status"] == "completed";
    let campaign = admin.campaign_becomes(&campaign, "completed", done).await;
    assert_eq!(campaign["completed_devices"], 2, "{campaign:#}");
    let shown = admin.get("/api/v1/ota/devices/frame-2").await.expect(200);
    assert_eq!(shown["firmware_version"], "2.1.0", "{shown:#}");
    assert_eq!(shown["online"], true, "{shown:#}");
}

/// What a start beside a service says in the end.
async fn refusal(service: &Service, storage: &str, with_keys: bool) -> String {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    if with_keys {
        service.give_keys(&data);
    }
    let mut command = service.command(&data);
    for name in ["HTTP_ADDR", "MQTT_ADDR", "MQTT_BUS_ADDR"] {
        command.env(format!("DEVICE_OTA_{name}"), "127.0.0.1:0");
    }
    command.env("DEVICE_OTA_STORAGE_TYPE", storage);
    if storage == "local" {
        for name in ["ENDPOINT", "BUCKET", "ACCESS_KEY", "SECRET_KEY"] {
            command.env_remove(format!("DEVICE_OTA_STORAGE_S3_{name}"));
        }
    }
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap()).await;
    let ended = ended.unwrap();
    assert!(!ended.status.success());
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

async fn who_does_not_fit_is_refused(options: Options) {
    let server = S3Server::start().await;
    let service = Service::start(on(&server, options)).await;
    // A folder of its own with keys of its own, made while nobody has a device yet.
    let said = refusal(&service, "s3", false).await;
    assert!(said.contains("believe another trust root"), "{said}");
    let said = refusal(&service, "local", true).await;
    assert!(said.contains("STORAGE_TYPE=s3"), "{said}");
    // The one that was there has noticed nothing.
    service.register(device_json("frame-1")).await;
}

async fn a_link_of_one_is_taken_by_the_other(options: Options) {
    let pair = pair(options).await;
    let admin = pair.one.admin();
    let firmware = admin.image("2.1.0").await;
    let path = format!("/api/v1/ota/firmware/{firmware}/download");
    let granted = admin.get(&path).await.expect(200);
    let url = granted["url"].as_str().unwrap();
    let balanced = format!("http://{}", pair.http.address());
    let link = url
        .strip_prefix(&balanced)
        .expect("links lead to the balancer");
    for service in [&pair.one, &pair.two] {
        let url = service.admin().url(link);
        let answer = admin.client().get(url).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.bytes().await.unwrap().len(), 200_000);
    }
}

async fn events_are_on_each_bus_and_go_to_a_webhook_once(options: Options) {
    let mut pair = pair(options.with("WEBHOOK_ALLOW_PRIVATE", "true")).await;
    let admin = pair.two.admin();
    let firmware = admin.image("2.1.0").await;
    let mut buses = [
        Subscriber::start(&pair.one, "ota/v1/events/campaign/#").await,
        Subscriber::start(&pair.two, "ota/v1/events/campaign/#").await,
    ];
    let mut receiver = Receiver::start(200, "").await;
    let (path, _) = hook(&admin, &receiver.url(), &["campaign.*"]).await;
    campaign(&admin, &firmware, "first").await;
    for bus in &mut buses {
        assert_eq!(bus.event().await.1["data"]["name"], "first");
    }
    assert_eq!(receiver.next().await.event()["data"]["name"], "first");
    // Who ends before it has written that down sends it again, by the other one.
    eventually("it is written down that it came", async || {
        let webhook = admin.get(&path).await.expect(200);
        let came = webhook["last_delivered_at"].is_string();
        came.then_some(()).ok_or(webhook.to_string())
    })
    .await;
    // The one that has served it ends, and the other goes on where it was.
    pair.one.stop().await;
    campaign(&admin, &firmware, "second").await;
    assert_eq!(receiver.next().await.event()["data"]["name"], "second");
}

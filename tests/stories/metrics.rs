//! Figures for Prometheus: in its text format to the letter, right, for viewers alone, and without a name of anybody.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::harness::{Device, MqttVersion, Options, Service, Trust, device_json, eventually};

matrix!(figures_follow_what_happens: sqlite_gateway, postgres_gateway);
matrix!(whoever_takes_no_events_is_seen: sqlite_gateway, postgres_gateway);
matrix!(figures_are_for_viewers: sqlite_gateway);

/// A scrape, read as the format's description says.
struct Scrape {
    kinds: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    /// Reads it, and checks what a scraper would trip over.
    fn of(text: &str) -> Self {
        assert!(text.ends_with('\n'));
        let mut scrape = Self {
            kinds: BTreeMap::new(),
            samples: BTreeMap::new(),
        };
        let mut helped = BTreeSet::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(help.len() > 10, "{line}");
                assert!(helped.insert(name.to_owned()), "{name} is described twice");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert!(helped.contains(name), "{name} has a type before its help");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                scrape.kinds.insert(name.to_owned(), kind.to_owned());
            } else {
                scrape.sample(line);
            }
        }
        scrape.check_histograms();
        scrape
    }

    fn sample(&mut self, line: &str) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        let name = series.split('{').next().unwrap();
        let of_family = ["", "_bucket", "_sum", "_count"].iter().any(|suffix| {
            name.strip_suffix(suffix)
                .is_some_and(|family| self.kinds.contains_key(family))
        });
        assert!(of_family, "no type for {line}");
        let known = self.samples.insert(series.to_owned(), value);
        assert!(known.is_none(), "twice: {series}");
    }

    /// Buckets rise, and the last one holds all.
    fn check_histograms(&self) {
        let mut counts: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for (series, value) in &self.samples {
            let Some((name, labels)) = series.split_once("_bucket{") else {
                continue;
            };
            let labels = labels.strip_suffix('}').unwrap();
            let (le, others): (Vec<&str>, Vec<&str>) = labels
                .split(',')
                .partition(|label| label.starts_with("le="));
            let bound = le[0].trim_start_matches("le=").trim_matches('"');
            let bound: f64 = bound.replace("+Inf", "inf").parse().unwrap();
            let count = match others.join(",").as_str() {
                "" => format!("{name}_count"),
                others => format!("{name}_count{{{others}}}"),
            };
            counts.entry(count).or_default().push((bound, *value));
        }
        assert!(!counts.is_empty());
        for (count, mut buckets) in counts {
            buckets.sort_by(|a, b| a.partial_cmp(b).unwrap());
            assert!(
                buckets.is_sorted_by(|a, b| a.1 <= b.1),
                "{count}: {buckets:?}"
            );
            let last = buckets.last().unwrap();
            assert_eq!((last.0, last.1), (f64::INFINITY, self.samples[&count]));
        }
    }

    /// A figure that counts something.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "what is counted here is small and whole"
    )]
    fn value(&self, series: &str) -> u64 {
        let name = format!("device_ota_{series}");
        self.samples.get(&name).map_or(0, |value| *value as u64)
    }
}

async fn scrape(service: &Service) -> (String, Scrape) {
    let text = service.admin().figures().await;
    let scrape = Scrape::of(&text);
    (text, scrape)
}

async fn figures_follow_what_happens(options: Options) {
    let service = Service::start(options).await;
    let admin = service.admin();
    let credentials = service.register(device_json("frame-1")).await;
    service.register(device_json("frame-2")).await;
    let trust = Trust::from_root(&admin.get("/api/v1/ota/trust/root").await.expect(200));
    let firmware = admin.image("2.1.0").await;
    let campaign = admin
        .start_campaign(
            json!({ "name": "c", "firmware_id": firmware, "deployment_strategy": "immediate" }),
        )
        .await;
    let mut device = Device::connect(&service, MqttVersion::V5, &credentials).await;
    device.check("2.0.0", "boot").await;
    let offer = device.offer(&trust).await;
    device.complete(&offer).await;
    admin.get("/api/v1/ota/nothing").await.refused(404);

    // What the database says is some seconds old at times.
    let (text, figures) = eventually("the figures tell of it", async || {
        let (text, figures) = scrape(&service).await;
        let updates = figures.value("campaign_updates{action=\"update\",state=\"completed\"}");
        let waiting = figures.value("events_waiting{receiver=\"bus\"}");
        let ended = figures.value("update_seconds_count{action=\"update\",status=\"completed\"}");
        let told = figures.value("event_delivery_seconds_count{receiver=\"bus\"}");
        if (updates, waiting, ended) == (1, 0, 1) && told > 0 {
            Ok((text, figures))
        } else {
            Err(text)
        }
    })
    .await;
    for (series, value) in [
        ("database_up", 1),
        ("campaigns{status=\"in_progress\"}", 1),
        ("campaign_updates{action=\"update\",state=\"pending\"}", 1),
        ("updates{action=\"update\",state=\"pending\"}", 1),
        ("updates{action=\"update\",state=\"completed\"}", 1),
        ("mqtt_sessions", 1),
        ("updates_claimed_total{action=\"update\"}", 1),
        ("upload_bytes_count", 1),
        ("upload_bytes_sum", 200_000),
        ("http_requests_total{class=\"upload\",status=\"2xx\"}", 1),
        ("ingest_waiting_messages", 0),
        ("event_streams", 0),
        ("devices_heard", 1),
    ] {
        assert_eq!(figures.value(series), value, "{series}\n{text}");
    }
    // What there is nothing of is there, too.
    for nothing in [
        "campaigns{status=\"paused\"}",
        "campaign_updates{action=\"rollback\",state=\"failed\"}",
        "updates{action=\"rollback\",state=\"failed\"}",
        "events_waiting{receiver=\"webhook\"}",
        "webhooks{status=\"disabled\"}",
    ] {
        let series = format!("device_ota_{nothing}");
        assert_eq!(
            figures.samples.get(&series),
            Some(&0.0),
            "{nothing}\n{text}"
        );
    }
    for at_least_one in [
        "ingest_commit_seconds_count",
        "ingest_batch_messages_count",
        "event_delivery_seconds_count{receiver=\"bus\"}",
        "http_request_seconds_count{class=\"write\"}",
        "http_requests_total{class=\"read\",status=\"4xx\"}",
        "downlink_queued_total{kind=\"offer\"}",
        "events_kept",
    ] {
        assert!(figures.value(at_least_one) >= 1, "{at_least_one}\n{text}");
    }
    let pools = ["writer", "readers", "all"].map(|pool| {
        let states = ["idle", "in_use"];
        let state = |state| {
            figures.value(&format!(
                "database_connections{{pool=\"{pool}\",state=\"{state}\"}}"
            ))
        };
        states.map(state).iter().sum::<u64>()
    });
    assert!(
        matches!(pools, [1, readers, 0] if readers > 0) || matches!(pools, [0, 0, all] if all > 0),
        "{pools:?}\n{text}"
    );
    for name in ["frame-1", campaign.as_str(), firmware.as_str(), "admin"] {
        assert!(!text.contains(name), "{name} is nobody's business");
    }
    device.leave().await;
    eventually("nobody is connected", async || {
        match scrape(&service).await.1.value("mqtt_sessions") {
            0 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
}

async fn figures_are_for_viewers(options: Options) {
    let service = Service::start(options.with("INTERNAL_ADDR", "127.0.0.1:0")).await;
    let admin = service.admin();
    let request = admin.client().get(admin.url("/metrics"));
    assert_eq!(request.send().await.unwrap().status(), 401);
    let internal = service.ready().internal.clone().unwrap();
    let request = admin.client().get(format!("http://{internal}/metrics"));
    let answer = request
        .header("X-Internal-Call", "true")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    Scrape::of(&answer.text().await.unwrap());
    admin.get("/metrics?all=1").await.refused(400);
}

async fn whoever_takes_no_events_is_seen(options: Options) {
    let service = Service::start(options.with("WEBHOOK_ALLOW_PRIVATE", "true")).await;
    let admin = service.admin();
    // A port that was free a moment ago: nobody is there.
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let url = format!("http://127.0.0.1:{port}/");
    admin
        .post("/api/v1/ota/webhooks", json!({ "url": url }))
        .await
        .expect(201);
    for version in ["2.1.0", "2.2.0", "2.3.0"] {
        admin.image(version).await;
    }
    eventually("the webhook is behind, and the bus is not", async || {
        let (text, figures) = scrape(&service).await;
        let waiting = ["webhook", "bus"]
            .map(|name| figures.value(&format!("events_waiting{{receiver=\"{name}\"}}")));
        let webhooks = figures.value("webhooks{status=\"active\"}");
        if (waiting, webhooks) == ([3, 0], 1) {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
}

//! The service's HTTP interface as an administrator uses it: registers the fleet, reads the trust
//! root, rolls an image out, and reads back what became of it.

use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use device_ota_protocol::dsse::Envelope;
use reqwest::multipart::Part;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// Most devices a registration takes.
const MAX_REGISTRATIONS: usize = 1_000;
/// Devices of one page of a list.
const PAGE: usize = 200;
/// How long the service may be away (it may be restarting) or busy before a request fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause before a request is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The service cannot be reached, or talks nonsense.
    #[error("{what} failed")]
    Http {
        /// What was asked for.
        what: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The service says no.
    #[error("{what} was answered with {status}: {detail}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The answer's status.
        status: StatusCode,
        /// The answer's own words.
        detail: String,
    },
    /// The image to upload cannot be read.
    #[error("cannot read the image")]
    Image(#[source] std::io::Error),
}

/// A connection to the service with an administrator's key.
#[derive(Debug, Clone)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    key: String,
}

/// A device to register.
#[derive(Debug, Clone, Serialize)]
pub struct NewDevice {
    /// Its name.
    pub device_id: String,
    /// What kind of thing it is.
    pub device_type: String,
    /// Its model.
    pub device_model: String,
    /// Its maker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    /// Its hardware revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hw_revision: Option<String>,
    /// What it runs.
    pub firmware_version: String,
    /// Groups it is in.
    pub groups: Vec<String>,
}

/// What became of a registration.
#[derive(Debug, Clone, Deserialize)]
pub struct Registered {
    /// The device.
    pub device_id: Option<String>,
    /// `created`, `exists` or `error`.
    pub status: String,
    /// Its credentials, if it was created.
    pub mqtt: Option<Credentials>,
    /// Why not.
    pub error: Option<String>,
}

/// How a device signs in to MQTT.
#[derive(Clone, Deserialize)]
pub struct Credentials {
    /// The secret.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// A campaign's state and counters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Campaign {
    /// Its name in the service.
    pub campaign_id: String,
    /// `in_progress`, `completed`, `rolled_back` …
    pub status: String,
    /// Devices in all.
    #[serde(default)]
    pub total_devices: u64,
    /// Those that wait.
    #[serde(default)]
    pub pending_devices: u64,
    /// Those that are being updated.
    #[serde(default)]
    pub in_progress_devices: u64,
    /// Those that were.
    #[serde(default)]
    pub completed_devices: u64,
    /// Those that could not be.
    #[serde(default)]
    pub failed_devices: u64,
    /// Those that were called off.
    #[serde(default)]
    pub cancelled_devices: u64,
    /// The image.
    #[serde(default)]
    pub firmware: Firmware,
}

/// An image in the service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firmware {
    /// Its name in the service.
    #[serde(default)]
    pub firmware_id: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
}

impl Campaign {
    /// Whether nothing will happen in it any more.
    pub fn has_ended(&self) -> bool {
        matches!(
            self.status.as_str(),
            "completed" | "rolled_back" | "cancelled" | "failed"
        )
    }
}

/// An update as the service knows it.
#[derive(Debug, Clone, Deserialize)]
pub struct Update {
    /// Its name.
    pub update_id: String,
    /// `scheduled`, a phase, `completed`, `failed` or `cancelled`.
    pub status: String,
    /// The latest attempt.
    #[serde(default)]
    pub attempt: u32,
    /// Why it failed.
    pub error_code: Option<String>,
}

impl Update {
    /// Whether nothing will happen in it any more.
    pub fn has_ended(&self) -> bool {
        matches!(
            self.status.as_str(),
            "completed" | "failed" | "cancelled" | "rejected" | "rolled_back"
        )
    }
}

/// How a rollout divides its fleet, by the API's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Strategy {
    /// All at once.
    Immediate,
    /// Ring by ring.
    #[default]
    Staged,
    /// Ring by ring; by another name.
    Canary,
    /// Everybody holds the image, then all flip.
    BlueGreen,
}

/// An image to roll out, and how.
#[derive(Debug, Clone)]
pub struct Rollout {
    /// The image's bytes; the name's suffix says their format.
    pub image: std::path::PathBuf,
    /// Its version.
    pub version: String,
    /// The image to go back to and its version, if the service is to know it.
    pub base: Option<(std::path::PathBuf, String)>,
    /// The model it runs on.
    pub device_model: String,
    /// Who makes the model.
    pub manufacturer: String,
    /// Groups of devices that are to have it.
    pub groups: Vec<String>,
    /// How the fleet is divided.
    pub strategy: Strategy,
    /// Share of failures, in percent, above which everything is rolled back.
    pub failure_threshold_percent: f64,
    /// Most updates at a time.
    pub max_concurrent_updates: usize,
    /// What a device must have for it: charge in percent, and free storage in bytes.
    pub requires: (Option<u8>, Option<u64>),
}

#[derive(Deserialize)]
struct Registrations {
    devices: Vec<Registered>,
}

#[derive(Deserialize)]
struct Renewed {
    mqtt: Credentials,
}

/// A device as the service knows it.
#[derive(Debug, Clone, Deserialize)]
pub struct KnownDevice {
    /// Its name.
    pub device_id: String,
    /// What it runs.
    pub firmware_version: Option<String>,
}

#[derive(Deserialize)]
struct Devices {
    devices: Vec<KnownDevice>,
}

#[derive(Deserialize)]
struct Updates {
    updates: Vec<Update>,
}

impl Api {
    /// An interface to the service at `base`, such as `http://127.0.0.1:8216`.
    pub fn new(http: reqwest::Client, base: &str, key: &str) -> Self {
        Self {
            http,
            base: base.trim_end_matches('/').to_owned(),
            key: key.to_owned(),
        }
    }

    /// The envelope that devices are born with.
    pub async fn trust_root(&self) -> Result<Envelope, Error> {
        self.get("/api/v1/ota/trust/root").await
    }

    /// Registers devices, in as many requests as it takes, and answers in their order.
    pub async fn register(&self, devices: &[NewDevice]) -> Result<Vec<Registered>, Error> {
        let mut all = Vec::with_capacity(devices.len());
        for some in devices.chunks(MAX_REGISTRATIONS) {
            let body = json!({ "devices": some });
            let answer: Registrations = self.post("/api/v1/ota/devices", Some(&body)).await?;
            all.extend(answer.devices);
        }
        Ok(all)
    }

    /// A new secret for a device that is registered already.
    pub async fn new_credentials(&self, device_id: &str) -> Result<Credentials, Error> {
        let path = format!("/api/v1/ota/devices/{device_id}/credentials");
        let renewed: Renewed = self.post(&path, None).await?;
        Ok(renewed.mqtt)
    }

    /// A campaign's state.
    pub async fn campaign(&self, id: &str) -> Result<Campaign, Error> {
        self.get(&format!("/api/v1/ota/campaigns/{id}")).await
    }

    /// The devices of a group, in as many requests as it takes.
    pub async fn devices_of(&self, group: &str) -> Result<Vec<KnownDevice>, Error> {
        let mut all = Vec::new();
        loop {
            let query = form_urlencoded::Serializer::new(String::new())
                .append_pair("group", group)
                .append_pair("limit", &PAGE.to_string())
                .append_pair("offset", &all.len().to_string())
                .finish();
            let page: Devices = self.get(&format!("/api/v1/ota/devices?{query}")).await?;
            let is_last = page.devices.len() < PAGE;
            all.extend(page.devices);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// What became of a device's updates, newest first.
    pub async fn updates_of(&self, device_id: &str) -> Result<Vec<Update>, Error> {
        let path = format!("/api/v1/ota/devices/{device_id}/updates");
        let updates: Updates = self.get(&path).await?;
        Ok(updates.updates)
    }

    /// Uploads an image, makes a campaign of it and starts it.
    pub async fn roll_out(&self, rollout: &Rollout) -> Result<Campaign, Error> {
        let file = async |path: &Path| Part::file(path).await.map_err(Error::Image);
        if let Some((image, version)) = &rollout.base {
            let metadata = metadata(&rollout.device_model, &rollout.manufacturer, version);
            self.upload(&metadata, file(image).await?).await?;
        }
        let metadata = metadata(
            &rollout.device_model,
            &rollout.manufacturer,
            &rollout.version,
        );
        let firmware = self.upload(&metadata, file(&rollout.image).await?).await?;
        let (battery, storage) = rollout.requires;
        let body = json!({
            "name": format!("device-sim {} {}", rollout.device_model, rollout.version),
            "firmware_id": firmware.firmware_id,
            "target_groups": rollout.groups,
            "deployment_strategy": rollout.strategy,
            "auto_rollback": true,
            "failure_threshold_percent": rollout.failure_threshold_percent,
            "max_concurrent_updates": rollout.max_concurrent_updates,
            "batch_size": rollout.max_concurrent_updates,
            "requires": {"min_battery_percent": battery, "min_free_storage_bytes": storage},
        });
        let id = self.create_campaign(&body).await?;
        self.act(&id, "start").await?;
        self.campaign(&id).await
    }

    /// Makes a campaign of the fields that the API documents, and answers its name in the service.
    pub async fn create_campaign(&self, fields: &Value) -> Result<String, Error> {
        let created: Campaign = self.post("/api/v1/ota/campaigns", Some(fields)).await?;
        Ok(created.campaign_id)
    }

    /// Starts, advances, pauses, resumes, cancels or rolls back a campaign: `act` is the path's last word.
    pub async fn act(&self, campaign: &str, act: &str) -> Result<(), Error> {
        let path = format!("/api/v1/ota/campaigns/{campaign}/{act}");
        let _: Value = self.post(&path, None).await?;
        Ok(())
    }

    /// A campaign with all that the service tells of it.
    pub async fn campaign_in_full(&self, id: &str) -> Result<Value, Error> {
        self.get(&format!("/api/v1/ota/campaigns/{id}")).await
    }

    /// Uploads an image; the same one again is found and not stored twice.
    pub async fn upload(&self, metadata: &Value, file: Part) -> Result<Firmware, Error> {
        let form = reqwest::multipart::Form::new()
            .text("metadata", metadata.to_string())
            .part("file", file);
        let request = self.request(Method::POST, "/api/v1/ota/firmware");
        // No time limit: it is a large body.
        answer("the upload", request.multipart(form)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.base);
        self.http
            .request(method, url)
            .header("X-API-Key", &self.key)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let what = format!("GET {path}");
        patiently(&what, || self.request(Method::GET, path)).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, Error> {
        let what = format!("POST {path}");
        patiently(&what, || {
            let request = self.request(Method::POST, path);
            match body {
                Some(body) => request.json(body),
                None => request,
            }
        })
        .await
    }
}

/// What is said of an image.
pub fn metadata(device_model: &str, manufacturer: &str, version: &str) -> Value {
    json!({
        "name": format!("device-sim {device_model}"),
        "version": version,
        "device_model": device_model,
        "manufacturer": manufacturer,
    })
}

/// Tries until the service answers with something else than "not now".
async fn patiently<T: DeserializeOwned>(
    what: &str,
    request: impl Fn() -> RequestBuilder,
) -> Result<T, Error> {
    let end = Instant::now() + PATIENCE;
    loop {
        let result = answer(what, request().timeout(ANSWER_TIMEOUT)).await;
        let passing = match &result {
            Ok(_) | Err(Error::Image(_)) => false,
            Err(Error::Http { source, .. }) => source.is_connect() || source.is_request(),
            Err(Error::Refused { status, .. }) => {
                matches!(
                    *status,
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
                )
            }
        };
        if !passing || Instant::now() >= end {
            return result;
        }
        sleep(PAUSE).await;
    }
}

async fn answer<T: DeserializeOwned>(what: &str, request: RequestBuilder) -> Result<T, Error> {
    let http = |source: reqwest::Error| Error::Http {
        what: what.to_owned(),
        source: source.without_url(),
    };
    let response = request.send().await.map_err(http)?;
    let status = response.status();
    if status.is_success() {
        return response.json().await.map_err(http);
    }
    let body = response.text().await.map_err(http)?;
    let detail = serde_json::from_str::<Value>(&body)
        .ok()
        .and_then(|json| json.get("detail")?.as_str().map(str::to_owned))
        .unwrap_or(body);
    Err(Error::Refused {
        what: what.to_owned(),
        status,
        detail,
    })
}

//! An administrator's HTTP client, in the forms of the requirement documents.

use std::path::Path;

use device_sim::trust::Trust;
use reqwest::multipart::{Form, Part};
use reqwest::{Client, ClientBuilder, RequestBuilder};
use serde_json::{Value, json};

use super::wait::{DEADLINE, eventually};

/// What the service answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    /// The body, when the status is the one that must be.
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "answered {:#}", self.body);
        self.body
    }

    /// The body of an error: its three fields, and the status that must be.
    pub fn refused(self, status: u16) -> Value {
        let body = self.expect(status);
        for field in ["detail", "code", "request_id"] {
            assert!(body[field].is_string(), "{field} is missing in {body:#}");
        }
        body
    }
}

/// What a device signs in with.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

/// A client with the admin key.
#[derive(Clone)]
pub struct Admin {
    client: Client,
    base: String,
    key: String,
}

impl Admin {
    pub fn new(address: &str, key: &str) -> Self {
        Self::build(Client::builder(), format!("http://{address}"), key)
    }

    /// Over TLS, believing the authority in this PEM file.
    pub fn trusting(ca: &Path, address: &str, key: &str) -> Self {
        let trust = Trust::read(Some(ca)).unwrap();
        Self::build(trust.http().unwrap(), format!("https://{address}"), key)
    }

    fn build(client: ClientBuilder, base: String, key: &str) -> Self {
        // Connections are not kept: the service is killed and started again on the same port.
        let builder = client
            .no_proxy()
            .pool_max_idle_per_host(0)
            .timeout(DEADLINE);
        Self {
            client: builder.build().unwrap(),
            base,
            key: key.to_owned(),
        }
    }

    /// The address of a path.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The client, for requests that no method here makes.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a request with the admin key.
    pub async fn send(&self, request: RequestBuilder) -> Answer {
        self.try_send(request).await.expect("the service answers")
    }

    async fn try_send(&self, request: RequestBuilder) -> Result<Answer, reqwest::Error> {
        let response = request.bearer_auth(&self.key).send().await?;
        let status = response.status().as_u16();
        let bytes = response.bytes().await?;
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(Answer { status, body })
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.client.get(self.url(path))).await
    }

    /// As `get`, while the service may be away.
    pub async fn try_get(&self, path: &str) -> Result<Answer, reqwest::Error> {
        self.try_send(self.client.get(self.url(path))).await
    }

    /// Waits until the service says that it is ready, or that it is not.
    pub async fn is_ready(&self, ready: bool) {
        let what = if ready {
            "it is ready"
        } else {
            "it is not ready"
        };
        eventually(what, async || {
            let answer = self.get("/health/ready").await;
            let is_so = answer.status == if ready { 200 } else { 503 };
            is_so.then_some(()).ok_or(answer.body.to_string())
        })
        .await;
    }

    /// What `/metrics` says.
    pub async fn figures(&self) -> String {
        let request = self.client.get(self.url("/metrics"));
        let answer = request.bearer_auth(&self.key).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(
            answer.headers()["content-type"],
            "text/plain; version=0.0.4; charset=utf-8"
        );
        answer.text().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(self.client.post(self.url(path)).json(&body))
            .await
    }

    /// As `post`, while the service may be away.
    pub async fn try_post(&self, path: &str, body: &Value) -> Result<Answer, reqwest::Error> {
        self.try_send(self.client.post(self.url(path)).json(body))
            .await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(self.client.put(self.url(path)).json(&body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.client.delete(self.url(path))).await
    }

    /// Registers devices, each of which must be new.
    pub async fn register(&self, devices: &[Value]) -> Vec<Credentials> {
        let answer = self
            .post("/api/v1/ota/devices", json!({ "devices": devices }))
            .await;
        let body = answer.expect(201);
        let entries = body["devices"].as_array().unwrap();
        entries.iter().map(credentials).collect()
    }

    /// Uploads an image as a form of two parts.
    pub async fn upload(&self, metadata: &Value, file_name: &str, bytes: Vec<u8>) -> Answer {
        let uploaded = self.try_upload(metadata, file_name, bytes).await;
        uploaded.expect("the service answers")
    }

    /// As `upload`, while the service may go away.
    pub async fn try_upload(
        &self,
        metadata: &Value,
        file_name: &str,
        bytes: Vec<u8>,
    ) -> Result<Answer, reqwest::Error> {
        let file = Part::bytes(bytes).file_name(file_name.to_owned());
        let form = Form::new()
            .text("metadata", metadata.to_string())
            .part("file", file);
        let url = self.url("/api/v1/ota/firmware");
        self.try_send(self.client.post(url).multipart(form)).await
    }

    /// Uploads an image that must be new, and returns its id.
    pub async fn image(&self, version: &str) -> String {
        let answer = self
            .upload(&image_metadata(version), "image.bin", image(version))
            .await;
        text(&answer.expect(201), "firmware_id")
    }

    /// Creates a campaign and returns its id.
    pub async fn create_campaign(&self, spec: Value) -> String {
        text(
            &self.post("/api/v1/ota/campaigns", spec).await.expect(201),
            "campaign_id",
        )
    }

    /// Creates and starts a campaign.
    pub async fn start_campaign(&self, spec: Value) -> String {
        let id = self.create_campaign(spec).await;
        self.act(&id, "start").await.expect(200);
        id
    }

    /// Starts, pauses, resumes or cancels a campaign.
    pub async fn act(&self, campaign: &str, action: &str) -> Answer {
        self.post(
            &format!("/api/v1/ota/campaigns/{campaign}/{action}"),
            json!({}),
        )
        .await
    }

    pub async fn campaign(&self, id: &str) -> Value {
        self.get(&format!("/api/v1/ota/campaigns/{id}"))
            .await
            .expect(200)
    }

    pub async fn update(&self, id: &str) -> Value {
        self.get(&format!("/api/v1/ota/updates/{id}"))
            .await
            .expect(200)
    }

    /// A device's updates, newest first.
    pub async fn updates_of(&self, device: &str) -> Vec<Value> {
        let body = self
            .get(&format!("/api/v1/ota/devices/{device}/updates"))
            .await
            .expect(200);
        body["updates"].as_array().unwrap().clone()
    }

    /// Every rollback of a campaign.
    pub async fn rollbacks_of(&self, campaign: &str) -> Vec<Value> {
        let body = self
            .get(&format!(
                "/api/v1/ota/campaigns/{campaign}/rollbacks?limit=200"
            ))
            .await
            .expect(200);
        body["rollbacks"].as_array().unwrap().clone()
    }

    pub async fn health(&self) -> Value {
        self.get("/health/detailed").await.expect(200)
    }

    /// Waits until a campaign looks as wanted; the service may be away meanwhile.
    pub async fn campaign_becomes(
        &self,
        id: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let path = format!("/api/v1/ota/campaigns/{id}");
        eventually(&format!("the campaign is {what}"), async || {
            let answer = self
                .try_get(&path)
                .await
                .map_err(|error| error.to_string())?;
            if answer.status == 200 && wanted(&answer.body) {
                Ok(answer.body)
            } else {
                Err(counters(&answer.body))
            }
        })
        .await
    }

    /// Waits until an update has a status.
    pub async fn update_becomes(&self, id: &str, status: &str) -> Value {
        eventually(&format!("update {id} is {status}"), async || {
            let update = self.update(id).await;
            if update["status"] == status {
                Ok(update)
            } else {
                Err(update.to_string())
            }
        })
        .await
    }
}

fn credentials(entry: &Value) -> Credentials {
    assert_eq!(entry["status"], "created", "{entry}");
    Credentials {
        username: text(&entry["mqtt"], "username"),
        password: text(&entry["mqtt"], "password"),
    }
}

fn text(body: &Value, field: &str) -> String {
    body[field]
        .as_str()
        .unwrap_or_else(|| panic!("{field} is missing in {body:#}"))
        .to_owned()
}

/// A campaign's numbers in one line.
fn counters(campaign: &Value) -> String {
    let names = [
        "status",
        "pending",
        "in_progress",
        "completed",
        "failed",
        "cancelled",
    ];
    let shown = names.map(|name| {
        let field = if name == "status" {
            name.to_owned()
        } else {
            format!("{name}_devices")
        };
        format!("{name} {}", campaign[field])
    });
    format!(
        "{}; rollback {}; waits {}",
        shown.join(", "),
        campaign["rollback"],
        campaign["waits"]
    )
}

/// A device of the model that stories use.
pub fn device_json(id: &str) -> Value {
    json!({
        "device_id": id, "device_type": "frame", "device_model": "SF-100", "manufacturer": "Acme",
        "hw_revision": "A", "firmware_version": "2.0.0", "groups": [], "tags": {}, "ring": null,
    })
}

/// What is said of an image of that model.
pub fn image_metadata(version: &str) -> Value {
    json!({
        "name": "Smart Frame Firmware", "version": version, "device_model": "SF-100", "manufacturer": "Acme",
    })
}

/// An image's bytes: some, and others for each version.
pub fn image(version: &str) -> Vec<u8> {
    let line = format!("firmware {version}\n");
    line.bytes().cycle().take(200_000).collect()
}

//! The Auth Service over HTTP (docs/operations.md, *Who may come in*).

use std::sync::Arc;

use async_trait::async_trait;
use device_ota_domain::{Role, Roles};
use device_ota_engine::ports::Clock;
use device_ota_engine::ports::auth::{AuthService, AuthUnavailable, Credential, Known};
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::ServiceStatus;
use crate::client::{Client, Unavailable};

/// Asks `POST /api/v1/auth/verify-token` and `POST /api/v1/auth/verify-api-key`.
pub struct HttpAuthService {
    client: Client,
}

/// What it answers. Fields that are not named here are not looked at.
#[derive(Deserialize)]
struct Verdict {
    valid: bool,
    #[serde(default)]
    user_id: Option<String>,
    #[serde(default)]
    roles: Option<Vec<Value>>,
}

impl HttpAuthService {
    /// At `base`, e.g. `http://auth_service:8201`.
    pub fn new(base: &str, clock: Arc<dyn Clock>) -> reqwest::Result<Self> {
        let client = Client::new("auth_service", base, HeaderMap::new(), clock)?;
        Ok(Self { client })
    }

    /// Looks after it until `stop`.
    pub async fn watch(&self, stop: &CancellationToken) {
        self.client.watch(stop).await;
    }

    /// How it is.
    pub fn status(&self) -> ServiceStatus {
        self.client.status()
    }

    async fn ask(&self, path: &str, body: &Value) -> Result<Option<Known>, Unavailable> {
        let request = |client: &reqwest::Client, base: &str| {
            client.post(format!("{base}/api/v1/auth/{path}")).json(body)
        };
        self.client.ask(request, read).await
    }
}

#[async_trait]
impl AuthService for HttpAuthService {
    async fn verify(&self, credential: Credential<'_>) -> Result<Option<Known>, AuthUnavailable> {
        let (path, body) = match credential {
            Credential::Token(token) => ("verify-token", json!({ "token": token })),
            Credential::ApiKey(key) => ("verify-api-key", json!({ "api_key": key })),
        };
        let asked = self.ask(path, &body).await;
        asked.map_err(|Unavailable(why)| AuthUnavailable(why))
    }
}

/// Whose it is, by the answer.
fn read(status: StatusCode, body: &[u8]) -> Result<Option<Known>, String> {
    match status {
        StatusCode::OK => {}
        // What it cannot even read is nobody's credential.
        StatusCode::BAD_REQUEST
        | StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::UNPROCESSABLE_ENTITY => return Ok(None),
        other => return Err(format!("it answered {other}")),
    }
    // The error of the parser could quote what it has read.
    let verdict: Verdict =
        serde_json::from_slice(body).map_err(|_| "its answer cannot be understood".to_owned())?;
    if !verdict.valid {
        return Ok(None);
    }
    let subject = verdict.user_id.ok_or("it named no user_id")?;
    // Other names mean something to somebody else.
    let roles: Roles = verdict
        .roles
        .iter()
        .flatten()
        .filter_map(|name| name.as_str()?.parse::<Role>().ok())
        .collect();
    Ok(Some(Known { subject, roles }))
}

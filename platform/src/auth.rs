//! The Auth Service over HTTP (docs/operations.md, *Who may come in*).

use std::time::Duration;

use async_trait::async_trait;
use device_ota_domain::{Role, Roles};
use device_ota_engine::ports::auth::{AuthService, AuthUnavailable, Credential, Known};
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

/// Longest that one question may take in all; the caller's request waits meanwhile.
const DEADLINE: Duration = Duration::from_secs(2);
/// Most bytes of an answer that are read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Asks `POST /api/v1/auth/verify-token` and `POST /api/v1/auth/verify-api-key`.
pub struct HttpAuthService {
    client: Client,
    base: String,
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
    pub fn new(base: &str) -> reqwest::Result<Self> {
        // A redirect would carry the credential somewhere else, and so would a proxy.
        let client = Client::builder()
            .timeout(DEADLINE)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self { client, base })
    }

    async fn ask(&self, path: &str, body: &Value) -> Result<Option<Verdict>, AuthUnavailable> {
        let url = format!("{}/api/v1/auth/{path}", self.base);
        let sent = self.client.post(url).json(body).send().await;
        let response = sent.map_err(unavailable)?;
        match response.status() {
            StatusCode::OK => read(response).await.map(Some),
            // What it cannot even read is nobody's credential.
            StatusCode::BAD_REQUEST
            | StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::UNPROCESSABLE_ENTITY => Ok(None),
            other => Err(AuthUnavailable(format!("it answered {other}"))),
        }
    }
}

#[async_trait]
impl AuthService for HttpAuthService {
    async fn verify(&self, credential: Credential<'_>) -> Result<Option<Known>, AuthUnavailable> {
        let (path, body) = match credential {
            Credential::Token(token) => ("verify-token", json!({ "token": token })),
            Credential::ApiKey(key) => ("verify-api-key", json!({ "api_key": key })),
        };
        let Some(verdict) = self.ask(path, &body).await?.filter(|verdict| verdict.valid) else {
            return Ok(None);
        };
        let subject = verdict
            .user_id
            .ok_or_else(|| AuthUnavailable("it named no user_id".to_owned()))?;
        // Other names mean something to somebody else.
        let roles: Roles = verdict
            .roles
            .iter()
            .flatten()
            .filter_map(|name| name.as_str()?.parse::<Role>().ok())
            .collect();
        Ok(Some(Known { subject, roles }))
    }
}

async fn read(mut response: Response) -> Result<Verdict, AuthUnavailable> {
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(unavailable)? {
        if bytes.len() + piece.len() > MAX_ANSWER_BYTES {
            return Err(AuthUnavailable("its answer is too long".to_owned()));
        }
        bytes.extend_from_slice(&piece);
    }
    // The error of the parser could quote what it has read.
    serde_json::from_slice(&bytes)
        .map_err(|_| AuthUnavailable("its answer cannot be understood".to_owned()))
}

/// Without the address, which may hold a password.
fn unavailable(error: reqwest::Error) -> AuthUnavailable {
    AuthUnavailable(error.without_url().to_string())
}

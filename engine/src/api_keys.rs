//! API keys: made, listed, revoked, and found by their secrets. Not a part of the engine proper, so that the command
//! line can work with them on the database alone, also while the service runs.

use std::sync::Arc;

use device_ota_domain::ApiKeyId;
use device_ota_domain::api_key::{ApiKey, KeyDraft};
use device_ota_domain::audit::Act;
use device_ota_domain::page::Page;
use jiff::SignedDuration;
use serde_json::json;
use tokio::sync::mpsc;

use crate::audit::facts;
use crate::ports::clock::random;
use crate::ports::{Clock, Entropy, Store};
use crate::recent::{Recent, hash};
use crate::to_the_end::to_its_end;
use crate::{Caller, Engine, Error, Result};

/// Every secret begins so, for people and for scanners that look for secrets in the wrong places.
const PREFIX: &str = "ota_";
/// Hex digits of a secret: 256 random bits.
const SECRET_DIGITS: usize = 64;
/// Most keys that are remembered, some 300 bytes each.
const MAX_REMEMBERED: usize = 1_024;
/// How long a key is believed without another look: a key that another process revokes opens no longer than this.
const BELIEVED: SignedDuration = SignedDuration::from_secs(5);
/// Uses are written down this long after each other, at the earliest.
const USE_WRITTEN_EVERY: SignedDuration = SignedDuration::from_mins(5);
/// Uses that wait to be written; what does not fit is written at a later use.
const USES_QUEUE: usize = 256;

/// The use cases around keys.
pub struct ApiKeys {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    recent: Arc<Recent<ApiKey>>,
    uses: mpsc::Sender<ApiKeyId>,
}

/// Keys that were used, for the loop that writes it down.
pub type Uses = mpsc::Receiver<ApiKeyId>;

impl ApiKeys {
    /// Over a database. Uses come out of the other end.
    pub fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> (Self, Uses) {
        let (uses, uses_end) = mpsc::channel(USES_QUEUE);
        let keys = Self {
            store,
            clock,
            entropy,
            recent: Arc::new(Recent::new(MAX_REMEMBERED)),
            uses,
        };
        (keys, uses_end)
    }

    /// Makes a key. The second value is its secret, which is shown this once and kept nowhere.
    pub async fn create(&self, draft: KeyDraft, by: &Caller) -> Result<(ApiKey, String)> {
        let now = self.clock.now();
        draft
            .check(now)
            .map_err(|error| Error::invalid("invalid_key", error.to_string()))?;
        let secret = format!("{PREFIX}{}", hex::encode(random::<32>(&*self.entropy)));
        let key = ApiKey {
            id: ApiKeyId::from_entropy(random(&*self.entropy)),
            name: draft.name,
            subject: draft.subject,
            roles: draft.roles,
            created_at: now,
            created_by: by.subject().to_owned(),
            expires_at: draft.expires_at,
            last_used_at: None,
            revoked_at: None,
        };
        let mut tx = self.store.begin().await?;
        tx.insert_api_key(&key, &hex::encode(hash(&secret))).await?;
        let states = (None, Some(facts::key(&key)));
        tx.append_audit(by.did(Act::KeyCreated, now, &key.id, states))
            .await?;
        tx.commit().await?;
        tracing::info!(key.id = %key.id, key.roles = %key.roles, by = by.subject(), "API key made");
        Ok((key, secret))
    }

    /// Keys, newest first.
    pub async fn list(&self, page: Page) -> Result<Vec<ApiKey>> {
        Ok(self.store.api_keys(page).await?)
    }

    /// Revokes a key, which this process knows at once and others within seconds. A second time changes nothing.
    pub async fn revoke(&self, id: &ApiKeyId, by: &Caller) -> Result<ApiKey> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        if tx.revoke_api_key(id, now).await? {
            let states = (
                Some(json!({ "revoked_at": null })),
                Some(json!({ "revoked_at": now })),
            );
            tx.append_audit(by.did(Act::KeyRevoked, now, id, states))
                .await?;
            let recent = self.recent.clone();
            let ended = to_its_end(async move {
                let committed = tx.commit().await;
                recent.clear();
                committed?;
                Ok(())
            });
            ended.await?;
            tracing::info!(key.id = %id, by = by.subject(), "API key revoked");
        }
        let key = self.store.api_key(id).await?;
        let key = key.ok_or_else(|| Error::not_found("key", &id))?;
        Ok(key)
    }

    /// The key of a secret, whether or not it opens; `None` for what is no secret of ours.
    pub async fn find(&self, secret: &str) -> Result<Option<ApiKey>> {
        let digits = secret.strip_prefix(PREFIX).unwrap_or_default();
        if digits.len() != SECRET_DIGITS {
            return Ok(None);
        }
        let (hash, now) = (hash(secret), self.clock.now());
        if let Some(key) = self.recent.get(&hash, now) {
            return Ok(Some(key));
        }
        let cleared = self.recent.cleared();
        let Some(key) = self.store.api_key_of_secret(&hex::encode(hash)).await? else {
            return Ok(None);
        };
        let written = key.last_used_at;
        if key.opens(now) && written.is_none_or(|at| at + USE_WRITTEN_EVERY <= now) {
            // A queue that is full drops it: the next look writes it.
            let _ = self.uses.try_send(key.id.clone());
        }
        // A key that is revoked while it is looked up must not be believed afterwards.
        self.recent
            .put_unless_cleared(cleared, hash, key.clone(), (now, now + BELIEVED));
        Ok(Some(key))
    }
}

/// Writes down when keys were used, until the queue closes.
pub(crate) async fn run(engine: Arc<Engine>, mut uses: Uses) {
    while let Some(id) = uses.recv().await {
        if let Err(error) = write_use(&engine, &id).await {
            tracing::warn!(key.id = %id, %error, "the use of a key was not written down");
        }
    }
}

async fn write_use(engine: &Engine, id: &ApiKeyId) -> Result<()> {
    let mut tx = engine.store.begin().await?;
    tx.api_key_used(id, engine.clock.now()).await?;
    tx.commit().await?;
    Ok(())
}

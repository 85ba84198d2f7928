//! Rollback permits: taken when the release role has signed them, kept, and carried to devices by the offers that need them.

use device_ota_domain::audit::Act;
use device_ota_domain::page::Page;
use device_ota_domain::permit::Permit;
use device_ota_protocol::dsse::Envelope;
use device_ota_protocol::objects::{self, RollbackPermit};

use crate::audit::facts;
use crate::devices::locked;
use crate::{Caller, Engine, Error, Result};

impl Engine {
    /// Takes a permit: a DSSE envelope of the type `rollback-permit` as JSON. 422 when the release role has not signed it, when it has
    /// expired, and when the registry has none of its images; 404 for a device or campaign that is not there; 409 when its id was
    /// taken before.
    pub async fn add_permit(&self, text: &str, by: &Caller) -> Result<Permit> {
        let envelope = Envelope::from_json(text.as_bytes()).map_err(|error| {
            Error::invalid(
                "permit_malformed",
                format!("the permit is no signed envelope: {error}"),
            )
        })?;
        let opened = objects::open::<RollbackPermit>(&envelope, self.keyring.root());
        let (said, _) = opened.map_err(|error| {
            Error::unprocessable(
                "permit_refused",
                format!("the permit is not acceptable: {error}"),
            )
        })?;
        let now = self.clock.now();
        if said.expires_at <= now {
            return Err(Error::unprocessable(
                "permit_expired",
                format!(
                    "permit {} expired at {}; sign another",
                    said.permit_id, said.expires_at
                ),
            ));
        }
        for sha256 in [said.from_sha256, said.to_sha256] {
            if !self.store.object_is_used(&sha256.to_string()).await? {
                return Err(Error::unprocessable(
                    "permit_of_no_image",
                    format!(
                        "no image with the SHA-256 {sha256} is in the registry; upload it first"
                    ),
                ));
            }
        }
        let permit = Permit {
            id: said.permit_id,
            device: parsed("device", said.device_id.as_ref().map(AsRef::<str>::as_ref))?,
            campaign: parsed("campaign", said.campaign_id.as_deref())?,
            from_sha256: said.from_sha256.to_string(),
            to_sha256: said.to_sha256.to_string(),
            expires_at: said.expires_at,
            envelope: String::from_utf8_lossy(&envelope.to_json()).into_owned(),
            created_at: now,
            created_by: by.subject().to_owned(),
        };
        let mut tx = self.store.begin().await?;
        if let Some(device) = &permit.device {
            locked(tx.as_mut(), device).await?;
        }
        if let Some(campaign) = &permit.campaign
            && tx.campaign(campaign).await?.is_none()
        {
            return Err(Error::not_found("campaign", campaign));
        }
        if !tx.insert_permit(&permit).await? {
            return Err(Error::conflict(
                "permit_exists",
                format!(
                    "permit {} was taken before, and each is taken once; sign another with an id of its own",
                    permit.id
                ),
            ));
        }
        let states = (None, Some(facts::permit(&permit)));
        tx.append_audit(by.did(Act::PermitAdded, now, &permit.id, states))
            .await?;
        self.commit(tx).await?;
        tracing::info!(permit.id = %permit.id, by = by.subject(), "rollback permit taken");
        Ok(permit)
    }

    /// Permits, newest first.
    pub async fn permits(&self, page: Page) -> Result<Vec<Permit>> {
        Ok(self.store.permits(page).await?)
    }
}

/// An id that the permit names; one that has no form of ours is that of nothing.
fn parsed<T: std::str::FromStr>(what: &'static str, id: Option<&str>) -> Result<Option<T>> {
    let parsed = id.map(|id| id.parse().map_err(|_| Error::not_found(what, &id)));
    parsed.transpose()
}

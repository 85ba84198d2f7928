//! The rings as settings: how much of a fleet each takes (rings-and-heartbeat service, `deployment_rings`).

use device_ota_domain::audit::Act;
use device_ota_domain::ring::{RingSettings, Shares, SharesError};

use crate::audit::facts;
use crate::revision::is_of;
use crate::{Caller, Engine, Error, Result};

impl Engine {
    /// The shares that new campaigns get.
    pub async fn rings(&self) -> Result<RingSettings> {
        Ok(self.store.rings().await?)
    }

    /// Sets them. Campaigns that there are keep the shares they were made with. 409 when they are no longer of the revision
    /// `expected`.
    pub async fn set_rings(
        &self,
        shares: Shares,
        expected: Option<i64>,
        by: &Caller,
    ) -> Result<RingSettings> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let before = tx.rings().await?;
        is_of(expected, "the list of rings", before.revision)?;
        if before.shares == shares {
            return Ok(before);
        }
        let settings = RingSettings {
            shares,
            revision: before.revision + 1,
            updated_at: Some(now),
            updated_by: Some(by.subject().to_owned()),
        };
        tx.save_rings(&settings).await?;
        let states = (
            Some(facts::rings(before.shares)),
            Some(facts::rings(shares)),
        );
        tx.append_audit(by.did(Act::RingsChanged, now, "rings", states))
            .await?;
        self.commit(tx).await?;
        tracing::info!(by = by.subject(), rings = ?shares, "rings changed");
        Ok(settings)
    }
}

impl From<SharesError> for Error {
    fn from(error: SharesError) -> Self {
        Self::invalid("invalid_rings", error.to_string())
    }
}

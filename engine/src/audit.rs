//! The audit trail, read and verified (ADR 9). It is written by each use case, in the transaction of what it changes.

pub(crate) mod facts;

use device_ota_domain::audit::{Break, Chain, Head, Record};
use device_ota_domain::page::Page;

use crate::ports::audit::AuditFilter;
use crate::ports::{Store, StoreError};
use crate::{Engine, Result};

/// Records that are looked at together: some 100 KiB, however long the chain is.
const PIECE: u32 = 100;

/// Why an audit trail is not believed.
#[derive(Debug, thiserror::Error)]
pub enum AuditFailure {
    /// It cannot be read.
    #[error("the audit trail cannot be read")]
    Unreadable(#[from] StoreError),
    /// It was tampered with.
    #[error("the audit trail is broken")]
    Broken(#[from] Break),
    /// It is whole, and another one than before.
    #[error(
        "the audit trail was written anew: no record has the hash {0}, which was written down earlier"
    )]
    Rewritten(String),
}

impl Engine {
    /// Records, newest first.
    pub async fn audit(&self, filter: &AuditFilter, page: Page) -> Result<Vec<Record>> {
        Ok(self.store.audit(filter, page).await?)
    }
}

/// Walks the whole chain, also while it grows, and answers where it ends. `remembered` is a hash that somebody has written
/// down: whoever can write to the database can make a chain anew that is whole, but not one with that hash in it.
pub async fn verify_audit(
    store: &dyn Store,
    remembered: Option<&str>,
) -> std::result::Result<Head, AuditFailure> {
    let mut chain = Chain::default();
    let mut met = remembered.is_none_or(|hash| chain.head().hash == hash);
    let mut next = i64::MIN;
    loop {
        let records = store.audit_from(next, PIECE).await?;
        for record in &records {
            chain.follow(record)?;
            met |= remembered == Some(record.hash.as_str());
            next = record.number + 1;
        }
        if !records.is_empty() {
            continue;
        }
        // Only now: a record that is written meanwhile moves the head with it, and is found by another look.
        let head = store.audit_head().await?;
        let grew =
            head.number > chain.head().number && !store.audit_from(next, 1).await?.is_empty();
        if !grew {
            chain.ends_with(&head)?;
            break;
        }
    }
    match remembered {
        Some(hash) if !met => Err(AuditFailure::Rewritten(hash.to_owned())),
        _ => Ok(chain.head().clone()),
    }
}

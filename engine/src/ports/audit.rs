//! The database's side of the audit trail: records read back, by what they say or in the order of the chain.

use async_trait::async_trait;
use device_ota_domain::audit::{Act, Entity, Head, Record};
use device_ota_domain::page::Page;
use jiff::Timestamp;

use super::error::Result;

/// Filters of the audit trail; all that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Done by this subject.
    pub subject: Option<String>,
    /// This was done.
    pub action: Option<Act>,
    /// To one of these.
    pub entity: Option<Entity>,
    /// To this one.
    pub entity_id: Option<String>,
    /// In this request.
    pub request_id: Option<String>,
    /// At this time or later.
    pub from: Option<Timestamp>,
    /// Before this time.
    pub to: Option<Timestamp>,
}

/// Reads of the audit trail. It is written by [`super::store::Tx::append_audit`] alone.
#[async_trait]
pub trait AuditLog: Send + Sync + 'static {
    /// Records, newest first.
    async fn audit(&self, filter: &AuditFilter, page: Page) -> Result<Vec<Record>>;
    /// Records from this number on, in the order of their numbers.
    async fn audit_from(&self, number: i64, limit: u32) -> Result<Vec<Record>>;
    /// The end of the chain, as it is remembered beside the records.
    async fn audit_head(&self) -> Result<Head>;
}

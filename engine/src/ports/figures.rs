//! The database's side of statistics: figures that are kept with the rows they count ([`device_ota_domain::statistics`]).

use async_trait::async_trait;
use device_ota_domain::CampaignId;
use device_ota_domain::campaign::Group;
use device_ota_domain::statistics::{Amount, Ledger};
use device_ota_domain::update::Action;

use super::error::Result;

/// Updates that are alike, and what they come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// Forward or back.
    pub action: Action,
    /// The version of what was offered; `None` for a rollback without an image.
    pub version: Option<String>,
    /// To what kind of device.
    pub device_type: Option<String>,
    /// Where they stand.
    pub group: Group,
    /// The code of the failure, of failed ones, and of the regression, of completed ones that have regressed.
    pub failure: Option<String>,
    /// What they come to.
    pub amount: Amount,
}

/// Reads of figures, and their upkeep.
#[async_trait]
pub trait Figures: Send + Sync + 'static {
    /// Campaigns in each status that are not deleted.
    async fn campaigns_by_status(&self) -> Result<Vec<(String, u64)>>;
    /// The figures of all updates, or of one campaign's, seen at one moment.
    async fn figures(&self, campaign: Option<&CampaignId>) -> Result<Vec<Figure>>;
    /// What ended in this minute or later, by how it ended. Minutes are kept for as long as
    /// [`Figures::prune_ends`] leaves them.
    async fn ends_since(&self, minute: i64) -> Result<Vec<(Action, Group, Amount)>>;
    /// Forgets the minutes before this one.
    async fn prune_ends(&self, minute: i64) -> Result<()>;

    /// Everything that is kept, for tests.
    async fn ledger(&self) -> Result<Ledger>;
    /// The same counted from the rows, for tests.
    async fn ledger_by_rows(&self) -> Result<Ledger>;
}

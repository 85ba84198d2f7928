//! The closed list of event types.

use serde::{Deserialize, Serialize};

macro_rules! event_types {
    ($($variant:ident $name:literal $meaning:literal;)+) => {
        /// What happened. The name is `<family>.<what>`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "&'static str")]
        pub enum EventType {
            $(#[doc = $meaning] $variant,)+
        }

        impl EventType {
            /// Every type, family by family.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its name, as receivers read it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What it means, in one sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),+ }
            }
        }
    };
}

event_types! {
    FirmwareUploaded "firmware.uploaded" "A new image is in the registry.";
    FirmwareDeprecated "firmware.deprecated" "An image was taken out of use; its facts stay.";
    CampaignCreated "campaign.created" "A campaign was made; nothing is sent yet.";
    CampaignUpdated "campaign.updated" "A campaign was changed before its start.";
    CampaignApproved "campaign.approved" "An approver agreed to a campaign.";
    CampaignRejected "campaign.rejected" "An approver refused a campaign.";
    CampaignDeleted "campaign.deleted" "A campaign left the lists; it is kept for the record.";
    CampaignStarted "campaign.started" "A campaign began: its devices have their updates.";
    CampaignPromoted "campaign.promoted" "A campaign may go on to a further ring, gate by gate.";
    CampaignStageOpened "campaign.stage_opened" "The next stage may be offered: the gate before it held, or an admin opened it; `by` says which.";
    CampaignPaused "campaign.paused" "No further offers, by an admin or by a threshold or gate; `reason` says which.";
    CampaignResumed "campaign.resumed" "A paused campaign goes on.";
    CampaignCompleted "campaign.completed" "Every update of a campaign has ended.";
    CampaignCancelled "campaign.cancelled" "An admin ended a campaign, or its schedule or too many failures did; `reason` says which failures.";
    CampaignFailed "campaign.failed" "A campaign passed its failure threshold or an abort criterion: it takes itself back, or is cancelled; `reason` says why.";
    CampaignRollingBack "campaign.rolling_back" "A campaign takes back what it brought; each of its devices has a `rollback.initiated` of its own.";
    CampaignRolledBack "campaign.rolled_back" "Every update and rollback of a campaign has ended.";
    UpdateScheduled "update.scheduled" "An admin asked for the update of one device.";
    UpdateCompleted "update.completed" "A device runs the new version.";
    UpdateRegressed "update.regressed" "A device that had completed an update shows its old version, restarts again and again, says that it failed after all, or fell silent; it counts as failed for the gates and limits of its campaign from now on, and stays completed in the statistics, which count it as regressed.";
    UpdateFailed "update.failed" "An update ended without the new version.";
    UpdateCancelled "update.cancelled" "An update was withdrawn. When its device was deleted, or is none of its campaign's any more, `error` tells.";
    RollbackInitiated "rollback.initiated" "A rollback of one device began, by itself or as one of a campaign.";
    RollbackCompleted "rollback.completed" "A device runs its old version again.";
    RollbackFailed "rollback.failed" "A rollback ended without the old version.";
    RollbackCancelled "rollback.cancelled" "A rollback was withdrawn, or its device had moved on.";
    DeviceOffline "device.offline" "A device has been disconnected for longer than the grace.";
    WebhookDisabled "webhook.disabled" "A webhook failed for too long and gets no further events.";
}

impl EventType {
    /// The type of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// What stands before the dot.
    pub fn family(self) -> &'static str {
        let (family, _) = self.name().split_once('.').unwrap_or((self.name(), ""));
        family
    }
}

impl From<EventType> for &'static str {
    fn from(kind: EventType) -> Self {
        kind.name()
    }
}

impl TryFrom<String> for EventType {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::from_name(&name).ok_or_else(|| format!("{name:?} is no event type"))
    }
}

impl std::fmt::Display for EventType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

//! The closed list of what is recorded.

use std::fmt;

use crate::event::EventType;

macro_rules! entities {
    ($($variant:ident $name:literal $meaning:literal;)+) => {
        /// What an act was done to.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Entity {
            $(#[doc = $meaning] $variant,)+
        }

        impl Entity {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its name in records.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

entities! {
    Firmware "firmware" "An image.";
    Campaign "campaign" "A campaign.";
    Update "update" "An update or a rollback of one device.";
    Device "device" "A device.";
    Rings "rings" "How much of a fleet each ring takes.";
    Key "key" "An API key.";
    Webhook "webhook" "A webhook.";
    Permit "permit" "A rollback permit.";
}

macro_rules! acts {
    ($($variant:ident $entity:ident $name:literal $meaning:literal;)+) => {
        /// What was done. The name is `<entity>.<what>`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Act {
            $(#[doc = $meaning] $variant,)+
        }

        impl Act {
            /// Every act, entity by entity.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its name in records.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// To what it is done.
            pub const fn entity(self) -> Entity {
                match self { $(Self::$variant => Entity::$entity),+ }
            }
        }
    };
}

acts! {
    FirmwareUploaded Firmware "firmware.uploaded" "An image came into the registry.";
    FirmwareChanged Firmware "firmware.changed" "What is not signed of it was changed.";
    FirmwareDeprecated Firmware "firmware.deprecated" "It was taken out of use.";
    CampaignCreated Campaign "campaign.created" "A campaign was made.";
    CampaignUpdated Campaign "campaign.updated" "It was changed before its start.";
    CampaignApproved Campaign "campaign.approved" "An approver agreed to it.";
    CampaignRejected Campaign "campaign.rejected" "An approver refused it.";
    CampaignStarted Campaign "campaign.started" "It began.";
    CampaignPromoted Campaign "campaign.promoted" "It may go on to a further ring, gate by gate.";
    CampaignAdvanced Campaign "campaign.advanced" "An admin opened its next stage.";
    CampaignPaused Campaign "campaign.paused" "It makes no further offers.";
    CampaignResumed Campaign "campaign.resumed" "It goes on, and its results so far are accepted.";
    CampaignCancelled Campaign "campaign.cancelled" "It ended for good.";
    CampaignRollback Campaign "campaign.rollback" "It takes back what it brought.";
    CampaignDeleted Campaign "campaign.deleted" "It left the lists.";
    UpdateCreated Update "update.created" "One device shall be updated.";
    UpdateRollback Update "update.rollback" "One device shall be taken back.";
    UpdateCancelled Update "update.cancelled" "It was withdrawn, or its device is asked to stop.";
    UpdateRetried Update "update.retried" "It had failed, and is tried once more.";
    DeviceRegistered Device "device.registered" "A device is known from here on.";
    DeviceChanged Device "device.changed" "What is registered of it was changed.";
    DeviceCredentials Device "device.credentials" "It has a new secret, and the old one ended.";
    DeviceDeleted Device "device.deleted" "It is not known any more, and its open updates ended.";
    RingsChanged Rings "rings.changed" "New campaigns get other shares.";
    PermitAdded Permit "permit.added" "A rollback below a security floor is permitted.";
    KeyCreated Key "key.created" "An API key was made.";
    KeyRevoked Key "key.revoked" "It opens nothing any more.";
    WebhookCreated Webhook "webhook.created" "Somebody is told of events.";
    WebhookChanged Webhook "webhook.changed" "What is wanted of it was changed.";
    WebhookDisabled Webhook "webhook.disabled" "It took nothing for too long, and is told of nothing any more.";
    WebhookDeleted Webhook "webhook.deleted" "It is told of nothing any more.";
    WebhookRetried Webhook "webhook.retried" "It has taken an event that had been laid aside.";
    WebhookDiscarded Webhook "webhook.discarded" "An event that had been laid aside for it was forgotten.";
}

impl Act {
    /// The act that an event of a campaign tells of. `None` for what comes about by itself as it was planned: a stage that
    /// opens, a campaign that ends.
    pub const fn of_campaign(event: EventType) -> Option<Self> {
        Some(match event {
            EventType::CampaignCreated => Self::CampaignCreated,
            EventType::CampaignUpdated => Self::CampaignUpdated,
            EventType::CampaignApproved => Self::CampaignApproved,
            EventType::CampaignRejected => Self::CampaignRejected,
            EventType::CampaignStarted => Self::CampaignStarted,
            EventType::CampaignPromoted => Self::CampaignPromoted,
            EventType::CampaignPaused => Self::CampaignPaused,
            EventType::CampaignResumed => Self::CampaignResumed,
            EventType::CampaignCancelled => Self::CampaignCancelled,
            EventType::CampaignDeleted => Self::CampaignDeleted,
            EventType::CampaignRollingBack => Self::CampaignRollback,
            _ => return None,
        })
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_act_is_named_after_what_it_is_done_to() {
        for act in Act::ALL {
            let (entity, _) = act.name().split_once('.').expect("two parts");
            assert_eq!(entity, act.entity().name());
        }
    }
}

//! Who gets a device that several want: nobody is offered a campaign's update while one that goes before it waits for that device, and
//! for nothing but its pace.

use std::collections::{BTreeMap, HashMap};

use device_ota_domain::campaign::{Campaign, Group};
use device_ota_domain::update::{Action, UpdateState};
use device_ota_domain::why::keeps_device;
use device_ota_domain::{CampaignId, Update, UpdateId};
use device_ota_engine::ports::Store;
use jiff::{SignedDuration, Timestamp};

use super::audit::line_of;

/// What was seen at one time.
pub(super) struct Seen<'s> {
    pub(super) rows: &'s BTreeMap<UpdateId, Update>,
    pub(super) campaigns: &'s HashMap<CampaignId, Campaign>,
}

/// Whether a campaign's device was offered it, or told to flip, at this very time: it stood there for longer where a process died of it.
pub(super) fn is_claimed(before: Option<&Update>, row: &Update, now: Timestamp) -> bool {
    let UpdateState::InFlight { deadline, .. } = row.state else {
        return false;
    };
    let whole = SignedDuration::from_secs(row.timeout_seconds.cast_signed());
    let had_it = before
        .is_some_and(|before| before.group() == Group::InFlight && before.attempt == row.attempt);
    let forward = row.action == Action::Update && row.campaign.is_some();
    forward && !had_it && deadline.checked_sub(whole).is_ok_and(|at| at == now)
}

/// What goes before is judged where it stands as it stood: what has changed in the same step may have been in nobody's way.
pub(super) async fn nobody_was_passed_over(
    store: &dyn Store,
    claimed: &[Update],
    before: Seen<'_>,
    after: Seen<'_>,
    now: Timestamp,
) -> Result<(), String> {
    for row in claimed {
        let device = store.devices_by_key(&[row.device]).await.unwrap();
        let Some(device) = device.first() else {
            continue;
        };
        let others = after.rows.values().filter(|other| {
            other.device == row.device
                && other.campaign != row.campaign
                && other.goes_before(row)
                && before.rows.get(&other.id) == Some(other)
        });
        for other in others {
            let campaign = other.campaign.as_ref();
            let of = |seen: &Seen<'_>| campaign.and_then(|id| seen.campaigns.get(id).cloned());
            let (was, is) = (of(&before), of(&after));
            let changed = was.map(|was| was.state) != is.as_ref().map(|is| is.state.clone());
            let requires = is.as_ref().map(|is| is.spec.requires).unwrap_or_default();
            if !changed && keeps_device(other, is.as_ref(), requires, device, now) {
                return Err(format!("{}, before {}", line_of(row), line_of(other)));
            }
        }
    }
    Ok(())
}

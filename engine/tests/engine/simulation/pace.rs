//! How fast campaigns go, and at what hours: judged by when their rows were seen to be offered.

use std::collections::HashMap;

use device_ota_domain::campaign::Campaign;
use device_ota_domain::{CampaignId, Update, UpdateState};
use jiff::{SignedDuration, Timestamp};

use super::template::{IMAGE_BYTES, zone};
use super::world::{MAX_DEVICES, World};

/// What may be made up for at once, in seconds.
const BURST: f64 = 2.0;

#[derive(Default)]
pub(super) struct Pace {
    /// Offers and activations.
    claims: HashMap<CampaignId, Vec<Timestamp>>,
    /// Offers alone.
    offers: HashMap<CampaignId, Vec<Timestamp>>,
    pub(super) flips: usize,
}

impl Pace {
    /// A device was offered an update, or told to flip: at its hour, and not sooner than rate and bandwidth let.
    pub(super) fn keeps(
        &mut self,
        campaign: &Campaign,
        row: &Update,
        offered: bool,
    ) -> Result<(), String> {
        // When exactly, its deadline tells: a process may have died of it, and the row be seen only now.
        let UpdateState::InFlight { deadline, .. } = row.state else {
            return Ok(());
        };
        let whole = SignedDuration::from_secs(row.timeout_seconds.cast_signed());
        let now = deadline.checked_sub(whole).unwrap();
        let (id, spec) = (&campaign.id, &campaign.spec);
        let index = (0..MAX_DEVICES).find(|index| World::name(*index) == row.device_id.as_str());
        let zone = index.and_then(zone);
        if let Err(opens) = spec.windows.at(now, zone) {
            return Err(format!(
                "{} was offered at {now}, and its window opens at {opens}",
                row.device_id
            ));
        }
        self.flips += usize::from(!offered);
        let rate = spec.rate.map(|rate| {
            let per_minute = rate.growth.map_or(rate.per_minute, |g| g.max_per_minute);
            f64::from(per_minute) / 60.0
        });
        let claims = self.claims.entry(id.clone()).or_default();
        claims.push(now);
        keeps(claims, rate).map_err(|many| format!("{id} offered {many} at {rate:?} a second"))?;
        if offered {
            let budget = spec.bandwidth_bytes_per_second.map(|bytes| {
                f64::from(u32::try_from(bytes).unwrap())
                    / f64::from(u32::try_from(IMAGE_BYTES).unwrap())
            });
            let offers = self.offers.entry(id.clone()).or_default();
            offers.push(now);
            keeps(offers, budget)
                .map_err(|many| format!("{id} offered {many} at {budget:?} images a second"))?;
        }
        Ok(())
    }
}

/// However far one looks back, no more than the rate lets.
fn keeps(times: &[Timestamp], a_second: Option<f64>) -> Result<(), String> {
    let (Some(rate), Some(last)) = (a_second, times.last()) else {
        return Ok(());
    };
    for (back, first) in times.iter().rev().enumerate() {
        let seconds = last.duration_since(*first).as_secs_f64();
        let most = (seconds + BURST) * rate + 1e-6;
        if f64::from(u32::try_from(back).unwrap()) > most {
            return Err(format!("{} within {seconds} s", back + 1));
        }
    }
    Ok(())
}

//! Rests between looks for devices that others may want: of a campaign whose whole fleet is kept for another one, each look goes
//! through all of it and finds nobody, and every report of the other one's devices asks for a look.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use device_ota_domain::CampaignId;

/// A look that took no longer is repeated as often as somebody asks.
const SHORT: Duration = Duration::from_millis(50);
/// How many times as long as a look took its campaign rests, so that looks take a tenth of the dispatcher's time and no more.
const RESTS: u32 = 9;
/// Longest rest: what kept the devices may have ended meanwhile.
const LONGEST: Duration = Duration::from_secs(30);

/// Campaigns that rest, each until when.
#[derive(Default)]
pub(crate) struct Rests(Mutex<HashMap<CampaignId, Instant>>);

impl Rests {
    /// Whether the campaign rests at the moment.
    pub(crate) fn has(&self, campaign: &CampaignId) -> bool {
        let until = self.lock().get(campaign).copied();
        until.is_some_and(|until| Instant::now() < until)
    }

    /// A look that found nobody took so long.
    pub(crate) fn begin(&self, campaign: &CampaignId, took: Duration) {
        if took > SHORT {
            let until = Instant::now() + (took * RESTS).min(LONGEST);
            self.lock().insert(campaign.clone(), until);
        }
    }

    /// Waits for the end of the next rest; for ever where nobody rests.
    pub(crate) async fn over(&self) {
        let next = self.lock().values().min().copied();
        let Some(next) = next else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(next.into()).await;
        self.lock().retain(|_, until| *until > next);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CampaignId, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_looked_for_long_rests_for_longer() {
        let rests = Rests::default();
        let [one, two] = [1, 2].map(|n| CampaignId::from_entropy([n; 8]));
        rests.begin(&one, SHORT);
        assert!(!rests.has(&one));
        rests.begin(&one, SHORT * 2);
        assert!(rests.has(&one) && !rests.has(&two));
        rests.over().await;
        assert!(!rests.has(&one));
        assert!(rests.lock().is_empty());
    }
}

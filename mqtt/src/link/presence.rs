//! Which devices an external broker's messages come from. The broker has checked who they are; we look up each one's
//! number once, and note who has been heard.

use std::collections::HashMap;

use device_ota_engine::Engine;
use device_ota_engine::inbound::DeviceRef;
use device_ota_engine::ports::StoreError;
use device_ota_protocol::ids::DeviceId;
use tokio::time::{Duration, Instant};

/// Devices remembered; some 20 MiB. Beyond, all are looked up anew.
const MAX_KNOWN: usize = 131_072;
/// Strangers remembered, so that one of them is not looked up for each of its messages; and for how long.
const MAX_STRANGERS: usize = 4_096;
const STRANGE_FOR: Duration = Duration::from_secs(10);

/// How often a device that is heard is said to be there, where other replicas may have heard it say good-bye before, or
/// may hear of it late.
const SHOWN_AGAIN: Duration = Duration::from_mins(1);

/// A registered device, as its messages show it.
pub(super) struct Known {
    pub(super) device: DeviceRef,
    /// When it was last said to be there, if it has been heard since it last said good-bye.
    shown: Option<Instant>,
}

impl Known {
    /// It was heard, or said good-bye; answers whether it is to be said that it is there. `is_shared`: others hear of it, too.
    pub(super) fn hear(&mut self, online: bool, is_shared: bool, now: Instant) -> bool {
        if !online {
            self.shown = None;
            return false;
        }
        let is_shown = self
            .shown
            .is_some_and(|shown| !is_shared || now - shown < SHOWN_AGAIN);
        if !is_shown {
            self.shown = Some(now);
        }
        !is_shown
    }
}

/// The devices that have been heard.
#[derive(Default)]
pub(super) struct Presence {
    known: HashMap<DeviceId, Known>,
    strangers: HashMap<DeviceId, Instant>,
    /// The registrations that there were when strangers were looked up.
    registrations: u64,
}

impl Presence {
    /// The device's secret was taken back, perhaps with the device: it is looked up anew, and shows itself anew.
    pub(super) fn forget(&mut self, id: &str) {
        self.known.remove(id);
    }

    /// The registered device of that id, if there is one.
    pub(super) async fn of(
        &mut self,
        engine: &Engine,
        id: &DeviceId,
    ) -> Result<Option<&mut Known>, StoreError> {
        if !self.known.contains_key(id) {
            let now = Instant::now();
            let registrations = engine.registrations();
            if self.registrations != registrations {
                self.registrations = registrations;
                self.strangers.clear();
            }
            if self.strangers.get(id).is_some_and(|until| *until > now) {
                return Ok(None);
            }
            // The two kinds of ids have the same rule.
            let found = match id.as_str().parse() {
                Ok(id) => engine.resolve(&id).await?,
                Err(_) => None,
            };
            let Some(device) = found else {
                if self.strangers.len() >= MAX_STRANGERS {
                    self.strangers.clear();
                }
                self.strangers.insert(id.clone(), now + STRANGE_FOR);
                return Ok(None);
            };
            if self.known.len() >= MAX_KNOWN {
                self.known.clear();
            }
            self.known.insert(
                id.clone(),
                Known {
                    device,
                    shown: None,
                },
            );
        }
        Ok(self.known.get_mut(id))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use device_ota_domain::DeviceKey;

    use super::*;

    fn known() -> Known {
        let device = DeviceRef {
            key: DeviceKey(1),
            id: "d1".parse().unwrap(),
        };
        Known {
            device,
            shown: None,
        }
    }

    #[test]
    fn a_device_whose_good_bye_others_heard_is_shown_again_within_a_minute() {
        let (mut shared, mut alone) = (known(), known());
        let first = Instant::now();
        assert!(shared.hear(true, true, first) && alone.hear(true, false, first));
        let soon = first + SHOWN_AGAIN / 2;
        assert!(!shared.hear(true, true, soon) && !alone.hear(true, false, soon));
        let later = first + SHOWN_AGAIN;
        assert!(shared.hear(true, true, later) && !alone.hear(true, false, later));
        assert!(!shared.hear(true, true, later));
        // Its own good-bye is known at once.
        assert!(!shared.hear(false, true, later));
        assert!(shared.hear(true, true, later));
    }
}

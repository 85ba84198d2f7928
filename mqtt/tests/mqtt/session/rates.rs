//! How much one device may say.

use std::num::NonZeroU32;
use std::time::Duration;

use device_ota_engine::Rate;
use device_ota_mqtt::codec::Version;
use device_ota_mqtt::limits::Limits;
use device_ota_mqtt::session::NoteKind;

use super::{Device, HEARTBEAT, PROGRESS, VERSION};
use crate::wire::{self, BOTH};

#[test]
fn heartbeats_beyond_the_rate_are_dropped_and_progress_never_is() {
    let limits = Limits {
        heartbeat: Rate::per_minute(2),
        report: Some(Rate {
            count: NonZeroU32::MIN,
            per: Duration::from_secs(1),
        }),
        ..Limits::default()
    };
    for version in BOTH {
        let mut device = Device::with(version, &limits, &[]);
        for pid in 1..=3 {
            device.publish(pid, HEARTBEAT, VERSION).unwrap();
        }
        device.publish(0, HEARTBEAT, VERSION).unwrap();
        assert_eq!(device.taken().len(), 2);
        assert_eq!(
            device.notes(),
            [(NoteKind::OverRate, true), (NoteKind::OverRate, false)]
        );
        device.committed(&[0, 1]);
        let over = if version == Version::V5 {
            wire::puback_with(3, 0x97)
        } else {
            wire::puback(3)
        };
        assert_eq!(device.answers(), [wire::puback(1), wire::puback(2), over]);
        device.clock.advance(Duration::from_secs(30));
        device.publish(4, HEARTBEAT, VERSION).unwrap();
        assert_eq!(device.taken().len(), 1);

        let progress =
            br#"{"update_id":"upd_0123456789abcdef","attempt":1,"seq":1,"phase":"accepted"}"#;
        let one = wire::publish(version, 5, PROGRESS, progress);
        // The second is taken, and the third not read for as long as the rate says.
        assert_eq!(device.send(&one.repeat(3)), Ok(2 * one.len()));
        assert_eq!(device.taken().len(), 2);
        assert_eq!(device.reaction.pause, Some(Duration::from_secs(1)));
    }
}

#[test]
fn connecting_again_does_not_reset_the_rate() {
    let limits = Limits {
        heartbeat: Rate::per_minute(1),
        ..Limits::default()
    };
    let mut first = Device::with(Version::V3, &limits, &[]);
    first.publish(1, HEARTBEAT, VERSION).unwrap();
    let second = Device::with(Version::V3, &limits, &[]);
    first.session = second.session;
    first.taken();
    first.publish(2, HEARTBEAT, VERSION).unwrap();
    assert!(first.taken().is_empty());
}

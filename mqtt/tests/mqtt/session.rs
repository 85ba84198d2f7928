//! The session as a machine: bytes in, bytes and messages for the engine out.

mod admission;
mod messages;
mod rates;
mod reports;

use bytes::Bytes;
use device_ota_domain::DeviceKey;
use device_ota_engine::inbound::Uplink;
use device_ota_mqtt::codec::{Version, read_connect};
use device_ota_mqtt::limits::{Limits, MAX_CONNECT};
use device_ota_mqtt::session::{
    End, NoteKind, RateLimits, Reaction, Rules, Session, admit, consume,
};
use device_ota_protocol::topics::{Down, Prefix};
use governor::clock::FakeRelativeClock;

use crate::wire::{self, BOTH, Connect, PINGREQ, PINGRESP, split};

const HEARTBEAT: &str = "ota/v1/d1/up/heartbeat";
const PROGRESS: &str = "ota/v1/d1/up/progress";
const VERSION: &[u8] = br#"{"version":"1.0.0"}"#;

struct Device {
    session: Session,
    version: Version,
    prefix: Prefix,
    rates: RateLimits<FakeRelativeClock>,
    clock: FakeRelativeClock,
    reaction: Reaction,
}

impl Device {
    fn new(version: Version) -> Self {
        Self::with(version, &Limits::default(), &[])
    }

    fn with(version: Version, limits: &Limits, properties: &[u8]) -> Self {
        let connect = Connect {
            properties,
            ..Connect::new(version, "d1", "s")
        }
        .bytes();
        let (connect, _) = read_connect(&connect, MAX_CONNECT).unwrap().unwrap();
        let prefix = Prefix::default();
        let admission = admit(&connect, None, &prefix, limits).unwrap();
        let clock = FakeRelativeClock::default();
        Self {
            session: Session::new(&admission, DeviceKey(7)),
            version,
            prefix,
            rates: RateLimits::new(limits, clock.clone()),
            clock,
            reaction: Reaction::default(),
        }
    }

    /// Sends bytes; how many were used.
    fn send(&mut self, bytes: &[u8]) -> Result<usize, End> {
        self.reaction.pause = None;
        let rules = Rules {
            prefix: &self.prefix,
            meter: &self.rates,
        };
        consume(&mut self.session, bytes, rules, &mut self.reaction)
    }

    fn publish(&mut self, pid: u16, topic: &str, payload: &[u8]) -> Result<usize, End> {
        self.send(&wire::publish(self.version, pid, topic, payload))
    }

    fn committed(&mut self, tokens: &[u64]) {
        let bits = tokens
            .iter()
            .fold(0, |bits, token| bits | 1 << (token % 64));
        self.session.committed(bits, &mut self.reaction.out);
    }

    fn down(&mut self, to: Down, payload: &'static [u8]) {
        let payload = Bytes::from_static(payload);
        self.session
            .send(&to, payload, &self.prefix, &mut self.reaction);
    }

    /// What the device was sent since the last call.
    fn answers(&mut self) -> Vec<Vec<u8>> {
        split(&std::mem::take(&mut self.reaction.out))
    }

    fn taken(&mut self) -> Vec<(Uplink, Option<u64>)> {
        self.reaction
            .taken
            .drain(..)
            .map(|taken| (taken.uplink, taken.token))
            .collect()
    }

    fn notes(&mut self) -> Vec<(NoteKind, bool)> {
        self.reaction
            .notes
            .drain(..)
            .map(|note| (note.kind, note.first))
            .collect()
    }
}

#[test]
fn pings_are_answered_and_a_good_bye_ends_the_session() {
    for version in BOTH {
        let mut device = Device::new(version);
        device.send(&PINGREQ).unwrap();
        assert_eq!(device.answers(), [PINGRESP]);
        assert_eq!(device.send(&[0xe0, 0]), Err(End::Disconnected));
    }
    // 5: with the will, please. It makes no difference: an end is told in any case.
    assert_eq!(
        Device::new(Version::V5).send(&[0xe0, 1, 4]),
        Err(End::Disconnected)
    );
}

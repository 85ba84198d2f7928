//! How reports are subscribed to: all of them, or those that fall to one member of a group, by shared subscriptions
//! (`$share/…`, ADR 21).
//!
//! The broker keeps a member's session while it is away, and may queue its share there. What waited so has been overtaken by
//! what other members have taken since, so it must be told apart: after it has subscribed, a member sends itself a marker, which
//! the broker hands over behind all that waits. The marker comes by a shared subscription, too: a broker that has none, and
//! takes such a filter for an ordinary one, is found out by it.

use std::time::Duration;

use device_ota_protocol::topics::{Prefix, Up};
use rumqttc::{AsyncClient, Publish, QoS};
use tokio::time::Instant;

use super::ledger::Pace;

/// How long nothing at all may come before the marker does, unless options say otherwise; after as long it is sent again.
pub(super) const MARKER_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked for while reports come. A full queue at the broker drops it, a long one keeps it back; the broker's
/// rules may keep it from us for ever.
const MARKER_LOOKS: u32 = 12;
/// Commits that take so many times that patience stall: half a minute.
pub(super) const STALL_PATIENCES: u32 = 3;
/// Longest name of a group, bytes.
const MAX_NAME: usize = 64;
/// The level in place of a device's id below which members send themselves markers: no device can be called so.
const SERVICE_LEVEL: &str = "$service";

/// Name of a group of replicas: letters, digits, `-` and `_`, 64 bytes at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group(String);

/// A text that is no group's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be letters, digits, - and _, 64 of them at most")]
pub struct InvalidGroup;

impl std::str::FromStr for Group {
    type Err = InvalidGroup;

    fn from_str(text: &str) -> Result<Self, InvalidGroup> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let is_name = !text.is_empty() && text.len() <= MAX_NAME && text.chars().all(is_plain);
        is_name.then(|| Self(text.to_owned())).ok_or(InvalidGroup)
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// With whom reports are shared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sharing {
    /// The group of which this replica is a member; `None`: every report comes to it.
    pub group: Option<Group>,
    /// Groups of which it was a member before: the session that the broker keeps still subscribes for them.
    pub left: Vec<Group>,
}

impl Sharing {
    /// Filters of the reports that shall come.
    pub(super) fn wanted(&self, prefix: &Prefix) -> Vec<String> {
        filters(prefix, self.group.as_ref()).collect()
    }

    /// Filters that the session may still have from other settings.
    pub(super) fn unwanted(&self, prefix: &Prefix) -> Vec<String> {
        let all = self.group.is_some().then(|| filters(prefix, None));
        let left = self
            .left
            .iter()
            .filter(|left| Some(*left) != self.group.as_ref());
        let left = left.flat_map(|left| filters(prefix, Some(left)));
        all.into_iter().flatten().chain(left).collect()
    }
}

fn filters(prefix: &Prefix, group: Option<&Group>) -> impl Iterator<Item = String> {
    let share = group.map_or_else(String::new, |group| format!("$share/{group}/"));
    Up::ALL
        .iter()
        .map(move |up| format!("{share}{}", prefix.any_up(*up)))
}

/// Where the marker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A new one is needed, and not under way.
    Unsent,
    /// It is under way, or will be once we have subscribed.
    Awaited,
    /// It has come, and there is none before us.
    Come,
}

/// What a member sends itself on one connection, once it has subscribed, and again after each stall of commits: the broker
/// has then held back what others have overtaken.
pub(super) struct Marker {
    /// By which it comes back: a shared subscription of a group of one.
    pub(super) filter: String,
    topic: String,
    /// Of this connection: a marker of an earlier connection may come before it.
    number: i64,
    /// How often a new one was needed on this connection.
    round: u32,
    stage: Stage,
    /// The broker may hand over what waited.
    something_waits: bool,
    /// Something has come since the last look.
    is_heard: bool,
    /// Looks at which the marker had not come, though reports had.
    missed: u32,
    patience: Duration,
    next_look: Instant,
}

impl Marker {
    pub(super) fn new(
        prefix: &Prefix,
        group: &Group,
        client_id: &str,
        patience: Duration,
        number: i64,
        now: Instant,
    ) -> Self {
        let topic = format!("{prefix}/{SERVICE_LEVEL}/{client_id}/here");
        Self {
            filter: format!("$share/{group}-{client_id}/{topic}"),
            topic,
            number,
            round: 0,
            stage: Stage::Awaited,
            something_waits: true,
            is_heard: false,
            missed: 0,
            patience,
            next_look: now + patience,
        }
    }

    /// The broker has kept nothing for us.
    pub(super) const fn nothing_waits(&mut self) {
        self.something_waits = false;
    }

    fn payload(&self) -> String {
        format!("{}.{}", self.number, self.round)
    }

    /// Sends it; what is subscribed to by now and waits, comes before it.
    pub(super) fn send(&mut self, client: &AsyncClient, now: Instant) {
        // Where there is no room now, there is at the next look.
        let sent = client.try_publish(&self.topic, QoS::AtLeastOnce, false, self.payload());
        self.stage = match sent {
            Ok(()) => Stage::Awaited,
            Err(_) => Stage::Unsent,
        };
        self.next_look = now + self.patience;
    }

    /// Notes how commits go. While they stall, the broker holds reports back: what it hands over then, and until a marker comes
    /// that was sent after the stall, may have been overtaken.
    pub(super) fn follow(&mut self, pace: Pace, client: &AsyncClient, now: Instant) {
        if pace != Pace::Steady {
            self.await_another(now);
        }
        if pace != Pace::Stalled && self.stage == Stage::Unsent {
            self.send(client, now);
        }
    }

    fn await_another(&mut self, now: Instant) {
        if self.stage != Stage::Unsent {
            self.round = self.round.wrapping_add(1);
            self.next_look = now + self.patience;
        }
        self.missed = 0;
        self.stage = Stage::Unsent;
        self.something_waits = true;
    }

    /// Whether a message is a marker of ours; this one or another one.
    pub(super) fn is(&mut self, publish: &Publish) -> bool {
        self.is_heard = true;
        if publish.topic != self.topic {
            return false;
        }
        if self.stage == Stage::Awaited && publish.payload == self.payload().as_bytes() {
            self.stage = Stage::Come;
            self.missed = 0;
        }
        true
    }

    /// Whether what comes now may have waited for us while others took what came after it.
    pub(super) const fn may_have_waited(&self) -> bool {
        !matches!(self.stage, Stage::Come) && self.something_waits
    }

    /// Ends when the marker should have come.
    pub(super) async fn look(marker: Option<&Self>) {
        match marker {
            Some(marker) if marker.stage != Stage::Come => {
                tokio::time::sleep_until(marker.next_look).await;
            }
            _ => std::future::pending().await,
        }
    }

    /// It has not come: whether it never will. Who owes commits may be handed nothing, so that silence then says nothing.
    pub(super) fn is_lost(&mut self, pace: Pace, owes: bool, now: Instant) -> bool {
        self.next_look = now + self.patience;
        match (std::mem::take(&mut self.is_heard), owes) {
            _ if pace == Pace::Stalled => false,
            (false, owes) => !owes,
            (true, _) => {
                self.missed += 1;
                self.missed >= MARKER_LOOKS
            }
        }
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
mod tests {
    use super::*;

    fn marker() -> Marker {
        let group = "ota".parse().unwrap();
        let now = Instant::now();
        Marker::new(&Prefix::default(), &group, "a-up", MARKER_PATIENCE, 7, now)
    }

    fn report() -> Publish {
        Publish::new("ota/v1/d1/up/heartbeat", QoS::AtLeastOnce, "{}")
    }

    #[test]
    fn reports_do_not_put_off_the_end_of_waiting_for_ever() {
        let mut marker = marker();
        let begun = marker.next_look - MARKER_PATIENCE;
        let mut now;
        loop {
            now = marker.next_look;
            assert!(!marker.is(&report()));
            assert!(marker.may_have_waited());
            if marker.is_lost(Pace::Steady, false, now) {
                break;
            }
        }
        assert_eq!(now - begun, MARKER_PATIENCE * MARKER_LOOKS);
    }

    #[test]
    fn silence_is_not_held_against_a_broker_to_which_commits_are_owed() {
        let mut marker = marker();
        for _ in 0..2 * MARKER_LOOKS {
            let now = marker.next_look;
            assert!(!marker.is_lost(Pace::Steady, true, now));
        }
        let now = marker.next_look;
        assert!(!marker.is_lost(Pace::Stalled, false, now));
        assert!(marker.is_lost(Pace::Steady, false, now));
    }

    #[test]
    fn what_a_stall_has_held_back_ends_with_a_marker_of_after_it() {
        let (client, _events) = AsyncClient::new(rumqttc::MqttOptions::new("a-up", "h", 1), 8);
        let (mut marker, now) = (marker(), Instant::now());
        let sent =
            |marker: &Marker| Publish::new(&marker.topic, QoS::AtLeastOnce, marker.payload());
        marker.send(&client, now);
        let first = sent(&marker);
        assert!(marker.is(&first));
        marker.follow(Pace::Steady, &client, now);
        assert!(!marker.may_have_waited());
        marker.follow(Pace::Stalled, &client, now);
        assert!(marker.may_have_waited());
        // Neither one of before, nor one that has not been sent.
        assert!(marker.is(&first));
        assert!(marker.is(&sent(&marker)));
        assert!(marker.may_have_waited());
        marker.follow(Pace::Recovered, &client, now);
        assert!(marker.may_have_waited());
        assert!(marker.is(&sent(&marker)));
        assert!(!marker.may_have_waited());
    }

    #[test]
    fn a_group_is_named_in_plain_letters() {
        assert_eq!("ota_1-a".parse::<Group>().unwrap().to_string(), "ota_1-a");
        for wrong in ["", "a/b", "a+", "#", "ä", &"a".repeat(65)] {
            assert!(wrong.parse::<Group>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn whoever_changes_the_group_leaves_the_one_before() {
        let prefix = Prefix::default();
        let [old, new] = ["old", "new"].map(|name| name.parse::<Group>().unwrap());
        let alone = Sharing {
            group: None,
            left: vec![old.clone()],
        };
        assert_eq!(alone.wanted(&prefix)[0], "ota/v1/+/up/heartbeat");
        assert_eq!(
            alone.unwanted(&prefix)[0],
            "$share/old/ota/v1/+/up/heartbeat"
        );
        let sharing = Sharing {
            group: Some(new.clone()),
            left: vec![old, new],
        };
        assert_eq!(
            sharing.wanted(&prefix)[0],
            "$share/new/ota/v1/+/up/heartbeat"
        );
        let unwanted = sharing.unwanted(&prefix);
        assert!(unwanted.contains(&"ota/v1/+/up/heartbeat".to_owned()));
        assert!(unwanted.contains(&"$share/old/ota/v1/+/up/heartbeat".to_owned()));
        assert!(!unwanted.iter().any(|filter| filter.contains("new")));
    }
}

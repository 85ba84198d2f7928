//! The sessions that a replica holds: said anew when it was taken for dead, and what came in over those that are over by now.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;

use device_ota_domain::DeviceId;
use device_ota_domain::device::DeviceKey;

use super::PIECE;
use crate::inbound::{DeviceRef, Inbound, Uplink};
use crate::ports::StoreError;
use crate::ports::replicas::{Away, Here, ReplicaKey};
use crate::ports::store::Tx;
use crate::{Engine, Result};

impl Engine {
    /// Where sessions are of which is spoken now.
    pub(crate) fn sessions_here(&self) -> Here {
        let member = self.membership.member.get();
        let holds = member.is_some_and(|member| member.holds_sessions);
        Here {
            replica: self.here().filter(|_| holds),
            now: Some(self.clock.now()),
        }
    }

    /// Says of all sessions that they are there; those that hold no longer are ended.
    pub(super) async fn announce(&self) -> Result<()> {
        let Some(key) = self.sessions_here().replica else {
            self.membership.unannounced.store(false, Ordering::SeqCst);
            return Ok(());
        };
        let sessions = self.downlink.sessions();
        for piece in sessions.chunks(PIECE as usize) {
            let mut tx = self.store.begin().await?;
            let held = tx.announce(key, piece).await?;
            self.commit(tx).await?;
            let held: HashSet<DeviceId> = held.into_iter().collect();
            for (device, session) in piece.iter().filter(|(device, _)| !held.contains(device)) {
                self.downlink.take_over(device, *session).await;
            }
        }
        self.membership.unannounced.store(false, Ordering::SeqCst);
        // Who left meanwhile may have said so before it was announced.
        let there: HashSet<(DeviceId, i64)> = self.downlink.sessions().into_iter().collect();
        for left in sessions.into_iter().filter(|one| !there.contains(one)) {
            let (id, session) = left;
            if let Some(device) = self.resolve(&id).await? {
                self.has_left(device, session).await;
            }
        }
        Ok(())
    }

    async fn has_left(&self, device: DeviceRef, session: i64) {
        let message = Inbound {
            device,
            at: self.clock.now(),
            uplink: Uplink::Offline { session },
            ack: None,
        };
        // The service is stopping, and ends all of its sessions.
        let _ = self.uplinks.submit(message).await;
    }

    /// Which of these messages came in over sessions that are over, because their devices have connected elsewhere since: this replica
    /// stood still while they waited. What they say is not true any more. A conflict while this replica is taken for dead.
    pub(crate) async fn stale(
        &self,
        tx: &mut dyn Tx,
        messages: &[Inbound],
    ) -> std::result::Result<Vec<Stale>, StoreError> {
        let Some(here) = self.sessions_here().replica else {
            return Ok(Vec::new());
        };
        if !self.membership.is_one_of_several() {
            return Ok(Vec::new());
        }
        if self.membership.unannounced.load(Ordering::SeqCst) {
            return Err(StoreError::Conflict(REPLICA));
        }
        let devices: BTreeSet<DeviceKey> = messages.iter().map(|m| m.device.key).collect();
        let devices: Vec<DeviceKey> = devices.into_iter().collect();
        let Some(away) = tx.away_from(here, &devices).await? else {
            return Err(StoreError::Conflict(REPLICA));
        };
        Ok(over(messages, away, self.clock.now().as_microsecond()))
    }

    /// Whether this replica, which was `here` when it last looked, was taken for dead since: then what it saw of its own devices is that
    /// they are away, and they are not. If not, it is not before the transaction ends. To be asked before devices are locked.
    pub(crate) async fn was_ended(
        &self,
        tx: &mut dyn Tx,
        here: Option<ReplicaKey>,
    ) -> std::result::Result<bool, StoreError> {
        match here.filter(|_| self.membership.is_one_of_several()) {
            Some(here) => Ok(tx.away_from(here, &[]).await?.is_none()),
            None => Ok(false),
        }
    }

    /// Ends the sessions over which such messages came.
    pub(crate) async fn end_stale(&self, messages: &[Inbound], stale: &[Stale]) {
        for stale in stale {
            if let Some(message) = messages.get(stale.place) {
                let device = &message.device.id;
                self.downlink.take_over(device, stale.over).await;
                self.metrics.add("reports_ignored", "session_over", 1);
            }
        }
    }
}

/// What a conflict is about.
const REPLICA: &str = "this replica";

/// A message of a session that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stale {
    /// Its place in the batch.
    pub(crate) place: usize,
    /// The newest session of its device: those up to it are over here.
    pub(crate) over: i64,
}

fn over(messages: &[Inbound], away: Vec<Away>, now: i64) -> Vec<Stale> {
    let mut away: HashMap<DeviceKey, i64> =
        away.into_iter().map(|a| (a.device, a.session)).collect();
    let mut stale = Vec::new();
    for (place, message) in messages.iter().enumerate() {
        let Some(over) = away.get(&message.device.key).copied() else {
            continue;
        };
        match &message.uplink {
            Uplink::Online { session } if *session >= over || over > now => {
                away.remove(&message.device.key);
            }
            Uplink::Online { .. }
            | Uplink::Offline { .. }
            | Uplink::Past(_)
            | Uplink::Discarded => {}
            Uplink::Heartbeat(..) | Uplink::Report(_) => {
                if message.is_of_connection() {
                    stale.push(Stale { place, over });
                }
            }
        }
    }
    stale
}

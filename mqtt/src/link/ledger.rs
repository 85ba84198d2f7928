//! What is owed to the broker on one connection: acknowledgements, in the order in which messages came, each once its
//! message is committed.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use device_ota_engine::inbound::AckSink;
use rumqttc::{AsyncClient, Publish, QoS};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};

/// Acknowledgements handed on in one go.
const PIECE: usize = 256;

/// One message that came.
struct Debt {
    packet: u16,
    is_committed: bool,
    since: Instant,
}

impl Debt {
    fn is_late(&self, now: Instant, stall: Duration) -> bool {
        now - self.since > stall
    }
}

#[derive(Default)]
struct Owed {
    debts: VecDeque<Debt>,
    /// Token of the first of `debts`; the others follow it.
    first: u64,
    /// Something was paid that had been owed for too long, and nobody has asked since.
    stalled: bool,
}

/// How commits go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Nothing is owed for long.
    Steady,
    /// Something is.
    Stalled,
    /// Something was, since it was last asked.
    Recovered,
}

/// The debts of one connection; a new connection begins a new ledger, and late commits for the old one pay nothing.
pub(super) struct Ledger {
    /// What is owed for longer says that commits stall, and that the broker holds back what comes after it.
    stall: Duration,
    owed: Mutex<Owed>,
    due: Notify,
}

impl Ledger {
    /// Owes nothing yet; commits that take longer than `stall` are noted.
    pub(super) fn new(stall: Duration) -> Self {
        Self {
            stall,
            owed: Mutex::default(),
            due: Notify::new(),
        }
    }

    fn owed(&self) -> MutexGuard<'_, Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message came `now`; the token to report its commit with.
    pub(super) fn expect(&self, packet: u16, now: Instant) -> u64 {
        let mut owed = self.owed();
        owed.debts.push_back(Debt {
            packet,
            is_committed: false,
            since: now,
        });
        owed.first + owed.debts.len() as u64 - 1
    }

    /// The token of a message that came and is still owed.
    pub(super) fn token_of(&self, packet: u16) -> Option<u64> {
        let owed = self.owed();
        let at = owed.debts.iter().position(|debt| debt.packet == packet)?;
        Some(owed.first + at as u64)
    }

    /// Whether anything is owed.
    pub(super) fn owes(&self) -> bool {
        !self.owed().debts.is_empty()
    }

    /// How commits go; that they go again is said once.
    pub(super) fn pace(&self, now: Instant) -> Pace {
        let mut owed = self.owed();
        if owed
            .debts
            .front()
            .is_some_and(|debt| debt.is_late(now, self.stall))
        {
            return Pace::Stalled;
        }
        if std::mem::take(&mut owed.stalled) {
            Pace::Recovered
        } else {
            Pace::Steady
        }
    }

    fn take_due(&self, now: Instant) -> Vec<u16> {
        let mut owed = self.owed();
        let due = owed
            .debts
            .iter()
            .take(PIECE)
            .take_while(|debt| debt.is_committed)
            .count();
        owed.first += due as u64;
        owed.stalled |= due > 0
            && owed
                .debts
                .front()
                .is_some_and(|debt| debt.is_late(now, self.stall));
        owed.debts.drain(..due).map(|debt| debt.packet).collect()
    }

    /// Pays until the connection is gone.
    pub(super) async fn pay(&self, client: AsyncClient) {
        loop {
            let due = self.take_due(Instant::now());
            if due.is_empty() {
                self.due.notified().await;
            }
            for packet in due {
                let mut publish = Publish::new("", QoS::AtLeastOnce, Vec::new());
                publish.pkid = packet;
                if client.ack(&publish).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl AckSink for Ledger {
    fn committed(&self, token: u64) {
        let mut owed = self.owed();
        let Some(at) = token
            .checked_sub(owed.first)
            .and_then(|at| usize::try_from(at).ok())
        else {
            return;
        };
        if let Some(debt) = owed.debts.get_mut(at) {
            debt.is_committed = true;
        }
        let next_is_due = at == 0;
        drop(owed);
        if next_is_due {
            self.due.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(30);

    #[test]
    fn acknowledgements_keep_the_order_of_the_messages() {
        let now = Instant::now();
        let ledger = Ledger::new(STALL);
        let [first, second, third] = [7, 8, 9].map(|packet| ledger.expect(packet, now));
        ledger.committed(second);
        assert!(ledger.take_due(now).is_empty());
        ledger.committed(first);
        assert_eq!(ledger.take_due(now), [7, 8]);
        ledger.committed(third);
        // Twice, or never owed: nothing happens.
        ledger.committed(third);
        ledger.committed(99);
        assert_eq!(ledger.take_due(now), [9]);
        assert!(ledger.take_due(now).is_empty());
    }

    #[test]
    fn what_is_owed_is_found_by_its_packet() {
        let now = Instant::now();
        let ledger = Ledger::new(STALL);
        let [first, second] = [7, 8].map(|packet| ledger.expect(packet, now));
        ledger.committed(first);
        assert_eq!(ledger.take_due(now), [7]);
        assert_eq!(ledger.token_of(7), None);
        assert_eq!(ledger.token_of(8), Some(second));
        ledger.committed(second);
        assert_eq!(ledger.take_due(now), [8]);
        assert!(!ledger.owes());
    }

    #[test]
    fn a_stall_is_seen_while_it_lasts_and_once_when_it_is_over() {
        let ledger = Ledger::new(STALL);
        let came = Instant::now();
        let token = ledger.expect(7, came);
        assert_eq!(ledger.pace(came + STALL), Pace::Steady);
        let now = came + STALL + Duration::from_secs(1);
        assert_eq!([ledger.pace(now), ledger.pace(now)], [Pace::Stalled; 2]);
        ledger.committed(token);
        assert_eq!(ledger.take_due(now), [7]);
        assert_eq!(ledger.pace(now), Pace::Recovered);
        assert_eq!(ledger.pace(now), Pace::Steady);
    }
}

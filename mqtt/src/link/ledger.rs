//! What is owed to the broker on one connection: acknowledgements, in the order in which messages came, each once its
//! message is committed.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use device_ota_engine::inbound::AckSink;
use rumqttc::{AsyncClient, Publish, QoS};
use tokio::sync::Notify;

/// Acknowledgements handed on in one go.
const PIECE: usize = 256;

#[derive(Default)]
struct Owed {
    /// Packet ids, and whether their messages are committed.
    packets: VecDeque<(u16, bool)>,
    /// Token of the first of `packets`; the others follow it.
    first: u64,
}

/// The debts of one connection; a new connection begins a new ledger, and late commits for the old one pay nothing.
#[derive(Default)]
pub(super) struct Ledger {
    owed: Mutex<Owed>,
    due: Notify,
}

impl Ledger {
    fn owed(&self) -> MutexGuard<'_, Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message came; the token to report its commit with.
    pub(super) fn expect(&self, packet: u16) -> u64 {
        let mut owed = self.owed();
        owed.packets.push_back((packet, false));
        owed.first + owed.packets.len() as u64 - 1
    }

    fn take_due(&self) -> Vec<u16> {
        let mut owed = self.owed();
        let due = owed
            .packets
            .iter()
            .take(PIECE)
            .take_while(|(_, committed)| *committed)
            .count();
        owed.first += due as u64;
        owed.packets
            .drain(..due)
            .map(|(packet, _)| packet)
            .collect()
    }

    /// Pays until the connection is gone.
    pub(super) async fn pay(&self, client: AsyncClient) {
        loop {
            let due = self.take_due();
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
        if let Some((_, committed)) = owed.packets.get_mut(at) {
            *committed = true;
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

    #[test]
    fn acknowledgements_keep_the_order_of_the_messages() {
        let ledger = Ledger::default();
        let [first, second, third] = [7, 8, 9].map(|packet| ledger.expect(packet));
        ledger.committed(second);
        assert!(ledger.take_due().is_empty());
        ledger.committed(first);
        assert_eq!(ledger.take_due(), [7, 8]);
        ledger.committed(third);
        // Twice, or never owed: nothing happens.
        ledger.committed(third);
        ledger.committed(99);
        assert_eq!(ledger.take_due(), [9]);
        assert!(ledger.take_due().is_empty());
    }
}

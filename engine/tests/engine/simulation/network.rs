//! What lies between the service and its devices: connections, messages down that are lost or late, reports up that are
//! repeated until somebody says that they are safe.

use bytes::Bytes;
use device_ota_engine::inbound::Uplink;
use device_ota_protocol::messages::Offer;
use device_ota_protocol::objects::{Assignment, Command, CommandKind, Mode, Release, open};
use device_ota_protocol::topics::{Down, Up};
use rand::RngExt;

use super::device::{Offered, Said, Step};
use super::life::Message;
use super::world::{Event, World};
use crate::fixture::report;

impl World {
    /// A message to a device: lost, or on its way.
    pub(super) fn comes_down(
        &mut self,
        (to, kind, payload): Message,
        dead: bool,
    ) -> Result<(), String> {
        let Some(index) = self
            .devices
            .iter()
            .position(|device| device.reference.id == to)
        else {
            return Ok(()); // the probe
        };
        let lost = self.trouble.noise && self.rng.random_bool(0.15);
        let delay = if self.trouble.noise {
            self.rng.random_range(1..40)
        } else {
            1
        };
        match kind {
            Down::Offer => {
                let offered = self.read_offer(&payload)?;
                self.books.offered(index, &offered, dead)?;
                if self.devices[index].online && !lost {
                    self.after(delay, Event::Offer(index, offered));
                }
            }
            Down::Command => {
                let envelope = serde_json::from_slice(&payload).map_err(|e| e.to_string())?;
                let (command, _) =
                    open::<Command>(&envelope, &self.root).map_err(|e| e.to_string())?;
                self.books.told(index, command.seq)?;
                let (update, seq) = (command.update_id, command.seq);
                let order = match command.command {
                    CommandKind::Cancel => Event::Cancel(index, update, seq),
                    CommandKind::Activate => Event::Activate(index, update, seq),
                };
                if self.devices[index].online && !lost {
                    self.after(delay, order);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Verified as a device does.
    fn read_offer(&self, payload: &Bytes) -> Result<Offered, String> {
        let offer = Offer::parse(payload).map_err(|e| e.to_string())?;
        let (assignment, _) =
            open::<Assignment>(&offer.assignment, &self.root).map_err(|e| e.to_string())?;
        let (release, _) =
            open::<Release>(&offer.release, &self.root).map_err(|e| e.to_string())?;
        Ok(Offered {
            update: assignment.update_id,
            attempt: assignment.attempt,
            seq: assignment.seq,
            version: release.version,
            hold: assignment.mode == Mode::Stage,
        })
    }

    pub(super) fn offer_arrives(&mut self, index: usize, offered: &Offered) {
        let device = &mut self.devices[index];
        if !device.online {
            return;
        }
        let steps = device.take(&mut self.rng, offered);
        self.follow(index, steps);
    }

    /// A device is told to start what it holds.
    pub(super) fn activate_arrives(&mut self, index: usize, update: &str, seq: u64) {
        let steps = self.devices[index].flip(&mut self.rng, update, seq);
        self.follow(index, steps);
    }

    /// A device takes these steps, unless it begins something else before.
    fn follow(&mut self, index: usize, steps: Vec<(i64, Step)>) {
        let script = self.devices[index].script;
        let mut at = 0;
        for (delay, step) in steps {
            at += delay;
            self.after(
                at,
                Event::Step {
                    device: index,
                    script,
                    step,
                },
            );
        }
    }

    /// The connection ends; now and then nobody notices.
    pub(super) async fn down(&mut self, index: usize) {
        if !std::mem::take(&mut self.devices[index].online) {
            return;
        }
        // Who is gone for good is missed one day.
        let noticed = self.devices[index].gone || self.rng.random_bool(0.8);
        if let Some(life) = &self.life
            && noticed
        {
            let session = self.sessions;
            // With company, so that it does not wait for some.
            let uplinks = vec![Uplink::Offline { session }, Uplink::Discarded];
            life.submit(&self.devices[index].reference, uplinks).await;
        }
    }

    /// A device connects: it says what it runs, then what was not acknowledged; the service says what it wants.
    pub(super) async fn up(&mut self, index: usize) -> Result<(), String> {
        if self.devices[index].gone || self.devices[index].online {
            return Ok(());
        }
        let Some(life) = &mut self.life else {
            self.after(7, Event::Up(index));
            return Ok(());
        };
        self.sessions += 1;
        let device = &mut self.devices[index];
        device.online = true;
        let reason = if std::mem::take(&mut device.restarted) {
            "boot"
        } else {
            "reconnect"
        };
        let check = format!(
            r#"{{"version":"{}","nonce":"n{}","reason":"{reason}"}}"#,
            device.runs, self.sessions
        );
        let session = self.sessions;
        let uplinks = vec![Uplink::Online { session }, report(Up::Check, &check)];
        let id = device.reference.id.clone();
        life.submit(&device.reference, uplinks).await;
        life.answers_are_sent(Some(&id)).await;
        let waiting = std::mem::take(&mut self.devices[index].outbox);
        self.report(index, waiting.into()).await
    }

    pub(super) async fn say(&mut self, index: usize, said: Said) -> Result<(), String> {
        let others = self.books.updates_of_others(index);
        let Some(text) = self.devices[index].report(said, &others, &mut self.rng) else {
            return Ok(());
        };
        if !self.devices[index].online || self.life.is_none() {
            self.devices[index].outbox.push_back(text);
            return Ok(());
        }
        if self.trouble.noise && self.rng.random_bool(0.2) {
            let late = self.rng.random_range(1..300);
            self.after(late, Event::Late(index, text.clone()));
            if self.rng.random_bool(0.3) {
                return Ok(()); // it is late, and not twice
            }
        }
        self.report(index, vec![text]).await
    }

    /// What is not acknowledged is said again on the next connection.
    pub(super) async fn report(&mut self, index: usize, texts: Vec<String>) -> Result<(), String> {
        if texts.is_empty() {
            return Ok(());
        }
        let Some(life) = &mut self.life else {
            self.devices[index].outbox.extend(texts);
            return Ok(());
        };
        let uplinks = texts
            .iter()
            .map(|text| report(Up::Progress, text))
            .collect();
        let acknowledged = life.submit(&self.devices[index].reference, uplinks).await;
        life.answers_are_sent(None).await;
        let store = life.store.clone();
        for (text, acknowledged) in texts.into_iter().zip(acknowledged) {
            if acknowledged {
                self.books
                    .acknowledged(store.as_ref(), &self.devices[index], &text)
                    .await?;
            } else {
                self.devices[index].outbox.push_back(text);
            }
        }
        Ok(())
    }
}

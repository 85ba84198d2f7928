//! What lies between the service and its devices: connections, messages down that are lost or late, reports up that are
//! repeated until somebody says that they are safe.

use bytes::Bytes;
use device_ota_engine::inbound::Uplink;
use device_ota_protocol::messages::Offer;
use device_ota_protocol::objects::{Assignment, Command, CommandKind, Mode, Release, open};
use device_ota_protocol::topics::{Down, Up};
use rand::RngExt;

use super::device::{Connection, Offered, Said, Step};
use super::gateway::Message;
use super::life::Answer;
use super::sent::Way;
use super::service::Waiting;
use super::world::{Event, World};
use crate::fixture::report;

/// More sessions than are opened at one time.
const MOST_AT_ONCE: i64 = 1_000;

impl World {
    /// A message to a device: lost, or on its way.
    pub(super) fn comes_down(
        &mut self,
        service: usize,
        message: &Message,
        dead: bool,
        acts: bool,
    ) -> Result<(), String> {
        let of_it = |device: &super::device::Device| device.reference.id == message.to;
        let Some(index) = self.devices.iter().position(of_it) else {
            return Ok(()); // the probe
        };
        let connection = self.devices[index].connection;
        // One process finds the device wherever it is.
        let over = |c: Connection| c.service == service && Some(c.session) == message.session;
        let arrives = connection.is_some_and(|c| !self.several() || over(c));
        let elsewhere =
            |c: Connection| c.known && c.service != service && self.services[c.service].is_awake();
        let way = Way {
            life: if self.several() {
                self.life(service).number
            } else {
                0
            },
            session: message.session,
            arrives: arrives || !self.several(),
            acts: acts && self.several(),
            elsewhere: connection.is_some_and(elsewhere),
        };
        let payload = &message.payload;
        let lost = self.trouble.noise && self.rng.random_bool(0.15);
        let delay = if self.trouble.noise {
            self.rng.random_range(1..40)
        } else {
            1
        };
        match message.kind {
            Down::Offer => {
                let offered = self.read_offer(payload)?;
                self.books.offered(index, &offered, way, dead)?;
                if arrives && !lost {
                    self.after(delay, Event::Offer(index, offered));
                }
            }
            Down::Command => {
                let envelope = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
                let (command, _) =
                    open::<Command>(&envelope, &self.root).map_err(|e| e.to_string())?;
                self.books.told(index, command.seq, way)?;
                let (update, seq) = (command.update_id, command.seq);
                let order = match command.command {
                    CommandKind::Cancel => Event::Cancel(index, update, seq),
                    CommandKind::Activate => Event::Activate(index, update, seq),
                };
                if arrives && !lost {
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
        if !device.is_online() {
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
        let Some(connection) = self.devices[index].connection.take() else {
            return;
        };
        // Who is gone for good is missed one day.
        let noticed = self.devices[index].gone || self.rng.random_bool(0.8);
        let Connection {
            service, session, ..
        } = connection;
        if noticed {
            self.session_ends(index, service, session).await;
        } else if self.several() {
            // Nothing comes over it: its gateway finds out.
            let silence = self.rng.random_range(60..200);
            let life = self.services[service].life.as_ref().map(|l| l.number);
            self.after(silence, Event::FallsSilent(index, service, life, session));
        }
    }

    /// A gateway finds that nothing comes over a session any more.
    pub(super) async fn falls_silent(
        &mut self,
        index: usize,
        service: usize,
        life: Option<u64>,
        session: i64,
    ) {
        let present = self.services[service].life.as_ref().map(|l| l.number);
        if life.is_some() && life == present {
            self.session_ends(index, service, session).await;
        }
    }

    /// A process notices that a session has ended; one that stands still will.
    pub(super) async fn session_ends(&mut self, index: usize, service: usize, session: i64) {
        let device = &self.devices[index].reference;
        let Some(life) = &self.services[service].life else {
            return;
        };
        if life.process.stands_still() {
            let end = Waiting::End(index, session);
            return self.services[service].sockets.push(end);
        }
        life.gateway.leave(&device.id, session);
        life.submit(device, Self::good_bye(session)).await;
    }

    /// A device connects: it says what it runs, then what was not acknowledged; the service says what it wants.
    pub(super) async fn up(&mut self, index: usize) -> Result<(), String> {
        if self.devices[index].gone || self.devices[index].is_online() {
            return Ok(());
        }
        let service = self.any_gateway();
        if !self.services[service].is_awake() || !self.is_let_in(index, service).await? {
            self.after(7, Event::Up(index));
            return Ok(());
        }
        // Numbers of the clock, as a gateway's are.
        let now = self.now().as_microsecond();
        self.sessions = (self.sessions + 1).max(now - MOST_AT_ONCE);
        let session = self.sessions;
        let device = &mut self.devices[index];
        self.opened_by.insert(session, device.secret.clone());
        device.connection = Some(Connection {
            service,
            session,
            known: false,
        });
        let reason = if std::mem::take(&mut device.restarted) {
            "boot"
        } else {
            "reconnect"
        };
        self.nonces += 1;
        let check = format!(
            r#"{{"version":"{}","nonce":"n{}","reason":"{reason}"}}"#,
            device.runs, self.nonces
        );
        device.checked.clone_from(&check);
        let reference = device.reference.clone();
        let uplinks = vec![Uplink::Online { session }, report(Up::Check, &check)];
        let life = self.services[service].awake().expect("it is awake");
        let before = life.gateway.enter(&reference.id, session);
        let answers = life.submit(&reference, uplinks).await;
        let known = answers.first().is_some_and(Answer::is_safe);
        life.answers_are_sent(Some(&reference.id)).await;
        if let Some(connection) = &mut self.devices[index].connection {
            connection.known = known;
        }
        if let Some(before) = before {
            self.session_ends(index, service, before).await;
        }
        let waiting = std::mem::take(&mut self.devices[index].outbox);
        self.report(index, waiting.into()).await
    }

    pub(super) async fn say(&mut self, index: usize, said: Said) -> Result<(), String> {
        let others = self.books.updates_of_others(index);
        let Some(text) = self.devices[index].report(said, &others, &mut self.rng) else {
            return Ok(());
        };
        if !self.devices[index].is_online() || self.way_in(index).is_none() {
            return self.report(index, vec![text]).await;
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
        let Some(service) = self.way_in(index) else {
            self.keep(index, texts);
            return Ok(());
        };
        let uplinks = texts
            .iter()
            .map(|text| report(Up::Progress, text))
            .collect();
        let life = self.services[service].awake().expect("it is the way in");
        let answers = life.submit(&self.devices[index].reference, uplinks).await;
        life.answers_are_sent(None).await;
        for (text, answer) in texts.into_iter().zip(answers) {
            if answer.is_safe() {
                self.is_kept(index, service, &text).await?;
                continue;
            }
            self.devices[index].outbox.push_back(text.clone());
            if let Answer::Open(ack) = answer {
                self.services[service].owed.push((index, text, ack));
            }
        }
        Ok(())
    }

    /// What nobody takes at the moment: the device keeps it, and so does the socket of a process that stands still.
    fn keep(&mut self, index: usize, texts: Vec<String>) {
        let device = &mut self.devices[index];
        device.outbox.extend(texts.iter().cloned());
        let Some(Connection {
            service, session, ..
        }) = device.connection
        else {
            return;
        };
        let waiting = texts
            .into_iter()
            .map(|text| Waiting::Report(index, session, text));
        self.services[service].sockets.extend(waiting);
    }

    /// What was acknowledged is in the database.
    pub(super) async fn is_kept(
        &self,
        index: usize,
        service: usize,
        text: &str,
    ) -> Result<(), String> {
        let store = self.life(service).store.clone();
        let device = &self.devices[index];
        self.books.acknowledged(store.as_ref(), device, text).await
    }
}

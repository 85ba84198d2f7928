//! One connection of a device, from the subscription to its end.

use std::time::Duration;

use device_ota_protocol::agent::Input;
use device_ota_protocol::messages::Phase;
use device_ota_protocol::topics::{Down, Topic as Parsed};
use rand::RngExt as _;
use tokio::time::{Instant, sleep_until, timeout};

use super::transfer::Transfer;
use super::{Device, Leave};
use crate::faults::Flaw;
use crate::mqtt::{Client, Error, Event, Message};

/// How often the agent is told that time goes by.
const TICK: Duration = Duration::from_secs(5);
/// How long the service may take to grant a subscription.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an orderly end may take.
const GOODBYE: Duration = Duration::from_secs(2);

impl Device {
    pub(super) async fn session(&mut self, mut client: Client) -> Leave {
        let leave = match self.talk(&mut client).await {
            Ok(leave) => leave,
            Err(error) => {
                tracing::debug!(device.id = %self.agent.device_id(), %error, "connection lost");
                Leave::Lost
            }
        };
        match leave {
            Leave::Stop => {
                // Too late to mend anything if it fails.
                let _ = timeout(GOODBYE, self.say_goodbye(client)).await;
            }
            // A power cut, a lost link: nothing is said.
            Leave::Lost | Leave::Reboot(_) | Leave::Silence => client.abort(),
        }
        leave
    }

    async fn talk(&mut self, client: &mut Client) -> Result<Leave, Error> {
        if !self.subscribe(client).await? {
            return Ok(Leave::Lost);
        }
        self.ctx.board.totals.connects.one();
        self.ctx.board.update(self.index, |seat| {
            seat.online = true;
            seat.seen = true;
        });
        self.say_status(true, None);
        let nonce = self.rng.random();
        self.feed(Input::Connected { nonce });
        self.check_health();
        self.timers.heartbeat = Instant::now();
        let stop = self.ctx.stop.clone();
        loop {
            self.timers_due();
            self.pump(client)?;
            if let Some(leave) = self.time_to_leave() {
                return Ok(leave);
            }
            let wake = self.next_timer();
            tokio::select! {
                event = client.next() => self.happened(event?),
                event = self.transfer.next() => self.transferred(event),
                () = sleep_until(wake) => {}
                () = stop.cancelled() => return Ok(Leave::Stop),
            }
        }
    }

    async fn subscribe(&mut self, client: &mut Client) -> Result<bool, Error> {
        let filter = self.ctx.prefix.down_all(self.agent.device_id());
        client.subscribe(&filter)?;
        let answer = timeout(SUBSCRIBE_TIMEOUT, async {
            loop {
                if let Event::Subscribed { granted, .. } = client.next().await? {
                    return Ok(granted);
                }
            }
        });
        answer.await.map_err(|_| Error::TimedOut)?
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Message(message) => self.received(message),
            Event::Acked { pid, accepted } => {
                let phase = self.acknowledged(pid, accepted);
                if phase == Some(Phase::Accepted) && self.faults.flaw == Some(Flaw::Silent) {
                    self.leave = Some((Leave::Silence, Instant::now()));
                }
            }
            Event::Subscribed { .. } => {}
        }
    }

    fn received(&mut self, message: Message) {
        let parsed = self.ctx.prefix.parse(&message.topic);
        let Ok(Parsed::Down(id, down)) = parsed else {
            return self.misdelivered(&message);
        };
        if id != *self.agent.device_id() {
            return self.misdelivered(&message);
        }
        match down {
            Down::Chunk { offset, .. } => self.chunk_arrived(offset, message.payload),
            Down::Offer => self.offered(&message.payload),
            Down::Command | Down::Reply => {
                if down == Down::Command {
                    self.ctx.board.totals.commands.one();
                }
                let payload = &message.payload;
                self.feed(Input::Message { down, payload });
            }
        }
    }

    fn misdelivered(&self, message: &Message) {
        let text = format!("{} received {}", self.agent.device_id(), &*message.topic);
        self.ctx.board.violation(text);
    }

    /// Whether, and to where, the session is to end: once all is said, or the time for that is up.
    fn time_to_leave(&mut self) -> Option<Leave> {
        let (leave, deadline) = self.leave?;
        let over = Instant::now() >= deadline || self.has_said_all();
        over.then(|| {
            self.leave = None;
            leave
        })
    }

    fn timers_due(&mut self) {
        let now = Instant::now();
        if self.timers.recover.is_some_and(|at| now >= at) {
            self.timers.recover = None;
            self.timers.heartbeat = now;
            self.feed_conditions();
        }
        if now >= self.timers.heartbeat {
            let interval = self.ctx.habits.heartbeat;
            self.timers.heartbeat = now + self.jittered(interval);
            self.say_heartbeat();
        }
        if now >= self.timers.tick {
            self.timers.tick = now + TICK;
            self.feed(Input::Tick);
        }
        if self.timers.install.is_some_and(|at| now >= at) {
            self.install_done();
        }
        if self.timers.relapse.is_some_and(|at| now >= at) {
            self.relapse();
        }
        if self.held_until().is_some_and(|at| now >= at) {
            self.release_held();
        }
        if let Transfer::Chunks(chunks) = &self.transfer
            && now >= chunks.due()
        {
            self.chunks_overdue();
        }
    }

    fn next_timer(&self) -> Instant {
        let chunks = match &self.transfer {
            Transfer::Chunks(chunks) => Some(chunks.due()),
            Transfer::None | Transfer::Http(_) => None,
        };
        let leave = self.leave.map(|(_, deadline)| deadline);
        let timers = &self.timers;
        [
            timers.recover,
            timers.install,
            timers.relapse,
            self.held_until(),
            chunks,
            leave,
        ]
        .into_iter()
        .flatten()
        .fold(timers.heartbeat.min(timers.tick), Instant::min)
    }

    async fn say_goodbye(&mut self, mut client: Client) -> Result<(), Error> {
        self.say_status(false, Some("shutdown"));
        self.release_held();
        self.pump(&mut client)?;
        while client.in_flight() > 0 {
            let event = client.next().await?;
            if let Event::Acked { pid, accepted } = event {
                self.acknowledged(pid, accepted);
            }
            self.pump(&mut client)?;
        }
        client.disconnect().await
    }
}

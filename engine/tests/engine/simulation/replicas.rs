//! Several processes on one database (ADR 20): each says that it lives, heeds what others have noted for it, stands still and
//! goes on, and ends in good order.

use device_ota_domain::DeviceId;
use device_ota_engine::Member;
use device_ota_engine::ports::Downlink as _;
use device_ota_protocol::topics::Up;
use jiff::SignedDuration;
use rand::RngExt;
use rand::seq::SliceRandom;

use super::audit::rule;
use super::life::Answer;
use super::service::Waiting;
use super::world::{Event, World};
use crate::fixture::{alone, report};

/// How often a process says that it lives, in seconds, while others have to find out that one does not.
const BEAT: i64 = 5;
/// Within so many seconds they have.
const FOUND_OUT: SignedDuration = SignedDuration::from_secs(40);

/// What happens to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    StandsStill,
    GoesOn,
    /// It ends in good order.
    Leaves,
}

impl World {
    pub(super) const fn several(&self) -> bool {
        self.trouble.replicas
    }

    /// Which of several, in a story.
    pub(super) fn named(&self, service: usize) -> String {
        if self.several() {
            format!(" at replica {service}")
        } else {
            String::new()
        }
    }

    fn name_of(service: usize) -> String {
        format!("replica-{service}")
    }

    pub(super) fn member(&self, service: usize) -> Member {
        if !self.several() {
            return alone();
        }
        Member {
            name: Self::name_of(service),
            alone: false,
            holds_sessions: true,
            shares_images: true,
            shares_reports: true,
        }
    }

    /// To which process a device connects.
    pub(super) fn any_gateway(&mut self) -> usize {
        if self.several() {
            self.rng.random_range(0..self.services.len())
        } else {
            0
        }
    }

    /// Which processes do anything at this time, and who comes first.
    pub(super) fn whose_turn(&mut self) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.services.len()).collect();
        if self.several() {
            all.shuffle(&mut self.rng);
            all.retain(|_| self.rng.random_bool(0.85));
        }
        all
    }

    pub(super) fn plan_for_replicas(&mut self) {
        if !self.several() {
            return;
        }
        for service in 0..self.services.len() {
            for change in [Change::StandsStill, Change::Leaves] {
                for _ in 0..self.rng.random_range(0..3) {
                    let at = self.rng.random_range(1..3_000);
                    self.after(at, Event::Replica(service, change));
                }
            }
        }
    }

    /// Those that live say so.
    pub(super) async fn all_renew(&mut self) {
        for service in 0..self.services.len() {
            if let Some(life) = self.services[service].awake() {
                life.act(|engine| async move { engine.renew().await }).await;
            }
        }
    }

    /// Whoever is to be found dead is looked for from now on.
    pub(super) fn beat_faster(&mut self) {
        if !self.several() {
            return;
        }
        self.hurries_until = self.now().checked_add(FOUND_OUT).unwrap();
        self.queue
            .retain(|_, event| !matches!(event, Event::Beat(_)));
        for service in 0..self.services.len() {
            if self.services[service].life.is_some() {
                let first = self.rng.random_range(0..BEAT);
                self.after(first, Event::Beat(service));
            }
        }
    }

    /// While there is nobody to be found dead it makes no difference how often they say so.
    pub(super) async fn beats(&mut self, service: usize) -> Result<(), String> {
        let next = if self.now() < self.hurries_until {
            BEAT
        } else {
            self.rng.random_range(4 * BEAT..20 * BEAT)
        };
        self.after(next, Event::Beat(service));
        self.beat(service).await
    }

    async fn beat(&mut self, service: usize) -> Result<(), String> {
        let Some(life) = self.services[service].awake() else {
            return Ok(());
        };
        let commits = life.process.commits();
        life.act(|engine| async move {
            engine.renew().await?;
            engine.heed_notes().await
        })
        .await;
        let (is_done, after) = (life.is_awake(), life.process.commits());
        // What it writes of itself alone is of no interest.
        let number = life.number;
        if let Some(seen) = self
            .audited
            .iter_mut()
            .find(|seen| **seen == (number, commits))
        {
            seen.1 = after;
        }
        self.engine_has_ended(service).await;
        self.all_comes_down(false).await?;
        if is_done {
            self.no_session_is_over(service)
        } else {
            Ok(())
        }
    }

    /// Does what others have left notes about, now and then.
    pub(super) async fn heeds(&mut self, service: usize) -> Result<(), String> {
        if !self.several() {
            return Ok(());
        }
        let heeds = self.rng.random_bool(0.7);
        if let Some(life) = self.services[service].awake().filter(|_| heeds) {
            life.act(|engine| async move { engine.heed_notes().await })
                .await;
        }
        self.engine_has_ended(service).await;
        self.all_comes_down(false).await
    }

    /// Sessions that the engine has ended are over for their devices, too.
    async fn engine_has_ended(&mut self, service: usize) {
        let Some(life) = &self.services[service].life else {
            return;
        };
        for (id, session) in life.gateway.ended() {
            let Some(index) = self.index_of(&id) else {
                continue;
            };
            self.tell(|| format!("    {id} loses its session{}", self.named(service)));
            let own = &mut self.devices[index].connection;
            if own.take_if(|own| own.session == session).is_some() {
                let back = self.rng.random_range(1..10);
                self.after(back, Event::Up(index));
            }
            self.session_ends(index, service, session).await;
        }
    }

    fn index_of(&self, id: &DeviceId) -> Option<usize> {
        self.devices.iter().position(|d| d.reference.id == *id)
    }

    /// Who has heeded all notes has no session of a device that is elsewhere, or that was opened by a secret which is none any more.
    fn no_session_is_over(&mut self, service: usize) -> Result<(), String> {
        for (id, session) in self.life(service).gateway.sessions() {
            let device = &self.devices[self.index_of(&id).expect("it is one of ours")];
            let elsewhere = |c: &super::device::Connection| c.known && c.service != service;
            rule(!device.connection.as_ref().is_some_and(elsewhere), || {
                format!("replica {service} has session {session} of {id}, which is elsewhere")
            })?;
            let by = self.opened_by.get(&session);
            let own = device.own_secret.as_ref();
            rule(!device.deleted, || {
                format!("replica {service} has session {session} of {id}, which was deleted")
            })?;
            rule(own.is_none() || own == by, || {
                format!(
                    "replica {service} has session {session} of {id}, opened by a secret of before"
                )
            })?;
        }
        for device in &mut self.devices {
            device.refused_by.insert(service);
        }
        Ok(())
    }

    /// Whether a process lets a device in, by the secret that it has.
    pub(super) async fn is_let_in(&self, index: usize, service: usize) -> Result<bool, String> {
        if !self.several() {
            return Ok(true);
        }
        let device = &self.devices[index];
        let engine = &self.life(service).engine;
        let secret = device.secret.as_bytes();
        let known = engine.authenticate(&device.reference.id, secret).await;
        let is_let_in = known.map_err(|e| e.to_string())?.is_some();
        let Some(own) = &device.own_secret else {
            return Ok(is_let_in);
        };
        let is_own = *own == device.secret;
        rule(is_let_in || !is_own, || {
            format!("{} was not let in by its secret", device.reference.id)
        })?;
        let heard = device.refused_by.contains(&service);
        rule(!is_let_in || is_own || !heard, || {
            format!("{} was let in by a secret of before", device.reference.id)
        })?;
        Ok(is_let_in)
    }

    /// Who has come to stand still goes on one day, and some of its devices do not wait for that.
    pub(super) fn notice_who_stands(&mut self) {
        for service in 0..self.services.len() {
            let stands = |life: &super::life::Life| life.process.stands_still();
            let stands = self.services[service].life.as_ref().is_some_and(stands);
            if !stands || self.services[service].asleep {
                continue;
            }
            self.services[service].asleep = true;
            self.tell(|| format!("the service stands still{}", self.named(service)));
            let pause = if self.rng.random_bool(0.4) {
                self.rng.random_range(1..13)
            } else {
                self.rng.random_range(14..200)
            };
            self.after(pause, Event::Replica(service, Change::GoesOn));
            for index in 0..self.devices.len() {
                let connection = self.devices[index].connection;
                let Some(here) = connection.filter(|c| c.service == service) else {
                    continue;
                };
                if self.rng.random_bool(0.5) {
                    // It has heard no answer.
                    let check = self.devices[index].checked.clone();
                    let check = Waiting::Check(index, here.session, check);
                    self.services[service].sockets.push(check);
                }
                if self.rng.random_bool(0.6) {
                    let patience = self.rng.random_range(5..90);
                    self.after(patience, Event::LosesPatience(index, here.session));
                }
            }
            self.beat_faster();
        }
    }

    /// A device gives up a session that is open to a process which stands still.
    pub(super) async fn loses_patience(&mut self, index: usize, session: i64) {
        let own = self.devices[index].connection;
        let Some(own) = own.filter(|own| own.session == session) else {
            return;
        };
        if self.services[own.service].asleep {
            self.devices[index].connection = None;
            self.session_ends(index, own.service, session).await;
            let back = self.rng.random_range(1..10);
            self.after(back, Event::Up(index));
        }
    }

    pub(super) async fn changes(&mut self, service: usize, change: Change) -> Result<(), String> {
        match change {
            Change::GoesOn => return self.goes_on(service).await,
            Change::StandsStill => {
                if let Some(life) = self.services[service].awake() {
                    life.process.stand_still();
                }
            }
            Change::Leaves => self.leaves(service).await,
        }
        Ok(())
    }

    /// It ends in good order: its sessions, what it has taken, itself.
    async fn leaves(&mut self, service: usize) {
        if !self.services[service].is_awake() {
            return;
        }
        let mut life = self.services[service].life.take().expect("it is awake");
        for (id, session) in life.gateway.close() {
            let device = &self.devices[self.index_of(&id).expect("it is one of ours")].reference;
            for ack in life.hand_over(device, Self::good_bye(session)).await {
                life.answer(ack).await;
            }
        }
        life.leave().await;
        life.end().await;
        let pause = self.rng.random_range(1..60);
        self.is_gone(service, pause);
    }

    /// It goes on in the middle of what it was at: with what its sockets have kept, and before or after it finds out what it was taken for.
    async fn goes_on(&mut self, service: usize) -> Result<(), String> {
        let dies = self.rng.random_bool(0.15);
        let (early, mut acts) = (self.rng.random_bool(0.5), [0, 1, 2]);
        acts.shuffle(&mut self.rng);
        let many = self.rng.random_range(0..=acts.len());
        let this = &mut self.services[service];
        let Some(life) = this.life.as_mut().filter(|l| l.process.stands_still()) else {
            return Ok(());
        };
        this.asleep = false;
        if dies {
            life.process.die();
            return Ok(());
        }
        // What it was at when it came to stand still goes first, so that a story is the same each time.
        let was_at_it = life.go_on().await;
        let (many, early) = if was_at_it { (0, false) } else { (many, early) };
        self.beat_faster();
        let life = self.services[service].life.as_mut().expect("it went on");
        for act in &acts[..many] {
            match act {
                0 => life.dispatch().await,
                1 => life.keep_time().await,
                _ => {
                    life.act(|engine| async move { engine.heed_notes().await })
                        .await;
                }
            }
        }
        if early {
            self.sockets_are_read(service).await;
        }
        let life = self.services[service].life.as_mut().expect("it went on");
        life.act(|engine| async move { engine.renew().await }).await;
        if !early {
            self.sockets_are_read(service).await;
        }
        self.hears_of_what_it_was_owed(service).await?;
        self.engine_has_ended(service).await;
        if let Some(life) = self.services[service].awake() {
            life.answers_are_sent(None).await;
        }
        self.all_comes_down(false).await
    }

    async fn sockets_are_read(&mut self, service: usize) {
        let waiting = std::mem::take(&mut self.services[service].sockets);
        for waiting in waiting {
            let life = self.life(service);
            let (Waiting::Report(index, session, _)
            | Waiting::Check(index, session, _)
            | Waiting::End(index, session)) = waiting;
            let device = &self.devices[index].reference;
            let here = (device.id.clone(), session);
            let is_open = life.gateway.sessions().contains(&here);
            match waiting {
                Waiting::End(..) => {
                    life.gateway.leave(&device.id, session);
                    life.hand_over(device, Self::good_bye(session)).await;
                }
                _ if !is_open => {} // it was ended before anybody read it
                Waiting::Check(_, _, text) => {
                    let said = vec![report(Up::Check, &text)];
                    life.hand_over(device, said).await;
                }
                Waiting::Report(_, _, text) => {
                    let said = vec![report(Up::Progress, &text)];
                    let acks = life.hand_over(device, said).await;
                    let owed = acks.into_iter().map(|ack| (index, text.clone(), ack));
                    self.services[service].owed.extend(owed);
                }
            }
        }
    }

    /// What it says now of reports that it took before is true; of those that came over sessions which are over it says nothing.
    async fn hears_of_what_it_was_owed(&mut self, service: usize) -> Result<(), String> {
        for (index, text, ack) in std::mem::take(&mut self.services[service].owed) {
            match self.life(service).answer(ack).await {
                Answer::Safe => self.is_kept(index, service, &text).await?,
                Answer::Never => {}
                Answer::Open(ack) => self.services[service].owed.push((index, text, ack)),
            }
        }
        Ok(())
    }

    /// Whether nothing more happens when all have said what they have to say.
    pub(super) async fn is_settled(&mut self) -> Result<bool, String> {
        if self.several() {
            for _ in 0..2 {
                for service in 0..self.services.len() {
                    self.beat(service).await?;
                }
            }
        }
        Ok(self.is_resting())
    }

    /// In the end: each device is held by the process that it is connected to, and by no other, and who is connected nowhere is offline.
    pub(super) async fn everybody_is_held(&self) -> Result<(), String> {
        if !self.several() {
            return Ok(());
        }
        let store = self.life(0).store.clone();
        let replicas = store.replicas().await.unwrap();
        let named: Vec<&str> = replicas.iter().map(|one| one.name.as_str()).collect();
        rule(replicas.len() == self.services.len(), || {
            format!("there are the replicas {named:?}")
        })?;
        for service in &self.services {
            let name = Self::name_of(service.index);
            let row = replicas.iter().find(|row| row.name == name);
            let row = row.ok_or_else(|| format!("{name} is not among {named:?}"))?;
            let here = |d: &&super::device::Device| {
                d.connection.is_some_and(|c| c.service == service.index)
            };
            let here: Vec<_> = self.devices.iter().filter(here).collect();
            let keys: Vec<_> = here.iter().map(|device| device.reference.key).collect();
            let mut tx = store.begin().await.unwrap();
            let away = tx.away_from(row.key, &keys).await.unwrap();
            rule(away.as_ref().is_some_and(Vec::is_empty), || {
                format!("{keys:?} are connected to {name}, which does not hold {away:?}")
            })?;
            drop(tx);
            let open = self.life(service.index).gateway.sessions();
            let own = here.iter().map(|device| {
                let session = device.connection.map_or(0, |c| c.session);
                (device.reference.id.clone(), session)
            });
            let own: Vec<_> = own.collect();
            rule(open == own, || {
                format!("{name} has {open:?}, and there are {own:?}")
            })?;
        }
        for device in &self.devices {
            let id = &device.reference.id;
            let Some(known) = store.device(id).await.unwrap() else {
                continue;
            };
            rule(known.latest.online == device.is_online(), || {
                format!("{id}: connected {}", device.is_online())
            })?;
        }
        Ok(())
    }
}

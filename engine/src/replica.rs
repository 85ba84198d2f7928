//! This process as one of the replicas on a database (ADR 20): it says that it lives, ends those that no longer do, and heeds
//! the notes that they leave for it.
//!
//! A replica deals with the devices that its gateway holds and with those that nobody holds. What it must not do twice with the
//! others is decided in transactions; nothing here is a lock.

mod fit;
mod life;
mod notes;
mod sessions;

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::ports::replicas::{NewReplica, Replica, ReplicaKey};
use crate::{Engine, Result};
use life::Life;
pub(crate) use sessions::Stale;

/// A replica that has not said for so long that it lives is taken for dead, and its devices for offline.
pub(crate) const ALIVE: SignedDuration = SignedDuration::from_secs(15);
/// How often it says so.
const RENEWED_EVERY: Duration = Duration::from_secs(5);
/// How often it reads anew what others may have learnt of devices that come here.
const TAKEN_UP_EVERY: Duration = Duration::from_mins(1);
/// Notes heeded, and sessions announced, at once.
const PIECE: u32 = 1_000;

/// What there is to know of a replica before it begins.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that have nothing to do with each other"
)]
pub struct Member {
    /// The name of its data folder: who begins with it takes the place of the one before.
    pub name: String,
    /// There can be no other: the database is one process's own.
    pub alone: bool,
    /// Devices connect to its own gateway.
    pub holds_sessions: bool,
    /// Its images lie where others read them.
    pub shares_images: bool,
    /// Of what devices say, it hears what no other replica does: at its own gateway, or by a subscription that replicas share.
    pub shares_reports: bool,
}

/// This process among the replicas on its database, as it saw them last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// How many live, this one included.
    pub live: usize,
    /// The number of this one.
    pub here: ReplicaKey,
    /// The number of the one that does what one does for all: it lives, and no other that does is older.
    pub leader: ReplicaKey,
}

/// This process among the replicas.
#[derive(Default)]
pub(crate) struct Membership {
    member: OnceLock<Member>,
    /// 0: it has not begun.
    key: AtomicI64,
    /// There are others.
    several: AtomicBool,
    /// It has begun anew, and its sessions have not all been announced.
    unannounced: AtomicBool,
    others: Mutex<Life>,
    seen: Mutex<Option<Standing>>,
}

impl Membership {
    fn key(&self) -> Option<ReplicaKey> {
        let key = self.key.load(Ordering::SeqCst);
        (key != 0).then_some(ReplicaKey(key))
    }

    /// It can be among others.
    pub(crate) fn is_one_of_several(&self) -> bool {
        self.member.get().is_some_and(|member| !member.alone)
    }

    /// The name of a receiver's place in the outbox, of one that all replicas share or one of this replica's own.
    pub(crate) fn place(&self, (sink, is_shared): (&'static str, bool)) -> String {
        let member = self.member.get().filter(|member| !member.alone);
        match member.filter(|_| !is_shared) {
            None => sink.to_owned(),
            Some(member) => format!("{sink}:{}", member.name),
        }
    }

    /// Of things that one replica does for all: whether it is this one. Who is not one of several does them all.
    pub(crate) fn leads(&self) -> bool {
        let is_leader = |standing: Standing| standing.leader == standing.here;
        !self.is_one_of_several() || self.standing().is_some_and(is_leader)
    }

    /// There are others at the moment, as far as is known.
    fn has_others(&self) -> bool {
        self.several.load(Ordering::SeqCst)
    }

    fn begins(&self, key: ReplicaKey, others: &[Replica]) {
        self.several.store(!others.is_empty(), Ordering::SeqCst);
        self.key.store(key.0, Ordering::SeqCst);
        let eldest = others.iter().map(|other| other.key).min();
        self.sees(others.len() + 1, eldest.or(Some(key)));
    }

    /// The eldest of those that live leads.
    fn sees(&self, live: usize, eldest: Option<ReplicaKey>) {
        let standing = self.key().zip(eldest);
        let standing = standing.map(|(here, leader)| Standing { live, here, leader });
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    /// As it saw the others last; `None`: it has not begun, or saw nobody who lives, itself included.
    pub(crate) fn standing(&self) -> Option<Standing> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says that it lives and heeds notes, until `shutdown`.
pub(crate) async fn run(engine: Arc<Engine>, shutdown: CancellationToken) {
    if !engine.membership.is_one_of_several() {
        return shutdown.cancelled().await;
    }
    let mut tick = tokio::time::interval(engine.settings.tick);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut renewed, mut taken_up) = (Instant::now(), Instant::now());
    loop {
        let turn = async {
            tick.tick().await;
            if renewed.elapsed() >= RENEWED_EVERY {
                renewed = Instant::now();
                report("saying that this replica lives", engine.renew().await);
            }
            report("heeding notes of other replicas", engine.heed_notes().await);
            if engine.membership.has_others() && taken_up.elapsed() >= TAKEN_UP_EVERY {
                taken_up = Instant::now();
                report("reading who is watched", engine.take_up().await);
            }
        };
        if shutdown.run_until_cancelled(turn).await.is_none() {
            return;
        }
    }
}

fn report(during: &'static str, done: Result<()>) {
    if let Err(error) = done {
        crate::dispatch::log(&error, during);
    }
}

impl Engine {
    /// Begins as a replica: ends the one before it on the same data folder and those that are dead, and all sessions that the database
    /// knows of and that none of the others holds. To be called once, before devices connect. 409 when another replica that lives does not
    /// fit: it has other trust roots, or images that only one of both can read.
    pub async fn join(&self, member: Member) -> Result<()> {
        let member = self.membership.member.get_or_init(|| member);
        // Its folder is locked: who had the name before is gone.
        let is_over = |other: &Replica, now: Timestamp| {
            member.alone || other.name == member.name || other.alive_until <= now
        };
        self.begin_as(member, is_over).await
    }

    async fn begin_as(
        &self,
        member: &Member,
        is_over: impl Fn(&Replica, Timestamp) -> bool + Send,
    ) -> Result<()> {
        let now = self.clock.now();
        let trust = self.keyring.digests();
        let mut tx = self.store.begin().await?;
        let mut others = Vec::new();
        for other in tx.hold_replicas().await? {
            if is_over(&other, now) {
                tx.end_replica(other.key, Timestamp::MAX, now).await?;
            } else {
                others.push(other);
            }
        }
        self.fits(tx.as_mut(), &others, member, &trust).await?;
        if member.holds_sessions {
            tx.reset_presence(now).await?;
        }
        let key = tx
            .insert_replica(&NewReplica {
                name: &member.name,
                trust: &trust,
                shares_images: member.shares_images,
                started_at: now,
                alive_until: alive_until(now),
            })
            .await?;
        for sink in self.sinks.iter().filter(|(_, is_shared)| !is_shared) {
            tx.begin_place(&self.membership.place(*sink)).await?;
        }
        self.commit(tx).await?;
        self.membership.begins(key, &others);
        if !member.alone {
            let others = others.len();
            tracing::info!(
                replica.key = key.0,
                replicas.others = others,
                "a replica begins"
            );
        }
        Ok(())
    }

    /// Ends as a replica, in good order: the devices that it held are offline. To be called when nothing comes in any more.
    pub async fn leave(&self) -> Result<()> {
        let Some(key) = self.here() else {
            return Ok(());
        };
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        tx.end_replica(key, Timestamp::MAX, now).await?;
        Ok(self.commit(tx).await?)
    }

    /// Says that this replica lives, and ends those that have not said so for too long. One that was itself taken for dead begins anew, and
    /// announces its sessions.
    pub async fn renew(&self) -> Result<()> {
        let (Some(key), Some(member)) = (self.here(), self.membership.member.get()) else {
            return Ok(());
        };
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let lives = tx.renew_replica(key, alive_until(now)).await?;
        self.commit(tx).await?;
        if !lives {
            tracing::warn!(
                replica.key = key.0,
                "this replica was taken for dead: it stood still"
            );
            // Before it has a row again: until then nothing that came here meanwhile is written.
            self.membership.unannounced.store(true, Ordering::SeqCst);
            self.missed_something();
            // One that is dead refuses nobody.
            self.end_the_dead().await?;
            self.begin_as(member, |_, _| false).await?;
            // Also what was learnt up to now: before it had a row again, nobody left a note for it.
            self.known.forget_all();
        }
        if self.membership.unannounced.load(Ordering::SeqCst) {
            self.announce().await?;
        }
        self.end_the_dead().await
    }

    async fn end_the_dead(&self) -> Result<()> {
        let (now, all) = (self.clock.now(), self.store.replicas().await?);
        let dead = {
            let others = self.membership.others.lock();
            let mut others = others.unwrap_or_else(PoisonError::into_inner);
            others.look(&all, now)
        };
        let is_dead = |replica: &Replica| dead.iter().any(|one| one.key == replica.key);
        let live = || all.iter().filter(|replica| !is_dead(replica));
        let eldest = live().next().map(|eldest| eldest.key);
        self.membership.sees(live().count(), eldest);
        self.membership
            .several
            .store(all.len() > 1, Ordering::SeqCst);
        let dead = dead.into_iter().filter(|one| Some(one.key) != self.here());
        let dead: Vec<Replica> = dead.collect();
        if dead.is_empty() {
            return Ok(());
        }
        let mut tx = self.store.begin().await?;
        tx.hold_replicas().await?;
        for replica in dead {
            // Unless it has said something since it was looked at.
            if tx
                .end_replica(replica.key, replica.alive_until, now)
                .await?
            {
                tracing::warn!(
                    replica.key = replica.key.0,
                    replica.name = replica.name,
                    "a replica has not said for {} s that it lives: its devices are offline",
                    ALIVE.as_secs()
                );
            }
        }
        self.commit(tx).await?;
        // What its devices said may have been lost with it: they have their time anew.
        self.missed_something();
        self.wake();
        self.take_up().await
    }

    /// The replica that this process is.
    pub(crate) fn here(&self) -> Option<ReplicaKey> {
        self.membership.key()
    }
}

fn alive_until(now: Timestamp) -> Timestamp {
    now.checked_add(ALIVE).unwrap_or(Timestamp::MAX)
}

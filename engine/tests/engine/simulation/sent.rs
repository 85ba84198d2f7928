//! What was sent down: each message once, in order, and over the session that its device has.

use std::collections::{HashMap, HashSet};

use super::audit::rule;
use super::device::Offered;
use super::world::World;

/// How a message came down.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    /// From which life of a process; 0 where there is one process, whose lives are one to its devices.
    pub(super) life: u64,
    /// Over which session; `None`: there was none.
    pub(super) session: Option<i64>,
    /// It arrives, unless it is lost.
    pub(super) arrives: bool,
    /// A process of several sent it by itself, and did not stand still since it wrote that it would.
    pub(super) acts: bool,
    /// Its device is connected to another process, which does not stand still.
    pub(super) elsewhere: bool,
}

#[derive(Default)]
pub(super) struct Sent {
    /// Every `seq` of each device.
    drawn: HashSet<(usize, u64)>,
    /// Highest `seq` that each device was sent by each life, and of those that arrived (`None`).
    highest: HashMap<(usize, Option<u64>), u64>,
    /// The latest session over which each attempt was offered.
    offers: HashMap<(String, u32), i64>,
}

impl Sent {
    /// No `seq` is sent twice, and each is higher than the one before; and nobody is spoken to by a process that does not hold them.
    pub(super) fn told(&mut self, device: usize, seq: u64, way: Way) -> Result<(), String> {
        let name = || World::name(device);
        rule(self.drawn.insert((device, seq)), || {
            format!("{} was sent seq {seq} twice", name())
        })?;
        let ways = [Some(Some(way.life)), way.arrives.then_some(None)];
        for one in ways.into_iter().flatten() {
            let highest = self.highest.insert((device, one), seq).unwrap_or_default();
            rule(seq > highest, || {
                format!("{} was sent seq {seq} after {highest}", name())
            })?;
        }
        let strays = way.session.is_none() && way.elsewhere;
        rule(!way.acts || !strays, || {
            format!(
                "{} was sent seq {seq} by a process that it is not connected to",
                name()
            )
        })
    }

    /// An attempt is not offered by two processes, unless its device has gone from the one to the other.
    pub(super) fn offered(
        &mut self,
        device: usize,
        offered: &Offered,
        way: Way,
    ) -> Result<(), String> {
        let Some(session) = way.session.filter(|_| way.acts || way.arrives) else {
            return Ok(());
        };
        let attempt = (offered.update.clone(), offered.attempt);
        let before = self.offers.insert(attempt, session).unwrap_or(session);
        rule(session >= before, || {
            let name = World::name(device);
            format!("{name} went from session {session} to {before}, and {offered:?} to both")
        })
    }
}

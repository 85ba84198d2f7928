//! One batch: what its messages say together, and the transaction that records it.

use std::collections::{BTreeSet, HashMap};

use device_ota_domain::campaign::Group;
use device_ota_domain::device::DeviceKey;
use device_ota_domain::update::Order;
use device_ota_domain::{Update, UpdateId};
use device_ota_protocol::messages::{Phase, Report};

use super::present::Present;
use super::rows::Rows;
use super::{Answers, Reply};
use crate::Engine;
use crate::chunks::Wanted;
use crate::inbound::{Inbound, Uplink};
use crate::offers::pair;
use crate::ports::StoreError;
use crate::ports::store::Tx;
use crate::replica::Stale;

/// Messages that are committed together.
pub(crate) struct Batch {
    messages: Vec<Inbound>,
    present: Present,
    /// Some message tells of updates or wants an answer, so rows have to be read.
    asks: bool,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) answers: Answers,
    /// Chunks that are asked for.
    pub(crate) chunks: Vec<Wanted>,
    /// A counter moved, a device has answered or appeared: the planner may have something to do.
    pub(crate) moved: bool,
    /// Messages that are not to be taken. While there are any, nothing was written.
    pub(crate) stale: Vec<Stale>,
}

impl Batch {
    pub(crate) fn new(messages: Vec<Inbound>) -> Self {
        Self {
            present: Present::of(&messages),
            asks: messages.iter().any(|m| asks(&m.uplink)),
            messages,
        }
    }

    /// Both halves, in order.
    pub(crate) fn halves(self) -> (Self, Self) {
        let mut first = self.messages;
        let second = first.split_off(first.len() / 2);
        (Self::new(first), Self::new(second))
    }

    /// Without messages that are not to be taken, whose senders are never told: who has sent them says anew what holds still.
    pub(crate) fn without(mut self, stale: &[Stale]) -> Self {
        for stale in stale.iter().rev() {
            drop(self.messages.remove(stale.place));
        }
        Self::new(self.messages)
    }

    pub(crate) fn messages(&self) -> &[Inbound] {
        &self.messages
    }

    /// Whose message is the first, for the log.
    pub(crate) fn device(&self) -> &str {
        self.messages.first().map_or("", |m| m.device.id.as_str())
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Tells every sender; only after the commit.
    pub(crate) fn acknowledge(self) {
        for message in self.messages {
            if let Some(ack) = message.ack {
                ack.committed();
            }
        }
    }

    /// Records the whole batch in one transaction, or nothing of it. May be called again after an error.
    pub(crate) async fn commit(&self, engine: &Engine) -> Result<Outcome, StoreError> {
        if self.present.is_empty() {
            return Ok(Outcome::default()); // all of it was discarded
        }
        let mut tx = engine.store.begin().await?;
        let stale = engine.stale(tx.as_mut(), &self.messages).await?;
        if !stale.is_empty() {
            return Ok(Outcome {
                stale,
                ..Outcome::default()
            });
        }
        let mut said = Said::default();
        if self.asks || !engine.rebooting.is_empty() || !engine.watched.is_empty() {
            said = self.record_reports(engine, tx.as_mut()).await?;
        }
        let here = engine.sessions_here();
        self.present.write(tx.as_mut(), here, &said.runs).await?;
        let devices: Vec<DeviceKey> = said.again.iter().map(|u| u.device).collect();
        let grounds = if devices.is_empty() {
            Vec::new()
        } else {
            tx.draw_seqs(&devices).await?
        };
        engine.commit(tx).await?;
        for update in said.after.values() {
            engine.rebooting.note(update);
            engine.watched.note(update);
        }
        said.withhold(engine).await;
        let due = pair(said.again, grounds).into_iter();
        said.answers.due = due.map(|due| (due.update.id.clone(), due)).collect();
        Ok(Outcome {
            answers: said.answers,
            chunks: said.chunks,
            moved: said.moved || self.present.appeared,
            stale: Vec::new(),
        })
    }

    /// What the reports say of updates, written down.
    async fn record_reports(&self, engine: &Engine, tx: &mut dyn Tx) -> Result<Said, StoreError> {
        let mut rows = Rows::load(tx, engine, &self.messages).await?;
        for message in &self.messages {
            rows.take(engine, message);
        }
        let Pending {
            answers,
            again,
            chunks,
        } = self.answers(&rows);
        let (answered, runs) = (rows.answered, std::mem::take(&mut rows.runs));
        let (changes, after) = rows.into_changes();
        let moved = answered || changes.moves_counters();
        if !changes.is_empty() {
            changes.write(tx).await?;
        }
        let again = again.iter().filter_map(|id| after.get(id));
        Ok(Said {
            answers,
            again: again
                .filter(|update| update.group() == Group::InFlight)
                .cloned()
                .collect(),
            chunks,
            after,
            runs,
            moved,
        })
    }

    /// Who is to be answered.
    fn answers(&self, rows: &Rows) -> Pending {
        let mut pending = Pending::default();
        for message in &self.messages {
            let Uplink::Report(report) = &message.uplink else {
                continue;
            };
            match report.as_ref() {
                Report::Check(check) => {
                    let due = rows
                        .in_flight_of(message.device.key)
                        .filter(|u| u.to_version != check.version);
                    let offer = due.is_some();
                    pending.again.extend(due.map(|u| u.id.clone()));
                    let reply = Reply {
                        device: message.device.id.clone(),
                        nonce: check.nonce.clone(),
                        version: check.version.clone(),
                        offer,
                    };
                    pending.answers.replies.insert(message.device.key, reply);
                }
                Report::Progress(progress) => {
                    let row = rows
                        .by_text(&progress.update_id)
                        .filter(|u| u.device == message.device.key);
                    // It has not heard yet: that it shall stop, or start what it holds.
                    let told = row.filter(|u| match u.order() {
                        Some(Order::Cancel) => true,
                        Some(Order::Activate) => progress.phase == Phase::Staged,
                        _ => false,
                    });
                    pending.again.extend(told.map(|u| u.id.clone()));
                }
                Report::Chunk(request) => {
                    let wanted = Wanted {
                        device: message.device.clone(),
                        request: *request,
                    };
                    pending.chunks.push(wanted);
                }
                Report::Heartbeat(_) | Report::Status(_) => {}
            }
        }
        pending
    }
}

/// Answers, the updates whose offer or command shall be said again, and chunks that are asked for.
#[derive(Default)]
struct Pending {
    answers: Answers,
    again: BTreeSet<UpdateId>,
    chunks: Vec<Wanted>,
}

/// What a batch's reports lead to.
#[derive(Default)]
struct Said {
    answers: Answers,
    /// Updates whose offer or command shall be said again.
    again: Vec<Update>,
    /// Chunks that are asked for.
    chunks: Vec<Wanted>,
    /// Every update that the batch spoke of.
    after: HashMap<UpdateId, Update>,
    /// What devices run, where a report of progress says it last.
    runs: HashMap<DeviceKey, String>,
    /// A counter moved, or a device has answered.
    moved: bool,
}

impl Said {
    /// Nothing is said again that its device has not taken up and whose maintenance window is closed: whoever asks is told so.
    async fn withhold(&mut self, engine: &Engine) {
        let withheld = match engine.withhold(&self.again).await {
            Ok(withheld) => withheld,
            Err(error) => {
                tracing::warn!(%error, "windows could not be looked up; what was asked for is said again later");
                self.again.iter().map(|update| update.id.clone()).collect()
            }
        };
        for update in self
            .again
            .extract_if(.., |update| withheld.contains(&update.id))
        {
            if let Some(reply) = self.answers.replies.get_mut(&update.device) {
                reply.offer = false;
            }
        }
    }
}

/// Whether a message may tell of an update or want an answer.
fn asks(uplink: &Uplink) -> bool {
    match uplink {
        Uplink::Report(report) => !matches!(**report, Report::Status(_)),
        _ => false,
    }
}

//! One device's connection: moves bytes between the socket, the session and the engine, and keeps the time.
//!
//! It is a hand-written future, because there may be tens of thousands: idle, it holds no buffer, and one turn of it
//! takes whatever there is (commits, messages, packets), answers in one write and hands over to the engine in one go.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use device_ota_engine::inbound::{Ack, AckSink, Closed, DeviceRef, Inbound};
use tokio::io::ReadBuf;
use tokio::time::{Instant, Sleep};
use tracing::info;

use super::Hub;
use super::farewell::farewell;
use super::mailbox::Mailbox;
use super::presence::Presence;
use super::wire::Wire;
use crate::codec;
use crate::session::{End, Note, Reaction, Session, consume};

/// Bytes read at a time, into a buffer that all connections of a thread share.
const READ_BYTES: usize = 16 * 1024;
/// Reads in one turn, before others get theirs.
const READS_A_TURN: usize = 4;
/// Bytes that may wait to be sent before nothing more is read or taken from the mailbox.
const HIGH_WATER: usize = 64 * 1024;
/// What a packet costs that leads to nothing (a ping, a subscription, a message refused): a thousand of them a second.
const IDLE_COST: Duration = Duration::from_millis(1);
/// As much of it may come at once; beyond, the socket is read slower.
const IDLE_CREDIT: Duration = Duration::from_secs(1);

/// What every turn needs and no idle connection should hold.
struct Scratch {
    input: Vec<u8>,
    reaction: Reaction,
    inbound: Vec<Inbound>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        input: vec![0; READ_BYTES],
        reaction: Reaction::default(),
        inbound: Vec::new(),
    });
}

type Submitting = Pin<Box<dyn Future<Output = Result<(), Closed>> + Send>>;

/// What the handshake found out.
pub(super) struct Opened {
    pub(super) device: DeviceRef,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) session: Session,
    pub(super) silence: Duration,
    /// Bytes after the CONNECT.
    pub(super) unread: Vec<u8>,
    /// The CONNACK.
    pub(super) out: Vec<u8>,
}

/// A connected device.
pub(super) struct Connection<W> {
    stream: W,
    hub: Arc<Hub>,
    mailbox: Arc<Mailbox>,
    session: Session,
    presence: Presence,
    /// Bytes read and not yet used.
    unread: Vec<u8>,
    /// Bytes that the socket did not take.
    unsent: Vec<u8>,
    /// What the wire has taken has not all gone out: of TLS, records that the socket did not take.
    unflushed: bool,
    /// Messages on their way to the engine, whose queue is full.
    submitting: Option<Submitting>,
    timer: Pin<Box<Sleep>>,
    silence: Duration,
    heard: Instant,
    /// When bytes last went out, or nothing waited to.
    sent: Instant,
    paused_until: Option<Instant>,
    /// Until when the packets that led to nothing are paid for.
    idle_until: Instant,
}

impl<W: Wire> Connection<W> {
    pub(super) fn new(stream: W, hub: Arc<Hub>, opened: Opened) -> Self {
        let now = Instant::now();
        let session = opened.mailbox.session();
        let presence = Presence::new(Arc::clone(&hub), opened.device, session);
        Self {
            stream,
            hub,
            mailbox: opened.mailbox,
            session: opened.session,
            presence,
            unread: opened.unread,
            unsent: opened.out,
            unflushed: false,
            submitting: None,
            timer: Box::pin(tokio::time::sleep_until(now)),
            silence: opened.silence,
            heard: now,
            sent: now,
            paused_until: None,
            idle_until: now,
        }
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(super) fn device(&self) -> &str {
        self.presence
            .device()
            .map_or("", |device| device.id.as_str())
    }

    /// One turn; ready when the session ends.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.mailbox.register(cx.waker());
        if let Some(end) = self.mailbox.is_over() {
            return Poll::Ready(end);
        }
        let turn = SCRATCH.with_borrow_mut(|scratch| {
            scratch.reaction.out.clear();
            scratch.reaction.taken.clear();
            scratch.reaction.notes.clear();
            scratch.reaction.pause = None;
            scratch.reaction.idle = 0;
            let turn = self.turn(cx, scratch);
            self.report(&mut scratch.reaction.notes);
            // What was answered before the fault is still said.
            if turn.is_err() {
                self.unsent.append(&mut scratch.reaction.out);
            }
            turn
        });
        match turn {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<(), End> {
        let now = Instant::now();
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
        self.advance_submission(cx)?;
        self.session
            .committed(self.mailbox.take_committed(), &mut scratch.reaction.out);
        let more_bytes = self.read(cx, scratch, now);
        // What came before a fault still counts.
        self.hand_over(cx, scratch, now)?;
        let more_bytes = more_bytes?;
        // After reading: an acknowledgement of the device may let the next message go.
        let more_mail = self.take_mail(&mut scratch.reaction);
        let held_back = self.unsent.len() + scratch.reaction.out.len() >= HIGH_WATER;
        self.flush(cx, &mut scratch.reaction.out, now)?;
        if (more_mail || held_back) && self.unsent.is_empty() || more_bytes {
            cx.waker().wake_by_ref();
        }
        self.keep_time(cx, now)
    }

    fn advance_submission(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        if let Some(submitting) = &mut self.submitting
            && let Poll::Ready(done) = submitting.as_mut().poll(cx)
        {
            self.submitting = None;
            done.map_err(|Closed| End::ShuttingDown)?;
        }
        Ok(())
    }

    /// Moves messages from the mailbox to the wire; true when it stopped for want of room.
    fn take_mail(&mut self, reaction: &mut Reaction) -> bool {
        while self.unsent.len() + reaction.out.len() < HIGH_WATER {
            let Some(mail) = self.mailbox.take_mail(|to| self.session.may_send(to)) else {
                return false;
            };
            self.session
                .send(&mail.to, mail.payload, self.hub.sessions.prefix(), reaction);
        }
        true
    }

    fn may_read(&self, reaction: &Reaction) -> bool {
        self.submitting.is_none()
            && self.paused_until.is_none()
            && reaction.pause.is_none()
            && self.session.is_open()
            && self.unsent.len() + reaction.out.len() < HIGH_WATER
    }

    /// Reads packets and lets the session take them; true when there may be more.
    fn read(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        now: Instant,
    ) -> Result<bool, End> {
        let Scratch {
            input, reaction, ..
        } = scratch;
        if !self.unread.is_empty() && self.may_read(reaction) {
            let unread = std::mem::take(&mut self.unread);
            self.unread = self.understand(unread, reaction, now)?;
        }
        for _ in 0..READS_A_TURN {
            if !self.may_read(reaction) {
                return Ok(false);
            }
            let mut buffer = ReadBuf::new(input);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Err(_)) => return Err(End::Gone),
                Poll::Ready(Ok(())) => {}
            }
            let bytes = buffer.filled();
            if bytes.is_empty() {
                return Err(End::Gone);
            }
            if self.unread.is_empty() {
                let used = self.consume(bytes, reaction, now)?;
                self.unread = bytes.get(used..).unwrap_or_default().to_vec();
            } else {
                let mut unread = std::mem::take(&mut self.unread);
                unread.extend_from_slice(bytes);
                self.unread = self.understand(unread, reaction, now)?;
            }
        }
        Ok(true)
    }

    /// Uses what it can of these bytes and gives back the rest; nothing is kept allocated for an empty one.
    fn understand(
        &mut self,
        mut bytes: Vec<u8>,
        reaction: &mut Reaction,
        now: Instant,
    ) -> Result<Vec<u8>, End> {
        let used = self.consume(&bytes, reaction, now)?;
        if used == bytes.len() {
            return Ok(Vec::new());
        }
        bytes.drain(..used);
        Ok(bytes)
    }

    fn consume(
        &mut self,
        bytes: &[u8],
        reaction: &mut Reaction,
        now: Instant,
    ) -> Result<usize, End> {
        let before = self.session.subscribed_changes();
        let used = consume(&mut self.session, bytes, self.hub.rules(), reaction)?;
        if used > 0 {
            self.heard = now;
        }
        if self.session.subscribed_changes() != before {
            self.mailbox.subscribed(self.session.subscribed());
        }
        if let Some(pause) = reaction.pause {
            self.paused_until = Some(now + pause);
        }
        self.charge(std::mem::take(&mut reaction.idle), now);
        Ok(used)
    }

    /// Reads slower where too much leads to nothing: a flood costs its sender's time, not others'.
    fn charge(&mut self, idle: u32, now: Instant) {
        if idle == 0 {
            return;
        }
        self.idle_until = self.idle_until.max(now) + IDLE_COST * idle;
        let owed = self.idle_until.duration_since(now);
        if let Some(wait) = owed.checked_sub(IDLE_CREDIT) {
            self.paused_until = self.paused_until.max(Some(now + wait));
        }
    }

    /// Counts what was refused, and logs the first of each kind.
    fn report(&self, notes: &mut Vec<Note>) {
        for note in notes.drain(..) {
            self.hub.count("mqtt_dropped", note.kind.label());
            if note.first && self.hub.may_log() {
                info!(
                    device.id = self.device(),
                    reason = note.kind.label(),
                    "message refused"
                );
            }
        }
    }

    /// Gives the engine what the device said.
    fn hand_over(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        now: Instant,
    ) -> Result<(), End> {
        let Scratch {
            reaction, inbound, ..
        } = scratch;
        if reaction.taken.is_empty() {
            return Ok(());
        }
        let Some(device) = self.presence.device() else {
            return Ok(());
        };
        let at = self.hub.engine.clock().now();
        inbound.clear();
        inbound.extend(reaction.taken.drain(..).map(|taken| Inbound {
            device: device.clone(),
            at,
            uplink: taken.uplink,
            ack: taken.token.map(|token| {
                let sink: Arc<dyn AckSink> = Arc::<Mailbox>::clone(&self.mailbox);
                Ack::new(sink, token)
            }),
        }));
        let uplinks = self.hub.engine.uplinks();
        uplinks
            .try_submit_many(inbound)
            .map_err(|Closed| End::ShuttingDown)?;
        if !inbound.is_empty() {
            let (uplinks, waiting) = (uplinks.clone(), std::mem::take(inbound));
            self.submitting = Some(Box::pin(async move {
                for message in waiting {
                    uplinks.submit(message).await?;
                }
                Ok(())
            }));
            self.heard = now;
            self.advance_submission(cx)?;
            if self.submitting.is_none() {
                cx.waker().wake_by_ref();
            }
        }
        Ok(())
    }

    /// Sends what waits, then what is new.
    fn flush(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>, now: Instant) -> Result<(), End> {
        if !self.unsent.is_empty() {
            self.unsent.append(out);
        } else if out.is_empty() && !self.unflushed {
            self.sent = now;
            return Ok(());
        }
        let bytes = if self.unsent.is_empty() {
            &*out
        } else {
            &self.unsent
        };
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Pending => break,
                Poll::Ready(Ok(0) | Err(_)) => return Err(End::Gone),
                Poll::Ready(Ok(written)) => {
                    done += written;
                    self.sent = now;
                }
            }
        }
        self.unflushed = match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Pending => true,
            Poll::Ready(Err(_)) => return Err(End::Gone),
            Poll::Ready(Ok(())) => false,
        };
        if done == bytes.len() {
            self.unsent = Vec::new();
        } else if self.unsent.is_empty() {
            self.unsent = out.get(done..).unwrap_or_default().to_vec();
        } else {
            self.unsent.drain(..done);
        }
        out.clear();
        Ok(())
    }

    /// Ends a session that is overdue, and sees to it that the next deadline wakes the task.
    fn keep_time(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        let write_timeout = self.hub.limits.write_timeout;
        let sending = !self.unsent.is_empty() || self.unflushed;
        if sending && now >= self.sent + write_timeout {
            return Err(End::Stalled);
        }
        if now >= self.heard + self.silence {
            // While we do not read, silence is our own doing.
            let reading = self.submitting.is_none()
                && self.paused_until.is_none()
                && self.session.is_open()
                && self.unsent.len() < HIGH_WATER;
            if reading {
                return Err(End::KeepAlive);
            }
            self.heard = now;
        }
        let mut due = self.heard + self.silence;
        if sending {
            due = due.min(self.sent + write_timeout);
        }
        if let Some(until) = self.paused_until {
            due = due.min(until);
        }
        // Set anew only when it has fired or would fire too late: most turns leave it alone.
        let armed = self.timer.deadline();
        if armed <= now || due < armed {
            self.timer.as_mut().reset(due);
            if self.timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        Ok(())
    }

    /// Takes the session out, tells the engine, and tells the device why if it can be told.
    pub(super) async fn close(mut self, end: End) {
        let Some(reason) = end.reason() else {
            // Nobody is there, so the socket does not wait for the engine.
            drop(self.stream);
            return self.presence.end().await;
        };
        self.presence.end().await;
        let mut word = std::mem::take(&mut self.unsent);
        codec::disconnect(&mut word, self.session.version(), reason);
        farewell(self.stream, &word, &self.hub).await;
    }
}

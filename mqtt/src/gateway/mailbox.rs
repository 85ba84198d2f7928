//! What others leave for a connection: messages for its device, commits of its reports, and the word that it is over.
//! Each wakes the connection's task, once for any number of them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use device_ota_engine::inbound::AckSink;
use device_ota_engine::ports::Delivery;
use device_ota_protocol::topics::Down;
use futures_util::task::AtomicWaker;

use crate::limits::{MAX_MAIL, MAX_MAIL_BYTES, RESERVED_MAIL, RESERVED_MAIL_BYTES};
use crate::session::{End, Subscribed};

/// A queue that has held this many messages gives its memory back once it is empty.
const KEPT_CAPACITY: usize = 4;

/// A message for the device.
pub(super) struct Mail {
    pub(super) to: Down,
    pub(super) payload: Bytes,
}

#[derive(Default)]
struct Queue {
    mail: VecDeque<Mail>,
    bytes: usize,
}

/// One session's mailbox.
pub(super) struct Mailbox {
    session: i64,
    waker: AtomicWaker,
    /// Bit `token % 64`: that message is committed.
    committed: AtomicU64,
    subscribed: AtomicU8,
    /// Why the session is to end; 0 while it is not.
    over: AtomicU8,
    queue: Mutex<Queue>,
}

impl Mailbox {
    pub(super) fn new(session: i64) -> Self {
        Self {
            session,
            waker: AtomicWaker::new(),
            committed: AtomicU64::new(0),
            subscribed: AtomicU8::new(0),
            over: AtomicU8::new(0),
            queue: Mutex::default(),
        }
    }

    /// The session's number.
    pub(super) fn session(&self) -> i64 {
        self.session
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a message, if the device has asked for such and there is room.
    pub(super) fn send(&self, to: &Down, payload: Bytes) -> Delivery {
        if !Subscribed(self.subscribed.load(Ordering::Acquire)).takes(to) {
            return Delivery::NotConnected;
        }
        let (messages, bytes) = match to {
            Down::Chunk { .. } => (MAX_MAIL - RESERVED_MAIL, MAX_MAIL_BYTES),
            _ => (MAX_MAIL, MAX_MAIL_BYTES + RESERVED_MAIL_BYTES),
        };
        let mut queue = self.queue();
        if queue.mail.len() >= messages || queue.bytes + payload.len() > bytes {
            return Delivery::Busy;
        }
        queue.bytes += payload.len();
        queue.mail.push_back(Mail { to: *to, payload });
        drop(queue);
        self.waker.wake();
        Delivery::Queued
    }

    /// Ends the session, unless it is ending already.
    pub(super) fn end(&self, end: End) {
        let _ = self
            .over
            .compare_exchange(0, end.into(), Ordering::AcqRel, Ordering::Relaxed);
        self.waker.wake();
    }

    // The connection's side.

    pub(super) fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }

    pub(super) fn is_over(&self) -> Option<End> {
        match self.over.load(Ordering::Acquire) {
            0 => None,
            1 => Some(End::TakenOver),
            2 => Some(End::Administrative),
            _ => Some(End::ShuttingDown),
        }
    }

    pub(super) fn subscribed(&self, subscribed: Subscribed) {
        self.subscribed.store(subscribed.0, Ordering::Release);
    }

    /// Tokens committed since the last call, as bits.
    pub(super) fn take_committed(&self) -> u64 {
        self.committed.swap(0, Ordering::AcqRel)
    }

    /// The next message, if `may_send` lets it go.
    pub(super) fn take_mail(&self, may_send: impl FnOnce(&Down) -> bool) -> Option<Mail> {
        let mut queue = self.queue();
        let mail = queue.mail.pop_front_if(|mail| may_send(&mail.to))?;
        queue.bytes -= mail.payload.len();
        if queue.mail.is_empty() && queue.mail.capacity() > KEPT_CAPACITY {
            queue.mail = VecDeque::new();
        }
        Some(mail)
    }
}

impl AckSink for Mailbox {
    fn committed(&self, token: u64) {
        self.committed
            .fetch_or(1 << (token % u64::from(u64::BITS)), Ordering::AcqRel);
        self.waker.wake();
    }
}

//! The gateway of one process: the sessions that it believes to have, and what goes down over them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use device_ota_domain::DeviceId;
use device_ota_engine::ports::{Delivery, Downlink};
use device_ota_protocol::topics::Down;
use tokio::sync::mpsc;

use super::fate::{Effect, Process};
use super::life::PROBE;

/// A message on its way down.
pub(super) struct Message {
    pub(super) to: DeviceId,
    pub(super) kind: Down,
    pub(super) payload: Bytes,
    /// Over which session; `None`: the gateway has none of that device.
    pub(super) session: Option<i64>,
    /// Its place among those of all processes.
    pub(super) place: u64,
}

/// Sessions by device, and those that the engine has ended since somebody asked.
#[derive(Default)]
struct Sessions {
    open: BTreeMap<DeviceId, i64>,
    ended: Vec<(DeviceId, i64)>,
}

/// A gateway; clones are one.
#[derive(Clone)]
pub(super) struct Gateway {
    process: Process,
    sent: mpsc::UnboundedSender<Message>,
    /// Messages of all processes so far.
    places: Arc<AtomicU64>,
    sessions: Arc<Mutex<Sessions>>,
}

impl Gateway {
    /// One without sessions, and what comes down.
    pub(super) fn new(
        process: Process,
        places: Arc<AtomicU64>,
    ) -> (Self, mpsc::UnboundedReceiver<Message>) {
        let (sent, wire) = mpsc::unbounded_channel();
        let gateway = Self {
            process,
            sent,
            places,
            sessions: Arc::default(),
        };
        (gateway, wire)
    }

    fn locked(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap()
    }

    /// A device has connected; its session from before, if there was one, is over.
    pub(super) fn enter(&self, device: &DeviceId, session: i64) -> Option<i64> {
        self.locked().open.insert(device.clone(), session)
    }

    /// A connection has ended.
    pub(super) fn leave(&self, device: &DeviceId, session: i64) {
        let mut sessions = self.locked();
        if sessions.open.get(device) == Some(&session) {
            sessions.open.remove(device);
        }
    }

    /// All sessions end.
    pub(super) fn close(&self) -> Vec<(DeviceId, i64)> {
        std::mem::take(&mut self.locked().open)
            .into_iter()
            .collect()
    }

    /// Sessions that the engine has ended since the last time.
    pub(super) fn ended(&self) -> Vec<(DeviceId, i64)> {
        std::mem::take(&mut self.locked().ended)
    }
}

#[async_trait]
impl Downlink for Gateway {
    async fn send(&self, device: &DeviceId, to: &Down, payload: Bytes) -> Delivery {
        let goes = self.process.may_in_time(Effect::Send).await;
        let session = self.locked().open.get(device).copied();
        if goes {
            let message = Message {
                to: device.clone(),
                kind: *to,
                payload,
                session,
                place: self.places.fetch_add(1, Ordering::SeqCst),
            };
            self.sent.send(message).ok();
        }
        self.process.goes_on().await;
        if session.is_none() && device.as_str() != PROBE {
            return Delivery::NotConnected;
        }
        Delivery::Queued
    }

    async fn disconnect(&self, device: &DeviceId) {
        self.take_over(device, i64::MAX).await;
    }

    async fn take_over(&self, device: &DeviceId, session: i64) {
        let mut sessions = self.locked();
        let over = sessions.open.get(device).copied();
        if let Some(over) = over.filter(|open| *open <= session) {
            sessions.open.remove(device);
            sessions.ended.push((device.clone(), over));
        }
    }

    fn sessions(&self) -> Vec<(DeviceId, i64)> {
        let sessions = self.locked();
        let open = sessions.open.iter();
        open.map(|(device, session)| (device.clone(), *session))
            .collect()
    }
}

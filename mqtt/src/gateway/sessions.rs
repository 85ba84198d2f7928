//! Which devices are connected, and the way down to them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use bytes::Bytes;
use device_ota_domain::DeviceId;
use device_ota_engine::ports::{Delivery, Downlink};
use device_ota_protocol::topics::{Down, Prefix};
use governor::clock::DefaultClock;

use super::mailbox::Mailbox;
use crate::codec::Refusal;
use crate::limits::Limits;
use crate::session::{End, Meter, RateLimits};

type Registry = HashMap<DeviceId, Arc<Mailbox>>;

/// The gateway's sessions, one a device; to the engine, the way down. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    prefix: Prefix,
    max: usize,
    rates: RateLimits,
    registry: RwLock<Registry>,
    closed: AtomicBool,
}

impl Sessions {
    /// No sessions yet.
    pub fn new(prefix: Prefix, limits: Limits) -> Self {
        Self(Arc::new(Inner {
            prefix,
            max: limits.max_connections,
            rates: RateLimits::new(&limits, DefaultClock::default()),
            registry: RwLock::default(),
            closed: AtomicBool::new(false),
        }))
    }

    /// Devices that are connected now.
    pub fn connected(&self) -> usize {
        self.read().len()
    }

    pub(super) fn prefix(&self) -> &Prefix {
        &self.0.prefix
    }

    pub(super) fn meter(&self) -> &dyn Meter {
        &self.0.rates
    }

    pub(super) fn forget_idle(&self) {
        self.0.rates.forget_idle();
    }

    fn read(&self) -> RwLockReadGuard<'_, Registry> {
        self.0
            .registry
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Registry> {
        self.0
            .registry
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a session; one of the same device is taken over.
    pub(super) fn enter(&self, device: &DeviceId, mailbox: Arc<Mailbox>) -> Result<(), Refusal> {
        let mut registry = self.write();
        if self.0.closed.load(Ordering::Acquire) {
            return Err(Refusal::Unavailable);
        }
        let full = registry.len() >= self.0.max;
        match registry.entry(device.clone()) {
            // Of two that connect at the same time the later number stays.
            Entry::Occupied(entry) if entry.get().session() > mailbox.session() => {
                mailbox.end(End::TakenOver);
            }
            Entry::Occupied(mut entry) => entry.insert(mailbox).end(End::TakenOver),
            Entry::Vacant(_) if full => return Err(Refusal::TooManyConnections),
            Entry::Vacant(entry) => {
                entry.insert(mailbox);
            }
        }
        Ok(())
    }

    /// Removes a session, unless another has taken its place.
    pub(super) fn leave(&self, device: &DeviceId, session: i64) {
        let mut registry = self.write();
        if registry
            .get(device)
            .is_some_and(|mailbox| mailbox.session() == session)
        {
            registry.remove(device);
        }
    }

    /// Ends all sessions and lets none begin.
    pub(super) fn close(&self) {
        // Under the lock, so that a session enters either before and is ended, or not at all.
        let registry = self.write();
        self.0.closed.store(true, Ordering::Release);
        for mailbox in registry.values() {
            mailbox.end(End::ShuttingDown);
        }
    }
}

#[async_trait]
impl Downlink for Sessions {
    async fn send(&self, device: &DeviceId, to: &Down, payload: Bytes) -> Delivery {
        let mailbox = self.read().get(device).map(Arc::clone);
        mailbox.map_or(Delivery::NotConnected, |mailbox| mailbox.send(to, payload))
    }

    async fn disconnect(&self, device: &DeviceId) {
        if let Some(mailbox) = self.read().get(device) {
            mailbox.end(End::Administrative);
        }
    }

    async fn take_over(&self, device: &DeviceId, session: i64) {
        if let Some(mailbox) = self.read().get(device)
            && mailbox.session() <= session
        {
            mailbox.end(End::TakenOver);
        }
    }

    fn sessions(&self) -> Vec<(DeviceId, i64)> {
        let registry = self.read();
        let sessions = registry.iter();
        sessions
            .map(|(device, mailbox)| (device.clone(), mailbox.session()))
            .collect()
    }
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions")
            .field("connected", &self.connected())
            .finish_non_exhaustive()
    }
}

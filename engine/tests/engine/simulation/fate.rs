//! When the process dies: at one commit, one message down, one acknowledgement or one event delivered, just before or
//! just after it takes effect. What a dead process does reaches nobody, and the database refuses it.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use device_ota_domain::DeviceId;
use device_ota_domain::event::StoredEvent;
use device_ota_engine::inbound::AckSink;
use device_ota_engine::ports::{Delivery, Downlink, EventSink, SinkError};
use device_ota_protocol::topics::Down;
use tokio::sync::{mpsc, oneshot, watch};

/// Whatever reaches the world outside of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Commit,
    Send,
    Ack,
    Deliver,
}

/// A death to come: at the effect of that kind that so many others come before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Death {
    pub(super) at: Effect,
    pub(super) after: u32,
    /// The effect still takes place.
    pub(super) too_late: bool,
}

struct Fate {
    death: Option<Death>,
    dead: bool,
    commits: u64,
}

/// The fate of one process.
#[derive(Clone)]
pub(super) struct Process(Arc<Mutex<Fate>>, watch::Sender<bool>);

impl Process {
    pub(super) fn new(death: Option<Death>) -> Self {
        let fate = Fate {
            death,
            dead: false,
            commits: 0,
        };
        Self(Arc::new(Mutex::new(fate)), watch::channel(false).0)
    }

    /// Whether an effect takes place; this may be the one at which the process dies.
    pub(super) fn may(&self, effect: Effect) -> bool {
        let mut fate = self.0.lock().unwrap();
        if fate.dead {
            return false;
        }
        let takes_place = match &mut fate.death {
            Some(death) if death.at == effect && death.after == 0 => {
                let too_late = death.too_late;
                fate.dead = true;
                self.1.send_replace(true);
                too_late
            }
            Some(death) if death.at == effect => {
                death.after -= 1;
                true
            }
            _ => true,
        };
        fate.commits += u64::from(takes_place && effect == Effect::Commit);
        takes_place
    }

    pub(super) fn is_dead(&self) -> bool {
        self.0.lock().unwrap().dead
    }

    /// Commits so far.
    pub(super) fn commits(&self) -> u64 {
        self.0.lock().unwrap().commits
    }

    /// Returns when it has died.
    pub(super) async fn died(&self) {
        let mut dead = self.1.subscribe();
        // The sender lives as long as this.
        dead.wait_for(|dead| *dead).await.unwrap();
    }
}

/// What goes down to the devices.
pub(super) struct Wire {
    pub(super) process: Process,
    pub(super) sent: mpsc::UnboundedSender<(DeviceId, Down, Bytes)>,
}

#[async_trait]
impl Downlink for Wire {
    async fn send(&self, device: &DeviceId, to: &Down, payload: Bytes) -> Delivery {
        if self.process.may(Effect::Send) {
            self.sent.send((device.clone(), *to, payload)).ok();
        }
        Delivery::Queued
    }

    async fn disconnect(&self, _device: &DeviceId) {}
}

/// Tells a device that its message is safe.
pub(super) struct Told {
    pub(super) process: Process,
    pub(super) device: Mutex<Option<oneshot::Sender<()>>>,
}

impl AckSink for Told {
    fn committed(&self, _token: u64) {
        if self.process.may(Effect::Ack)
            && let Some(device) = self.device.lock().unwrap().take()
        {
            device.send(()).ok();
        }
    }
}

/// A receiver of events that remembers them all, and once may not take one.
pub(super) struct Recorder {
    pub(super) process: Process,
    /// After how many events it takes none, once.
    pub(super) refuses: Mutex<Option<usize>>,
    pub(super) heard: watch::Sender<Vec<i64>>,
}

#[async_trait]
impl EventSink for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }

    async fn deliver(&self, event: &StoredEvent) -> Result<(), SinkError> {
        let heard = self.heard.borrow().len();
        let refused = self
            .refuses
            .lock()
            .unwrap()
            .take_if(|after| *after == heard);
        if refused.is_some() {
            return Err(SinkError("not now".to_owned()));
        }
        if self.process.may(Effect::Deliver) {
            self.heard.send_modify(|heard| heard.push(event.id));
            Ok(())
        } else {
            Err(SinkError("the process is dead".to_owned()))
        }
    }
}

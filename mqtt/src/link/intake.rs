//! Reports from the broker to the engine.

use std::sync::Arc;
use std::time::Duration;

use device_ota_engine::Engine;
use device_ota_engine::inbound::{Ack, AckSink, Closed, DeviceRef, Inbound, Uplink};
use device_ota_protocol::messages::{Report, parse_report};
use device_ota_protocol::topics::{Topic, Up};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, Packet, Publish, QoS, StateError,
    SubscribeFilter, SubscribeReasonCode, mqttbytes,
};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::ledger::Ledger;
use super::presence::Presence;
use super::{Link, MAX_PACKET, Pause};
use crate::session::{Class, Meter as _};

/// Pause before the database is asked again who a device is; nothing is taken from the broker meanwhile.
const DATABASE_PAUSE: Duration = Duration::from_millis(500);
/// How often counts of devices are forgotten that have not been heard lately.
const HOUSEKEEPING: Duration = Duration::from_mins(1);

/// Receives until `shutdown`, over as many connections as it takes.
pub(super) async fn receive_until(link: &Link, engine: &Engine, shutdown: &CancellationToken) {
    let mut intake = Intake {
        link,
        engine,
        presence: Presence::default(),
        last_session: 0,
    };
    engine.hears(false);
    let mut max_incoming = MAX_PACKET;
    let mut pause = Pause::default();
    while !shutdown.is_cancelled() {
        let (client, mut events) = link.client("up", true, max_incoming);
        let ledger = Arc::new(Ledger::default());
        let lost = tokio::select! {
            () = shutdown.cancelled() => None,
            lost = intake.receive(&client, &mut events, &ledger, &mut pause) => lost.ok(),
            () = ledger.pay(client.clone()) => None,
            () = forget_idle(link) => None,
        };
        link.set_receiving(false);
        engine.hears(false);
        max_incoming = lost.as_ref().and_then(too_large).unwrap_or(MAX_PACKET);
        if let Some(lost) = lost {
            engine.metrics().add("mqtt_link", "lost", 1);
            pause.after("receiving", &lost, shutdown).await;
        }
    }
}

/// The size of a packet that was too large to be taken. A broker without limits of its own sends such a message again on
/// each new connection, and nothing behind it: so the next connection takes it, to drop and acknowledge it like all that
/// is not valid. MQTT itself bounds the size (256 MiB), and the room lasts for that one connection.
fn too_large(lost: &ConnectionError) -> Option<usize> {
    match lost {
        ConnectionError::MqttState(StateError::Deserialization(
            mqttbytes::Error::PayloadSizeLimitExceeded(size),
        )) => Some(*size),
        _ => None,
    }
}

/// Forgets, from time to time, the counts of devices that have not been heard lately.
async fn forget_idle(link: &Link) {
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    loop {
        housekeeping.tick().await;
        link.0.rates.forget_idle();
    }
}

struct Intake<'a> {
    link: &'a Link,
    engine: &'a Engine,
    presence: Presence,
    last_session: i64,
}

impl Intake<'_> {
    /// Serves one connection; answers why it was lost.
    async fn receive(
        &mut self,
        client: &AsyncClient,
        events: &mut EventLoop,
        ledger: &Arc<Ledger>,
        pause: &mut Pause,
    ) -> Result<ConnectionError, Closed> {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    pause.reset();
                    self.engine.metrics().add("mqtt_link", "connected", 1);
                    let filters = Up::ALL.iter().map(|up| {
                        SubscribeFilter::new(self.link.0.prefix.any_up(*up), QoS::AtLeastOnce)
                    });
                    // The queue of a new client is empty.
                    let _ = client.try_subscribe_many(filters);
                }
                Ok(Event::Incoming(Packet::SubAck(ack))) => {
                    let granted = ack
                        .return_codes
                        .iter()
                        .all(|code| *code != SubscribeReasonCode::Failure);
                    if !granted {
                        error!(
                            "the broker does not let us subscribe to reports: see its access rules"
                        );
                    }
                    self.link.set_receiving(granted);
                    self.engine.hears(granted);
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => self.take(publish, ledger).await?,
                Ok(_) => {}
                Err(error) => return Ok(error),
            }
        }
    }

    async fn take(&mut self, publish: Publish, ledger: &Arc<Ledger>) -> Result<(), Closed> {
        let token = (publish.qos != QoS::AtMostOnce).then(|| ledger.expect(publish.pkid));
        let ack = token.map(|token| {
            let sink: Arc<dyn AckSink> = Arc::<Ledger>::clone(ledger);
            Ack::new(sink, token)
        });
        let (report, device, was_online) = match self.read(&publish).await {
            Ok(read) => read,
            Err(reason) => {
                self.engine.metrics().add("mqtt_dropped", reason, 1);
                // Dropped for good: the broker need not say it again.
                if let Some(ack) = ack {
                    ack.committed();
                }
                return Ok(());
            }
        };
        let session = self.next_session();
        let uplink = match report {
            Report::Status(status) if !status.online => Uplink::Offline { session },
            Report::Status(_) => Uplink::Online { session },
            report => {
                // A device need not say that it is there.
                if !was_online {
                    self.submit(device.clone(), Uplink::Online { session }, None)
                        .await?;
                }
                Uplink::report(report, &publish.payload)
            }
        };
        self.submit(device, uplink, ack).await
    }

    /// What a message says, whose it is, and whether that device had been heard before; or why it is dropped.
    async fn read(&mut self, publish: &Publish) -> Result<(Report, DeviceRef, bool), &'static str> {
        let Ok(Topic::Up(id, up)) = self.link.0.prefix.parse(&publish.topic) else {
            return Err("unknown_channel");
        };
        if publish.retain {
            return Err("retain_ignored");
        }
        let report = parse_report(up, &publish.payload).map_err(|invalid| invalid.reason())?;
        // Before each look-up: what was read in the moment of a deletion is forgotten with the next message.
        for ended in self.link.take_ended() {
            self.presence.forget(ended.as_str());
        }
        let known = loop {
            match self.presence.of(self.engine, &id).await {
                Ok(Some(known)) => break known,
                Ok(None) => return Err("unknown_device"),
                Err(_) => tokio::time::sleep(DATABASE_PAUSE).await,
            }
        };
        let class = match up {
            Up::Heartbeat => Some(Class::Heartbeat),
            Up::Check => Some(Class::Check),
            _ => None,
        };
        if class.is_some_and(|class| self.link.0.rates.allow(class, known.device.key).is_err()) {
            return Err("over_rate");
        }
        let online = !matches!(&report, Report::Status(status) if !status.online);
        let was_online = std::mem::replace(&mut known.online, online);
        Ok((report, known.device.clone(), was_online))
    }

    async fn submit(
        &self,
        device: DeviceRef,
        uplink: Uplink,
        ack: Option<Ack>,
    ) -> Result<(), Closed> {
        let at = self.engine.clock().now();
        self.engine
            .uplinks()
            .submit(Inbound {
                device,
                at,
                uplink,
                ack,
            })
            .await
    }

    /// A session number above all before it, also above those of an earlier run.
    fn next_session(&mut self) -> i64 {
        let now = self.engine.clock().now().as_microsecond();
        self.last_session = now.max(self.last_session + 1);
        self.last_session
    }
}

//! Reports from the broker to the engine.

use std::sync::Arc;
use std::time::Duration;

use device_ota_engine::Engine;
use device_ota_engine::inbound::{Ack, AckSink, Closed, DeviceRef, Inbound, Uplink};
use device_ota_protocol::messages::{Report, parse_report};
use device_ota_protocol::topics::{Topic, Up};
use rumqttc::{
    AsyncClient, ConnectionError, Event, Packet, Publish, QoS, StateError, SubscribeFilter,
    SubscribeReasonCode, mqttbytes,
};
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Lost, MAX_PACKET, Role};
use super::group::Marker;
use super::ledger::Ledger;
use super::presence::Presence;
use super::{Link, Pause};
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
    let mut role = Role {
        name: "up",
        keeps_session: true,
        max_incoming: MAX_PACKET,
    };
    let mut pause = Pause::new(role.name);
    while !shutdown.is_cancelled() {
        let lost = match shutdown.run_until_cancelled(link.connect(role)).await {
            None => break,
            Some(Err(lost)) => Some(lost),
            Some(Ok(connection)) => {
                let receiving = intake.receive_over(connection, &mut pause, shutdown);
                let lost = receiving.await;
                link.set_receiving(false);
                engine.hears(false);
                lost
            }
        };
        role.max_incoming = lost.as_ref().and_then(too_large).unwrap_or(MAX_PACKET);
        if let Some(lost) = lost {
            engine.metrics().add("mqtt_link", "lost", 1);
            pause.after(link, &lost, shutdown).await;
        }
    }
}

/// The size of a packet that was too large to be taken. A broker without limits of its own sends such a message again on
/// each new connection, and nothing behind it: so the next connection takes it, to drop and acknowledge it like all that
/// is not valid. MQTT itself bounds the size (256 MiB), and the room lasts for that one connection.
fn too_large(lost: &Lost) -> Option<usize> {
    match lost {
        Lost::Mqtt(ConnectionError::MqttState(StateError::Deserialization(
            mqttbytes::Error::PayloadSizeLimitExceeded(size),
        ))) => Some(*size),
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

/// It asks for something, or tells that its device is there: what is long past of these is worth nothing, and could be taken
/// for news.
fn is_of_the_moment(report: &Report) -> bool {
    match report {
        Report::Check(_) | Report::Chunk(_) => true,
        Report::Status(status) => status.online,
        Report::Heartbeat(_) | Report::Progress(_) => false,
    }
}

struct Intake<'a> {
    link: &'a Link,
    engine: &'a Engine,
    presence: Presence,
    last_session: i64,
}

impl Intake<'_> {
    /// Serves one connection to its end; answers why it was lost, if it was.
    async fn receive_over(
        &mut self,
        mut connection: Connection,
        pause: &mut Pause,
        shutdown: &CancellationToken,
    ) -> Option<Lost> {
        let ledger = Arc::new(Ledger::default());
        let client = connection.client.clone();
        let link = self.link;
        let lost = tokio::select! {
            () = shutdown.cancelled() => None,
            lost = self.receive(&mut connection, &ledger, pause) => lost.ok(),
            () = ledger.pay(client) => None,
            () = forget_idle(link) => None,
        };
        connection.close().await;
        lost
    }

    async fn receive(
        &mut self,
        connection: &mut Connection,
        ledger: &Arc<Ledger>,
        pause: &mut Pause,
    ) -> Result<Lost, Closed> {
        let mut marker = self.marker();
        let mut receives = false;
        loop {
            let event = tokio::select! {
                event = connection.next() => event,
                () = Marker::is_overdue(marker.as_ref()) => return Ok(Lost::NotShared),
            };
            match event {
                Ok(Event::Incoming(Packet::ConnAck(ack))) => {
                    self.engine.metrics().add("mqtt_link", "connected", 1);
                    if !ack.session_present
                        && let Some(marker) = &mut marker
                    {
                        marker.nothing_waits();
                    }
                    self.subscribe(&connection.client, marker.as_ref());
                }
                Ok(Event::Incoming(Packet::SubAck(ack))) => {
                    let refused = ack.return_codes.contains(&SubscribeReasonCode::Failure);
                    if refused {
                        return Ok(Lost::NotSubscribed);
                    }
                    match &mut marker {
                        // Only what comes shows that the broker shares.
                        Some(marker) => marker.send(&connection.client),
                        None => self.receives(&mut receives, pause),
                    }
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    self.receives(&mut receives, pause);
                    self.take(publish, ledger, marker.as_mut()).await?;
                }
                Ok(_) => {}
                Err(lost) => return Ok(lost),
            }
        }
    }

    /// The connection is good; said once.
    fn receives(&self, known: &mut bool, pause: &mut Pause) {
        if !std::mem::replace(known, true) {
            pause.reset();
            self.link.set_receiving(true);
            self.engine.hears(true);
        }
    }

    /// What this connection sends itself, where reports are shared.
    fn marker(&mut self) -> Option<Marker> {
        let number = self.next_session();
        let options = &self.link.0.options;
        let group = options.sharing.group.as_ref()?;
        Some(Marker::new(
            &self.link.0.prefix,
            group,
            &options.client_id,
            number,
        ))
    }

    /// The queue of a new client has room for all of it.
    fn subscribe(&self, client: &AsyncClient, marker: Option<&Marker>) {
        let (sharing, prefix) = (&self.link.0.options.sharing, &self.link.0.prefix);
        let wanted = sharing.wanted(prefix).into_iter();
        let wanted = wanted.chain(marker.map(|marker| marker.filter.clone()));
        let wanted = wanted.map(|filter| SubscribeFilter::new(filter, QoS::AtLeastOnce));
        let _ = client.try_subscribe_many(wanted);
        // Only then what is wanted no more: nothing falls between the two.
        for filter in sharing.unwanted(prefix) {
            let _ = client.try_unsubscribe(filter);
        }
    }

    async fn take(
        &mut self,
        publish: Publish,
        ledger: &Arc<Ledger>,
        marker: Option<&mut Marker>,
    ) -> Result<(), Closed> {
        let token = (publish.qos != QoS::AtMostOnce).then(|| ledger.expect(publish.pkid));
        let ack = token.map(|token| {
            let sink: Arc<dyn AckSink> = Arc::<Ledger>::clone(ledger);
            Ack::new(sink, token)
        });
        let mut waited = false;
        if let Some(marker) = marker {
            if marker.is(&publish) {
                if let Some(ack) = ack {
                    ack.committed();
                }
                return Ok(());
            }
            waited = marker.may_have_waited();
        }
        let (report, device, is_news) = match self.read(&publish, waited).await {
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
            Report::Heartbeat(_) if waited => Uplink::past(&publish.payload),
            report => {
                // A device need not say that it is there.
                if is_news {
                    self.submit(device.clone(), Uplink::Online { session }, None)
                        .await?;
                }
                Uplink::report(report, &publish.payload)
            }
        };
        self.submit(device, uplink, ack).await
    }

    /// What a message says, whose it is, and whether it is news that this device is there; or why it is dropped. It may have
    /// `waited`, while others took what came after it.
    async fn read(
        &mut self,
        publish: &Publish,
        waited: bool,
    ) -> Result<(Report, DeviceRef, bool), &'static str> {
        let Ok(Topic::Up(id, up)) = self.link.0.prefix.parse(&publish.topic) else {
            return Err("unknown_channel");
        };
        if publish.retain {
            return Err("retain_ignored");
        }
        let report = parse_report(up, &publish.payload).map_err(|invalid| invalid.reason())?;
        if waited && is_of_the_moment(&report) {
            return Err("late");
        }
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
        let is_shared = self.link.0.options.sharing.group.is_some();
        // What waited does not tell that it is there now.
        let is_news = !(waited && online) && known.hear(online, is_shared);
        Ok((report, known.device.clone(), is_news))
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

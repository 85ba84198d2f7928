//! Reports from the broker to the engine.

use std::sync::Arc;
use std::time::Duration;

use device_ota_engine::Engine;
use device_ota_engine::inbound::{Ack, AckSink, Closed, DeviceRef, Inbound, Uplink};
use device_ota_protocol::messages::{Report, parse_report};
use device_ota_protocol::topics::{Topic, Up};
use jiff::Timestamp;
use rumqttc::{
    AsyncClient, ConnectionError, Event, Packet, Publish, QoS, StateError, SubscribeFilter,
    SubscribeReasonCode, mqttbytes,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Lost, MAX_PACKET, Role};
use super::group::{Marker, STALL_PATIENCES};
use super::ledger::{Ledger, Pace};
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
        lacks_marker: false,
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
        intake.lacks_marker |= matches!(lost, Some(Lost::NotShared));
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

/// What is known of when a message was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    /// Just now, as far as can be known.
    New,
    /// Before; the broker says it again, since it was not acknowledged on an earlier connection.
    Repeated,
    /// Before what others have taken meanwhile, or what we have.
    Late,
}

struct Intake<'a> {
    link: &'a Link,
    engine: &'a Engine,
    presence: Presence,
    last_session: i64,
    /// An earlier connection was given up for it: reports alone do not show that this one is good.
    lacks_marker: bool,
}

impl Intake<'_> {
    /// Serves one connection to its end; answers why it was lost, if it was.
    async fn receive_over(
        &mut self,
        mut connection: Connection,
        pause: &mut Pause,
        shutdown: &CancellationToken,
    ) -> Option<Lost> {
        let stall = self.link.0.options.marker_patience * STALL_PATIENCES;
        let ledger = Arc::new(Ledger::new(stall));
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
                () = Marker::look(marker.as_ref()) => {
                    if let Some(marker) = &mut marker {
                        let now = Instant::now();
                        let pace = ledger.pace(now);
                        if marker.is_lost(pace, ledger.owes(), now) {
                            return Ok(Lost::NotShared);
                        }
                        marker.follow(pace, &connection.client, now);
                        if pace == Pace::Steady {
                            marker.send(&connection.client, now);
                        }
                    }
                    continue;
                }
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
                        Some(marker) => marker.send(&connection.client, Instant::now()),
                        None => self.receives(&mut receives, pause),
                    }
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    let (mut waited, now) = (false, Instant::now());
                    if let Some(marker) = &mut marker {
                        marker.follow(ledger.pace(now), &connection.client, now);
                        if marker.is(&publish) {
                            self.lacks_marker = false;
                            self.receives(&mut receives, pause);
                            if publish.qos != QoS::AtMostOnce {
                                ledger.committed(ledger.expect(publish.pkid, now));
                            }
                            continue;
                        }
                        waited = marker.may_have_waited();
                    }
                    if !self.lacks_marker {
                        self.receives(&mut receives, pause);
                    }
                    self.take(publish, ledger, waited, now).await?;
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
            options.marker_patience,
            number,
            Instant::now(),
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
        waited: bool,
        now: Instant,
    ) -> Result<(), Closed> {
        // Looking up whose it is may take long while the database is away.
        let at = self.engine.clock().now();
        // Some brokers say again, behind later reports, what they were not acknowledged in time.
        let owed = publish.dup.then(|| ledger.token_of(publish.pkid)).flatten();
        let token = (publish.qos != QoS::AtMostOnce)
            .then(|| owed.unwrap_or_else(|| ledger.expect(publish.pkid, now)));
        let ack = token.map(|token| {
            let sink: Arc<dyn AckSink> = Arc::<Ledger>::clone(ledger);
            Ack::new(sink, token)
        });
        let age = match (waited || owed.is_some(), publish.dup) {
            (true, _) => Age::Late,
            (false, true) => Age::Repeated,
            (false, false) => Age::New,
        };
        let (report, device, is_news) = match self.read(&publish, age).await {
            Ok(read) => read,
            Err(reason) => {
                self.engine.metrics().add("mqtt_dropped", reason, 1);
                // Dropped for good: the broker need not say it again. What is owed, the first of the two pays.
                if owed.is_none()
                    && let Some(ack) = ack
                {
                    ack.committed();
                }
                return Ok(());
            }
        };
        let session = self.next_session();
        let uplink = match report {
            Report::Status(status) if !status.online => Uplink::Offline { session },
            Report::Status(_) => Uplink::Online { session },
            Report::Heartbeat(_) if age != Age::New => Uplink::past(&publish.payload),
            report => {
                // A device need not say that it is there.
                if is_news {
                    self.submit(device.clone(), at, Uplink::Online { session }, None)
                        .await?;
                }
                Uplink::report(report, &publish.payload)
            }
        };
        self.submit(device, at, uplink, ack).await
    }

    /// What a message says, whose it is, and whether it is news that this device is there; or why it is dropped.
    async fn read(
        &mut self,
        publish: &Publish,
        age: Age,
    ) -> Result<(Report, DeviceRef, bool), &'static str> {
        let Ok(Topic::Up(id, up)) = self.link.0.prefix.parse(&publish.topic) else {
            return Err("unknown_channel");
        };
        if publish.retain {
            return Err("retain_ignored");
        }
        let report = parse_report(up, &publish.payload).map_err(|invalid| invalid.reason())?;
        if age == Age::Late && is_of_the_moment(&report) {
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
        // What is not new does not tell that it is there now.
        let is_news = !(age != Age::New && online) && known.hear(online, is_shared, Instant::now());
        Ok((report, known.device.clone(), is_news))
    }

    async fn submit(
        &self,
        device: DeviceRef,
        at: Timestamp,
        uplink: Uplink,
        ack: Option<Ack>,
    ) -> Result<(), Closed> {
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

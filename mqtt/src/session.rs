//! One device's session as a state machine without input or output: packets go in; answers, reports for the engine and
//! the end of the session come out. It knows what a device may do; sockets and time are the connection's.

mod acks;
mod admission;
mod end;
mod filters;
mod note;
mod rates;

use std::time::Duration;

use bytes::Bytes;
use device_ota_domain::DeviceKey;
use device_ota_engine::inbound::Uplink;
use device_ota_protocol::ids::DeviceId;
use device_ota_protocol::messages::parse_report;
use device_ota_protocol::topics::{Down, Prefix, Up};

pub use acks::Acks;
pub use admission::{Admission, admit};
pub use end::End;
pub use filters::{Filters, Subscribed};
pub use note::{Note, NoteKind};
pub use rates::{Class, Meter, RateLimits};

use crate::codec::{
    self, Granted, Packet, Pid, Publish, QoS, QosPid, TopicFilter, TopicName, Verdict, Version,
};
use crate::limits::MAX_PACKET;

/// A message for the engine.
#[derive(Debug)]
pub struct Taken {
    /// What it says.
    pub uplink: Uplink,
    /// What its commit is to be reported as, to [`Session::committed`]; `None` for QoS 0.
    pub token: Option<u64>,
}

/// What is to be done about packets, gathered over any number of them.
#[derive(Debug, Default)]
pub struct Reaction {
    /// Bytes to send.
    pub out: Vec<u8>,
    /// Messages for the engine, in order.
    pub taken: Vec<Taken>,
    /// What was refused.
    pub notes: Vec<Note>,
    /// How long not to read.
    pub pause: Option<Duration>,
    /// Packets, and filters in them, that led to nothing for the engine.
    pub idle: u32,
}

/// What a session is judged by.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// Where the topics are.
    pub prefix: &'a Prefix,
    /// How much is too much.
    pub meter: &'a dyn Meter,
}

/// One device's session, from its CONNACK on.
#[derive(Debug)]
pub struct Session {
    version: Version,
    id: DeviceId,
    device: DeviceKey,
    filters: Filters,
    acks: Acks,
    /// Packet ids of ours that the device has not acknowledged.
    unacknowledged: Vec<u16>,
    last_pid: u16,
    window: u16,
    max_packet: u32,
    noted: u8,
}

impl Session {
    /// The session of an admitted device.
    pub fn new(admission: &Admission, device: DeviceKey) -> Self {
        Self {
            version: admission.version,
            id: admission.id.clone(),
            device,
            filters: Filters::default(),
            acks: Acks::new(admission.offered.receive_maximum),
            unacknowledged: Vec::new(),
            last_pid: 0,
            window: admission.window,
            max_packet: admission.max_packet,
            noted: 0,
        }
    }

    /// Which MQTT it speaks.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// What it is subscribed to.
    pub fn subscribed(&self) -> Subscribed {
        self.filters.subscribed()
    }

    /// Changes whenever what it is subscribed to may have changed.
    pub const fn subscribed_changes(&self) -> u16 {
        self.filters.changes()
    }

    /// Whether another packet may be taken; else messages have to be committed first.
    pub fn is_open(&self) -> bool {
        self.acks.has_room()
    }

    /// Takes one packet.
    pub fn receive(
        &mut self,
        packet: Packet,
        rules: Rules<'_>,
        reaction: &mut Reaction,
    ) -> Result<(), End> {
        match packet {
            Packet::Publish(publish) => self.publish(&publish, rules, reaction),
            Packet::Puback(pid) => {
                let before = self.unacknowledged.len();
                self.unacknowledged
                    .retain(|waiting| *waiting != pid.value());
                if self.unacknowledged.len() == before {
                    reaction.idle += 1;
                }
                Ok(())
            }
            Packet::Subscribe {
                identified: true, ..
            } => Err(End::SubscriptionId),
            Packet::Subscribe { pid, filters, .. } => {
                self.subscribe(pid, &filters, rules, reaction)
            }
            Packet::Unsubscribe { pid, filters } => {
                self.unsubscribe(pid, &filters, rules, reaction)
            }
            Packet::Pingreq => {
                reaction.idle += 1;
                codec::pingresp(&mut reaction.out);
                Ok(())
            }
            Packet::Disconnect => Err(End::Disconnected),
            Packet::Qos2Step => Err(End::Unexpected),
        }
    }

    fn subscribe(
        &mut self,
        pid: Pid,
        filters: &[(TopicFilter, QoS)],
        rules: Rules<'_>,
        reaction: &mut Reaction,
    ) -> Result<(), End> {
        let granted: Vec<Granted> = filters
            .iter()
            .map(|(filter, qos)| self.grant(filter, *qos, rules))
            .collect();
        if granted
            .iter()
            .any(|granted| !matches!(granted, Granted::Yes(_)))
        {
            self.note(NoteKind::SubscribeRefused, reaction);
        }
        let start = reaction.out.len();
        codec::suback(&mut reaction.out, self.version, pid, &granted);
        self.answer_filters(granted.len(), start, reaction)
    }

    fn unsubscribe(
        &mut self,
        pid: Pid,
        filters: &[TopicFilter],
        rules: Rules<'_>,
        reaction: &mut Reaction,
    ) -> Result<(), End> {
        let existed: Vec<bool> = filters
            .iter()
            .map(|filter| match self.own_tail(filter, rules.prefix) {
                Some(tail) => self.filters.remove(tail),
                None => false,
            })
            .collect();
        let start = reaction.out.len();
        codec::unsuback(&mut reaction.out, self.version, pid, &existed);
        self.answer_filters(existed.len(), start, reaction)
    }

    /// An answer that grows with the number of filters may be larger than the device takes: then it is not sent
    /// (MQTT-3.1.2-24), and without it the session cannot go on.
    fn answer_filters(
        &self,
        filters: usize,
        start: usize,
        reaction: &mut Reaction,
    ) -> Result<(), End> {
        let filters = u32::try_from(filters).unwrap_or(u32::MAX);
        reaction.idle = reaction.idle.saturating_add(1).saturating_add(filters);
        let answer = reaction.out.len() - start;
        if u32::try_from(answer).is_ok_and(|answer| answer <= self.max_packet) {
            return Ok(());
        }
        reaction.out.truncate(start);
        Err(End::TooLarge)
    }

    /// The messages of these tokens are committed: bit `token % 64` of the word. Acknowledges what may be.
    pub fn committed(&mut self, tokens: u64, out: &mut Vec<u8>) {
        self.acks.committed(tokens);
        self.acknowledge(out);
    }

    /// Whether a message to the device may be sent now, as far as its own acknowledgements go.
    pub fn may_send(&self, to: &Down) -> bool {
        matches!(to, Down::Chunk { .. }) || self.unacknowledged.len() < usize::from(self.window)
    }

    /// Sends a message to the device, if it has asked for such.
    pub fn send(&mut self, to: &Down, payload: Bytes, prefix: &Prefix, reaction: &mut Reaction) {
        let Some(granted) = self.filters.granted(to) else {
            return;
        };
        let qos = match to {
            Down::Chunk { .. } => QosPid::Level0,
            _ if granted == QoS::Level0 => QosPid::Level0,
            _ => QosPid::Level1(self.next_pid()),
        };
        let Ok(topic) = TopicName::try_from(prefix.down(&self.id, to).as_str()) else {
            return;
        };
        let max = usize::try_from(self.max_packet).unwrap_or(usize::MAX);
        if !codec::publish(&mut reaction.out, self.version, qos, topic, payload, max) {
            self.note(NoteKind::DownTooLarge, reaction);
        } else if let Some(pid) = qos.pid() {
            self.unacknowledged.push(pid.value());
        }
    }

    /// The next packet id that the device does not hold.
    fn next_pid(&mut self) -> Pid {
        loop {
            self.last_pid = self.last_pid.checked_add(1).unwrap_or(1);
            if !self.unacknowledged.contains(&self.last_pid) {
                return Pid::try_from(self.last_pid).unwrap_or_default();
            }
        }
    }

    fn publish(
        &mut self,
        publish: &Publish,
        rules: Rules<'_>,
        reaction: &mut Reaction,
    ) -> Result<(), End> {
        if publish.qos.qos() == QoS::Level2 {
            return Err(End::Qos2);
        }
        if publish.retain {
            if self.version == Version::V5 {
                return Err(End::Retained);
            }
            self.note(NoteKind::RetainIgnored, reaction);
        }
        if !rules.prefix.may_publish(&self.id, &publish.topic) {
            if self.version == Version::V3 {
                return Err(End::NotAuthorized);
            }
            self.note(NoteKind::PublishRefused, reaction);
            self.answer(publish.qos, Verdict::NotAuthorized, reaction);
            return Ok(());
        }
        let up = self.channel(&publish.topic, rules.prefix);
        if self.over_rate(up, publish.qos, rules, reaction) {
            self.note(NoteKind::OverRate, reaction);
            self.answer(publish.qos, Verdict::QuotaExceeded, reaction);
            return Ok(());
        }
        let uplink = self.read(up, &publish.payload, reaction);
        let token = publish.qos.pid().map(|pid| self.acks.expect(pid));
        // An invalid message of QoS 0 leaves nothing to do.
        if token.is_some() || !matches!(uplink, Uplink::Discarded) {
            reaction.taken.push(Taken { uplink, token });
        }
        Ok(())
    }

    /// Which of its topics the device publishes to; known to be one of its own.
    fn channel(&self, topic: &str, prefix: &Prefix) -> Option<Up> {
        let tail = topic.get(prefix.as_str().len() + 1 + self.id.as_str().len()..)?;
        Up::parse(tail.strip_prefix("/up/")?)
    }

    /// Whether the message is to be dropped. Reports that tell of an update are not: reading pauses instead.
    fn over_rate(
        &self,
        up: Option<Up>,
        qos: QosPid,
        rules: Rules<'_>,
        reaction: &mut Reaction,
    ) -> bool {
        let class = match up {
            Some(Up::Heartbeat) => Class::Heartbeat,
            Some(Up::Check) => Class::Check,
            _ => Class::Report,
        };
        match rules.meter.allow(class, self.device) {
            Ok(()) => false,
            Err(wait) if class == Class::Report && qos != QosPid::Level0 => {
                reaction.pause = Some(reaction.pause.map_or(wait, |pause| pause.max(wait)));
                false
            }
            Err(_) => true,
        }
    }

    fn read(&mut self, up: Option<Up>, payload: &[u8], reaction: &mut Reaction) -> Uplink {
        let report = up.map(|up| parse_report(up, payload));
        let reason = match report {
            Some(Ok(report)) => return Uplink::report(report, payload),
            Some(Err(invalid)) => invalid.reason(),
            None => "unknown_channel",
        };
        self.note(NoteKind::Invalid(reason), reaction);
        Uplink::Discarded
    }

    /// Answers a message without the engine, in its turn.
    fn answer(&mut self, qos: QosPid, verdict: Verdict, reaction: &mut Reaction) {
        reaction.idle += 1;
        if let Some(pid) = qos.pid() {
            self.acks.answered(pid, verdict);
            self.acknowledge(&mut reaction.out);
        }
    }

    fn acknowledge(&mut self, out: &mut Vec<u8>) {
        while let Some((pid, verdict)) = self.acks.next_due() {
            codec::puback(out, self.version, pid, verdict);
        }
    }

    fn grant(&mut self, filter: &TopicFilter, qos: QoS, rules: Rules<'_>) -> Granted {
        if filter.is_shared() {
            return Granted::Shared;
        }
        let qos = qos.min(QoS::Level1);
        match self.own_tail(filter, rules.prefix) {
            None => Granted::NotAuthorized,
            Some(tail) if self.filters.insert(tail, qos) => Granted::Yes(qos),
            Some(_) => Granted::QuotaExceeded,
        }
    }

    /// What stands below `down/` in a filter that the device may subscribe to.
    fn own_tail<'f>(&self, filter: &'f str, prefix: &Prefix) -> Option<&'f str> {
        if !prefix.may_subscribe(&self.id, filter) {
            return None;
        }
        let tail = filter.get(prefix.as_str().len() + 1 + self.id.as_str().len()..)?;
        tail.strip_prefix("/down/")
    }

    fn note(&mut self, kind: NoteKind, reaction: &mut Reaction) {
        let first = self.noted & kind.bit() == 0;
        self.noted |= kind.bit();
        reaction.notes.push(Note { kind, first });
    }
}

/// Reads packets off the front of `bytes` and hands them to the session, until they end, one is not all there, or the
/// session wants no more for now. Answers how many bytes were used.
pub fn consume(
    session: &mut Session,
    bytes: &[u8],
    rules: Rules<'_>,
    reaction: &mut Reaction,
) -> Result<usize, End> {
    let mut used = 0;
    while session.is_open() && reaction.pause.is_none() {
        let rest = bytes.get(used..).unwrap_or_default();
        let Some((packet, length)) = codec::read_packet(session.version, rest, MAX_PACKET)? else {
            break;
        };
        used += length;
        session.receive(packet, rules, reaction)?;
    }
    Ok(used)
}

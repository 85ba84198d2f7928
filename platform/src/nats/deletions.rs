//! Devices that were deleted in the service that registers them (PRD, E6-US4): taken from a stream by a durable consumer,
//! so that what is told while we are away is heard afterwards.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config as PullConfig;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer};
use async_nats::jetstream::context::GetStreamByNameErrorKind;
use async_nats::jetstream::stream::Config as StreamConfig;
use async_nats::jetstream::{AckKind, Context, Message};
use device_ota_domain::audit::{Actor, Authentication};
use device_ota_domain::{DeviceId, Role, Roles};
use device_ota_engine::{Caller, Engine};
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use serde::Deserialize;

use super::Error;

/// As records show who deleted the device.
const DEVICE_SERVICE: &str = "device_service";

/// What is listened to (PRD, E6-US4 AC1).
const SUBJECT: &str = "device_service.device.deleted";
/// The stream that keeps it where no other one does.
const STREAM: &str = "OTA_DEVICE_EVENTS";
/// How long it keeps it: longer than anybody is away.
const MAX_AGE: Duration = Duration::from_hours(30 * 24);
/// The consumer that all replicas share.
const CONSUMER: &str = "ota_service";
/// After that time without an answer a message is given out again.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// How long one question for a message waits.
const WAIT: Duration = Duration::from_secs(30);
/// Pause before a message that the database could not take comes again.
const AGAIN: Duration = Duration::from_secs(5);

/// The message, as all events of the house are written; other fields are not looked at.
#[derive(Deserialize)]
struct Told {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    device_id: DeviceId,
}

/// The durable consumer: on the stream that has the subject, or on one of our own.
pub(super) async fn consumer(context: &Context) -> Result<PullConsumer, Error> {
    let stream = match context.stream_by_subject(SUBJECT).await {
        Ok(name) => context.get_stream(name).await?,
        Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => {
            let config = StreamConfig {
                name: STREAM.to_owned(),
                description: Some("Deleted devices, for the OTA service".to_owned()),
                subjects: vec![SUBJECT.to_owned()],
                max_age: MAX_AGE,
                ..StreamConfig::default()
            };
            context.get_or_create_stream(config).await?
        }
        Err(error) => return Err(error.into()),
    };
    let config = PullConfig {
        durable_name: Some(CONSUMER.to_owned()),
        description: Some("Ends updates of deleted devices".to_owned()),
        filter_subject: SUBJECT.to_owned(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        ..PullConfig::default()
    };
    let consumer = stream.get_or_create_consumer(CONSUMER, config).await?;
    if consumer.cached_info().config.ack_policy != AckPolicy::Explicit {
        return Err(format!("the consumer {CONSUMER} was made by somebody else, and loses messages: its acknowledgements must be explicit").into());
    }
    Ok(consumer)
}

/// Takes one message after the other, until something fails.
pub(super) async fn take_in(engine: &Arc<Engine>, consumer: &PullConsumer) -> Error {
    loop {
        if let Err(error) = take_one(engine, consumer).await {
            return error;
        }
    }
}

async fn take_one(engine: &Arc<Engine>, consumer: &PullConsumer) -> Result<(), Error> {
    let asked = consumer.batch().max_messages(1).expires(WAIT).messages();
    let mut answer = asked.await?;
    while let Some(message) = answer.try_next().await? {
        let taken = end(engine, &message).await;
        let kind = match &taken {
            Ok(Outcome::Malformed) => AckKind::Term,
            Ok(_) => AckKind::Ack,
            Err(_) => AckKind::Nak(Some(AGAIN)),
        };
        // What is not acknowledged comes again, and finds the device ended.
        message.ack_with(kind).await?;
        engine
            .metrics()
            .add("device_events", Outcome::label(&taken), 1);
        taken?;
    }
    Ok(())
}

/// What became of a message.
enum Outcome {
    Deleted,
    Unknown,
    Malformed,
    /// Of another subject, by a consumer that somebody else has made.
    Other,
}

impl Outcome {
    fn label(taken: &Result<Self, Error>) -> &'static str {
        match taken {
            Ok(Self::Deleted) => "deleted",
            Ok(Self::Unknown) => "unknown",
            Ok(Self::Malformed) => "malformed",
            Ok(Self::Other) => "other",
            Err(_) => "delayed",
        }
    }
}

/// Ends the device that a message names; fails when the database does.
async fn end(engine: &Arc<Engine>, message: &Message) -> Result<Outcome, Error> {
    if message.subject.as_str() != SUBJECT {
        return Ok(Outcome::Other);
    }
    let place = message.info()?;
    let number = place.stream_sequence;
    let Ok(Told { data }) = serde_json::from_slice::<Told>(&message.payload) else {
        tracing::warn!(
            stream = place.stream,
            message.number = number,
            bytes = message.payload.len(),
            "a deletion of a device that cannot be understood was passed over"
        );
        return Ok(Outcome::Malformed);
    };
    let caller = Caller::new(Actor {
        subject: DEVICE_SERVICE.into(),
        roles: Roles::from_iter([Role::Operator]),
        authentication: Authentication::Event,
        request_id: format!("{}:{number}", place.stream).into(),
        peer: None,
    });
    let at = Timestamp::from_nanosecond(place.published.unix_timestamp_nanos())?;
    let id = data.device_id;
    if engine.device_was_deleted(&id, at, &caller).await?.is_some() {
        return Ok(Outcome::Deleted);
    }
    tracing::info!(device.id = %id, stream = place.stream, message.number = number, "a device that is not known here was deleted elsewhere");
    Ok(Outcome::Unknown)
}

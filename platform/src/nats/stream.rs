//! The stream in which events lie.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind};
use async_nats::jetstream::stream::Config;
use device_ota_domain::event::EventType;

use super::Error;

/// Its name.
const NAME: &str = "OTA_EVENTS";
/// How long an event stays, as in the outbox.
const MAX_AGE: Duration = Duration::from_hours(7 * 24);
/// How long a repeat is known as one: longer than an answer is lost and the event sent again.
const DUPLICATE_WINDOW: Duration = Duration::from_hours(1);

/// Makes the stream where it is missing, and gives it the subjects that it lacks. What else somebody has changed of it stays.
pub(super) async fn of_events(context: &Context) -> Result<(), Error> {
    let wanted = EventType::ALL.iter().map(|kind| kind.name());
    let made = context.get_or_create_stream(Config {
        name: NAME.to_owned(),
        description: Some("Events of the OTA service".to_owned()),
        subjects: wanted.clone().map(str::to_owned).collect(),
        max_age: MAX_AGE,
        duplicate_window: DUPLICATE_WINDOW,
        ..Config::default()
    });
    let stream = made.await.map_err(explained)?;
    let mut config = stream.cached_info().config.clone();
    let missing = wanted.filter(|wanted| !config.subjects.iter().any(|has| covers(has, wanted)));
    let missing: Vec<String> = missing.map(str::to_owned).collect();
    if !missing.is_empty() {
        config.subjects.extend(missing);
        context.update_stream(config).await.map_err(explained)?;
    }
    Ok(())
}

/// Two streams cannot have one subject.
fn explained(error: CreateStreamError) -> Error {
    match error.kind() {
        CreateStreamErrorKind::JetStream(said)
            if said.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP =>
        {
            format!("the stream {NAME} cannot be made: another stream has subjects of it").into()
        }
        _ => error.into(),
    }
}

/// Whether a subject is one of a pattern with `*` for one level and `>` for the rest.
fn covers(pattern: &str, subject: &str) -> bool {
    let mut levels = subject.split('.');
    for wanted in pattern.split('.') {
        match (wanted, levels.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_its_subjects_alone() {
        for pattern in ["a.b", "a.*", "*.b", "a.>", ">"] {
            assert!(covers(pattern, "a.b"), "{pattern}");
        }
        for pattern in ["a", "a.c", "a.b.c", "a.b.>", "*", "b.*"] {
            assert!(!covers(pattern, "a.b"), "{pattern}");
        }
    }
}

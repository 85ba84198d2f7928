//! Server-sent events: what happens, told while it happens, to whoever listens (`docs/events.md`).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use device_ota_domain::Role;
use device_ota_domain::event::{EventFilter, EventSelector};
use device_ota_engine::feed::{Full, ReadError, Reader, Told};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_stream::wrappers::ReceiverStream;
use utoipa::{OpenApi, ToSchema};
use warp::Filter as _;
use warp::reply::Response;

use crate::access::Principal;
use crate::errors::ApiError;
use crate::request::{Call, call};
use crate::shared::{Answer, Routes, Shared, reply, streamed};

/// How often a stream that has nothing to tell says that it is there, and looks whether its credential still is.
const BEAT: Duration = Duration::from_secs(15);
/// Pieces that wait for the connection to take them.
const PIECES_AHEAD: usize = 4;
/// A client that takes nothing for longer is cut off, and comes back with its place.
const TAKEN_WITHIN: Duration = Duration::from_mins(1);
/// When a client whose stream ended shall come back, in milliseconds.
const RETRY_MILLISECONDS: u64 = 2_000;
/// When somebody who finds no room may ask again, in seconds.
const ROOM_AGAIN_SECONDS: u64 = 15;
/// Most types of one filter.
const MAX_TYPES: usize = 32;
/// The event up to which a client has seen everything.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Tells proxies that gather answers not to.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
const PATH: &str = "/api/v1/ota/events";

/// One event of the stream. The document says what each is, as OpenAPI 3.1 has it for streams, not what all are together.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it is documented; what is sent is text")]
struct StreamedEvent {
    /// The event's place: what to come back with.
    #[schema(pattern = "^[0-9]+$", examples("42"))]
    id: String,
    /// Its type, or `gap`.
    #[schema(examples("campaign.started"))]
    event: String,
    /// The event itself, as the catalogue has it: JSON.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(stream))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    warp::get()
        .and(warp::path!("events"))
        .and(call(shared))
        .then(stream)
        .map(reply)
        .boxed()
}

/// Events while they happen
///
/// Server-sent events. The stream goes on until the client goes away, its credential ends, or the service does; a
/// client that comes back with `Last-Event-ID` misses nothing that is still kept, and is told by the event `gap` when
/// something may be missing.
#[utoipa::path(get, path = "/api/v1/ota/events", tag = "events",
    params(
        ("type" = Option<String>, Query, description = "Types or families, separated by commas", example = "campaign.*,update.failed"),
        ("campaign_id" = Option<String>, Query, description = "Of this campaign, its updates and its rollbacks alone"),
        ("device_id" = Option<String>, Query, description = "Of this device alone"),
        ("Last-Event-ID" = Option<i64>, Header, description = "Begin behind this event; left out, with what comes from now on", minimum = 0),
    ),
    responses((status = 200, description = "The stream", body = StreamedEvent, content_type = "text/event-stream")),
)]
async fn stream(call: Call) -> Answer {
    let subject = call.require(Role::Viewer)?.subject();
    let filter = filter(&call)?;
    let after = last_event_id(&call.headers)?;
    let mut response = if call.visit.head {
        Response::default()
    } else {
        let engine = &call.shared.engine;
        let reader = engine.read_feed(subject, filter, after).await?;
        let (pieces, sent) = mpsc::channel(PIECES_AHEAD);
        let teller = Teller {
            reader,
            shared: Arc::clone(&call.shared),
            headers: call.headers,
            pieces,
        };
        // A task of its own: a client that takes nothing is noticed whether or not the connection asks for more.
        tokio::spawn(teller.tell());
        streamed(ReceiverStream::new(sent))
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

fn filter(call: &Call) -> Result<EventFilter, ApiError> {
    let mut query = call.query()?;
    let types = query.text("type")?;
    let types = types.iter().flat_map(|text| text.split(','));
    let types: Result<Vec<EventSelector>, _> = types.map(str::parse).collect();
    let wrong = |detail: String| ApiError::invalid("invalid_query", detail);
    let types = types.map_err(|error| wrong(format!("type: {error}")))?;
    if types.len() > MAX_TYPES {
        return Err(wrong(format!("type: at most {MAX_TYPES} are taken")));
    }
    let filter = EventFilter {
        types,
        campaign: query.id("campaign_id")?,
        device: query.id("device_id")?,
    };
    query.done()?;
    Ok(filter)
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<i64>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID) else {
        return Ok(None);
    };
    let id = value.to_str().ok().and_then(|text| text.parse().ok());
    id.filter(|id| *id >= 0).map(Some).ok_or_else(|| {
        ApiError::invalid(
            "invalid_last_event_id",
            "Last-Event-ID must be the id of an event, a whole number",
        )
    })
}

fn beat() -> Interval {
    let mut beat = interval_at(Instant::now() + BEAT, BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat
}

/// Tells one client.
struct Teller {
    reader: Reader,
    shared: Arc<Shared>,
    /// As they came: the credential is among them.
    headers: HeaderMap,
    pieces: mpsc::Sender<Result<Bytes, Infallible>>,
}

impl Teller {
    /// Until the client goes, or takes nothing for too long; its credential ends; or the service does.
    async fn tell(mut self) {
        let ends = self.shared.shutdown.clone();
        let mut beat = beat();
        // At once, so that the client knows that it listens, and from where on it has seen everything.
        let place = self.reader.place();
        let mut piece = Some(format!(
            ": open\nretry: {RETRY_MILLISECONDS}\nid: {place}\n\n"
        ));
        while let Some(text) = piece {
            let sending = self.pieces.send_timeout(Ok(text.into()), TAKEN_WITHIN);
            let sent = ends.run_until_cancelled(sending).await;
            if !matches!(sent, Some(Ok(()))) {
                return;
            }
            piece = tokio::select! {
                biased;
                () = ends.cancelled() => None,
                () = self.pieces.closed() => None,
                _ = beat.tick() => self.beat().await,
                told = self.reader.next() => match told {
                    Ok(told) => Some(frame(&told)),
                    Err(error) => {
                        tracing::debug!(%error, "an event stream ends: the database does not answer");
                        None
                    }
                },
            };
        }
    }

    /// A sign of life with the place so far, so that a client whose filter seldom lets anything through resumes from
    /// there; `None` when the credential no longer opens.
    async fn beat(&self) -> Option<String> {
        let access = &self.shared.access;
        match access.authenticate(&Method::GET, PATH, &self.headers).await {
            Ok(Principal::Person { roles, .. }) if roles.allow(Role::Viewer) => {}
            _ => return None,
        }
        Some(format!(": beat\nid: {}\n\n", self.reader.place()))
    }
}

fn frame(told: &Told) -> String {
    match told {
        // JSON has no line breaks but those that it escapes.
        Told::Event(event) => format!(
            "id: {}\nevent: {}\ndata: {}\n\n",
            event.id,
            event.event_type,
            event.envelope()
        ),
        Told::Gap {
            place,
            resumes_after,
        } => {
            let data = json!({ "last_event_id": place, "resumes_after": resumes_after });
            format!("id: {resumes_after}\nevent: gap\ndata: {data}\n\n")
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Full(full) => full.into(),
            ReadError::Store(error) => device_ota_engine::Error::from(error).into(),
        }
    }
}

impl From<Full> for ApiError {
    fn from(full: Full) -> Self {
        let (status, code) = match full {
            Full::Subject => (StatusCode::TOO_MANY_REQUESTS, "too_many_streams"),
            Full::Everybody => (StatusCode::SERVICE_UNAVAILABLE, "streams_exhausted"),
        };
        Self::new(status, code, full.to_string()).with(RETRY_AFTER, ROOM_AGAIN_SECONDS.into())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_its_id_its_type_and_one_line_of_data() {
        let event = device_ota_domain::event::StoredEvent {
            id: 7,
            event_type: "update.failed".to_owned(),
            entity: "d".to_owned(),
            data: json!({ "message": "one\ntwo" }),
            at: "2026-01-02T03:04:05Z".parse().unwrap(),
        };
        insta::assert_snapshot!(frame(&Told::Event(event)), @r#"
        id: 7
        event: update.failed
        data: {"data":{"message":"one\ntwo"},"event_type":"update.failed","id":7,"source":"ota_service","timestamp":"2026-01-02T03:04:05Z"}
        "#);
        insta::assert_snapshot!(frame(&Told::Gap { place: 3, resumes_after: 9 }), @r#"
        id: 9
        event: gap
        data: {"last_event_id":3,"resumes_after":9}
        "#);
    }

    #[test]
    fn a_place_is_a_whole_number() {
        let read = |text: &'static str| {
            let headers = HeaderMap::from_iter([(LAST_EVENT_ID, HeaderValue::from_static(text))]);
            last_event_id(&headers).map_err(|error| error.code())
        };
        assert_eq!(read("0"), Ok(Some(0)));
        for wrong in ["", "-1", "1.5", "x", "9223372036854775808"] {
            assert_eq!(read(wrong), Err("invalid_last_event_id"), "{wrong}");
        }
        assert_eq!(last_event_id(&HeaderMap::new()).ok(), Some(None));
    }
}

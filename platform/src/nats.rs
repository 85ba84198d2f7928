//! NATS with JetStream (ADR 19): events of the outbox go out, and deletions of devices that another service tells of
//! come in. NATS that is away delays both and blocks nothing.

mod address;
mod deletions;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{ContextBuilder, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::rustls::crypto::aws_lc_rs;
use async_nats::{ConnectOptions, Event};
use async_trait::async_trait;
use device_ota_domain::event::StoredEvent;
use device_ota_engine::Engine;
use device_ota_engine::ports::{Clock, EventSink, SinkError};
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

pub use address::{NatsAddress, NatsAddressError};

/// Longest wait for the answer to one message or question.
const ANSWER: Duration = Duration::from_secs(2);
/// Longest that one event may take in all, a stream that has to be made first included; shorter than the grace of an end.
const DELIVERY: Duration = Duration::from_secs(3);
/// How often the server is asked whether it is there; two that are not answered end the connection.
const PING_EVERY: Duration = Duration::from_secs(10);
/// First and longest pause after something failed while connected.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// First and longest pause between two tries to connect.
const FIRST_TRY: Duration = Duration::from_millis(50);
const LONGEST_TRY: Duration = Duration::from_secs(1);

/// What went wrong at NATS.
type Error = Box<dyn std::error::Error + Send + Sync>;

/// How the connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsStatus {
    /// Whether it is there.
    pub is_connected: bool,
    /// Since when that is so.
    pub since: Timestamp,
    /// What failed last, and has not succeeded since.
    pub trouble: Option<String>,
}

/// How the connection is, and what of it fails: to connect, to publish, to listen.
#[derive(Debug)]
struct Standing {
    is_connected: bool,
    since: Timestamp,
    connecting: Option<String>,
    publishing: Option<String>,
    listening: Option<String>,
}

impl Standing {
    const fn new(is_connected: bool, since: Timestamp) -> Self {
        Self {
            is_connected,
            since,
            connecting: None,
            publishing: None,
            listening: None,
        }
    }
}

/// A connection to NATS, which is made again whenever it is lost.
pub struct Nats {
    context: Context,
    standing: Arc<watch::Sender<Standing>>,
    /// Told whenever the connection is made.
    back: Arc<Notify>,
}

impl Nats {
    /// Begins to connect, and does not wait for it. To be called within a tokio runtime.
    pub async fn connect(address: NatsAddress, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        // TLS, which a server may ask for by itself, is of the crates' one provider; who has set another one stays with it.
        let _ = aws_lc_rs::default_provider().install_default();
        let standing = Arc::new(watch::Sender::new(Standing::new(false, clock.now())));
        let back = Arc::new(Notify::new());
        let (noted, told) = (Arc::clone(&standing), Arc::clone(&back));
        let options = ConnectOptions::new()
            .name("device-ota")
            .retry_on_initial_connect()
            .connection_timeout(ANSWER)
            .ping_interval(PING_EVERY)
            .reconnect_delay_callback(pause_before)
            .event_callback(move |event| {
                hear(&noted, &event, clock.now());
                if event == Event::Connected {
                    told.notify_one();
                }
                std::future::ready(())
            });
        let client = address.connect(options).await?;
        let context = ContextBuilder::new().timeout(ANSWER).build(client);
        Ok(Self {
            context,
            standing,
            back,
        })
    }

    /// How the connection is now.
    pub fn status(&self) -> NatsStatus {
        let standing = self.standing.borrow();
        let troubles = [
            &standing.connecting,
            &standing.publishing,
            &standing.listening,
        ];
        NatsStatus {
            is_connected: standing.is_connected,
            since: standing.since,
            trouble: troubles.into_iter().flatten().next().cloned(),
        }
    }

    /// Keeps the streams there and takes in what other services tell, until `stop`.
    pub async fn serve(&self, engine: Arc<Engine>, stop: CancellationToken) {
        let mut standing = self.standing.subscribe();
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = standing.wait_for(|standing| standing.is_connected) => {}
            }
            let began = Instant::now();
            let error = tokio::select! {
                () = stop.cancelled() => return,
                _ = standing.wait_for(|standing| !standing.is_connected) => {
                    pause = FIRST_PAUSE;
                    continue;
                }
                error = self.take_in(&engine) => error,
            };
            if self.note(|standing| &mut standing.listening, Some(error.to_string())) {
                tracing::warn!(%error, "what NATS keeps for us cannot be taken in; it is tried again");
            }
            if began.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Goes on until something fails.
    async fn take_in(&self, engine: &Arc<Engine>) -> Error {
        // Where other streams have the subjects, events go to those: it keeps nobody from listening.
        let made = stream::of_events(&self.context).await;
        let trouble = made.err().map(|error| error.to_string());
        self.note(|standing| &mut standing.publishing, trouble);
        match deletions::consumer(&self.context).await {
            Ok(consumer) => {
                self.note(|standing| &mut standing.listening, None);
                deletions::take_in(engine, &consumer).await
            }
            Err(error) => error,
        }
    }

    /// Publishes one event; where no stream takes it, the stream is made first.
    async fn publish(&self, event: &StoredEvent) -> Result<(), Error> {
        match self.send(event).await {
            Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {
                stream::of_events(&self.context).await?;
                Ok(self.send(event).await?)
            }
            sent => Ok(sent?),
        }
    }

    async fn send(&self, event: &StoredEvent) -> Result<(), PublishError> {
        let message = PublishMessage::build()
            .message_id(message_id(event))
            .payload(event.envelope().to_string().into());
        let sent = self.context.send_publish(event.event_type.clone(), message);
        sent.await?.await.map(drop)
    }

    /// Writes down what fails of a part, or that nothing does; answers whether that is news.
    fn note(
        &self,
        part: fn(&mut Standing) -> &mut Option<String>,
        trouble: Option<String>,
    ) -> bool {
        self.standing.send_if_modified(|standing| {
            let known = part(standing);
            let is_news = *known != trouble;
            *known = trouble;
            is_news
        })
    }
}

/// How long to wait before another try to connect, after so many in vain.
fn pause_before(tries: usize) -> Duration {
    let doublings = u32::try_from(tries).unwrap_or(u32::MAX);
    2_u32
        .checked_pow(doublings.saturating_sub(1))
        .and_then(|times| FIRST_TRY.checked_mul(times))
        .map_or(LONGEST_TRY, |pause| pause.min(LONGEST_TRY))
}

/// By which the stream knows a repeat: the event's place in its outbox, and its time, so that the events of another
/// database are not taken for repeats.
fn message_id(event: &StoredEvent) -> String {
    format!("{}-{}", event.id, event.at.as_microsecond())
}

/// What the client tells of the connection; each turn is logged once.
fn hear(standing: &watch::Sender<Standing>, event: &Event, now: Timestamp) {
    let became = |is_connected| {
        standing.send_if_modified(|standing| {
            let is_news = standing.is_connected != is_connected;
            if is_news {
                *standing = Standing::new(is_connected, now);
            }
            is_news
        })
    };
    match event {
        Event::Connected => {
            if became(true) {
                tracing::info!("NATS is connected");
            }
        }
        Event::Disconnected | Event::Closed => {
            if became(false) {
                tracing::warn!("NATS is away; events wait until it is back");
            }
        }
        Event::ServerError(_) | Event::ClientError(_) => {
            let error = event.to_string();
            let first = standing.borrow().connecting.is_none();
            standing.send_modify(|standing| standing.connecting = Some(error.clone()));
            if first {
                tracing::warn!(%error, "NATS cannot be reached, or refuses; it is tried again");
            }
        }
        Event::LameDuckMode | Event::Draining | Event::SlowConsumer(_) => {}
    }
}

#[async_trait]
impl EventSink for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    async fn deliver(&self, event: &StoredEvent) -> Result<(), SinkError> {
        if !self.standing.borrow().is_connected {
            return Err(SinkError("NATS is not connected".to_owned()));
        }
        let published = match timeout(DELIVERY, self.publish(event)).await {
            Ok(published) => published.map_err(|error| error.to_string()),
            Err(_) => Err("NATS does not answer".to_owned()),
        };
        let trouble = published.as_ref().err().cloned();
        self.note(|standing| &mut standing.publishing, trouble);
        published.map_err(SinkError)
    }

    async fn is_back(&self) {
        self.back.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_away_is_asked_for_once_a_second_at_last() {
        assert_eq!(pause_before(1), FIRST_TRY);
        assert_eq!(pause_before(2), FIRST_TRY * 2);
        assert_eq!(pause_before(usize::MAX), LONGEST_TRY);
    }

    #[test]
    fn an_event_of_another_database_is_no_repeat() {
        let event = |id, second| StoredEvent {
            id,
            event_type: "firmware.uploaded".to_owned(),
            entity: "f".to_owned(),
            data: serde_json::Value::Null,
            at: Timestamp::constant(second, 0),
        };
        assert_eq!(message_id(&event(7, 1)), "7-1000000");
        assert_ne!(message_id(&event(7, 1)), message_id(&event(7, 2)));
        assert_ne!(message_id(&event(7, 1)), message_id(&event(8, 1)));
    }
}

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
use async_nats::{ConnectOptions, Event, ServerError};
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
    /// What failed last, and has not succeeded since: where, and what to look at.
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

    /// What fails of it, where that is, and what to look at.
    fn trouble(&self, servers: &str) -> Option<String> {
        let of = |trouble: &Option<String>, what: &str| {
            let trouble = trouble.as_ref()?;
            Some(format!(
                "{what} {servers}: {trouble}; look whether its JetStream is on and answers, and what our user may do there"
            ))
        };
        let connecting = self.connecting.clone();
        connecting
            .or_else(|| of(&self.publishing, "events cannot be published at"))
            .or_else(|| of(&self.listening, "what others tell cannot be heard at"))
    }
}

/// A connection to NATS, which is made again whenever it is lost.
pub struct Nats {
    context: Context,
    /// Where it is, without user and password.
    servers: Arc<str>,
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
        let servers: Arc<str> = address.servers().into();
        let (noted, told, named) = (
            Arc::clone(&standing),
            Arc::clone(&back),
            Arc::clone(&servers),
        );
        let options = ConnectOptions::new()
            .name("device-ota")
            .retry_on_initial_connect()
            .connection_timeout(ANSWER)
            .ping_interval(PING_EVERY)
            .reconnect_delay_callback(pause_before)
            .event_callback(move |event| {
                hear(&noted, &event, &named, clock.now());
                if event == Event::Connected {
                    told.notify_one();
                }
                std::future::ready(())
            });
        let client = address.connect(options).await;
        let client = client.map_err(|error| format!("{servers}: {error}"))?;
        let context = ContextBuilder::new().timeout(ANSWER).build(client);
        Ok(Self {
            context,
            servers,
            standing,
            back,
        })
    }

    /// How the connection is now.
    pub fn status(&self) -> NatsStatus {
        let standing = self.standing.borrow();
        NatsStatus {
            is_connected: standing.is_connected,
            since: standing.since,
            trouble: standing.trouble(&self.servers),
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
                let servers = &*self.servers;
                tracing::warn!(servers, %error, "what NATS keeps for us cannot be taken in; it is tried again");
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

/// What the client tells of a connection that cannot be made, or is refused: where, and what to look at.
fn describe(event: &Event, servers: &str) -> Option<String> {
    match event {
        Event::ServerError(ServerError::AuthorizationViolation) => Some(format!(
            "{servers} does not let us in: look at the user and the password, or the token, in NATS_URL"
        )),
        Event::ServerError(error) => Some(format!("{servers} refuses: {error}")),
        Event::ClientError(error) => {
            let error = error.to_string();
            let error = error.trim_start_matches("nats: ");
            Some(format!(
                "{servers} cannot be connected to ({error}): look whether a NATS server listens there, and whether both sides want \
                 TLS (tls:// in NATS_URL) or neither does"
            ))
        }
        _ => None,
    }
}

/// What the client tells of the connection; each turn is logged once.
fn hear(standing: &watch::Sender<Standing>, event: &Event, servers: &str, now: Timestamp) {
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
                tracing::info!(servers, "NATS is connected");
            }
        }
        Event::Disconnected | Event::Closed => {
            if became(false) {
                tracing::warn!(servers, "NATS is away; events wait until it is back");
            }
        }
        Event::ServerError(_) | Event::ClientError(_) => {
            let first = standing.borrow().connecting.is_none();
            let trouble = describe(event, servers);
            if first {
                let error = trouble.as_deref();
                tracing::warn!(
                    error,
                    "NATS cannot be reached, or refuses; it is tried again"
                );
            }
            standing.send_modify(|standing| standing.connecting = trouble);
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
            let servers = &self.servers;
            return Err(SinkError(format!("NATS is not connected ({servers})")));
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
    fn what_fails_is_told_with_where_and_what_to_look_at() {
        let servers = "nats://h:4222";
        let (standing, _) = watch::channel(Standing::new(false, Timestamp::UNIX_EPOCH));
        let told = |event: &Event| {
            hear(&standing, event, servers, Timestamp::UNIX_EPOCH);
            let trouble = standing.borrow().trouble(servers);
            trouble.unwrap_or_default()
        };
        let away = async_nats::ClientError::Other("IO error".to_owned());
        let away = told(&Event::ClientError(away));
        assert!(
            away.starts_with("nats://h:4222 cannot be connected to (IO error): look whether"),
            "{away}"
        );
        let foreign = told(&Event::ServerError(ServerError::AuthorizationViolation));
        assert!(foreign.contains("password"), "{foreign}");
        assert_eq!(told(&Event::Connected), "", "all of that is over");
        for (part, what) in [
            (
                (|standing| &mut standing.listening) as fn(&mut Standing) -> &mut Option<String>,
                "what others tell cannot be heard at nats://h:4222: timed out; look whether",
            ),
            (
                |standing| &mut standing.publishing,
                "events cannot be published at nats://h:4222: timed out; look whether",
            ),
        ] {
            standing.send_modify(|standing| *part(standing) = Some("timed out".to_owned()));
            let told = standing.borrow().trouble(servers).unwrap_or_default();
            assert!(told.starts_with(what), "{told}");
        }
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

//! What another service says of credentials that are not ours: asked once in a while, believed briefly.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64_URL;
use device_ota_domain::identity::check_subject;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Semaphore;

use crate::ports::Clock;
use crate::ports::auth::{AuthService, AuthUnavailable, Credential, Known};
use crate::recent::{Hash, Recent, hash};

/// How long a good credential is believed: what is taken back elsewhere is shut out here no later than this.
const BELIEVED: SignedDuration = SignedDuration::from_secs(30);
/// How long a bad one is remembered.
const DOUBTED: SignedDuration = SignedDuration::from_secs(5);
/// Most answers of each kind that are remembered, some 300 bytes each.
const MAX_REMEMBERED: usize = 4_096;
/// Questions under way at a time; the others wait their turn.
const MAX_ASKING: usize = 32;
/// Longest that somebody waits in all, for their turn and for the answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// Asks, and remembers.
pub struct Introspection {
    service: Arc<dyn AuthService>,
    clock: Arc<dyn Clock>,
    good: Recent<Known>,
    bad: Recent<()>,
    asking: Semaphore,
}

impl Introspection {
    /// Asks this service.
    pub fn new(service: Arc<dyn AuthService>, clock: Arc<dyn Clock>) -> Self {
        Self {
            service,
            clock,
            good: Recent::new(MAX_REMEMBERED),
            bad: Recent::new(MAX_REMEMBERED),
            asking: Semaphore::new(MAX_ASKING),
        }
    }

    /// Whose credential it is; `None` when it is nobody's, or of a token that says itself that it has expired.
    pub async fn who(&self, credential: Credential<'_>) -> Result<Option<Known>, AuthUnavailable> {
        let (hash, now) = (hash_of(credential), self.clock.now());
        let until = end_of(credential).map_or(now + BELIEVED, |end| end.min(now + BELIEVED));
        if until <= now || self.bad.get(&hash, now).is_some() {
            return Ok(None);
        }
        if let Some(known) = self.good.get(&hash, now) {
            return Ok(Some(known));
        }
        let asking = async {
            let _turn = self.asking.acquire().await;
            self.service.verify(credential).await
        };
        let answered = tokio::time::timeout(DEADLINE, asking).await;
        let answer = answered.unwrap_or_else(|_| {
            let seconds = DEADLINE.as_secs();
            Err(AuthUnavailable(format!("no answer within {seconds} s")))
        })?;
        let known = answer.filter(|known| check_subject(&known.subject).is_ok());
        match &known {
            Some(known) => self.good.put(hash, known.clone(), now, until),
            None => self.bad.put(hash, (), now, now + DOUBTED),
        }
        Ok(known)
    }
}

fn hash_of(credential: Credential<'_>) -> Hash {
    match credential {
        Credential::Token(text) => hash(&format!("token {text}")),
        Credential::ApiKey(text) => hash(&format!("key {text}")),
    }
}

/// When a token says that it ends. Nobody has checked that it is right; it is only ever used to believe it less.
fn end_of(credential: Credential<'_>) -> Option<Timestamp> {
    let Credential::Token(token) = credential else {
        return None;
    };
    let claims = BASE64_URL.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a time beyond all times is none, and fractions of a second do not matter"
    )]
    let second = claims.get("exp")?.as_f64()? as i64;
    Timestamp::from_second(second).ok()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

    use async_trait::async_trait;
    use device_ota_domain::{Role, Roles};

    use super::*;

    struct Hand(AtomicI64);
    impl Clock for Hand {
        fn now(&self) -> Timestamp {
            Timestamp::from_second(self.0.load(Ordering::Relaxed)).unwrap()
        }
    }

    /// Knows `good…`, cannot answer for `away`, and counts.
    #[derive(Default)]
    struct Elsewhere(AtomicU32);
    #[async_trait]
    impl AuthService for Elsewhere {
        async fn verify(
            &self,
            credential: Credential<'_>,
        ) -> Result<Option<Known>, AuthUnavailable> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let (Credential::Token(text) | Credential::ApiKey(text)) = credential;
            let known = |subject: &str| Known {
                subject: subject.to_owned(),
                roles: Roles::from_iter([Role::Viewer]),
            };
            match text {
                "away" => Err(AuthUnavailable("gone".to_owned())),
                text if text.starts_with("hangs") => std::future::pending().await,
                "service" => Ok(Some(known("ota_service"))),
                _ => Ok(text.starts_with("good").then(|| known("u"))),
            }
        }
    }

    #[tokio::test]
    async fn an_answer_is_believed_briefly_and_a_silence_not_at_all() {
        let (service, clock) = (
            Arc::new(Elsewhere::default()),
            Arc::new(Hand(AtomicI64::new(1_000))),
        );
        let asks = Introspection::new(service.clone(), clock.clone());
        let key = Credential::ApiKey;
        let asked = || service.0.load(Ordering::Relaxed);
        assert_eq!(asks.who(key("good")).await.unwrap().unwrap().subject, "u");
        assert!(asks.who(key("good")).await.unwrap().is_some() && asked() == 1);
        assert!(asks.who(key("bad")).await.unwrap().is_none());
        assert!(asks.who(key("bad")).await.unwrap().is_none() && asked() == 2);
        clock.0.store(1_031, Ordering::Relaxed);
        assert!(asks.who(key("good")).await.unwrap().is_some() && asked() == 3);
        assert!(asks.who(key("bad")).await.unwrap().is_none() && asked() == 4);
        assert!(asks.who(key("away")).await.is_err());
        assert!(asks.who(key("away")).await.is_err() && asked() == 6);
        assert!(
            asks.who(key("service")).await.unwrap().is_none(),
            "nobody poses as us"
        );
    }

    /// While the service hangs, nobody waits longer for their turn than they would for the answer.
    #[tokio::test(start_paused = true)]
    async fn a_service_that_hangs_holds_nobody_up_for_longer_than_the_deadline() {
        let asks = Introspection::new(
            Arc::new(Elsewhere::default()),
            Arc::new(Hand(AtomicI64::new(1_000))),
        );
        let names: Vec<String> = (0..3 * MAX_ASKING).map(|n| format!("hangs {n}")).collect();
        let all = names.iter().map(|name| asks.who(Credential::ApiKey(name)));
        let began = tokio::time::Instant::now();
        let answers = futures_util::future::join_all(all).await;
        assert!(answers.iter().all(Result::is_err));
        assert!(began.elapsed() < DEADLINE + Duration::from_millis(100));
    }

    #[tokio::test]
    async fn a_token_is_believed_no_longer_than_it_says_itself() {
        let (service, clock) = (
            Arc::new(Elsewhere::default()),
            Arc::new(Hand(AtomicI64::new(1_000))),
        );
        let asks = Introspection::new(service.clone(), clock.clone());
        let token = format!("good.{}.x", BASE64_URL.encode(r#"{"exp": 1010.5}"#));
        assert!(asks.who(Credential::Token(&token)).await.unwrap().is_some());
        clock.0.store(1_011, Ordering::Relaxed);
        assert!(asks.who(Credential::Token(&token)).await.unwrap().is_none());
        assert_eq!(service.0.load(Ordering::Relaxed), 1);
    }
}

//! The way to webhooks' receivers.

use async_trait::async_trait;
use device_ota_domain::webhook::NotTaken;

/// One request to a receiver, signed.
#[derive(Debug, Clone, Copy)]
pub struct Letter<'l> {
    /// Where to.
    pub url: &'l str,
    /// `webhook-id`: the same for each try.
    pub id: &'l str,
    /// `webhook-timestamp`: seconds since 1970.
    pub timestamp: i64,
    /// `webhook-signature`.
    pub signature: &'l str,
    /// JSON.
    pub body: &'l str,
}

/// Sends signed requests. Every call ends within a bounded time, follows no redirect, and reads no body.
#[async_trait]
pub trait Poster: Send + Sync + 'static {
    /// Whether anything may be sent there at all; what is wrong, when not.
    fn check(&self, url: &str) -> Result<(), String>;
    /// Sends it; good when the answer is of class 2xx.
    async fn post(&self, letter: Letter<'_>) -> Result<(), NotTaken>;
}

//! Staying in touch: checks with their nonces, replies with signed time, and what falls due as
//! time goes by.

use jiff::Timestamp;

use super::effects::Effects;
use super::io::Ignored;
use super::state::Stage;
use super::{Agent, elapsed_s};
use crate::digest::Digest;
use crate::messages::{Check, CheckReason, ErrorCode, Phase, Reply, ReportedError};
use crate::objects::{TimeStatement, open};
use crate::topics::Up;

/// Bounds on what a reply may ask for as time to the next check, in seconds: neither a flood nor
/// a device that is never heard of again.
const NEXT_CHECK_S: std::ops::RangeInclusive<u64> = 10..=7 * 24 * 3600;

/// Longest a new image may take to examine itself, in seconds.
const HEALTH_CHECK_S: u64 = 600;

/// The connection as the agent sees it.
#[derive(Debug, Clone, Default)]
pub(super) struct Link {
    /// Bytes that nonces are derived from, while connected.
    nonce_seed: Option<[u8; 16]>,
    /// Nonces derived from them.
    nonces: u64,
    /// The nonce of the last check.
    nonce: Option<String>,
    /// When the last check was sent.
    checked_at: Option<Timestamp>,
    /// A check to send as soon as the least interval has passed.
    wanted: Option<CheckReason>,
    /// What the last reply asked for.
    next_check_s: Option<u64>,
    /// Whether this run of the device was connected before.
    reconnect: bool,
    /// The offer with a bad signature that was last reported on this connection.
    pub(super) refused: Option<(String, u32)>,
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.nonce_seed.is_some()
    }

    pub(super) fn disconnected(&mut self) {
        self.nonce_seed = None;
        self.refused = None;
    }

    /// Whether something answers the last check that was sent.
    pub(super) fn is_current(&self, nonce: &str) -> bool {
        self.nonce.as_deref() == Some(nonce)
    }

    fn next_nonce(&mut self) -> Option<String> {
        let mut bytes = self.nonce_seed?.to_vec();
        bytes.extend_from_slice(&self.nonces.to_be_bytes());
        self.nonces += 1;
        let digest = Digest::of(&bytes).to_string();
        self.nonce = Some(digest.chars().take(32).collect());
        self.nonce.clone()
    }
}

impl Agent {
    pub(super) fn connected(&mut self, now: Timestamp, nonce: [u8; 16], fx: &mut Effects) {
        self.link.nonce_seed = Some(nonce);
        self.link.nonces = 0;
        self.link.refused = None;
        let reason = if self.link.reconnect {
            CheckReason::Reconnect
        } else {
            CheckReason::Boot
        };
        self.link.reconnect = true;
        // Why an update failed comes before the check, whose old version alone tells less.
        let failed = self.update_has_failed();
        if failed {
            self.repeat_report(fx);
        }
        self.send_check(now, reason, fx);
        if !failed {
            self.repeat_report(fx);
        }
        self.resume_download(now, fx);
    }

    fn update_has_failed(&self) -> bool {
        let update = self.state.update.as_ref();
        update.is_some_and(|record| record.report.phase == Phase::Failed)
    }

    /// Sends a check, now if the last one is old enough, else when it is.
    pub(super) fn want_check(&mut self, now: Timestamp, reason: CheckReason, fx: &mut Effects) {
        self.link.wanted = Some(reason);
        self.send_wanted(now, fx);
    }

    fn send_wanted(&mut self, now: Timestamp, fx: &mut Effects) {
        let age = self.link.checked_at.map(|then| elapsed_s(then, now));
        let due = age.is_none_or(|age| age >= self.config.min_check_interval_s);
        if let Some(reason) = self.link.wanted
            && due
        {
            self.send_check(now, reason, fx);
        }
    }

    fn send_check(&mut self, now: Timestamp, reason: CheckReason, fx: &mut Effects) {
        let Some(nonce) = self.link.next_nonce() else {
            return;
        };
        self.link.checked_at = Some(now);
        self.link.wanted = None;
        let mut check = Check {
            version: self.running_version().to_owned(),
            nonce: Some(nonce),
            reason: Some(reason),
            update_id: None,
            offset: None,
        };
        if let Some(record) = &self.state.update
            && let Stage::Downloading { job } = &record.stage
        {
            check.update_id = Some(record.report.update_id.clone());
            check.offset = Some(self.state.bytes_of(job.image.sha256));
        }
        fx.publish(Up::Check, check.to_bytes());
    }

    pub(super) fn replied(&mut self, now: Timestamp, payload: &[u8], fx: &mut Effects) {
        let Ok(reply) = Reply::parse(payload) else {
            return fx.ignored(Ignored::Malformed);
        };
        if !reply
            .nonce
            .as_deref()
            .is_some_and(|n| self.link.is_current(n))
        {
            return fx.ignored(Ignored::StaleNonce);
        }
        self.link.next_check_s = reply
            .next_check_s
            .map(|s| s.clamp(*NEXT_CHECK_S.start(), *NEXT_CHECK_S.end()));
        let Some(time) = reply.time else {
            return;
        };
        match open::<TimeStatement>(&time, &self.state.root) {
            Ok((time, _)) if self.link.is_current(&time.nonce) => {
                self.clock_offset = Some(time.now.duration_since(now));
            }
            Ok(_) => fx.ignored(Ignored::StaleNonce),
            Err(_) => fx.ignored(Ignored::NotVerified),
        }
    }

    pub(super) fn tick(&mut self, now: Timestamp, fx: &mut Effects) {
        self.expire_stage(now, fx);
        let mut interval = self
            .link
            .next_check_s
            .unwrap_or(self.config.check_interval_s);
        if let Some(record) = &self.state.update
            && let Stage::Deferred { retry_after_s } = record.stage
        {
            interval = interval.min(retry_after_s);
        }
        let age = self.link.checked_at.map(|then| elapsed_s(then, now));
        if self.link.wanted.is_none() && age.is_some_and(|age| age >= interval) {
            self.link.wanted = Some(CheckReason::Poll);
        }
        self.send_wanted(now, fx);
    }

    /// Ends or turns back what took too long.
    fn expire_stage(&mut self, now: Timestamp, fx: &mut Effects) {
        let Some(record) = &self.state.update else {
            return;
        };
        let in_stage = self.stage_since.map_or(0, |since| elapsed_s(since, now));
        match &record.stage {
            Stage::Downloading { job } => {
                let late = in_stage >= job.timeouts.download_s
                    || elapsed_s(job.accepted_at, now) >= job.timeouts.total_s;
                if late {
                    self.stop_download(fx);
                    self.fail(now, ErrorCode::Timeout, "the download took too long", fx);
                }
            }
            Stage::Installing { job } if in_stage >= job.timeouts.install_s => {
                self.fail(
                    now,
                    ErrorCode::Timeout,
                    "the installation took too long",
                    fx,
                );
            }
            Stage::Trial { .. } if in_stage >= HEALTH_CHECK_S => {
                let error = ReportedError {
                    code: ErrorCode::HealthCheckFailed,
                    message: "no word from the health check".to_owned(),
                };
                self.fall_back(now, error, fx);
            }
            _ => {}
        }
    }
}

//! Carrying an update out: download, verify, install, restart, confirm or fall back.

use jiff::Timestamp;

use super::effects::Effects;
use super::io::{Download, Ignored, Output};
use super::link::Link;
use super::state::{Image, Job, MAX_USED_PERMITS, Partial, Stage};
use super::{Agent, elapsed_s};
use crate::digest::Digest;
use crate::messages::{CheckReason, ErrorCode, MAX_TEXT, Phase, ReportedError};
use crate::objects::Mode;
use crate::wire::Slot;

/// Tries at starting one slot before it counts as failed: one for the power cut that hits between
/// writing the decision down and telling the boot loader, one for bad luck.
const MAX_BOOTS: u8 = 3;

/// Least advance between two reports of one download, in tenths of a percent.
const REPORT_STEP_PERMILLE: u64 = 100;

impl Agent {
    /// The slot an update goes to.
    fn target(&self) -> Slot {
        self.state.active.other()
    }

    // Download.

    pub(super) fn start_download(&mut self, now: Timestamp, fx: &mut Effects) {
        let Some(record) = &self.state.update else {
            return;
        };
        let Stage::Downloading { job } = &record.stage else {
            return;
        };
        let offset = self.state.bytes_of(job.image.sha256);
        self.download = Some((now, offset));
        fx.push(Output::StartDownload(Box::new(Download {
            update_id: record.report.update_id.clone(),
            urls: job.urls.clone(),
            size: job.size,
            sha256: job.image.sha256,
            offset,
        })));
    }

    /// Goes on with a download that a restart interrupted.
    pub(super) fn resume_download(&mut self, now: Timestamp, fx: &mut Effects) {
        let Some(record) = &self.state.update else {
            return;
        };
        let Stage::Downloading { job } = &record.stage else {
            return;
        };
        if self.download.is_some() {
            return;
        }
        let expired = match (self.trusted_time(now), job.urls_expire_at) {
            (Some(now), Some(end)) => now >= end,
            _ => false,
        };
        if expired {
            self.want_check(now, CheckReason::UrlExpired, fx);
        } else {
            self.start_download(now, fx);
        }
    }

    pub(super) fn stop_download(&mut self, fx: &mut Effects) {
        self.download = None;
        fx.push(Output::AbortDownload);
    }

    pub(super) fn downloaded(&mut self, now: Timestamp, bytes_done: u64, fx: &mut Effects) {
        let Some(Stage::Downloading { job }) = self.stage() else {
            return fx.ignored(Ignored::OutOfPlace);
        };
        let (size, sha256) = (job.size, job.image.sha256);
        if bytes_done > size {
            self.stop_download(fx);
            self.state.partial = None;
            return self.fail(
                now,
                ErrorCode::SizeMismatch,
                "more bytes than the release says",
                fx,
            );
        }
        self.state.partial = Some(Partial { sha256, bytes_done });
        let (since, bytes_then) = *self.download.get_or_insert((now, bytes_done));
        let step = |bytes| permille(bytes, size) / REPORT_STEP_PERMILLE;
        let first = self.last_phase() != Some(Phase::Downloading);
        if !first && step(bytes_done) <= step(bytes_then) {
            return;
        }
        self.download = Some((now, bytes_done));
        let speed = bytes_done
            .saturating_sub(bytes_then)
            .checked_div(elapsed_s(since, now));
        self.report(fx, Phase::Downloading, |report| {
            let percent = u32::try_from(permille(bytes_done, size)).unwrap_or(1000);
            report.percent = Some(f64::from(percent) / 10.0);
            report.bytes_done = Some(bytes_done);
            report.bytes_total = Some(size);
            report.speed_bps = speed;
        });
    }

    pub(super) fn download_failed(
        &mut self,
        now: Timestamp,
        code: ErrorCode,
        message: &str,
        fx: &mut Effects,
    ) {
        if !matches!(self.stage(), Some(Stage::Downloading { .. })) {
            return fx.ignored(Ignored::OutOfPlace);
        }
        self.download = None;
        self.fail(now, code, message, fx);
    }

    pub(super) fn urls_expired(&mut self, now: Timestamp, fx: &mut Effects) {
        if !matches!(self.stage(), Some(Stage::Downloading { .. })) {
            return fx.ignored(Ignored::OutOfPlace);
        }
        self.download = None;
        self.want_check(now, CheckReason::UrlExpired, fx);
    }

    pub(super) fn user_deferred(&mut self, retry_after_s: u64, fx: &mut Effects) {
        let Some(record) = &mut self.state.update else {
            return fx.ignored(Ignored::OutOfPlace);
        };
        if !matches!(record.stage, Stage::Downloading { .. }) {
            return fx.ignored(Ignored::OutOfPlace);
        }
        record.stage = Stage::Deferred { retry_after_s };
        self.stop_download(fx);
        self.report(fx, Phase::Deferred, |report| {
            report.error = Some(error(ErrorCode::UserDeferred, "the user says later"));
            report.retry_after_s = Some(retry_after_s);
        });
    }

    // Verify and install.

    pub(super) fn image_ready(
        &mut self,
        now: Timestamp,
        size: u64,
        sha256: Digest,
        fx: &mut Effects,
    ) {
        let Some(Stage::Downloading { job }) = self.stage() else {
            return fx.ignored(Ignored::OutOfPlace);
        };
        let job = job.clone();
        self.download = None;
        self.state.partial = None;
        self.report(fx, Phase::Verifying, |_| {});
        if size != job.size {
            let text = format!("{size} bytes instead of {}", job.size);
            return self.fail(now, ErrorCode::SizeMismatch, &text, fx);
        }
        if sha256 != job.image.sha256 {
            let text = format!("digest {sha256} instead of {}", job.image.sha256);
            return self.fail(now, ErrorCode::HashMismatch, &text, fx);
        }
        let slot = self.target();
        *self.state.image_mut(slot) = None;
        self.enter(now, Stage::Installing { job });
        self.report(fx, Phase::Installing, |_| {});
        fx.push(Output::Install { slot, size, sha256 });
    }

    pub(super) fn installed(&mut self, now: Timestamp, result: Result<(), &str>, fx: &mut Effects) {
        let Some(Stage::Installing { job }) = self.stage() else {
            return fx.ignored(Ignored::OutOfPlace);
        };
        if let Err(message) = result {
            return self.fail(now, ErrorCode::InstallFailed, message, fx);
        }
        let job = job.clone();
        let slot = self.target();
        *self.state.image_mut(slot) = Some(job.image.clone());
        self.stage_or_reboot(now, job, fx);
    }

    /// The image is in its slot: waits for `activate` or goes on, as the offer says.
    pub(super) fn stage_or_reboot(&mut self, now: Timestamp, job: Box<Job>, fx: &mut Effects) {
        match job.mode {
            Mode::Stage => {
                self.enter(now, Stage::Staged { job });
                self.report(fx, Phase::Staged, |_| {});
            }
            Mode::Install => self.reboot_into(now, job, fx),
        }
    }

    /// Starts the new image for a first try. A permit counts as used from here on.
    pub(super) fn reboot_into(&mut self, now: Timestamp, job: Box<Job>, fx: &mut Effects) {
        if let Some(permit) = &job.permit {
            if let Some(now) = self.trusted_time(now) {
                self.state.used_permits.retain(|used| used.expires_at > now);
            }
            let used = &mut self.state.used_permits;
            if used.len() >= MAX_USED_PERMITS {
                used.remove(0);
            }
            used.push(permit.clone());
        }
        self.enter(now, Stage::Rebooting { job, boots: 1 });
        self.report(fx, Phase::Rebooting, |_| {});
        let slot = self.target();
        fx.push(Output::Reboot { slot });
    }

    // Restart, confirm or fall back.

    pub(super) fn booted(&mut self, now: Timestamp, slot: Slot, fell_back: bool, fx: &mut Effects) {
        self.running = slot;
        self.link = Link::default();
        self.download = None;
        self.clock_offset = None;
        self.stage_since = Some(now);
        let target = self.target();
        match self.stage().cloned() {
            Some(Stage::Rebooting { job, .. } | Stage::Staged { job }) if slot == target => {
                self.try_out(now, job, 1, fx);
            }
            Some(Stage::Rebooting { job, boots }) => {
                if fell_back || boots >= MAX_BOOTS {
                    return self.boot_failed(now, "the new image did not start", fx);
                }
                let boots = boots + 1;
                self.enter(now, Stage::Rebooting { job, boots });
                fx.persist();
                fx.push(Output::Reboot { slot: target });
            }
            Some(Stage::Trial { job, boots }) if slot == target => {
                if boots < MAX_BOOTS {
                    return self.try_out(now, job, boots + 1, fx);
                }
                let why = error(ErrorCode::BootFailed, "the new image keeps restarting");
                self.fall_back(now, why, fx);
            }
            Some(Stage::Trial { .. }) => {
                self.boot_failed(now, "the new image did not stay up", fx);
            }
            Some(Stage::FallingBack { error, boots }) => self.fell_back(now, error, boots, fx),
            Some(Stage::Installing { job }) if slot != target => fx.push(Output::Install {
                slot: target,
                size: job.size,
                sha256: job.image.sha256,
            }),
            stage => {
                self.follow_boot_loader(fx);
                if matches!(stage, Some(Stage::Installing { .. })) {
                    // Its slot is the one that runs now, and must not be written.
                    self.fail(
                        now,
                        ErrorCode::Internal,
                        "the slot started while written to",
                        fx,
                    );
                }
            }
        }
    }

    fn boot_failed(&mut self, now: Timestamp, message: &str, fx: &mut Effects) {
        self.distrust_target();
        self.fail(now, ErrorCode::BootFailed, message, fx);
    }

    /// An image that did badly is not flipped to again, however well it once did.
    fn distrust_target(&mut self) {
        let slot = self.target();
        if let Some(image) = self.state.image_mut(slot) {
            image.confirmed = false;
        }
    }

    /// The boot loader has the last word on what runs.
    fn follow_boot_loader(&mut self, fx: &mut Effects) {
        if self.running != self.state.active {
            self.state.active = self.running;
            fx.persist();
        }
    }

    fn try_out(&mut self, now: Timestamp, job: Box<Job>, boots: u8, fx: &mut Effects) {
        self.enter(now, Stage::Trial { job, boots });
        fx.persist();
        fx.push(Output::CheckHealth);
    }

    pub(super) fn health_checked(
        &mut self,
        now: Timestamp,
        result: Result<(), &str>,
        fx: &mut Effects,
    ) {
        if !matches!(self.stage(), Some(Stage::Trial { .. })) {
            return fx.ignored(Ignored::OutOfPlace);
        }
        match result {
            Ok(()) => self.confirm(now, fx),
            Err(message) => {
                self.fall_back(now, error(ErrorCode::HealthCheckFailed, message), fx);
            }
        }
    }

    /// The new image is the device's own from now on, and the floor rises to it.
    fn confirm(&mut self, now: Timestamp, fx: &mut Effects) {
        let slot = self.running;
        self.state.active = slot;
        if let Some(image) = self.state.image_mut(slot) {
            image.confirmed = true;
            let level = image.security_version;
            self.state.security_floor = self.state.security_floor.max(level);
        }
        fx.confirm(slot);
        self.finish(now, Phase::Completed, None, fx);
    }

    /// Back to the old image; the failure is reported from there.
    pub(super) fn fall_back(&mut self, now: Timestamp, error: ReportedError, fx: &mut Effects) {
        self.distrust_target();
        self.enter(now, Stage::FallingBack { error, boots: 1 });
        fx.persist();
        let slot = self.state.active;
        fx.push(Output::Reboot { slot });
    }

    fn fell_back(&mut self, now: Timestamp, error: ReportedError, boots: u8, fx: &mut Effects) {
        if self.running != self.state.active && boots < MAX_BOOTS {
            let boots = boots + 1;
            self.enter(now, Stage::FallingBack { error, boots });
            fx.persist();
            let slot = self.state.active;
            return fx.push(Output::Reboot { slot });
        }
        self.follow_boot_loader(fx);
        self.finish(now, Phase::Failed, Some(error), fx);
    }

    pub(super) fn fail(
        &mut self,
        now: Timestamp,
        code: ErrorCode,
        message: &str,
        fx: &mut Effects,
    ) {
        self.finish(now, Phase::Failed, Some(error(code, message)), fx);
    }

    fn stage(&self) -> Option<&Stage> {
        self.state.update.as_ref().map(|record| &record.stage)
    }

    fn last_phase(&self) -> Option<Phase> {
        self.state.update.as_ref().map(|record| record.report.phase)
    }
}

/// What the other slot is to hold once the update is over.
pub(super) fn unconfirmed(version: String, sha256: Digest, security_version: u64) -> Image {
    Image {
        version,
        sha256,
        security_version,
        confirmed: false,
    }
}

/// An error with its text cut to what a report may hold.
pub(super) fn error(code: ErrorCode, message: &str) -> ReportedError {
    ReportedError {
        code,
        message: message.chars().take(MAX_TEXT).collect(),
    }
}

fn permille(part: u64, whole: u64) -> u64 {
    let permille = u128::from(part) * 1000 / u128::from(whole.max(1));
    u64::try_from(permille).unwrap_or(1000)
}

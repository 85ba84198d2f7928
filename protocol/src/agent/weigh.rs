//! Whether an authentic assignment is to be carried out, and how: the rules of "a device installs
//! only what has a valid release and a valid assignment for itself". Decides and changes nothing.

use std::cmp::Ordering;

use jiff::Timestamp;

use super::install::{error, unconfirmed};
use super::state::{Job, MAX_USED_PERMITS, UsedPermit};
use super::{Agent, elapsed_s};
use crate::digest::Digest;
use crate::messages::{ErrorCode, Offer, ReportedError};
use crate::objects::{
    Action, Assignment, Release, Requires, RollbackPermit, compare_versions, open,
};

/// When to ask again for an update that the battery or the storage was too low for, in seconds.
const RETRY_UNFIT_S: u64 = 900;

/// How to carry an assignment out.
pub(super) enum Plan {
    /// There is nothing left to do.
    AlreadyRunning,
    /// The image is in the other slot.
    Flip(Box<Job>),
    /// The image has to be fetched.
    Download(Box<Job>),
}

/// Why not.
pub(super) enum Refusal {
    /// Never.
    Never(ReportedError),
    /// Not now.
    Later {
        error: ReportedError,
        retry_after_s: u64,
    },
}

fn never(code: ErrorCode, message: &str) -> Refusal {
    Refusal::Never(error(code, message))
}

fn later(code: ErrorCode, message: &str, retry_after_s: u64) -> Refusal {
    let error = error(code, message);
    Refusal::Later {
        error,
        retry_after_s,
    }
}

impl Agent {
    /// Weighs an assignment that is authentic, fresh and for this device.
    pub(super) fn weigh(
        &self,
        now: Timestamp,
        offer: &Offer,
        assignment: &Assignment,
    ) -> Result<Plan, Refusal> {
        let time = self.trusted_time(now);
        self.check_expiry(time, assignment)?;
        let release = self.open_release(offer, assignment)?;
        self.check_target(&release)?;
        let running = self.state.image(self.running);
        if running.is_some_and(|i| i.sha256 == release.sha256 && i.version == release.version) {
            return Ok(Plan::AlreadyRunning);
        }
        let permit = self.check_downgrade(time, offer, assignment, &release)?;
        if let Some(time) = time
            && let Some(begin) = assignment.not_before
            && begin > time
        {
            let wait = elapsed_s(time, begin).max(1);
            return Err(later(ErrorCode::UserDeferred, "not to be begun yet", wait));
        }
        self.check_fitness(assignment.requires)?;
        let flip = assignment.action == Action::Rollback && self.holds(release.sha256);
        let job = Box::new(job(now, assignment, release, permit));
        Ok(if flip {
            Plan::Flip(job)
        } else {
            Plan::Download(job)
        })
    }

    fn check_expiry(
        &self,
        time: Option<Timestamp>,
        assignment: &Assignment,
    ) -> Result<(), Refusal> {
        let Some(time) = time else {
            // Its nonce has shown that it is fresh.
            return Ok(());
        };
        if time >= assignment.expires_at {
            return Err(never(ErrorCode::Expired, "the assignment has expired"));
        }
        if time >= self.state.root.expires_at {
            return Err(never(ErrorCode::Expired, "the trust root has expired"));
        }
        Ok(())
    }

    fn open_release(&self, offer: &Offer, assignment: &Assignment) -> Result<Release, Refusal> {
        let (release, bytes) = open::<Release>(&offer.release, &self.state.root)
            .map_err(|e| never(ErrorCode::SignatureInvalid, &format!("release: {e}")))?;
        if Digest::of(&bytes) != assignment.release_sha256 {
            let text = "the release is not the one that was assigned";
            return Err(never(ErrorCode::SignatureInvalid, text));
        }
        Ok(release)
    }

    fn check_target(&self, release: &Release) -> Result<(), Refusal> {
        let me = &self.identity;
        if release.device_model != me.device_model {
            return Err(never(ErrorCode::WrongTarget, "for another model"));
        }
        if let Some(maker) = &me.manufacturer
            && *maker != release.manufacturer
        {
            return Err(never(ErrorCode::WrongTarget, "for another manufacturer"));
        }
        let fits = match &me.hw_revision {
            Some(revision) => release.hw_revisions.contains(revision),
            None => false,
        };
        if !release.hw_revisions.is_empty() && !fits {
            return Err(never(
                ErrorCode::WrongTarget,
                "for other hardware revisions",
            ));
        }
        Ok(())
    }

    /// Back only by a rollback; below the floor only with a permit, which is returned.
    fn check_downgrade(
        &self,
        time: Option<Timestamp>,
        offer: &Offer,
        assignment: &Assignment,
        release: &Release,
    ) -> Result<Option<UsedPermit>, Refusal> {
        let refuse = |text: &str| never(ErrorCode::DowngradeRefused, text);
        let order = compare_versions(&release.version, self.running_version());
        if assignment.action == Action::Update && order == Some(Ordering::Less) {
            return Err(refuse("older than the running version, and not a rollback"));
        }
        if release.security_version >= self.state.security_floor {
            return Ok(None);
        }
        let permit = offer.permit.as_ref();
        let permit = permit.ok_or_else(|| refuse("below the security floor, without a permit"))?;
        let (permit, _) = open::<RollbackPermit>(permit, &self.state.root)
            .map_err(|e| refuse(&format!("permit: {e}")))?;
        self.check_permit(time, &permit, assignment, release)
            .map_err(refuse)?;
        Ok(Some(UsedPermit {
            permit_id: permit.permit_id,
            expires_at: permit.expires_at,
        }))
    }

    fn check_permit(
        &self,
        time: Option<Timestamp>,
        permit: &RollbackPermit,
        assignment: &Assignment,
        release: &Release,
    ) -> Result<(), &'static str> {
        let for_device = permit.device_id.as_ref() == Some(&self.identity.device_id);
        let for_campaign =
            permit.campaign_id.is_some() && permit.campaign_id == assignment.campaign_id;
        if !for_device && !for_campaign {
            return Err("the permit is for another device or campaign");
        }
        let running = self.state.image(self.running).map(|image| image.sha256);
        if running != Some(permit.from_sha256) || permit.to_sha256 != release.sha256 {
            return Err("the permit is for other images");
        }
        if time.is_some_and(|time| time >= permit.expires_at) {
            return Err("the permit has expired");
        }
        let live = |used: &&UsedPermit| time.is_none_or(|time| used.expires_at > time);
        let used = &self.state.used_permits;
        if used.iter().any(|used| used.permit_id == permit.permit_id) {
            return Err("the permit was used before");
        }
        if used.iter().filter(live).count() >= MAX_USED_PERMITS {
            return Err("too many permits are in use");
        }
        Ok(())
    }

    fn check_fitness(&self, requires: Requires) -> Result<(), Refusal> {
        if let Some(least) = requires.min_battery_percent
            && let Some(charge) = self.conditions.battery_percent
            && charge < f64::from(least)
        {
            let text = format!("charge of {charge} %, {least} % needed");
            return Err(later(ErrorCode::LowBattery, &text, RETRY_UNFIT_S));
        }
        if let Some(least) = requires.min_free_storage_bytes
            && let Some(free) = self.conditions.free_storage_bytes
            && free < least
        {
            let text = format!("{free} bytes free, {least} needed");
            return Err(later(ErrorCode::LowStorage, &text, RETRY_UNFIT_S));
        }
        Ok(())
    }

    /// Whether the other slot holds this image and it once did well there.
    fn holds(&self, sha256: Digest) -> bool {
        self.state
            .image(self.state.active.other())
            .is_some_and(|image| image.confirmed && image.sha256 == sha256)
    }
}

fn job(
    now: Timestamp,
    assignment: &Assignment,
    release: Release,
    permit: Option<UsedPermit>,
) -> Job {
    Job {
        image: unconfirmed(release.version, release.sha256, release.security_version),
        size: release.size,
        release_sha256: assignment.release_sha256,
        urls: assignment.urls.clone(),
        urls_expire_at: assignment.urls_expire_at,
        mode: assignment.mode,
        timeouts: assignment.timeouts,
        accepted_at: now,
        permit,
    }
}

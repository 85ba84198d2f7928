//! Holding the service to its acknowledgements after the run: what a device said last and was
//! acknowledged is what the service knows, and no device is left with two live updates.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::time::sleep;

use device_ota_protocol::messages::Phase;

use super::{Fleet, Observer};
use crate::api::Update;
use crate::board::Final;

/// Devices asked about at a time.
const CONCURRENCY: usize = 8;
/// A report that contradicts what the service knows is looked at once more after this time.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// What the service may know better than the device: these it decides by itself.
const DECIDED_BY_SERVICE: [&str; 4] = ["timeout", "device_lost", "reverted", "version_mismatch"];

/// What the audit came to.
#[derive(Debug, Clone, Default)]
pub(super) struct Audit {
    pub(super) checked: usize,
    pub(super) violations: Vec<String>,
    /// What the service takes each device to run; looked up where no version is expected.
    pub(super) versions: HashMap<String, String>,
    /// Why it could not be made, if so.
    pub(super) failed: Option<String>,
}

impl Fleet {
    pub(super) async fn audit(&self, observer: &mut dyn Observer) -> Audit {
        let mut finals: Vec<(usize, Vec<Final>)> = Vec::new();
        self.ctx.board.each(|index, seat| {
            if !seat.finals.is_empty() {
                finals.push((index, seat.finals.clone()));
            }
        });
        let mut audit = Audit::default();
        if self.expected_version(0).is_none() {
            match self.versions_at_rest().await {
                Ok(versions) => audit.versions = versions,
                Err(error) => audit.failed = Some(error.to_string()),
            }
        }
        if finals.is_empty() {
            return audit;
        }
        observer.said(&format!(
            "comparing {} devices with the service",
            finals.len()
        ));
        let checks = finals
            .iter()
            .map(|(index, finals)| self.audit_device(*index, finals));
        let results: Vec<_> = stream::iter(checks)
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        for result in results {
            match result {
                Ok(violations) => {
                    audit.checked += 1;
                    audit.violations.extend(violations);
                }
                Err(error) => audit.failed = Some(error.to_string()),
            }
        }
        audit
    }

    /// What the service takes devices to run, looked up once more where that is not what they say.
    async fn versions_at_rest(&self) -> Result<HashMap<String, String>, crate::api::Error> {
        let first = self.versions_known().await?;
        let mut agrees = true;
        self.ctx.board.each(|index, seat| {
            agrees &= !seat.seen || first.get(&self.config.device_id(index)) == Some(&seat.version);
        });
        if agrees {
            return Ok(first);
        }
        sleep(SECOND_LOOK).await;
        self.versions_known().await
    }

    async fn versions_known(&self) -> Result<HashMap<String, String>, crate::api::Error> {
        let known = self.api.devices_of(&self.config.group).await?;
        let pairs = known
            .into_iter()
            .filter_map(|device| Some((device.device_id, device.firmware_version?)));
        Ok(pairs.collect())
    }

    async fn audit_device(
        &self,
        index: usize,
        finals: &[Final],
    ) -> Result<Vec<String>, crate::api::Error> {
        let id = self.config.device_id(index);
        let first = compare(&id, finals, &self.api.updates_of(&id).await?);
        if first.is_empty() {
            return Ok(first);
        }
        // The service may just be about to open a rollback or to close an update.
        sleep(SECOND_LOOK).await;
        Ok(compare(&id, finals, &self.api.updates_of(&id).await?))
    }
}

fn compare(device: &str, finals: &[Final], updates: &[Update]) -> Vec<String> {
    let mut violations = Vec::new();
    let in_flight = |update: &&Update| !update.has_ended() && !waits(update);
    let live = updates.iter().filter(in_flight).count();
    if live > 1 {
        violations.push(format!("{device} has {live} live updates at the service"));
    }
    for last in finals.iter().filter(|last| last.acknowledged) {
        let Some(update) = updates.iter().find(|u| u.update_id == last.update_id) else {
            // Further back than the service lists, if it has more than a page of them.
            if updates.len() < finals.len() {
                let id = &last.update_id;
                violations.push(format!("{device}: {id} is unknown to the service"));
            }
            continue;
        };
        if let Some(what) = contradiction(last, update) {
            violations.push(format!("{device}: {} {what}", last.update_id));
        }
    }
    violations
}

/// Whether an update waits to be offered.
fn waits(update: &Update) -> bool {
    matches!(update.status.as_str(), "scheduled" | "pending" | "created")
}

/// How what the service knows contradicts what it acknowledged.
fn contradiction(last: &Final, update: &Update) -> Option<String> {
    if update.attempt > last.attempt || waits(update) {
        // It heard, and tries again.
        return None;
    }
    let known = update.status.as_str();
    let said = last.phase.as_str();
    let code = update.error_code.as_deref().unwrap_or_default();
    if last.lie {
        // What the service takes for completed and undone since counts as failed everywhere.
        let believed = known == "completed" && !DECIDED_BY_SERVICE.contains(&code);
        return believed.then(|| format!("is {known} although the device lied"));
    }
    if !update.has_ended() {
        return Some(format!("is {known} although {said} was acknowledged"));
    }
    let agrees = match last.phase {
        Phase::Completed => {
            matches!(known, "completed" | "rolled_back") || DECIDED_BY_SERVICE.contains(&code)
        }
        Phase::Failed | Phase::Rejected => matches!(known, "failed" | "rejected" | "cancelled"),
        // A cancellation may have been overtaken by the end of the attempt.
        _ => true,
    };
    (!agrees).then(|| format!("is {known} ({code}) although {said} was acknowledged"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(phase: Phase, attempt: u32, lie: bool) -> Final {
        Final {
            update_id: "upd_1".to_owned(),
            attempt,
            phase,
            acknowledged: true,
            lie,
        }
    }

    fn update(status: &str, attempt: u32, code: Option<&str>) -> Update {
        Update {
            update_id: "upd_1".to_owned(),
            status: status.to_owned(),
            attempt,
            error_code: code.map(str::to_owned),
        }
    }

    #[test]
    fn an_acknowledged_end_must_be_known_to_the_service() {
        let completed = [last(Phase::Completed, 1, false)];
        let found = |updates: &[Update]| compare("sim-1", &completed, updates).len();
        assert_eq!(found(&[update("completed", 1, None)]), 0);
        assert_eq!(found(&[update("installing", 1, None)]), 1);
        assert_eq!(found(&[update("failed", 1, Some("hash_mismatch"))]), 1);
        assert_eq!(found(&[update("failed", 1, Some("device_lost"))]), 0);
        assert_eq!(found(&[]), 1);
    }

    #[test]
    fn a_later_attempt_is_no_contradiction_and_a_believed_lie_is_one() {
        let failed = [last(Phase::Failed, 1, false)];
        assert!(compare("sim-1", &failed, &[update("downloading", 2, None)]).is_empty());
        assert!(compare("sim-1", &failed, &[update("scheduled", 1, None)]).is_empty());
        let lied = [last(Phase::Completed, 1, true)];
        let mismatch = update("failed", 1, Some("version_mismatch"));
        assert!(compare("sim-1", &lied, &[mismatch]).is_empty());
        let undone = update("completed", 1, Some("reverted"));
        assert!(compare("sim-1", &lied, &[undone]).is_empty());
        assert_eq!(
            compare("sim-1", &lied, &[update("completed", 1, None)]).len(),
            1
        );
    }

    #[test]
    fn two_live_updates_are_a_violation_and_one_that_waits_is_not_live() {
        let none: [Final; 0] = [];
        let mut other = update("offered", 1, None);
        other.update_id = "upd_2".to_owned();
        let live = update("downloading", 1, None);
        assert_eq!(compare("sim-1", &none, &[live.clone(), other]).len(), 1);
        assert!(compare("sim-1", &none, &[live, update("scheduled", 0, None)]).is_empty());
    }
}

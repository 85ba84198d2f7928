//! The way back from a checked spec to the draft that it comes of.

use super::draft::CampaignDraft;
use super::named::Named;
use super::rate::Rate;
use super::spec::{CampaignSpec, Strategy};
use super::stages::{by_rings, default_gate, drafts_of, everybody};
use super::timeouts::TimeoutsDraft;
use crate::filter::Filter;

impl CampaignSpec {
    /// The draft that this and whom it names come of, with all that was left to a default said: what a campaign is changed by,
    /// field by field. The same settings of the service make the same spec of it.
    pub fn to_draft(&self, named: &Named, requires_approval: bool) -> CampaignDraft {
        let gate = default_gate(self.failure_threshold_percent);
        let (said, unsaid) = match (self.strategy, self.stages.as_slice()) {
            (Strategy::Immediate | Strategy::Scheduled, all) => (all, everybody(gate)),
            (Strategy::BlueGreen, [prepare @ .., _]) => (prepare, everybody(gate)),
            (_, all) => (all, by_rings(self.rings, gate)),
        };
        let (timeouts, give_up_after_hours) = TimeoutsDraft::of(&self.times);
        CampaignDraft {
            name: self.name.clone(),
            description: self.description.clone(),
            firmware_id: self.firmware_id.clone(),
            target_devices: some(&named.targets),
            target_groups: some(&self.targets.groups),
            target_filters: self.targets.filter.as_ref().map(Filter::to_json),
            deployment_strategy: self.strategy,
            priority: self.priority,
            rollout_percentage: f64::from(self.rollout_buckets) / 100.0,
            max_concurrent_updates: self.max_concurrent_updates,
            batch_size: self.batch_size,
            rate: self.rate.map(Rate::to_draft),
            bandwidth_bytes_per_second: self.bandwidth_bytes_per_second,
            timeout_minutes: std::time::Duration::from_secs(self.timeout_seconds).as_secs_f64()
                / 60.0,
            timeouts,
            give_up_after_hours,
            auto_rollback: self.auto_rollback,
            failure_threshold_percent: Some(self.failure_threshold_percent),
            failure_min_samples: self.failure_min_samples,
            abort: self.abort.clone(),
            health: self.health.clone(),
            max_retries: self.max_retries,
            continuous: self.continuous,
            schedule: self.schedule,
            windows: self.windows.0.clone(),
            stages: if said == unsaid || self.strategy == Strategy::Immediate {
                Vec::new()
            } else {
                drafts_of(said, named)
            },
            requires: self.requires,
            requires_approval,
        }
    }
}

/// What is empty was not given.
fn some<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}

//! How devices do after a campaign's update, by the criteria of its health.

use device_ota_domain::Campaign;
use device_ota_domain::campaign::Compare;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

/// What a criterion has found when heartbeats were last read.
#[derive(Serialize, ToSchema)]
#[schema(as = HealthFigure)]
pub(crate) struct HealthFigureDto {
    metric: String,
    compare: Compare,
    /// What it is compared with: the mean over devices, in the metric's own unit; null: nobody has told of it.
    base: Option<f64>,
    /// The mean over devices that have completed.
    now: Option<f64>,
    /// Devices that have told of it, on the side of fewer.
    samples: u32,
    /// It is above what the criterion allows.
    breached: bool,
    read_at: Timestamp,
}

/// The figures of a campaign, in the order of its criteria.
pub(super) fn figures(campaign: &Campaign) -> Vec<HealthFigureDto> {
    let readings = campaign.readings.iter().filter_map(|reading| {
        let criterion = campaign.spec.health.criteria.get(reading.criterion)?;
        Some(HealthFigureDto {
            metric: criterion.metric.to_string(),
            compare: criterion.compare,
            base: reading.base,
            now: reading.now,
            samples: reading.samples,
            breached: criterion.breach(reading).is_some(),
            read_at: reading.at,
        })
    });
    readings.collect()
}

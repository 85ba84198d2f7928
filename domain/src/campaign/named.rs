//! The devices that a campaign names one by one. They stand apart from its spec, which everybody reads who has to do with the
//! campaign: there may be 200,000 of them, and only who asks whom it means has to know which.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::DeviceId;

/// Which devices a campaign names; its spec says that it does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Named {
    /// Those among its targets, as they were sent.
    #[serde(default)]
    pub targets: Vec<DeviceId>,
    /// Those of the stages that take named devices, by the number of the stage.
    #[serde(default)]
    pub stages: BTreeMap<u16, Vec<DeviceId>>,
}

impl Named {
    /// Nobody is named.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty() && self.stages.is_empty()
    }

    /// The devices that this stage names.
    pub fn of_stage(&self, stage: u16) -> &[DeviceId] {
        self.stages.get(&stage).map_or(&[], Vec::as_slice)
    }
}

//! A person opens the next stage.

use jiff::Timestamp;

use super::gate::gate;
use super::{opened, plan};
use crate::campaign::{Campaign, CampaignState, Counts, TransitionError};
use crate::why::Why;

/// What a person asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Advance<'a> {
    /// The stage to open, by name: whoever names it opens it once, however often they ask.
    pub stage: Option<&'a str>,
    /// Open it although its gate does not hold. Only for a stage that is named.
    pub force: bool,
}

/// Why a stage is not opened.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AdvanceError {
    /// The campaign is not in progress.
    #[error(transparent)]
    State(#[from] TransitionError),
    /// There is no such stage.
    #[error("the campaign has no stage {asked:?}; it has {}", stages.join(", "))]
    NoSuchStage {
        /// As asked.
        asked: String,
        /// Those there are.
        stages: Vec<String>,
    },
    /// By force, and nobody knows what.
    #[error("name the stage that shall open by force")]
    Unnamed,
    /// That stage is open.
    #[error("stage {0} is open already")]
    OpenAlready(String),
    /// Another one comes first.
    #[error("stage {asked} cannot open before stage {next}")]
    NotNext {
        /// As asked.
        asked: String,
        /// The next to open.
        next: String,
    },
    /// No stage is left.
    #[error("the last stage is open; nothing waits for a person")]
    Last,
    /// It waits, but not for this.
    #[error("nothing waits for a person{}", because.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    NothingWaits {
        /// What it waits for.
        because: Option<Why>,
    },
}

/// The campaign with its next stage open: because its gate waits for a person and for nothing else, or by force.
pub fn advance(
    now: Timestamp,
    campaign: Campaign,
    counts: &Counts,
    asked: Advance<'_>,
) -> Result<Campaign, AdvanceError> {
    let CampaignState::InProgress(running) = &campaign.state else {
        let hint = match campaign.state {
            CampaignState::Paused { .. } => "; resume it first",
            _ => "; only one in progress can",
        };
        return Err(campaign.state.refuse("advanced", hint).into());
    };
    let stages = &campaign.spec.stages;
    let next = running.open_stage.saturating_add(1);
    let next_name = stages.get(usize::from(next)).map(|stage| &stage.name);
    match asked.stage {
        Some(name) => {
            let mut numbered = (0..).zip(stages);
            let found = numbered.find(|(_, stage)| stage.name == name);
            let (number, _) = found.ok_or_else(|| AdvanceError::NoSuchStage {
                asked: name.to_owned(),
                stages: stages.iter().map(|stage| stage.name.clone()).collect(),
            })?;
            if number < next {
                return Err(AdvanceError::OpenAlready(name.to_owned()));
            }
            if let Some(next_name) = next_name.filter(|_| number > next) {
                return Err(AdvanceError::NotNext {
                    asked: name.to_owned(),
                    next: next_name.clone(),
                });
            }
        }
        None if asked.force => return Err(AdvanceError::Unnamed),
        None => {}
    }
    if next_name.is_none() {
        return Err(AdvanceError::Last);
    }
    if !running.may_go_on() {
        let stage = stages.get(usize::from(running.open_stage));
        let stage = stage.map_or_else(String::new, |stage| stage.name.clone());
        return Err(AdvanceError::NothingWaits {
            because: Some(Why::NotPromoted { stage }),
        });
    }
    if !asked.force {
        waits_for_a_person(now, &campaign, counts)?;
    }
    let state = opened(now, &campaign, counts, next)?;
    Ok(Campaign { state, ..campaign })
}

/// The planner would do nothing about the next stage but wait for a person.
fn waits_for_a_person(
    now: Timestamp,
    campaign: &Campaign,
    counts: &Counts,
) -> Result<(), AdvanceError> {
    let waits = plan(now, campaign, counts).waits;
    if waits
        .iter()
        .any(|why| matches!(why, Why::GateManual { .. }))
    {
        return Ok(());
    }
    let because = match &campaign.state {
        CampaignState::InProgress(running) => gate(now, campaign, running, counts).err(),
        _ => None,
    };
    Err(AdvanceError::NothingWaits { because })
}

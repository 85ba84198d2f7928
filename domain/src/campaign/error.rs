//! What is wrong with a draft.

use crate::filter::FilterError;

/// Why a draft is no campaign; names the field and the bound.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SpecError {
    /// A text is out of bounds.
    #[error(transparent)]
    Text(#[from] crate::device::RegistrationError),
    /// A number is out of bounds.
    #[error("{field} must be {rule}")]
    Range {
        /// Field as sent.
        field: &'static str,
        /// Its bounds.
        rule: &'static str,
    },
    /// `target_filters` are no filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// Stages do not rise to 100 %, or name nothing.
    #[error("stages: {0}")]
    Stages(&'static str),
    /// A rate that is none.
    #[error("rate: {0}")]
    Rate(&'static str),
    /// A maintenance window that is none.
    #[error("windows: {0}")]
    Windows(String),
    /// A schedule that cannot be kept.
    #[error("schedule: {0}")]
    Schedule(&'static str),
}

//! Whether somebody else has agreed to a campaign (PRD, E2-US6): four eyes see it before its start.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Longest comment of an approver, in bytes.
pub const MAX_COMMENT_BYTES: usize = 1_024;

/// What an approver said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// In their words.
    pub comment: Option<String>,
}

/// Where a campaign stands with its approval. The serde form (`{"status": …}`) is what the store keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Approval {
    /// It may start without.
    #[default]
    NotRequired,
    /// Nobody has looked at it as it is now.
    Pending {
        /// Whoever wrote it as it is now: the creator, and everybody who changed it.
        authors: Vec<String>,
    },
    /// It may start.
    Approved {
        /// See [`Approval::Pending`].
        authors: Vec<String>,
        /// By whom.
        #[serde(flatten)]
        verdict: Verdict,
    },
    /// It may not start.
    Rejected {
        /// See [`Approval::Pending`].
        authors: Vec<String>,
        /// By whom.
        #[serde(flatten)]
        verdict: Verdict,
    },
}

/// Why a verdict is not taken, or a campaign may not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApprovalError {
    /// The campaign asks for none.
    #[error("the campaign does not ask for an approval")]
    NotRequired,
    /// The approver wrote the campaign.
    #[error("{0:?} wrote this campaign; somebody else must approve it")]
    FourEyes(String),
    /// It is not approved.
    #[error("the campaign needs an approval before it can start{}", if *.rejected { "; it was rejected" } else { "" })]
    Missing {
        /// Somebody said no.
        rejected: bool,
    },
}

impl Approval {
    /// Of a new campaign by `author`.
    pub fn of_new(required: bool, author: &str) -> Self {
        if required {
            Self::Pending {
                authors: vec![author.to_owned()],
            }
        } else {
            Self::NotRequired
        }
    }

    /// The name of the status.
    pub const fn status(&self) -> &'static str {
        match self {
            Self::NotRequired => "not_required",
            Self::Pending { .. } => "pending",
            Self::Approved { .. } => "approved",
            Self::Rejected { .. } => "rejected",
        }
    }

    /// The last word, unless a change has voided it.
    pub const fn verdict(&self) -> Option<&Verdict> {
        match self {
            Self::Approved { verdict, .. } | Self::Rejected { verdict, .. } => Some(verdict),
            Self::NotRequired | Self::Pending { .. } => None,
        }
    }

    /// Approver: agree.
    pub fn approve(self, verdict: Verdict) -> Result<Self, ApprovalError> {
        let authors = self.authors_but(&verdict.by)?;
        Ok(Self::Approved { authors, verdict })
    }

    /// Approver: refuse, also after an approval.
    pub fn reject(self, verdict: Verdict) -> Result<Self, ApprovalError> {
        let authors = self.authors_but(&verdict.by)?;
        Ok(Self::Rejected { authors, verdict })
    }

    /// The campaign was changed by `author`: whatever was said of it no longer holds. An approval that was once asked for
    /// stays so, or else whoever may edit could do without.
    #[must_use]
    pub fn void(self, required: bool, creator: &str, author: &str) -> Self {
        let mut authors = match self {
            Self::NotRequired if !required => return Self::NotRequired,
            Self::NotRequired => vec![creator.to_owned()],
            Self::Pending { authors }
            | Self::Approved { authors, .. }
            | Self::Rejected { authors, .. } => authors,
        };
        if !authors.iter().any(|known| known == author) {
            authors.push(author.to_owned());
        }
        Self::Pending { authors }
    }

    /// The campaign may start.
    pub const fn permits(&self) -> Result<(), ApprovalError> {
        match self {
            Self::NotRequired | Self::Approved { .. } => Ok(()),
            Self::Pending { .. } => Err(ApprovalError::Missing { rejected: false }),
            Self::Rejected { .. } => Err(ApprovalError::Missing { rejected: true }),
        }
    }

    fn authors_but(self, approver: &str) -> Result<Vec<String>, ApprovalError> {
        match self {
            Self::NotRequired => Err(ApprovalError::NotRequired),
            Self::Pending { authors }
            | Self::Approved { authors, .. }
            | Self::Rejected { authors, .. } => {
                if authors.iter().any(|author| author == approver) {
                    Err(ApprovalError::FourEyes(approver.to_owned()))
                } else {
                    Ok(authors)
                }
            }
        }
    }
}

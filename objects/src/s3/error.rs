//! What goes wrong with a bucket, in words that say where and what to do.

use std::error::Error as StdError;
use std::time::Duration;

use device_ota_engine::ports::ObjectError;
use minio::s3::error::{Error, NetworkError, S3ServerError};

use super::mark::MARK;

/// Codes of answers that say that these settings will never do. In lower case: the client writes those that it does not know
/// itself so.
const REFUSALS: [&str; 12] = [
    "accessdenied",
    "authorizationheadermalformed",
    "badrequest",
    "bucketalreadyexists",
    "invalidaccesskeyid",
    "invalidbucketname",
    "methodnotallowed",
    "notsignedup",
    "permanentredirect",
    "redirect",
    "requesttimetooskewed",
    "signaturedoesnotmatch",
];

/// Why a bucket could not be used.
#[derive(Debug, thiserror::Error)]
#[error("S3 at {at}: {doing} failed: {why}")]
pub struct S3Error {
    pub(super) at: String,
    pub(super) doing: &'static str,
    pub(super) why: Why,
}

/// What was the matter.
#[derive(Debug, thiserror::Error)]
pub(super) enum Why {
    /// Nobody answered.
    #[error("it cannot be reached ({0}); is it running, and is its address right?")]
    Unreachable(String),
    /// Nobody answered in time.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It answered that it will not.
    #[error("it answered {code}{message}; {}", advice(.code))]
    Refused {
        /// As S3 names it, in lower case.
        code: String,
        /// What it said, with what parts it from the code.
        message: String,
    },
    /// There is no such bucket, object or byte, or the server has trouble.
    #[error("it answered {code}{message}")]
    Answered {
        /// As S3 names it, in lower case.
        code: String,
        /// What it said, with what parts it from the code.
        message: String,
    },
    /// It is not the bucket of this database.
    #[error(
        "{found}, so it is not the one that has the images of this database: name that one (STORAGE_S3_BUCKET). If they have been \
         copied here, write {id} into its object {MARK}"
    )]
    Another {
        /// What was found instead.
        found: &'static str,
        /// The bucket's name for itself, as the database knows it.
        id: String,
    },
    /// What it said is no answer of S3.
    #[error("what answers there is no S3 ({0}); is its address right?")]
    NoS3(String),
    /// What came back is not what was written.
    #[error(
        "what was read back is not what was uploaded; the local copy is kept, and it is tried again"
    )]
    Damaged,
    /// The settings cannot be used.
    #[error("{0}")]
    Settings(String),
}

impl S3Error {
    /// These settings will not do, whoever waits.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self.why,
            Why::Refused { .. } | Why::Another { .. } | Why::NoS3(_) | Why::Settings(_)
        )
    }

    /// What was found is a bucket, or none, and not the one that is looked for.
    pub fn is_of_another_bucket(&self) -> bool {
        matches!(self.why, Why::Another { .. })
    }

    /// The code of the answer, if there was one, in lower case.
    pub(super) fn code(&self) -> Option<&str> {
        match &self.why {
            Why::Refused { code, .. } | Why::Answered { code, .. } => Some(code),
            _ => None,
        }
    }
}

impl From<S3Error> for ObjectError {
    fn from(error: S3Error) -> Self {
        Self::Unavailable(Box::new(error))
    }
}

impl From<Error> for Why {
    fn from(error: Error) -> Self {
        match error {
            Error::S3Server(S3ServerError::S3Error(answer)) => {
                let code = answer.code().to_string().to_ascii_lowercase();
                let message = answer.message().as_deref().unwrap_or_default().trim();
                let message = if message.is_empty() {
                    String::new()
                } else {
                    format!(" ({message})")
                };
                if REFUSALS.contains(&code.as_str()) {
                    Self::Refused { code, message }
                } else {
                    Self::Answered { code, message }
                }
            }
            // It has trouble, or what stands before it says that it is away.
            Error::Network(NetworkError::ServerError(status))
            | Error::S3Server(S3ServerError::InvalidServerResponse {
                http_status_code: status @ 500..,
                ..
            }) => Self::Answered {
                code: format!("status {status}"),
                message: String::new(),
            },
            Error::S3Server(error) => Self::NoS3(error.to_string()),
            other => Self::Unreachable(innermost(&other)),
        }
    }
}

fn advice(code: &str) -> &'static str {
    match code {
        "bucketalreadyexists" | "invalidbucketname" => "choose another bucket",
        "permanentredirect" | "redirect" | "authorizationheadermalformed" => {
            "look at its address and the region"
        }
        "requesttimetooskewed" => "set the clock of this machine or of that one",
        _ => "look at the access key, the secret key and what the key may do",
    }
}

/// The text of the first cause: what stands around it says no more than that something failed.
fn innermost(error: &dyn StdError) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

//! What a use case answers when it cannot do what was asked.

use device_ota_domain::DeviceId;
use device_ota_domain::campaign::{SpecError, StartError, TransitionError};
use device_ota_domain::device::RegistrationError;
use device_ota_domain::firmware::MetadataError;
use device_ota_domain::update::{CancelError, RetryError};

use crate::ports::device_service::DeviceServiceUnavailable;
use crate::ports::{ObjectError, StoreError};

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;

/// An error for the caller: each variant is one HTTP status (PRD, *HTTP Status Codes*), each text says what was
/// wrong and, where there is something, what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 400: the request itself is wrong.
    #[error("{detail}")]
    Invalid {
        /// Stable code.
        code: &'static str,
        /// For people.
        detail: String,
    },
    /// 403: known, and not allowed.
    #[error("{detail}")]
    Forbidden {
        /// Stable code.
        code: &'static str,
        /// For people.
        detail: String,
    },
    /// 404.
    #[error("{what} {id} does not exist")]
    NotFound {
        /// Kind of thing.
        what: &'static str,
        /// As asked.
        id: String,
    },
    /// 404: a device that is known neither here nor elsewhere.
    #[error("device {0} does not exist: neither this service nor the Device Service knows it")]
    NoSuchDevice(DeviceId),
    /// 409: the present state does not allow it.
    #[error("{detail}")]
    Conflict {
        /// Stable code.
        code: &'static str,
        /// For people.
        detail: String,
    },
    /// 422: well-formed, but cannot be.
    #[error("{detail}")]
    Unprocessable {
        /// Stable code.
        code: &'static str,
        /// For people.
        detail: String,
    },
    /// 503: the Device Service, whose word on this device is needed.
    #[error(
        "device {id} is not registered here, and the Device Service, which may know it, gave no usable answer; try again later"
    )]
    DeviceService {
        /// Which device.
        id: DeviceId,
        /// Why it has none.
        #[source]
        cause: DeviceServiceUnavailable,
    },
    /// 503: the Device Service, which was not done in time with the devices of one campaign.
    #[error(
        "the Device Service has not told within {seconds} s of {left} of the devices that are named and not registered here; those \
         that it told of are registered, so try again"
    )]
    DevicesUntold {
        /// How long it was waited for.
        seconds: u64,
        /// Of how many.
        left: usize,
    },
    /// 503: the database.
    #[error(transparent)]
    Store(StoreError),
    /// 503: the object store.
    #[error("the firmware store {}", if matches!(.0, ObjectError::Full(_)) { "is full; free some space and upload again" } else { "is unavailable" })]
    Objects(#[from] ObjectError),
    /// 500: a defect of the service.
    #[error("internal error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// 400.
    pub fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Invalid {
            code,
            detail: detail.into(),
        }
    }

    /// 403.
    pub fn forbidden(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Forbidden {
            code,
            detail: detail.into(),
        }
    }

    /// 404.
    pub fn not_found(what: &'static str, id: &dyn std::fmt::Display) -> Self {
        Self::NotFound {
            what,
            id: id.to_string(),
        }
    }

    /// 409.
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Conflict {
            code,
            detail: detail.into(),
        }
    }

    /// 422.
    pub fn unprocessable(code: &'static str, detail: impl Into<String>) -> Self {
        Self::Unprocessable {
            code,
            detail: detail.into(),
        }
    }

    /// The stable code of the error body.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid { code, .. }
            | Self::Forbidden { code, .. }
            | Self::Conflict { code, .. }
            | Self::Unprocessable { code, .. } => code,
            Self::NotFound { .. } | Self::NoSuchDevice(_) => "not_found",
            Self::DeviceService { .. } | Self::DevicesUntold { .. } => "device_service_unavailable",
            Self::Store(_) => "database_unavailable",
            Self::Objects(ObjectError::Missing(_)) => "bytes_missing",
            Self::Objects(_) => "storage_unavailable",
            Self::Internal(_) => "internal",
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(what) => Self::conflict(
                "changed_meanwhile",
                format!("{what} was changed by somebody else; read it and try again"),
            ),
            StoreError::Unavailable(_) | StoreError::Unwritable(_) => Self::Store(error),
            StoreError::Refused(_) | StoreError::Corrupt { .. } => Self::Internal(Box::new(error)),
        }
    }
}

impl From<TransitionError> for Error {
    fn from(error: TransitionError) -> Self {
        Self::conflict("wrong_state", error.to_string())
    }
}

impl From<StartError> for Error {
    fn from(error: StartError) -> Self {
        match error {
            StartError::State(error) => error.into(),
            StartError::Approval(error) => error.into(),
            StartError::Over => Self::conflict("schedule_over", error.to_string()),
        }
    }
}

impl From<CancelError> for Error {
    fn from(error: CancelError) -> Self {
        Self::conflict("wrong_state", error.to_string())
    }
}

impl From<RetryError> for Error {
    fn from(error: RetryError) -> Self {
        Self::conflict("wrong_state", error.to_string())
    }
}

impl From<SpecError> for Error {
    fn from(error: SpecError) -> Self {
        Self::invalid("invalid_campaign", error.to_string())
    }
}

impl From<RegistrationError> for Error {
    fn from(error: RegistrationError) -> Self {
        Self::invalid("invalid_device", error.to_string())
    }
}

impl From<MetadataError> for Error {
    fn from(error: MetadataError) -> Self {
        Self::invalid("invalid_metadata", error.to_string())
    }
}

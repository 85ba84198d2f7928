//! What a driver tells the agent and what the agent asks of the driver.

use crate::digest::Digest;
use crate::dsse::Envelope;
use crate::messages::ErrorCode;
use crate::topics::{Down, Up};
use crate::wire::Slot;

use super::state::PersistentState;

/// What happened on the device.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// The device started. Always the first input after [`Agent::new`](super::Agent::new).
    Booted {
        /// The slot that runs.
        slot: Slot,
        /// The boot loader's word that it gave up on the other slot.
        fell_back: bool,
    },
    /// The device is connected and has subscribed.
    Connected {
        /// Fresh random bytes, from which the nonces of this connection are derived.
        nonce: [u8; 16],
    },
    /// The connection is gone.
    Disconnected,
    /// A message arrived below the device's own `down/`.
    Message {
        /// On which topic.
        down: Down,
        /// Its payload.
        payload: &'a [u8],
    },
    /// So many bytes of the image are on disk.
    Downloaded {
        /// Bytes from the start of the image.
        bytes_done: u64,
    },
    /// The download is over and what was written has been hashed.
    ImageReady {
        /// Bytes written.
        size: u64,
        /// Digest of the bytes written.
        sha256: Digest,
    },
    /// The download is over without an image.
    DownloadFailed {
        /// Why.
        code: ErrorCode,
        /// Words for people.
        message: &'a str,
    },
    /// The download stopped because the URLs no longer serve. The agent asks for new ones and goes
    /// on where it was.
    UrlsExpired,
    /// The image was written to the slot and read back with the right digest, or was not.
    Installed(Result<(), &'a str>),
    /// The running image examined itself.
    HealthChecked(Result<(), &'a str>),
    /// What the device has; `None` where it cannot tell or has no such part.
    Conditions {
        /// Charge, 0–100.
        battery_percent: Option<f64>,
        /// Free storage for images.
        free_storage_bytes: Option<u64>,
    },
    /// The user, or a maintenance window, says later.
    UserDeferred {
        /// How much later.
        retry_after_s: u64,
    },
    /// The next root of the chain.
    Root(&'a Envelope),
    /// Time went by. Once a second to once a minute will do.
    Tick,
}

/// What the driver is to do, in the order given. Nothing after a [`Output::Persist`] may be done
/// before the state is safely on disk.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Publish on one of the device's own `up/` topics; `QoS` 1 but for heartbeats and chunks.
    Publish {
        /// Which.
        up: Up,
        /// The payload.
        payload: Vec<u8>,
    },
    /// Fetch an image, over HTTP or in chunks as the driver can.
    StartDownload(Box<Download>),
    /// Stop fetching. What was fetched may be kept for a later [`Output::StartDownload`].
    AbortDownload,
    /// Write the downloaded image to the slot, hashing what is written.
    Install {
        /// Where to.
        slot: Slot,
        /// Bytes in the image.
        size: u64,
        /// Its digest.
        sha256: Digest,
    },
    /// Restart into the slot; until it is confirmed, for one try only.
    Reboot {
        /// Which.
        slot: Slot,
    },
    /// Let the running image examine itself, then say [`Input::HealthChecked`].
    CheckHealth,
    /// Tell the boot loader to keep this slot. May be asked for twice.
    Confirm {
        /// Which.
        slot: Slot,
    },
    /// Write the state down, replacing what was there in one step.
    Persist(Box<PersistentState>),
    /// A message was not acted upon: for the driver's log.
    Ignored(Ignored),
}

/// An image to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    /// The update it is for.
    pub update_id: String,
    /// Where it can be had; empty if only in chunks.
    pub urls: Vec<String>,
    /// Bytes in the image: read no more.
    pub size: u64,
    /// Its digest, which also names it in chunk requests.
    pub sha256: Digest,
    /// Where to go on: bytes before it are on disk. A driver that lost some goes on from what it
    /// has; zero means to begin anew, whatever there is.
    pub offset: u64,
}

/// Why a message was not acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ignored {
    /// It could not be read.
    Malformed,
    /// Its signature does not hold, and it was not for an update worth reporting on.
    NotVerified,
    /// It answers another check than the last one.
    StaleNonce,
    /// It bears no nonce and the device has no clock to trust.
    NoClock,
    /// The device is past the point where another update could replace the current one.
    Busy,
    /// Its attempt is over.
    StaleAttempt,
    /// It is meant for another device.
    NotOurs,
    /// It was overtaken by something newer.
    Replayed,
    /// It is no longer valid.
    Expired,
    /// It is about an update this device is not in.
    NoSuchUpdate,
    /// It comes at a point where it means nothing.
    OutOfPlace,
}

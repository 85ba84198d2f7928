//! Payloads that are signed: roots, releases, assignments, commands, permits and time. One trait
//! ties each to its payload type and to the role that may sign it, so that sealing and opening are
//! one mechanism for all.

mod dispatch;
mod release;
mod root;

pub use dispatch::{
    Action, Assignment, Command, CommandKind, MAX_URL, MAX_URLS, Mode, Requires, TimeStatement,
    Timeouts,
};
pub use release::{Kind, MAX_HW_REVISIONS, Release, RollbackPermit, compare_versions};
pub use root::{KeyEntry, KeyType, MAX_ROOT_KEYS, RoleMembers, Roles, Root};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::dsse::{self, Envelope, MAX_ENVELOPE, VerifyError};
use crate::keys::Keypair;
use crate::messages::MAX_NAME;
use crate::wire::{MAX_INTEGER, wire_enum};

wire_enum! {
    /// Who may sign what.
    pub enum Role {
        /// Says who the others are.
        Root = "root",
        /// Says what an image is; can be kept offline.
        Release = "release",
        /// Says which device should take it now; online.
        Dispatch = "dispatch",
    }
}

/// A payload that is signed.
pub trait SignedObject: Serialize + DeserializeOwned {
    /// The DSSE payload type.
    const TYPE: &'static str;
    /// The role whose keys must sign it.
    const ROLE: Role;

    /// Whether every value is within its bounds.
    fn validate(&self) -> Result<(), ObjectError>;
}

/// Why an object could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The envelope is not to be believed.
    #[error("signature not accepted")]
    Verify(#[from] VerifyError),
    /// The signed bytes are not such an object.
    #[error("signed payload is malformed")]
    Malformed(#[from] serde_json::Error),
    /// A value is outside its bounds, or two do not fit each other.
    #[error("`{0}` of a signed object is out of range")]
    OutOfRange(&'static str),
    /// A root that does not follow the one before it by exactly one.
    #[error("root version {next} does not follow {current}")]
    NotNext {
        /// Version of the root that is trusted.
        current: u64,
        /// Version of the root that was given.
        next: u64,
    },
}

/// Signs an object with one key. For a threshold above one, let the other keys
/// [add their signatures](Envelope::add_signature).
pub fn seal<T: SignedObject>(object: &T, key: &Keypair) -> Result<Envelope, ObjectError> {
    object.validate()?;
    let payload = serde_json::to_vec(object)?;
    let envelope = dsse::sign(T::TYPE, payload, key);
    if envelope.to_json().len() > MAX_ENVELOPE {
        return Err(VerifyError::TooLarge.into());
    }
    Ok(envelope)
}

/// Verifies an envelope by the role that `root` gives the object's type, then reads the verified
/// bytes, which are returned too: their digest is what assignments refer to.
///
/// ```
/// use device_ota_protocol::keys::Keypair;
/// use device_ota_protocol::objects::{Root, TimeStatement, open, seal};
///
/// let (root_key, release, dispatch) =
///     (Keypair::from_seed([1; 32]), Keypair::from_seed([2; 32]), Keypair::from_seed([3; 32]));
/// let expires = "2036-01-01T00:00:00Z".parse()?;
/// let root = Root::single(1, expires, root_key.public(), release.public(), dispatch.public());
///
/// let time = TimeStatement { now: "2026-11-01T12:00:00Z".parse()?, nonce: "5f".into() };
/// let envelope = seal(&time, &dispatch)?;
/// let (opened, _bytes) = open::<TimeStatement>(&envelope, &root)?;
/// assert_eq!(opened, time);
///
/// // The release key has no say in what the time is.
/// assert!(open::<TimeStatement>(&seal(&time, &release)?, &root).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open<T: SignedObject>(
    envelope: &Envelope,
    root: &Root,
) -> Result<(T, Vec<u8>), ObjectError> {
    let bytes = dsse::verify(envelope, T::TYPE, &root.role_keys(T::ROLE))?;
    let object = read::<T>(&bytes)?;
    Ok((object, bytes))
}

/// Reads payload bytes that were verified already.
fn read<T: SignedObject>(bytes: &[u8]) -> Result<T, ObjectError> {
    let object: T = serde_json::from_slice(bytes)?;
    object.validate()?;
    Ok(object)
}

fn ensure(holds: bool, field: &'static str) -> Result<(), ObjectError> {
    if holds {
        Ok(())
    } else {
        Err(ObjectError::OutOfRange(field))
    }
}

fn names<'t>(fields: impl IntoIterator<Item = (&'static str, &'t str)>) -> Result<(), ObjectError> {
    fields.into_iter().try_for_each(|(field, text)| {
        let length = text.chars().take(MAX_NAME + 1).count();
        let plain = !text.chars().any(char::is_control);
        ensure(plain && (1..=MAX_NAME).contains(&length), field)
    })
}

fn integers(fields: impl IntoIterator<Item = (&'static str, u64)>) -> Result<(), ObjectError> {
    fields
        .into_iter()
        .try_for_each(|(field, n)| ensure(n <= MAX_INTEGER, field))
}

//! The trust root: which keys there are and which role each has. A device is born with one and
//! follows it version by version.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ObjectError, Role, SignedObject, ensure, integers, read};
use crate::dsse::{self, Envelope, MAX_ROLE_KEYS, RoleKeys};
use crate::keys::{KeyId, PublicKey};
use crate::wire::wire_enum;

/// Most keys in a root: three roles of [`MAX_ROLE_KEYS`].
pub const MAX_ROOT_KEYS: usize = 3 * MAX_ROLE_KEYS;

wire_enum! {
    /// Kinds of keys.
    pub enum KeyType {
        /// Ed25519.
        Ed25519 = "ed25519",
    }
}

/// One key of a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyEntry {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: KeyType,
    /// The key itself.
    pub public: PublicKey,
}

/// The keys of one role by name, and how many must sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleMembers {
    /// Names of the keys.
    pub keys: BTreeSet<KeyId>,
    /// Distinct keys that must sign.
    pub threshold: u32,
}

/// The members of every role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roles {
    /// Who signs the next root.
    pub root: RoleMembers,
    /// Who signs releases and permits.
    pub release: RoleMembers,
    /// Who signs assignments, commands and time.
    pub dispatch: RoleMembers,
}

/// What a device trusts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// From 1, rising by one.
    pub version: u64,
    /// From when on it is no longer to be believed.
    pub expires_at: Timestamp,
    /// Every key of every role.
    pub keys: BTreeMap<KeyId, KeyEntry>,
    /// Who may sign what.
    pub roles: Roles,
}

impl SignedObject for Root {
    const TYPE: &'static str = "application/vnd.device-ota.root.v1+json";
    const ROLE: Role = Role::Root;

    fn validate(&self) -> Result<(), ObjectError> {
        ensure(self.version >= 1, "version")?;
        integers([("version", self.version)])?;
        ensure(self.keys.len() <= MAX_ROOT_KEYS, "keys")?;
        for (id, entry) in &self.keys {
            ensure(*id == entry.public.id(), "keys")?;
        }
        for role in Role::ALL {
            let members = self.members(*role);
            let known = members.keys.iter().all(|id| self.keys.contains_key(id));
            ensure(known && members.keys.len() <= MAX_ROLE_KEYS, "roles")?;
            let threshold = usize::try_from(members.threshold).unwrap_or(usize::MAX);
            ensure((1..=members.keys.len()).contains(&threshold), "threshold")?;
        }
        Ok(())
    }
}

impl Root {
    /// A root with one key a role, as a first start makes it.
    pub fn single(
        version: u64,
        expires_at: Timestamp,
        root: PublicKey,
        release: PublicKey,
        dispatch: PublicKey,
    ) -> Self {
        let members = |key: PublicKey| RoleMembers {
            keys: BTreeSet::from([key.id()]),
            threshold: 1,
        };
        let entry = |key: PublicKey| {
            let kind = KeyType::Ed25519;
            (key.id(), KeyEntry { kind, public: key })
        };
        Self {
            version,
            expires_at,
            keys: [root, release, dispatch].map(entry).into(),
            roles: Roles {
                root: members(root),
                release: members(release),
                dispatch: members(dispatch),
            },
        }
    }

    /// Takes a root on faith: it must be signed by its own root role, and by nobody else. For the
    /// day a device is born, and for nothing later.
    pub fn trust_first(envelope: &Envelope) -> Result<Self, ObjectError> {
        let claimed: Self = read(&envelope.payload)?;
        super::open::<Self>(envelope, &claimed).map(|(root, _)| root)
    }

    /// Follows the chain by one: version N+1 exactly, signed by a threshold of the old root's keys
    /// *and* of its own.
    ///
    /// ```
    /// use device_ota_protocol::keys::Keypair;
    /// use device_ota_protocol::objects::{Root, seal};
    ///
    /// let (old, new, other) =
    ///     (Keypair::from_seed([1; 32]), Keypair::from_seed([2; 32]), Keypair::from_seed([3; 32]));
    /// let expires = "2036-01-01T00:00:00Z".parse()?;
    /// let first = Root::single(1, expires, old.public(), other.public(), other.public());
    /// let second = Root::single(2, expires, new.public(), other.public(), other.public());
    ///
    /// let mut envelope = seal(&second, &new)?;
    /// assert!(first.verify_chain(&envelope).is_err(), "the old root has not agreed");
    /// envelope.add_signature(&old);
    /// assert_eq!(first.verify_chain(&envelope)?, second);
    /// assert!(second.verify_chain(&envelope).is_err(), "2 does not follow 2");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn verify_chain(&self, next: &Envelope) -> Result<Self, ObjectError> {
        let bytes = dsse::verify(next, Self::TYPE, &self.role_keys(Role::Root))?;
        let root: Self = read(&bytes)?;
        dsse::verify(next, Self::TYPE, &root.role_keys(Role::Root))?;
        if self.version.checked_add(1) != Some(root.version) {
            return Err(ObjectError::NotNext {
                current: self.version,
                next: root.version,
            });
        }
        Ok(root)
    }

    /// Keys and threshold of a role.
    pub fn role_keys(&self, role: Role) -> RoleKeys {
        let members = self.members(role);
        let known = members.keys.iter().filter_map(|id| self.keys.get(id));
        RoleKeys {
            keys: known.map(|entry| entry.public).collect(),
            // An unrepresentable threshold is one that is never met.
            threshold: usize::try_from(members.threshold).unwrap_or(0),
        }
    }

    fn members(&self, role: Role) -> &RoleMembers {
        match role {
            Role::Root => &self.roles.root,
            Role::Release => &self.roles.release,
            Role::Dispatch => &self.roles.dispatch,
        }
    }
}

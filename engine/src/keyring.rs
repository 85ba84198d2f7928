//! The keys that the service signs with, and the roots that devices trust.

use device_ota_protocol::dsse::Envelope;
use device_ota_protocol::keys::Keypair;
use device_ota_protocol::objects::{ObjectError, Role, Root};
use sha2::{Digest as _, Sha256};

/// Why keys and roots do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// No root at all.
    #[error("there is no trust root")]
    Empty,
    /// A root does not follow from the one before it, or is not signed by its own root role.
    #[error("root version {version} is not acceptable")]
    Root {
        /// Its place in the chain, from 1.
        version: usize,
        /// Why.
        source: ObjectError,
    },
    /// The newest root does not give this key its role.
    #[error("the newest trust root does not list the {role} key {key_id}")]
    NotListed {
        /// The role.
        role: &'static str,
        /// The key.
        key_id: String,
    },
}

/// The chain of roots, and the keys that the service holds.
pub struct Keyring {
    chain: Vec<Envelope>,
    root: Root,
    release: Option<Keypair>,
    dispatch: Keypair,
}

impl Keyring {
    /// Checks the chain from its first root on, and that the newest root lists the keys in their roles. Without a
    /// release key, uploads must bring a release signed elsewhere.
    pub fn new(
        chain: Vec<Envelope>,
        release: Option<Keypair>,
        dispatch: Keypair,
    ) -> Result<Self, KeyringError> {
        let (first, rest) = chain.split_first().ok_or(KeyringError::Empty)?;
        let mut root =
            Root::trust_first(first).map_err(|source| KeyringError::Root { version: 1, source })?;
        for (index, next) in rest.iter().enumerate() {
            root = root
                .verify_chain(next)
                .map_err(|source| KeyringError::Root {
                    version: index + 2,
                    source,
                })?;
        }
        listed(&root, Role::Dispatch, "dispatch", &dispatch)?;
        if let Some(release) = &release {
            listed(&root, Role::Release, "release", release)?;
        }
        Ok(Self {
            chain,
            root,
            release,
            dispatch,
        })
    }

    /// The newest root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The envelope of the root of that version; the newest without one.
    pub fn root_envelope(&self, version: Option<u64>) -> Option<&Envelope> {
        match version {
            None => self.chain.last(),
            Some(version) => self
                .chain
                .get(usize::try_from(version).ok()?.checked_sub(1)?),
        }
    }

    /// Hex SHA-256 of what each root says, oldest first.
    pub fn digests(&self) -> Vec<String> {
        let digest = |root: &Envelope| hex::encode(Sha256::digest(&root.payload));
        self.chain.iter().map(digest).collect()
    }

    /// The release key, unless it is kept elsewhere.
    pub fn release(&self) -> Option<&Keypair> {
        self.release.as_ref()
    }

    /// The dispatch key.
    pub fn dispatch(&self) -> &Keypair {
        &self.dispatch
    }
}

fn listed(root: &Root, role: Role, name: &'static str, key: &Keypair) -> Result<(), KeyringError> {
    let public = key.public();
    if root.role_keys(role).keys.contains(&public) {
        Ok(())
    } else {
        Err(KeyringError::NotListed {
            role: name,
            key_id: public.id().to_string(),
        })
    }
}

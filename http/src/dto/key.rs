//! API keys as the API shows them.

use device_ota_domain::api_key::ApiKey;
use device_ota_domain::{ApiKeyId, Role, Roles};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

/// What is known of a key.
#[derive(Serialize, ToSchema)]
#[schema(as = Key)]
pub(crate) struct KeyDto<'k> {
    key_id: &'k ApiKeyId,
    name: &'k str,
    subject: &'k str,
    #[schema(value_type = Vec<Role>)]
    roles: Roles,
    created_at: Timestamp,
    created_by: &'k str,
    expires_at: Option<Timestamp>,
    /// Right to some five minutes.
    last_used_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
}

/// A new key, with its secret, which is shown this once.
#[derive(Serialize, ToSchema)]
#[schema(as = NewKey)]
pub(crate) struct NewKeyDto<'k> {
    #[serde(flatten)]
    pub(crate) key: KeyDto<'k>,
    pub(crate) secret: &'k str,
}

impl<'k> From<&'k ApiKey> for KeyDto<'k> {
    fn from(key: &'k ApiKey) -> Self {
        Self {
            key_id: &key.id,
            name: &key.name,
            subject: &key.subject,
            roles: key.roles,
            created_at: key.created_at,
            created_by: &key.created_by,
            expires_at: key.expires_at,
            last_used_at: key.last_used_at,
            revoked_at: key.revoked_at,
        }
    }
}

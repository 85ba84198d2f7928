//! The roots that devices are born with.

use crate::Engine;

impl Engine {
    /// The root envelope of that version as JSON text; the newest without one.
    pub fn trust_root(&self, version: Option<u32>) -> Option<String> {
        let envelope = self.keyring.root_envelope(version.map(u64::from))?;
        String::from_utf8(envelope.to_json()).ok()
    }
}

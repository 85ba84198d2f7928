//! What a bucket is known again by (ADR 17).

/// The object in which a bucket says which one it is, whatever name it goes by.
pub(super) const MARK: &str = "device-ota-id";
/// Bytes after which what is in it is no id.
pub(super) const MAX_MARK: usize = 256;

//! The admin API key that the first start makes.

use std::path::Path;

use device_ota_engine::ports::Entropy;
use device_ota_engine::ports::clock::random;

use crate::data_dir::DataDir;

/// Name of its file in the data folder.
pub(crate) const FILE: &str = "admin.key";

/// The key's text.
pub(crate) fn key(data: &DataDir, entropy: &dyn Entropy) -> anyhow::Result<String> {
    let made = || Ok(format!("ota_{}\n", hex::encode(random::<32>(entropy))));
    let (text, _) = data.private(FILE, made)?;
    read(&text, &data.join(FILE))
}

/// The key that this file holds.
pub(crate) fn read(text: &str, path: &Path) -> anyhow::Result<String> {
    let key = text.trim().to_owned();
    anyhow::ensure!(
        key.len() >= 32,
        "{} holds no key; remove it to have a new one made",
        path.display()
    );
    Ok(key)
}

//! The password file of an external broker: every device's verifier, and the service's own user, rewritten after
//! every change of credentials. The broker is told to read it again by whoever runs it (mosquitto: SIGHUP).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use device_ota_engine::{Engine, secrets};
use tokio_util::sync::CancellationToken;

use crate::data_dir::write_private;
use crate::places;
use crate::system::SystemEntropy;

/// The service's own user, as it stands in `MQTT_BROKER`.
pub(crate) struct OwnUser {
    /// User name.
    pub name: String,
    /// Password.
    pub password: String,
}

/// Whether it can be written where the broker is to read it: in a folder that is there, or within the data folder, which a start makes.
pub(crate) fn check(path: &Path, data_dir: &Path) -> anyhow::Result<()> {
    const NAME: &str = "MQTT_PASSWORD_FILE";
    let shown = path.display();
    anyhow::ensure!(
        !path.is_dir(),
        "{NAME}: {shown} is a folder; name a file in it"
    );
    let path = places::absolute(path).context(NAME)?;
    let folder = path.parent().unwrap_or(&path);
    anyhow::ensure!(
        folder.is_dir() || folder.starts_with(places::absolute(data_dir)?),
        "{NAME}: the folder of {shown} is not there; make it, or name the file that the broker reads"
    );
    places::can_hold(folder).context(NAME)
}

/// Keeps the file up to date until `shutdown`.
pub(crate) async fn keep(
    engine: Arc<Engine>,
    path: PathBuf,
    own: Option<OwnUser>,
    shutdown: CancellationToken,
) {
    let own = own.map(|user| {
        format!(
            "{}:{}\n",
            user.name,
            secrets::verifier(&user.password, &SystemEntropy)
        )
    });
    loop {
        if let Err(error) = write(&engine, &path, own.as_deref().unwrap_or_default()).await {
            tracing::error!(
                error = format!("{error:#}"),
                "the broker's password file could not be written"
            );
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = engine.on_credentials().notified() => {}
        }
    }
}

async fn write(engine: &Engine, path: &Path, own: &str) -> anyhow::Result<()> {
    let mut text = own.to_owned();
    for (device, verifier) in engine.verifiers().await? {
        text.push_str(device.as_str());
        text.push(':');
        text.push_str(&verifier);
        text.push('\n');
    }
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || write_private(&path, text.as_bytes())).await?
}

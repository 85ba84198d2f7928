//! What a fleet remembers from one run to the next: the secret and the state of each device, one
//! JSON line a device, readable by its owner alone.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use device_ota_protocol::agent::PersistentState;
use serde::{Deserialize, Serialize};

/// Name of the file in the state folder.
const FILE: &str = "devices.jsonl";
/// Access to the file: it holds secrets.
const MODE: u32 = 0o600;

/// What is remembered of a device.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Remembered {
    pub(crate) device_id: String,
    pub(crate) password: String,
    pub(crate) state: Option<Box<PersistentState>>,
}

/// A folder to remember in, if there is one.
#[derive(Debug)]
pub(crate) struct Memory {
    folder: Option<PathBuf>,
}

impl Memory {
    pub(crate) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// All that was remembered, by device.
    pub(crate) fn recall(&self) -> io::Result<HashMap<String, Remembered>> {
        let Some(folder) = &self.folder else {
            return Ok(HashMap::new());
        };
        let file = match fs::File::open(folder.join(FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
            Err(error) => return Err(error),
        };
        let mut all = HashMap::new();
        for line in BufReader::new(file).lines() {
            let device: Remembered = serde_json::from_str(&line?)?;
            all.insert(device.device_id.clone(), device);
        }
        Ok(all)
    }

    /// Replaces what was remembered, in one step.
    pub(crate) fn remember<'d>(
        &self,
        devices: impl IntoIterator<Item = &'d Remembered>,
    ) -> io::Result<()> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        fs::create_dir_all(folder)?;
        let new = folder.join(format!("{FILE}.new"));
        write(&new, devices)?;
        fs::rename(new, folder.join(FILE))
    }
}

fn write<'d>(path: &Path, devices: impl IntoIterator<Item = &'d Remembered>) -> io::Result<()> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(path)?;
    let mut file = BufWriter::new(file);
    for device in devices {
        serde_json::to_writer(&mut file, device)?;
        file.write_all(b"\n")?;
    }
    file.into_inner()?.sync_all()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn what_was_remembered_is_recalled_and_nobody_else_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(Some(folder.path().join("sim")));
        assert!(memory.recall().unwrap().is_empty());
        let device = Remembered {
            device_id: "sim-1".to_owned(),
            password: "secret".to_owned(),
            state: None,
        };
        memory.remember([&device]).unwrap();
        assert_eq!(
            memory.recall().unwrap().get("sim-1").unwrap().password,
            "secret"
        );
        let file = folder.path().join("sim").join(FILE);
        let mode = fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
    }
}

//! Open files: as many as the system allows, shared out beforehand among all that listens, so that whoever is one too many
//! is told so by a protocol, and nobody waits before a listener that has no file left.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files beside connections: the databases' (50 connections to PostgreSQL, or some 20 files), uploads under way, webhooks'
/// receivers, in-house subscribers, logs, keys.
const SPARE: u64 = 256;
/// Fewest with which there is room for anybody.
const FEWEST: u64 = 2 * SPARE;
/// Connections of one HTTP listener at most; each fourth may be a download, with the image's file.
const HTTP: u64 = device_ota_http::MAX_CONNECTIONS as u64;
/// Connections to the gateway that are nobody's yet, and that are nobody's any more.
const STRANGERS: u64 = 1_024;
const LINGERING: u64 = 256;
/// The part of all that these get, whatever is wanted for devices.
const OTHERS_PART: u64 = 12;

/// How many connections there is room for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Devices at the gateway.
    pub devices: usize,
    /// Connections to it that have not proved who they are.
    pub strangers: usize,
    /// Connections to it that are being ended.
    pub lingering: usize,
    /// Connections of each HTTP listener.
    pub http: usize,
    /// Said when there is room for fewer devices than there should be.
    pub warning: Option<String>,
}

/// Raises this process's limit as far as it may, and shares it out: `devices` are wanted at the gateway, beside so many
/// HTTP listeners.
pub(crate) fn room(devices: u32, http_listeners: u8) -> anyhow::Result<Room> {
    share(raised()?, devices.into(), http_listeners.into())
}

fn raised() -> anyhow::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let may = soft >= hard || setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    Ok(if may { soft.max(hard) } else { soft })
}

fn share(allowed: u64, wanted: u64, http_listeners: u64) -> anyhow::Result<Room> {
    anyhow::ensure!(
        allowed >= FEWEST,
        "only {allowed} files may be open, and {FEWEST} are the fewest to run with: raise the limit (ulimit -n)"
    );
    let room = allowed - SPARE;
    let most = http_listeners * (HTTP + HTTP / 4) + STRANGERS + LINGERING;
    let others = most.min(room.saturating_sub(wanted).max(room / OTHERS_PART));
    let part = |full: u64| usize::try_from((full * others / most).max(1)).unwrap_or(usize::MAX);
    let devices = wanted.min(room - others);
    let warning = (devices < wanted).then(|| {
        format!(
            "only {allowed} files may be open, which is enough for {devices} devices at a time instead of \
             MQTT_MAX_CONNECTIONS={wanted}: raise the hard limit (ulimit -Hn, LimitNOFILE=) to {}",
            SPARE + most + wanted
        )
    });
    Ok(Room {
        devices: usize::try_from(devices).unwrap_or(usize::MAX),
        strangers: part(STRANGERS),
        lingering: part(LINGERING),
        http: part(HTTP),
        warning,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_room_where_there_is_enough() {
        let room = share(1_048_576, 18_000, 2).unwrap();
        let all = Room {
            devices: 18_000,
            strangers: 1_024,
            lingering: 256,
            http: 2_048,
            warning: None,
        };
        assert_eq!(room, all);
    }

    #[test]
    fn what_is_shared_out_is_never_more_than_there_is() {
        for allowed in [512, 700, 1_024, 4_096, 20_000, 21_000, 65_536, 1_048_576] {
            for wanted in [1, 500, 18_000, 1_000_000] {
                for listeners in [1, 2] {
                    let room = share(allowed, wanted, listeners).unwrap();
                    let http = (room.http + room.http.div_ceil(4)) as u64 * listeners;
                    let gateway = (room.devices + room.strangers + room.lingering) as u64;
                    assert!(SPARE + http + gateway <= allowed + 2, "{allowed}: {room:?}");
                    assert!(room.devices > 0 && room.http > 0, "{allowed}: {room:?}");
                    let held = room.devices as u64 == wanted;
                    assert_eq!(room.warning.is_none(), held, "{allowed}: {room:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_asked_for_is_what_it_takes() {
        let warning = share(4_096, 18_000, 1).unwrap().warning.unwrap();
        let asked: u64 = warning.rsplit(' ').next().unwrap().parse().unwrap();
        assert_eq!(share(asked, 18_000, 1).unwrap().warning, None);
        assert!(share(asked, 18_000, 1).unwrap().http == 2_048);
        assert!(
            share(511, 18_000, 1)
                .unwrap_err()
                .to_string()
                .contains("ulimit -n")
        );
    }
}

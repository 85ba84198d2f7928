//! Between the protocol's words and the domain's.

use device_ota_domain::update::{Action, Failure, Phase, Report, Reported, Retry};
use device_ota_domain::{DeviceId, Update};
use device_ota_protocol::messages::{self, Progress, ReportedError};
use device_ota_protocol::{ids, objects};

/// The domain's view of a progress report.
pub(crate) fn report(progress: &Progress) -> Report {
    Report {
        attempt: progress.attempt,
        seq: progress.seq,
        version: progress.version.clone(),
        percent: progress.percent,
        bytes_done: progress.bytes_done,
        speed_bps: progress.speed_bps,
        said: said(progress),
    }
}

fn said(progress: &Progress) -> Reported {
    match progress.phase {
        messages::Phase::Accepted => Reported::In(Phase::Accepted),
        messages::Phase::Downloading => Reported::In(Phase::Downloading),
        messages::Phase::Verifying => Reported::In(Phase::Verifying),
        messages::Phase::Installing => Reported::In(Phase::Installing),
        messages::Phase::Staged => Reported::In(Phase::Staged),
        messages::Phase::Rebooting => Reported::In(Phase::Rebooting),
        messages::Phase::Completed => Reported::Completed,
        messages::Phase::Cancelled => Reported::Cancelled,
        messages::Phase::Failed => Reported::Failed(failure(progress.error.as_ref(), None)),
        messages::Phase::Rejected => {
            Reported::Failed(failure(progress.error.as_ref(), Some(Retry::Never)))
        }
        messages::Phase::Deferred => Reported::Deferred {
            failure: failure(progress.error.as_ref(), None),
            retry_after_seconds: progress.retry_after_s,
        },
    }
}

fn failure(error: Option<&ReportedError>, retry: Option<Retry>) -> Failure {
    // A valid report of these phases carries an error; see `Progress::validate`.
    let internal = ReportedError {
        code: messages::ErrorCode::Internal,
        message: String::new(),
    };
    let error = error.unwrap_or(&internal);
    let by_code = match error.code.retry() {
        messages::Retry::Now => Retry::Now,
        messages::Retry::Backoff => Retry::Backoff,
        messages::Retry::Never => Retry::Never,
    };
    // A rejection for a reason that passes (an expired or replayed offer) is worth a fresh offer.
    let retry = if by_code == Retry::Now {
        by_code
    } else {
        retry.unwrap_or(by_code)
    };
    Failure {
        code: error.code.as_str().to_owned(),
        message: printable(&error.message),
        retry,
    }
}

/// A device's words without control characters: PostgreSQL does not store NUL, and logs should not obey escapes.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// The protocol's form of a device id. Both rules are the same; a test holds them together.
pub(crate) fn device_id(id: &DeviceId) -> Option<ids::DeviceId> {
    id.as_str().parse().ok()
}

/// The protocol's form of an action.
pub(crate) fn action(update: &Update) -> objects::Action {
    match update.action {
        Action::Update => objects::Action::Update,
        Action::Rollback => objects::Action::Rollback,
    }
}

#[cfg(test)]
mod tests {
    use device_ota_domain::device::DeviceKey;
    use device_ota_domain::update::back_off;

    use super::*;

    /// What `docs/campaigns.md` says of each error code, by the first word of its row.
    #[test]
    fn the_page_tells_of_every_code_when_it_is_tried_again() {
        let page = include_str!("../../docs/campaigns.md");
        for code in messages::ErrorCode::ALL {
            let pause = back_off(code.as_str(), 1, DeviceKey(0));
            let row = match (code.retry(), pause) {
                (messages::Retry::Now, _) => "| at once |",
                (messages::Retry::Backoff, 15..=18) => "| 15 s, up to 15 minutes |",
                (messages::Retry::Backoff, 30..=37) => "| 30 s, up to an hour |",
                (messages::Retry::Backoff, 900..=1_125) => "| 15 minutes, up to four hours |",
                (messages::Retry::Backoff, other) => panic!("{code:?} waits {other} s"),
                (messages::Retry::Never, _) => "| never |",
            };
            let rows: Vec<&str> = page.lines().filter(|line| line.starts_with(row)).collect();
            let told = format!("`{}`", code.as_str());
            assert!(
                matches!(rows[..], [row] if row.contains(&told)),
                "{told} belongs to {row}"
            );
        }
    }

    #[test]
    fn both_crates_take_the_same_device_ids() {
        for text in [
            "a",
            "A9_.:-",
            "0",
            "",
            "-a",
            ".a",
            "a/b",
            "a+",
            "a#",
            "$a",
            "ä",
            "a b",
            "a\n",
            &"x".repeat(64),
            &"x".repeat(65),
        ] {
            assert_eq!(
                text.parse::<DeviceId>().is_ok(),
                text.parse::<ids::DeviceId>().is_ok(),
                "{text:?}"
            );
        }
    }
}

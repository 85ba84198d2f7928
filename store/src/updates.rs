//! Updates: how one stands in a row, how rows are read, locked by name and written back.

use device_ota_domain::campaign::{Group, Priority};
use device_ota_domain::device::{Device, DeviceKey};
use device_ota_domain::firmware::Results;
use device_ota_domain::targeting::Exclusion;
use device_ota_domain::update::{
    Action, Aftermath, Failure, Phase, Progress, Regression, Retry, Times, Update, UpdateState,
    Watch,
};
use device_ota_domain::{DeviceId, UpdateId};
use jiff::Timestamp;

use crate::combine::Lookup;
use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, present, statements};

/// `SELECT` of all columns of updates, called `u`, and what follows it.
macro_rules! select_update {
    ($($rest:expr),+) => {
        concat!(
            "SELECT u.update_id, u.device_key, u.device_id, u.device_type, u.campaign_id, u.action, u.firmware_id, u.from_version, \
             u.to_version, u.stage, u.priority, u.attempt, u.last_seq, u.retries, u.max_retries, u.timeout_seconds, \
             u.download_seconds, u.install_seconds, u.give_up_after_seconds, u.part_until, \
             u.percent, u.bytes_done, u.bytes_total, u.bytes_earlier, u.speed_bps, u.state, u.due_at, u.lost_at, u.failure_code, \
             u.failure_message, u.failure_retry, u.phase, u.since, u.lease_until, u.deadline, u.cancel_requested, u.hold, \
             u.give_up_at, u.ended_at, u.excluded, u.check_at, u.watch_until, u.watch_silent, u.watch_restarts, u.watch_boot, u.regressed_at, \
             u.started_at, u.created_at, u.updated_at",
            $($rest),+
        )
    };
}
pub(crate) use select_update;

statements! {
    UPDATE = select_update!(" FROM device_updates u WHERE u.update_id = $1");
    UPDATES = select_update!(" FROM device_updates u WHERE u.update_id {any:$1}");
    RESULTS = "SELECT CAST(COALESCE(SUM(CASE WHEN u.state = 'completed' THEN 1 ELSE 0 END), 0) AS BIGINT) AS completed, \
         CAST(COALESCE(SUM(CASE WHEN u.state = 'failed' THEN 1 ELSE 0 END), 0) AS BIGINT) AS failed \
         FROM device_updates u WHERE u.device_key = (SELECT d.device_key FROM devices d WHERE d.device_id = $1) \
         AND u.action = 'update'";
    RAN = select_update!(
        " FROM device_updates u WHERE u.device_key = $1 AND u.state = 'completed' AND u.created_at >= $3 \
         AND ((u.to_version = $2 AND u.regressed_at IS NULL) OR u.from_version = $2) \
         ORDER BY CASE WHEN u.to_version = $2 THEN 0 ELSE 1 END, u.number DESC LIMIT 1"
    );
    UPDATES_LOCKED = select_update!(
        " FROM device_updates u WHERE u.update_id {any:$1} ORDER BY u.device_key, u.number {for_update}"
    );
    INSERT_UPDATE[
        Text, Int, Text, Text, Text, Text, Text, Int, Int, Int, Int, Int, Int, Int,
        Text, Text, Int, Int, Int, Int, Real, Int, Int, Int, Int, Int, Int,
        Text, Int, Int, Text, Text, Text, Text, Int, Int, Int, Int, Int, Int, Int, Int, Text, Int, Int,
    ] = "INSERT INTO device_updates (update_id, device_key, device_id, device_type, campaign_id, action, firmware_id, \
         stage, priority, timeout_seconds, download_seconds, install_seconds, give_up_after_seconds, created_at, \
         from_version, to_version, attempt, last_seq, retries, max_retries, percent, bytes_done, bytes_total, \
         bytes_earlier, speed_bps, started_at, updated_at, \
         state, due_at, lost_at, failure_code, failure_message, failure_retry, phase, since, lease_until, deadline, part_until, \
         cancel_requested, hold, give_up_at, ended_at, excluded, check_at, nudge_at) VALUES {rows}";
    SAVE_UPDATES[
        Text,
        Text, Text, Int, Int, Int, Int, Real, Int, Int, Int, Int, Int, Int,
        Text, Int, Int, Text, Text, Text, Text, Int, Int, Int, Int, Int, Int, Int, Int, Text, Int, Int,
    ] = "WITH v (update_id, from_version, to_version, attempt, last_seq, retries, max_retries, percent, bytes_done, \
         bytes_total, bytes_earlier, speed_bps, started_at, updated_at, \
         state, due_at, lost_at, failure_code, failure_message, failure_retry, phase, since, lease_until, deadline, part_until, \
         cancel_requested, hold, give_up_at, ended_at, excluded, check_at, nudge_at) AS (VALUES {rows}) \
         UPDATE device_updates SET from_version = v.from_version, to_version = v.to_version, attempt = v.attempt, \
         last_seq = v.last_seq, retries = v.retries, max_retries = v.max_retries, percent = v.percent, \
         bytes_done = v.bytes_done, bytes_total = v.bytes_total, bytes_earlier = v.bytes_earlier, speed_bps = v.speed_bps, \
         started_at = v.started_at, updated_at = v.updated_at, \
         state = v.state, due_at = v.due_at, lost_at = v.lost_at, failure_code = v.failure_code, \
         failure_message = v.failure_message, failure_retry = v.failure_retry, phase = v.phase, since = v.since, \
         lease_until = v.lease_until, deadline = v.deadline, part_until = v.part_until, cancel_requested = v.cancel_requested, hold = v.hold, give_up_at = v.give_up_at, \
         ended_at = v.ended_at, excluded = v.excluded, check_at = v.check_at, nudge_at = v.nudge_at \
         FROM v WHERE device_updates.update_id = v.update_id";
    // Apart from what reports of progress change, which are many.
    SAVE_AFTERMATHS[Text, Int, Int, Int, Text, Int] =
        "WITH v (update_id, watch_until, watch_silent, watch_restarts, watch_boot, regressed_at) AS (VALUES {rows}) \
         UPDATE device_updates SET watch_until = v.watch_until, watch_silent = v.watch_silent, \
         watch_restarts = v.watch_restarts, watch_boot = v.watch_boot, regressed_at = v.regressed_at \
         FROM v WHERE device_updates.update_id = v.update_id";
}

/// Updates by their ids.
pub(crate) fn by_id<D: Dialect>() -> Lookup<D, Update> {
    Lookup {
        one: &UPDATE,
        many: &UPDATES,
        key: "update_id",
        read: read_update,
    }
}

/// How a device's updates ended.
pub(crate) async fn results_of<D: Dialect>(
    conn: &mut D::Connection,
    device: &DeviceId,
) -> Result<Results, DbError> {
    let args = Args::<D>::new().text(device.as_str());
    let results = sql::fetch_optional(conn, &RESULTS, args, |row| {
        Ok(Results {
            completed: row.uint("completed")?,
            failed: row.uint("failed")?,
        })
    });
    Ok(results.await?.unwrap_or_default())
}

/// The newest completed update to this version, or else from it, since the device was registered.
pub(crate) async fn ran<D: Dialect>(
    conn: &mut D::Connection,
    device: &Device,
    version: &str,
) -> Result<Option<Update>, DbError> {
    let args = Args::<D>::new()
        .int(device.key.0)
        .text(version)
        .time(device.registered_at);
    sql::fetch_optional(conn, &RAN, args, read_update).await
}

/// Updates by id, locked; in the one order in which all transactions lock updates.
pub(crate) async fn locked<D: Dialect>(
    conn: &mut D::Connection,
    ids: &[UpdateId],
) -> Result<Vec<Update>, DbError> {
    let ids: Vec<&str> = ids.iter().map(UpdateId::as_str).collect();
    sql::fetch_all(
        conn,
        &UPDATES_LOCKED,
        Args::<D>::new().texts(&ids),
        read_update,
    )
    .await
}

/// Inserts one update.
pub(crate) async fn insert<D: Dialect>(
    conn: &mut D::Connection,
    update: &Update,
) -> Result<(), DbError> {
    let bind = |args: Args<D>, update: &&Update| {
        let args = args
            .text(update.id.as_str())
            .int(update.device.0)
            .text(update.device_id.as_str())
            .text(update.device_type.as_deref())
            .text(
                update
                    .campaign
                    .as_ref()
                    .map(device_ota_domain::CampaignId::as_str),
            )
            .text(update.action.name())
            .text(
                update
                    .firmware
                    .as_ref()
                    .map(device_ota_domain::FirmwareId::as_str),
            )
            .int(i64::from(update.stage))
            .int(i64::from(update.priority.rank()))
            .uint(update.timeout_seconds)
            .int(seconds(update.times.download_seconds))
            .int(seconds(update.times.install_seconds))
            .int(seconds(update.times.give_up_after_seconds))
            .time(update.created_at);
        bind_changing(args, update)
    };
    sql::execute_rows(conn, &INSERT_UPDATE, &[update], bind)
        .await
        .map(drop)
}

/// Writes back what changes of updates.
pub(crate) async fn save<D: Dialect>(
    conn: &mut D::Connection,
    updates: &[Update],
) -> Result<(), DbError> {
    sql::execute_rows::<D, _>(conn, &SAVE_UPDATES, updates, |args, update| {
        bind_changing(args.text(update.id.as_str()), update)
    })
    .await?;
    let completed = updates.iter().filter(|u| u.group() == Group::Completed);
    let completed: Vec<&Update> = completed.collect();
    sql::execute_rows::<D, _>(conn, &SAVE_AFTERMATHS, &completed, |args, update| {
        let watch = update.watch();
        args.text(update.id.as_str())
            .time(watch.map(|watch| watch.until))
            .int(seconds(watch.and_then(|watch| watch.silent_seconds)))
            .int(watch.map(|watch| i64::from(watch.restarts_left)))
            .text(watch.and_then(|watch| watch.last_boot.as_deref()))
            .time(update.regression().map(|regression| regression.at))
    })
    .await
    .map(drop)
}

/// A time in whole seconds that there need not be.
pub(crate) fn seconds(seconds: Option<u64>) -> Option<i64> {
    seconds.map(|seconds| i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// The columns that change, in the order of both statements above.
fn bind_changing<D: Dialect>(args: Args<D>, update: &Update) -> Args<D> {
    let args = args
        .text(update.from_version.as_deref())
        .text(update.to_version.as_str())
        .int(i64::from(update.attempt))
        .uint(update.last_seq)
        .int(i64::from(update.retries))
        .int(i64::from(update.max_retries))
        .real(update.progress.percent)
        .uint(update.progress.bytes_done)
        .uint(update.progress.bytes_total)
        .uint(update.progress.bytes_earlier)
        .uint(update.progress.speed_bps)
        .time(update.started_at)
        .time(update.updated_at);
    StateColumns::of(update).with_end(update).bind(args)
}

/// The columns of an update's state: what a state does not carry is null.
#[derive(Default)]
struct StateColumns<'u> {
    state: &'static str,
    due_at: Option<Timestamp>,
    lost_at: Option<Timestamp>,
    failure: Option<&'u Failure>,
    phase: Option<Phase>,
    since: Option<Timestamp>,
    lease_until: Option<Timestamp>,
    deadline: Option<Timestamp>,
    part_until: Option<Timestamp>,
    cancel_requested: bool,
    hold: bool,
    give_up_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
    excluded: Option<Exclusion>,
    check_at: Option<Timestamp>,
    nudge_at: Option<Timestamp>,
}

impl<'u> StateColumns<'u> {
    fn of(update: &'u Update) -> Self {
        let state = update.group().name();
        match &update.state {
            UpdateState::Pending {
                due_at,
                lost_at,
                last_failure,
            } => Self {
                state,
                due_at: Some(*due_at),
                lost_at: *lost_at,
                failure: last_failure.as_ref(),
                check_at: *lost_at,
                ..Self::default()
            },
            UpdateState::InFlight {
                phase,
                since,
                lease_until,
                deadline,
                part_until,
                cancel_requested,
                hold,
            } => Self {
                state,
                phase: Some(*phase),
                since: Some(*since),
                lease_until: Some(*lease_until),
                deadline: Some(*deadline),
                part_until: *part_until,
                cancel_requested: *cancel_requested,
                hold: *hold,
                check_at: [Some(*lease_until), Some(*deadline), *part_until]
                    .into_iter()
                    .flatten()
                    .min(),
                nudge_at: update.is_unanswered().then_some(update.updated_at),
                ..Self::default()
            },
            UpdateState::Staged { since } => Self {
                state,
                since: Some(*since),
                ..Self::default()
            },
            UpdateState::Completed { at } => Self {
                state,
                ended_at: Some(*at),
                failure: update.regression().map(|regression| &regression.failure),
                check_at: update.watch().map(|watch| watch.look_at),
                ..Self::default()
            },
            UpdateState::Cancelled { at, because } => Self {
                state,
                ended_at: Some(*at),
                excluded: *because,
                ..Self::default()
            },
            UpdateState::Failed { at, failure } => Self {
                state,
                ended_at: Some(*at),
                failure: Some(failure),
                ..Self::default()
            },
        }
    }

    /// What is open is looked at again when its time as a whole is over.
    fn with_end(mut self, update: &Update) -> Self {
        self.give_up_at = update.give_up_at;
        if !update.is_terminal() {
            self.check_at = [self.check_at, update.give_up_at]
                .into_iter()
                .flatten()
                .min();
        }
        self
    }

    fn bind<D: Dialect>(self, args: Args<D>) -> Args<D> {
        args.text(self.state)
            .time(self.due_at)
            .time(self.lost_at)
            .text(self.failure.map(|failure| failure.code.as_str()))
            .text(self.failure.map(|failure| failure.message.as_str()))
            .text(self.failure.map(|failure| retry_name(failure.retry)))
            .text(self.phase.map(Phase::name))
            .time(self.since)
            .time(self.lease_until)
            .time(self.deadline)
            .time(self.part_until)
            .flag(self.cancel_requested)
            .flag(self.hold)
            .time(self.give_up_at)
            .time(self.ended_at)
            .text(self.excluded.map(Exclusion::name))
            .time(self.check_at)
            .time(self.nudge_at)
    }
}

const fn retry_name(retry: Retry) -> &'static str {
    match retry {
        Retry::Now => "now",
        Retry::Backoff => "backoff",
        Retry::Never => "never",
    }
}

fn retry_of(name: &str) -> Option<Retry> {
    [Retry::Now, Retry::Backoff, Retry::Never]
        .into_iter()
        .find(|retry| retry_name(*retry) == name)
}

/// Reads a row of [`select_update!`].
pub(crate) fn read_update<D: Dialect>(row: &Record<'_, D>) -> Result<Update, DbError> {
    let rank: i16 = row.uint("priority")?;
    Ok(Update {
        id: row.parse("update_id")?,
        device: DeviceKey(row.int("device_key")?),
        device_id: row.parse("device_id")?,
        device_type: row.string_opt("device_type")?,
        campaign: row.parse_opt("campaign_id")?,
        action: present("action", Action::from_name(row.text("action")?))?,
        firmware: row.parse_opt("firmware_id")?,
        from_version: row.string_opt("from_version")?,
        to_version: row.string("to_version")?,
        stage: row.uint("stage")?,
        priority: present("priority", Priority::from_rank(rank))?,
        attempt: row.uint("attempt")?,
        last_seq: row.uint("last_seq")?,
        retries: row.uint("retries")?,
        max_retries: row.uint("max_retries")?,
        timeout_seconds: row.uint("timeout_seconds")?,
        times: Times {
            download_seconds: read_seconds(row, "download_seconds")?,
            install_seconds: read_seconds(row, "install_seconds")?,
            give_up_after_seconds: read_seconds(row, "give_up_after_seconds")?,
        },
        give_up_at: row.time_opt("give_up_at")?,
        progress: Progress {
            percent: row.real("percent")?,
            bytes_done: row.uint("bytes_done")?,
            bytes_total: row.uint("bytes_total")?,
            bytes_earlier: row.uint("bytes_earlier")?,
            speed_bps: row.uint("speed_bps")?,
        },
        state: read_state(row)?,
        aftermath: read_aftermath(row)?,
        started_at: row.time_opt("started_at")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
    })
}

fn read_seconds<D: Dialect>(row: &Record<'_, D>, column: &str) -> Result<Option<u64>, DbError> {
    let seconds = row.int_opt(column)?;
    Ok(seconds.and_then(|seconds| u64::try_from(seconds).ok()))
}

fn read_state<D: Dialect>(row: &Record<'_, D>) -> Result<UpdateState, DbError> {
    Ok(match row.text("state")? {
        "pending" => UpdateState::Pending {
            due_at: row.time("due_at")?,
            lost_at: row.time_opt("lost_at")?,
            last_failure: read_failure(row)?,
        },
        "in_flight" => UpdateState::InFlight {
            phase: present("phase", Phase::from_name(row.text("phase")?))?,
            since: row.time("since")?,
            lease_until: row.time("lease_until")?,
            deadline: row.time("deadline")?,
            part_until: row.time_opt("part_until")?,
            cancel_requested: row.flag("cancel_requested")?,
            hold: row.flag("hold")?,
        },
        "staged" => UpdateState::Staged {
            since: row.time("since")?,
        },
        "completed" => UpdateState::Completed {
            at: row.time("ended_at")?,
        },
        "failed" => UpdateState::Failed {
            at: row.time("ended_at")?,
            failure: present("failure_code", read_failure(row)?)?,
        },
        "cancelled" => UpdateState::Cancelled {
            at: row.time("ended_at")?,
            because: read_excluded(row)?,
        },
        other => return Err(DbError::corrupt(format!("state is {other}"))),
    })
}

fn read_aftermath<D: Dialect>(row: &Record<'_, D>) -> Result<Aftermath, DbError> {
    if let Some(at) = row.time_opt("regressed_at")? {
        let failure = present("failure_code", read_failure(row)?)?;
        return Ok(Aftermath::Regressed(Regression { at, failure }));
    }
    let Some(until) = row.time_opt("watch_until")? else {
        return Ok(Aftermath::Unwatched);
    };
    Ok(Aftermath::Watched(Watch {
        until,
        look_at: row.time("check_at")?,
        silent_seconds: read_seconds(row, "watch_silent")?,
        restarts_left: row.uint("watch_restarts")?,
        last_boot: row.string_opt("watch_boot")?,
    }))
}

fn read_excluded<D: Dialect>(row: &Record<'_, D>) -> Result<Option<Exclusion>, DbError> {
    let name = row.text_opt("excluded")?;
    name.map(|name| present("excluded", Exclusion::from_name(name)))
        .transpose()
}

fn read_failure<D: Dialect>(row: &Record<'_, D>) -> Result<Option<Failure>, DbError> {
    let Some(code) = row.string_opt("failure_code")? else {
        return Ok(None);
    };
    Ok(Some(Failure {
        code,
        message: row.string("failure_message")?,
        retry: present("failure_retry", retry_of(row.text("failure_retry")?))?,
    }))
}

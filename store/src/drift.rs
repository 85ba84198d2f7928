//! How far a campaign's updates have come apart from whom it means by now: devices without one, those that were offered nothing yet
//! and are none of its own any more, or of another stage, and those that are its own once more.

use std::collections::BTreeMap;

use device_ota_domain::campaign::{Campaign, Group};
use device_ota_domain::device::DeviceKey;
use device_ota_domain::filter::{Comparison, VersionTest};
use device_ota_domain::firmware::Firmware;
use device_ota_domain::statistics::Ledger;
use device_ota_domain::targeting::{Exclusion, cuts_after_start};
use device_ota_domain::update::{Action, Update};
use device_ota_domain::{CampaignId, UpdateId};
use device_ota_engine::ports::store::{Aim, Drift};
use jiff::Timestamp;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::filter::running;
use crate::sql::{self, Args, Given, Record, present, statements};
use crate::targets::{bind_aim, meant, verdict, versions};
use crate::{counts, materialise, updates};

statements! {
    NEWCOMERS = concat!(
        "SELECT d.device_key FROM devices d JOIN device_latest l ON l.device_key = d.device_key WHERE {given} AND ",
        verdict!(),
        " = 'target' AND NOT EXISTS (SELECT 1 FROM device_updates u WHERE u.device_key = d.device_key \
             AND u.campaign_id = $11 AND u.action = 'update') ORDER BY d.device_key LIMIT $12"
    );
    // A device without a row in `device_latest` was deleted. One that still runs a newer version is met no sooner than it falls back.
    // Who was given up has been meant all the time.
    MISFITS = concat!(
        "SELECT m.update_id, m.state, m.verdict, m.stage FROM (SELECT u.update_id, u.number, u.state, u.stage AS before, \
         u.excluded, ",
        running!(),
        " AS running, \
         CASE WHEN l.device_key IS NULL THEN 'unknown_device' WHEN {given} THEN ",
        verdict!(),
        " ELSE 'not_meant' END AS verdict, CAST({stage} AS BIGINT) AS stage \
         FROM device_updates u JOIN devices d ON d.device_key = u.device_key \
         LEFT JOIN device_latest l ON l.device_key = d.device_key WHERE u.campaign_id = $11 AND u.action = 'update' \
         AND ((u.state = 'pending' AND u.attempt = 0) OR (u.state = 'cancelled' AND u.excluded <> 'out_of_time'))) m \
         WHERE (m.state = 'pending' AND (m.verdict <> 'target' OR m.stage <> m.before)) \
         OR (m.state = 'cancelled' AND m.verdict = 'target' \
             AND NOT (m.excluded = 'newer_installed' AND COALESCE(m.running {within:$13}, FALSE))) ORDER BY m.number LIMIT $12"
    );
    TAKEN_IN = "UPDATE update_campaigns SET target_count = target_count + $2 WHERE campaign_id = $1";
    // Its time as a whole begins anew with the opening of that stage.
    RESTAGE = "UPDATE device_updates SET stage = $2, updated_at = $3, give_up_at = NULL, check_at = lost_at \
         WHERE update_id {any:$1}";
}

/// What has come apart, up to `limit` devices without an update and as many updates.
pub(crate) async fn drift<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
    aim: Aim<'_>,
    limit: u32,
) -> Result<Drift, DbError> {
    let bound = || bind_aim(aim).text(campaign.as_str()).int(i64::from(limit));
    let mut wanted = meant::<D>(conn, aim, None, bound(), 12).await?;
    let (given, args) = wanted.split();
    let read = |row: &Record<'_, D>| Ok(DeviceKey(row.int("device_key")?));
    let newcomers = sql::fetch_given(conn, &NEWCOMERS, given, args, read).await?;
    let mut drift = Drift {
        newcomers,
        ..Drift::default()
    };
    let cuts = cuts_after_start(aim.spec);
    let newer = newer::<D>(conn, &aim.firmware.metadata.version).await?;
    let newer: Vec<&str> = newer.iter().map(String::as_str).collect();
    let mut wanted = meant::<D>(conn, aim, Some(&cuts), bound().texts(&newer), 13).await?;
    let (given, args) = wanted.split();
    let kept = kept_stages(&cuts.keys().copied().collect::<Vec<_>>(), given.stage);
    let given = Given {
        stage: &kept,
        ..given
    };
    for misfit in sql::fetch_given(conn, &MISFITS, given, args, read_misfit).await? {
        match misfit {
            (update, Group::Cancelled, Ok(stage)) => drift.returns.push((update, stage)),
            (update, _, Ok(stage)) => drift.moves.push((update, stage)),
            (update, _, Err(because)) => drift.leaves.push((update, because)),
        }
    }
    Ok(drift)
}

/// The versions that the fleet runs and that are newer than this one.
async fn newer<D: Dialect>(
    conn: &mut D::Connection,
    version: &str,
) -> Result<Vec<String>, DbError> {
    let newer = VersionTest::Is(Comparison::Gt, version.to_owned());
    let mut versions = versions::<D>(conn).await?;
    versions.retain(|running| newer.passes(Some(running)));
    Ok(versions)
}

/// Whoever came to a stage that takes a number of devices stays there: it takes no others.
fn kept_stages(counted: &[u16], stage: &str) -> String {
    if counted.is_empty() {
        return stage.to_owned();
    }
    let counted: Vec<String> = counted.iter().map(u16::to_string).collect();
    format!(
        "CASE WHEN u.stage IN ({}) THEN u.stage ELSE {stage} END",
        counted.join(", ")
    )
}

/// An update, where it stands, and the stage of its device or why that is none of the campaign's.
type Misfit = (UpdateId, Group, Result<u16, Exclusion>);

fn read_misfit<D: Dialect>(row: &Record<'_, D>) -> Result<Misfit, DbError> {
    let place = match row.text("verdict")? {
        "target" => Ok(row.uint("stage")?),
        other => Err(present("verdict", Exclusion::from_name(other))?),
    };
    let group = present("state", Group::from_name(row.text("state")?))?;
    Ok((row.parse("update_id")?, group, place))
}

/// Makes an update for each of these devices that the campaign means and has none for; answers how many.
pub(crate) async fn take_in<D: Dialect>(
    conn: &mut D::Connection,
    ledger: &mut Ledger,
    campaign: &Campaign,
    firmware: &Firmware,
    at: Timestamp,
    devices: &[DeviceKey],
) -> Result<u64, DbError> {
    let of = (campaign, firmware);
    let made = materialise::make_updates::<D>(conn, ledger, of, at, Some(devices)).await?;
    let args = Args::new().text(campaign.id.as_str()).uint(made);
    sql::execute::<D>(conn, &TAKEN_IN, args).await?;
    Ok(made)
}

/// Moves updates that wait to other stages, and the counters with them.
pub(crate) async fn restage<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
    moves: &[(UpdateId, u16)],
    at: Timestamp,
) -> Result<u64, DbError> {
    let ids: Vec<UpdateId> = moves.iter().map(|(update, _)| update.clone()).collect();
    let found = updates::locked::<D>(conn, &ids).await?;
    let found: BTreeMap<&str, &Update> = found.iter().map(|u| (u.id.as_str(), u)).collect();
    let (mut count, mut by_stage) = (0, BTreeMap::<u16, Vec<&str>>::new());
    let mut shifts = BTreeMap::<u16, i64>::new();
    for (id, stage) in moves {
        let Some(update) = found.get(id.as_str()) else {
            continue;
        };
        if update.group() == Group::Pending && update.stage != *stage {
            by_stage.entry(*stage).or_default().push(id.as_str());
            *shifts.entry(update.stage).or_default() -= 1;
            *shifts.entry(*stage).or_default() += 1;
            count += 1;
        }
    }
    for (stage, ids) in by_stage {
        let args = Args::new().texts(&ids).int(i64::from(stage)).time(at);
        sql::execute::<D>(conn, &RESTAGE, args).await?;
    }
    counts::shift_pending::<D>(conn, campaign, Action::Update, &shifts).await?;
    Ok(count)
}

//! Whom a campaign means: the whole fleet judged in one statement, as `domain::targeting` judges one device.
//!
//! Which of the sources of targets a campaign uses becomes part of the statement's text, so that the database can use the
//! index that fits: two named devices are looked up, and no fleet is read for them.

use std::collections::HashMap;

use device_ota_domain::DeviceId;
use device_ota_domain::campaign::{CampaignSpec, Takes};
use device_ota_domain::device::{Device, DeviceKey};
use device_ota_domain::filter::{Filter, Test, VersionTest};
use device_ota_domain::page::Page;
use device_ota_domain::ring::Ring;
use device_ota_domain::targeting::{Cuts, Exclusion, Place};
use device_ota_engine::ports::store::{Aim, NO_WAY_BACK, TargetDevice, TargetSummary};

use crate::devices::{self, read_device, select_device};
use crate::dialect::Dialect;
use crate::error::DbError;
use crate::filter::{Condition, running};
use crate::sql::{self, Args, Given, Record, statements};

/// Values that every statement with a [`verdict!`] binds first: `$1` to `$10`, by [`bind_aim`].
const AIM: usize = 10;

/// Where a device stands on the wheel as the campaign has turned it (`$5`); a pinned one at the beginning of its ring, by
/// the campaign's own shares (`$7` to `$9`).
macro_rules! position {
    () => {
        "CASE d.ring WHEN 'canary' THEN 0 WHEN 'early' THEN $7 WHEN 'broad' THEN $8 WHEN 'production' THEN $9 \
         ELSE (d.bucket + $5) % 10000 END"
    };
}
pub(crate) use position;

/// One of these, of a device that the campaign means: for wrong model, wrong revision, already installed, below its floor and outside
/// of the rollout, else for a target.
macro_rules! judged {
    ($model:literal, $revision:literal, $installed:literal, $floor:literal, $outside:literal, $target:literal) => {
        concat!(
            "CASE WHEN d.device_model <> $1 THEN ",
            $model,
            " WHEN $3 = 0 AND NOT COALESCE(d.hw_revision {within:$4}, FALSE) THEN ",
            $revision,
            " WHEN COALESCE(",
            $crate::filter::running!(),
            ", '') = $2 THEN ",
            $installed,
            " WHEN l.security_floor > $10 THEN ",
            $floor,
            " WHEN ",
            $crate::targets::position!(),
            " >= $6 THEN ",
            $outside,
            " ELSE ",
            $target,
            " END"
        )
    };
}
pub(crate) use judged;

/// `target`, or the name of the exclusion; of a device that the campaign means.
macro_rules! verdict {
    () => {
        $crate::targets::judged!(
            "'wrong_model'",
            "'wrong_hw_revision'",
            "'already_installed'",
            "'below_floor'",
            "'outside_rollout'",
            "'target'"
        )
    };
}
pub(crate) use verdict;

statements! {
    VERSIONS = concat!(
        "SELECT DISTINCT ",
        running!(),
        " AS version FROM devices d JOIN device_latest l ON l.device_key = d.device_key"
    );
    // One number a device, by which a fleet is sorted faster than by texts: its stage, or, below -1, a place in `LEFT_OUT_BY`. A limit
    // that is none keeps SQLite from working it out twice.
    SUMMARY = concat!(
        "SELECT v.code, COUNT(*) AS devices FROM (SELECT CAST(",
        judged!("-2", "-3", "-4", "-5", "-6", "{stage}"),
        " AS BIGINT) AS code FROM devices d JOIN device_latest l ON l.device_key = d.device_key \
         WHERE {given} LIMIT 9223372036854775807) v GROUP BY v.code"
    );
    // Whoever says no version has nothing to go back to either.
    NO_WAY_BACK_FROM = concat!(
        "SELECT v.version, COUNT(*) AS devices FROM (SELECT d.device_model, ",
        running!(),
        " AS version FROM devices d JOIN device_latest l ON l.device_key = d.device_key WHERE {given} AND ",
        verdict!(),
        " = 'target') v WHERE NOT EXISTS (SELECT 1 FROM firmware f WHERE f.device_model = v.device_model \
         AND f.version = v.version) GROUP BY v.version ORDER BY devices DESC, v.version LIMIT $11"
    );
    // The last of so many devices, in the order in which the campaign takes them.
    CUT = concat!(
        "SELECT ",
        position!(),
        " AS place, d.device_key FROM devices d JOIN device_latest l ON l.device_key = d.device_key WHERE {given} AND ",
        verdict!(),
        " = 'target' ORDER BY place, d.device_key LIMIT 1 OFFSET $11"
    );
    UNKNOWN = "SELECT COUNT(DISTINCT e.value) AS devices FROM {each:$1} \
         WHERE NOT EXISTS (SELECT 1 FROM devices d WHERE d.device_id = e.value AND d.deleted_at IS NULL)";
    TARGETS = select_device!(
        "WHERE {given} AND ",
        verdict!(),
        " = 'target' AND (CAST($11 AS BIGINT) < 0 OR {stage} = $11) ORDER BY d.device_id LIMIT $12 OFFSET $13"
    );
    EXCLUDED = concat!(
        "SELECT d.device_id FROM devices d JOIN device_latest l ON l.device_key = d.device_key WHERE {given} AND ",
        verdict!(),
        " = $11 ORDER BY d.device_id LIMIT $12 OFFSET $13"
    );
    UNKNOWN_NAMES = "SELECT DISTINCT e.value AS device_id FROM {each:$1} WHERE NOT EXISTS ( \
         SELECT 1 FROM devices d WHERE d.device_id = e.value AND d.deleted_at IS NULL) \
         ORDER BY e.value LIMIT $2 OFFSET $3";
    LEFT_OUT = concat!(
        "SELECT DISTINCT e.value AS device_id FROM {each:$11} WHERE NOT EXISTS (SELECT 1 FROM devices d \
         JOIN device_latest l ON l.device_key = d.device_key WHERE d.device_id = e.value AND ",
        verdict!(),
        " = 'target') ORDER BY e.value LIMIT $12 OFFSET $13"
    );
    OPEN_ELSEWHERE = "SELECT o.device_key, o.campaign_id FROM device_updates o WHERE o.device_key {any_int:$1} \
         AND o.state IN ('pending', 'in_flight', 'staged') AND o.campaign_id IS NOT NULL ORDER BY o.number";
}

/// What the codes of [`SUMMARY`] stand for that are no stages, from -2 down.
const LEFT_OUT_BY: [Exclusion; 5] = [
    Exclusion::WrongModel,
    Exclusion::WrongHwRevision,
    Exclusion::AlreadyInstalled,
    Exclusion::BelowFloor,
    Exclusion::OutsideRollout,
];

/// Binds `$1` to `$10`.
pub(crate) fn bind_aim<D: Dialect>(aim: Aim<'_>) -> Args<D> {
    let image = &aim.firmware.metadata;
    let revisions: Vec<&str> = image.hw_revisions.iter().map(String::as_str).collect();
    let start = |ring| i64::from(aim.spec.rings.start_bucket(ring));
    Args::new()
        .text(image.device_model.as_str())
        .text(image.version.as_str())
        .flag(revisions.is_empty())
        .texts(&revisions)
        .int(i64::from(aim.spec.bucket_offset))
        .int(i64::from(aim.spec.rollout_buckets))
        .int(start(Ring::Early))
        .int(start(Ring::Broad))
        .int(start(Ring::Production))
        .int(i64::from(image.security_version))
}

/// Whom a campaign means, as SQL, and the values that it needs.
pub(crate) struct Meant<D: Dialect> {
    /// "The campaign means this device."
    condition: String,
    /// The number of its stage.
    stage: String,
    args: Args<D>,
}

impl<D: Dialect> Meant<D> {
    /// The texts for a statement, and all values.
    pub(crate) fn split(&mut self) -> (Given<'_>, Args<D>) {
        let given = Given {
            condition: &self.condition,
            stage: &self.stage,
        };
        (given, std::mem::take(&mut self.args))
    }
}

/// Whom the campaign means, with values behind the `bound` ones in `args`; and in which stage, where the cuts are known.
pub(crate) async fn meant<D: Dialect>(
    conn: &mut D::Connection,
    aim: Aim<'_>,
    cuts: Option<&Cuts>,
    args: Args<D>,
    bound: usize,
) -> Result<Meant<D>, DbError> {
    let versions = if filters(aim.spec).any(compares_versions) {
        versions::<D>(conn).await?
    } else {
        Vec::new()
    };
    let mut condition = Condition::new(args, bound, &versions, aim.now);
    let means = sources(&mut condition, aim);
    let stage = match cuts {
        Some(cuts) => stage_of(&mut condition, aim, cuts),
        None => "0".to_owned(),
    };
    Ok(Meant {
        condition: means,
        stage,
        args: condition.into_args(),
    })
}

/// The condition "the campaign's targets name this device".
fn sources<D: Dialect>(condition: &mut Condition<'_, D>, aim: Aim<'_>) -> String {
    let targets = &aim.spec.targets;
    if targets.is_everybody() {
        return "d.device_model = $1".to_owned();
    }
    let mut sources = Vec::new();
    if targets.named > 0 {
        sources.push(condition.one_of("d.device_id", &texts(&aim.named.targets)));
    }
    if !targets.groups.is_empty() {
        let groups: Vec<&str> = targets.groups.iter().map(String::as_str).collect();
        let groups = condition.one_of("g.group_name", &groups);
        sources.push(format!(
            "d.device_key IN (SELECT g.device_key FROM device_groups g WHERE {groups})"
        ));
    }
    if let Some(filter) = &targets.filter {
        sources.push(condition.of(filter));
    }
    format!("({})", sources.join(" OR "))
}

/// The first stage that takes the device, as `domain::targeting` has it.
fn stage_of<D: Dialect>(condition: &mut Condition<'_, D>, aim: Aim<'_>, cuts: &Cuts) -> String {
    let place = position!();
    let stages = &aim.spec.stages;
    let mut cases = Vec::with_capacity(stages.len());
    for (number, stage) in (0_u16..).zip(stages) {
        let takes = match &stage.takes {
            Takes::Share => format!("{place} < {}", stage.end_bucket),
            Takes::First(_) => match cuts.get(&number) {
                None => "1 = 1".to_owned(),
                Some(last) => format!(
                    "({place} < {0} OR ({place} = {0} AND d.device_key <= {1}))",
                    last.position, last.device.0
                ),
            },
            Takes::Named => condition.one_of("d.device_id", &texts(aim.named.of_stage(number))),
            Takes::Filter(filter) => condition.of(filter),
        };
        cases.push(format!("WHEN {takes} THEN {number}"));
    }
    format!("CASE {} ELSE -1 END", cases.join(" "))
}

/// Where the stages end that take a number of devices.
pub(crate) async fn cuts<D: Dialect>(
    conn: &mut D::Connection,
    aim: Aim<'_>,
) -> Result<Cuts, DbError> {
    let mut cuts = Cuts::new();
    for (number, stage) in (0_u16..).zip(&aim.spec.stages) {
        let Takes::First(count) = stage.takes else {
            continue;
        };
        let args = bind_aim(aim).uint(count.saturating_sub(1));
        let mut meant = meant::<D>(conn, aim, None, args, AIM + 1).await?;
        let (given, args) = meant.split();
        let found = sql::fetch_given::<D, _>(conn, &CUT, given, args, |row| {
            Ok(Place {
                position: row.uint("place")?,
                device: DeviceKey(row.int("device_key")?),
            })
        });
        if let Some(last) = found.await?.into_iter().next() {
            cuts.insert(number, last);
        }
    }
    Ok(cuts)
}

/// Every filter of a campaign.
fn filters(spec: &CampaignSpec) -> impl Iterator<Item = &Filter> {
    let of_stages = spec.stages.iter().filter_map(|stage| match &stage.takes {
        Takes::Filter(filter) => Some(filter),
        _ => None,
    });
    spec.targets.filter.iter().chain(of_stages)
}

fn texts(devices: &[DeviceId]) -> Vec<&str> {
    devices.iter().map(DeviceId::as_str).collect()
}

fn compares_versions(filter: &Filter) -> bool {
    let compares = |test: &&Test| matches!(test, Test::Version(test) if !matches!(test, VersionTest::Exists(_)));
    filter.tests().iter().any(compares)
}

/// The versions that the fleet runs.
pub(crate) async fn versions<D: Dialect>(conn: &mut D::Connection) -> Result<Vec<String>, DbError> {
    let versions = sql::fetch_all::<D, _>(conn, &VERSIONS, Args::new(), |row| {
        row.string_opt("version")
    });
    Ok(versions.await?.into_iter().flatten().collect())
}

/// How many devices of each stage the campaign would mean if it started now, and how many are left out for which reason.
pub(crate) async fn summary<D: Dialect>(
    conn: &mut D::Connection,
    aim: Aim<'_>,
) -> Result<TargetSummary, DbError> {
    let cuts = cuts::<D>(conn, aim).await?;
    let mut meant = meant::<D>(conn, aim, Some(&cuts), bind_aim(aim), AIM).await?;
    let (given, args) = meant.split();
    let rows = sql::fetch_given::<D, _>(conn, &SUMMARY, given, args, |row| {
        Ok((row.int("code")?, row.uint::<u64>("devices")?))
    })
    .await?;
    let mut summary = TargetSummary {
        stages: vec![0; aim.spec.stages.len()],
        cuts,
        ..TargetSummary::default()
    };
    for (code, devices) in rows {
        let stage = usize::try_from(code).ok();
        let because = usize::try_from(-2 - code).ok();
        let because = because.and_then(|place| LEFT_OUT_BY.get(place));
        match (because, stage.and_then(|s| summary.stages.get_mut(s))) {
            (Some(because), _) => *summary.left_out.entry(*because).or_default() += devices,
            (None, Some(stage)) => *stage += devices,
            (None, None) => return Err(DbError::corrupt("a target of no stage")),
        }
    }
    let unknown = unknown::<D>(conn, &aim.named.targets).await?;
    if unknown > 0 {
        summary.left_out.insert(Exclusion::UnknownDevice, unknown);
    }
    Ok(summary)
}

/// Named devices that are not registered.
async fn unknown<D: Dialect>(conn: &mut D::Connection, named: &[DeviceId]) -> Result<u64, DbError> {
    if named.is_empty() {
        return Ok(0);
    }
    let args = Args::<D>::new().texts(&texts(named));
    let count = sql::fetch_optional(conn, &UNKNOWN, args, |row| row.uint("devices"));
    Ok(count.await?.unwrap_or(0))
}

/// The versions of devices that the campaign would mean that have no image, and how many devices run each.
pub(crate) async fn no_way_back<D: Dialect>(
    conn: &mut D::Connection,
    aim: Aim<'_>,
) -> Result<Vec<(Option<String>, u64)>, DbError> {
    let args = bind_aim(aim).int(i64::from(NO_WAY_BACK));
    let mut meant = meant::<D>(conn, aim, None, args, AIM + 1).await?;
    let (given, args) = meant.split();
    sql::fetch_given(
        conn,
        &NO_WAY_BACK_FROM,
        given,
        args,
        |row: &Record<'_, D>| Ok((row.string_opt("version")?, row.uint("devices")?)),
    )
    .await
}

/// The devices that the campaign would mean, of one stage or of all, in id order.
pub(crate) async fn targets<D: Dialect>(
    conn: &mut D::Connection,
    aim: Aim<'_>,
    cuts: &Cuts,
    stage: Option<u16>,
    page: Page,
) -> Result<Vec<TargetDevice>, DbError> {
    let args = bind_aim(aim).int(stage.map_or(-1, i64::from)).page(page);
    let mut meant = meant::<D>(conn, aim, Some(cuts), args, AIM + 3).await?;
    let (given, args) = meant.split();
    let devices = sql::fetch_given(conn, &TARGETS, given, args, read_device).await?;
    let keys: Vec<i64> = devices.iter().map(|device| device.key.0).collect();
    let open = sql::fetch_all(
        conn,
        &OPEN_ELSEWHERE,
        Args::<D>::new().ints(&keys),
        read_open,
    );
    let mut open: HashMap<_, _> = open.await?.into_iter().collect();
    Ok(devices
        .into_iter()
        .map(|device| TargetDevice {
            waits_for: open.remove(&device.key),
            device,
        })
        .collect())
}

fn read_open<D: Dialect>(
    row: &Record<'_, D>,
) -> Result<(DeviceKey, device_ota_domain::CampaignId), DbError> {
    Ok((DeviceKey(row.int("device_key")?), row.parse("campaign_id")?))
}

/// The devices that are meant and that the campaign would leave out for this reason, in id order.
pub(crate) async fn excluded<D: Dialect>(
    conn: &mut D::Connection,
    aim: Aim<'_>,
    because: Exclusion,
    page: Page,
) -> Result<Vec<DeviceId>, DbError> {
    let read = |row: &Record<'_, D>| row.parse("device_id");
    if because == Exclusion::UnknownDevice {
        let args = Args::new().texts(&texts(&aim.named.targets)).page(page);
        return sql::fetch_all(conn, &UNKNOWN_NAMES, args, read).await;
    }
    let args = bind_aim(aim).text(because.name()).page(page);
    let mut meant = meant::<D>(conn, aim, None, args, AIM + 3).await?;
    let (given, args) = meant.split();
    sql::fetch_given(conn, &EXCLUDED, given, args, read).await
}

/// The named devices that the campaign would leave out, in id order; `None` for those that are not registered.
pub(crate) async fn left_out<D: Dialect>(
    conn: &mut D::Connection,
    aim: Aim<'_>,
    page: Page,
) -> Result<Vec<(DeviceId, Option<Device>)>, DbError> {
    let named = &aim.named.targets;
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let args = bind_aim(aim).texts(&texts(named)).page(page);
    let ids: Vec<DeviceId> =
        sql::fetch_all::<D, _>(conn, &LEFT_OUT, args, |row| row.parse("device_id")).await?;
    let known = devices::by_ids::<D>(conn, &texts(&ids)).await?;
    let mut known: HashMap<DeviceId, Device> = known
        .into_iter()
        .map(|device| (device.registration.device_id.clone(), device))
        .collect();
    Ok(ids
        .into_iter()
        .map(|id| {
            let device = known.remove(&id);
            (id, device)
        })
        .collect())
}

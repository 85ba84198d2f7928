//! A campaign's counters: one row a stage and action, moved only by deltas, and the same counted from the rows.

use std::collections::BTreeMap;

use device_ota_domain::CampaignId;
use device_ota_domain::campaign::{Campaign, Counts, Delta, FailureKind, Group, Tally};
use device_ota_domain::update::Action;
use jiff::Timestamp;

use crate::dialect::Dialect;
use crate::error::DbError;
use crate::figures::{Counted, counted, read_counted};
use crate::sql::{self, Args, Record, statements};

statements! {
    INSERT_STAGES[Text, Text, Int, Int, Int] =
        "INSERT INTO campaign_stages (campaign_id, action, stage, start_bucket, end_bucket) VALUES {rows}";
    DELETE_STAGES = "DELETE FROM campaign_stages WHERE campaign_id = $1";
    COUNTS = "SELECT action, stage, pending, in_flight, staged, completed, regressed, failed, cancelled FROM campaign_stages \
         WHERE campaign_id = $1 ORDER BY action, stage";
    FAILURES = "SELECT failure_code, CAST(SUM(updates) AS BIGINT) AS updates FROM update_figures \
         WHERE campaign_id = $1 AND action = 'update' AND failure_code <> '' GROUP BY failure_code";
    UNANSWERED = "SELECT action, COUNT(*) AS updates FROM device_updates \
         WHERE campaign_id = $1 AND nudge_at IS NOT NULL GROUP BY action";
    TIMELESS = "SELECT (SELECT MIN(u.stage) FROM device_updates u WHERE u.campaign_id = $1 AND u.state = 'pending' \
             AND u.give_up_after_seconds IS NOT NULL AND u.give_up_at IS NULL) AS stage, \
         (SELECT MIN(u.state) FROM device_updates u WHERE u.campaign_id = $1 AND u.state = 'staged' \
             AND u.give_up_after_seconds IS NOT NULL AND u.give_up_at IS NULL) AS staged";
    COUNTS_BY_ROWS = counted!("WHERE campaign_id = $1 AND number > $2");
    ADD_COUNTS = "UPDATE campaign_stages SET pending = pending + $4, in_flight = in_flight + $5, \
         staged = staged + $6, completed = completed + $7, failed = failed + $8, cancelled = cancelled + $9, \
         regressed = regressed + $10, regressed_at = COALESCE($11, regressed_at) \
         WHERE campaign_id = $1 AND action = $2 AND stage = $3";
    SHIFT_PENDING = "UPDATE campaign_stages SET pending = pending + $4 \
         WHERE campaign_id = $1 AND action = $2 AND stage = $3";
}

/// A row for every stage, for updates and for rollbacks.
pub(crate) async fn insert_stages<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &Campaign,
) -> Result<(), DbError> {
    let mut rows = Vec::with_capacity(campaign.spec.stages.len() * 2);
    for action in Action::ALL {
        let mut start = 0;
        for (stage, spec) in (0_i64..).zip(&campaign.spec.stages) {
            rows.push((action, stage, start, spec.end_bucket));
            start = spec.end_bucket;
        }
    }
    sql::execute_rows::<D, _>(
        conn,
        &INSERT_STAGES,
        &rows,
        |args, (action, stage, start, end)| {
            args.text(campaign.id.as_str())
                .text(action.name())
                .int(*stage)
                .int(i64::from(*start))
                .int(i64::from(*end))
        },
    )
    .await
    .map(drop)
}

/// Forgets the stages of a campaign that has no rows.
pub(crate) async fn delete_stages<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
) -> Result<(), DbError> {
    let args = Args::new().text(campaign.as_str());
    sql::execute::<D>(conn, &DELETE_STAGES, args)
        .await
        .map(drop)
}

/// The counters as they are kept.
pub(crate) async fn counts<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
) -> Result<Counts, DbError> {
    let args = Args::<D>::new().text(campaign.as_str());
    let rows = sql::fetch_all(conn, &COUNTS, args, read_counter).await?;
    let mut counts = Counts::default();
    for (action, _, tally) in rows {
        match action {
            Action::Update => counts.stages.push(tally),
            Action::Rollback => counts.rollbacks = counts.rollbacks.plus(&tally),
        }
    }
    let args = Args::<D>::new().text(campaign.as_str());
    let failures = sql::fetch_all(conn, &FAILURES, args, |row| {
        let updates: i64 = row.int("updates")?;
        Ok((FailureKind::of(row.text("failure_code")?), updates))
    });
    for (kind, updates) in failures.await? {
        *counts.failures.of_mut(kind) += u64::try_from(updates).unwrap_or_default();
    }
    let args = Args::<D>::new().text(campaign.as_str());
    let unanswered = sql::fetch_all(conn, &UNANSWERED, args, |row| {
        let action = sql::present("action", Action::from_name(row.text("action")?))?;
        Ok((action, row.uint("updates")?))
    });
    for (action, updates) in unanswered.await? {
        match action {
            Action::Update => counts.unanswered_updates = updates,
            Action::Rollback => counts.unanswered_rollbacks = updates,
        }
    }
    let last = u16::try_from(counts.stages.len().saturating_sub(1)).unwrap_or(u16::MAX);
    let args = Args::<D>::new().text(campaign.as_str());
    let timeless = sql::fetch_optional(conn, &TIMELESS, args, |row| {
        let staged = row.text_opt("staged")?.map(|_| last);
        let pending = row
            .int_opt("stage")?
            .and_then(|stage| u16::try_from(stage).ok());
        Ok([pending, staged].into_iter().flatten().min())
    });
    counts.timeless = timeless.await?.flatten();
    Ok(counts)
}

/// The same, counted from the updates.
pub(crate) async fn counts_by_rows<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
) -> Result<Counts, DbError> {
    let kept = counts::<D>(conn, campaign).await?;
    let mut counted = Counts {
        stages: vec![Tally::default(); kept.stages.len()],
        unanswered_updates: kept.unanswered_updates,
        unanswered_rollbacks: kept.unanswered_rollbacks,
        timeless: kept.timeless,
        ..Counts::default()
    };
    for rows in count_rows::<D>(conn, campaign, 0).await? {
        let stage = counted.stages.get_mut(usize::from(rows.stage));
        let tally = match (rows.share.action, stage) {
            (Action::Rollback, _) => &mut counted.rollbacks,
            (Action::Update, Some(tally)) => tally,
            (Action::Update, None) => {
                return Err(DbError::corrupt("an update of a stage that is not there"));
            }
        };
        *tally.of_mut(rows.share.group) += rows.devices();
        if rows.share.group == Group::Completed && rows.share.failure.is_some() {
            tally.regressed += rows.devices();
        }
        if let (Action::Update, Some(code)) = (rows.share.action, &rows.share.failure) {
            *counted.failures.of_mut(FailureKind::of(code)) += rows.devices();
        }
    }
    Ok(counted)
}

/// The campaign's updates with a number above `after`, counted.
pub(crate) async fn count_rows<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
    after: i64,
) -> Result<Vec<Counted>, DbError> {
    let args = Args::<D>::new().text(campaign.as_str()).int(after);
    sql::fetch_all(conn, &COUNTS_BY_ROWS, args, read_counted).await
}

/// Moves updates that wait from stage to stage: each stage by its number, which add up to nothing.
pub(crate) async fn shift_pending<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
    action: Action,
    stages: &BTreeMap<u16, i64>,
) -> Result<(), DbError> {
    for (stage, by) in stages.iter().filter(|(_, by)| **by != 0) {
        let args = Args::new()
            .text(campaign.as_str())
            .text(action.name())
            .int(i64::from(*stage));
        if sql::execute::<D>(conn, &SHIFT_PENDING, args.int(*by)).await? == 0 {
            return Err(DbError::corrupt(format!(
                "campaign {campaign} has no counter for stage {stage}"
            )));
        }
    }
    Ok(())
}

fn read_counter<D: Dialect>(row: &Record<'_, D>) -> Result<(Action, i64, Tally), DbError> {
    let tally = Tally {
        pending: row.uint("pending")?,
        in_flight: row.uint("in_flight")?,
        staged: row.uint("staged")?,
        completed: row.uint("completed")?,
        regressed: row.uint("regressed")?,
        failed: row.uint("failed")?,
        cancelled: row.uint("cancelled")?,
    };
    let action = sql::present("action", Action::from_name(row.text("action")?))?;
    Ok((action, row.int("stage")?, tally))
}

/// By how much a counter row moves.
#[derive(Default)]
struct Moves {
    groups: BTreeMap<Group, i64>,
    regressed: i64,
    regressed_at: Option<Timestamp>,
}

/// Moves counters: each delta as many times as its number.
pub(crate) async fn add<D: Dialect>(
    conn: &mut D::Connection,
    deltas: &[(Delta, u64)],
) -> Result<(), DbError> {
    // Summed and in key order: one statement a counter row, and the same order of locks in every transaction.
    let mut rows: BTreeMap<(&str, &str, u16), Moves> = BTreeMap::new();
    for (delta, times) in deltas {
        let times = i64::try_from(*times).unwrap_or(i64::MAX);
        let row = rows
            .entry((delta.campaign.as_str(), delta.action.name(), delta.stage))
            .or_default();
        if let Some(from) = delta.from {
            *row.groups.entry(from).or_default() -= times;
        }
        *row.groups.entry(delta.to).or_default() += times;
        if let Some(at) = delta.regressed {
            row.regressed += times;
            row.regressed_at = row.regressed_at.max(Some(at));
        }
    }
    for ((campaign, action, stage), moves) in rows {
        let args = Args::new()
            .text(campaign)
            .text(action)
            .int(i64::from(stage));
        // In the order of the statement's parameters.
        let args = Group::ALL.iter().fold(args, |args, group| {
            args.int(moves.groups.get(group).copied().unwrap_or(0))
        });
        let args = args.int(moves.regressed).time(moves.regressed_at);
        if (moves.regressed > 0 || moves.groups.values().any(|by| *by != 0))
            && sql::execute::<D>(conn, &ADD_COUNTS, args).await? == 0
        {
            return Err(DbError::corrupt(format!(
                "campaign {campaign} has no counter for stage {stage}"
            )));
        }
    }
    Ok(())
}

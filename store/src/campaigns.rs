//! Campaigns: their rows, as spec and state in JSON beside the few columns that lists look at.

use device_ota_domain::campaign::{Campaign, Named};
use device_ota_domain::page::Page;
use device_ota_domain::{CampaignId, FirmwareId};
use device_ota_engine::ports::store::CampaignFilter;
use jiff::Timestamp;

use crate::counts;
use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, statements, to_json};

macro_rules! select_campaign {
    ($rest:literal) => {
        concat!(
            "SELECT c.campaign_id, c.spec, c.state, c.approval, c.target_count, c.revision, c.created_at, c.updated_at, \
             c.created_by, c.next_offer_at, c.readings, c.deleted_at FROM update_campaigns c ",
            $rest
        )
    };
}

statements! {
    CAMPAIGN = select_campaign!("WHERE c.campaign_id = $1");
    CAMPAIGN_LOCKED = select_campaign!("WHERE c.campaign_id = $1 {for_update}");
    CAMPAIGNS = select_campaign!(
        "WHERE (CAST($3 AS TEXT) IS NULL OR c.status = $3) AND (CAST($4 AS BIGINT) IS NULL OR c.priority = $4) \
         AND (CAST($5 AS TEXT) IS NULL OR c.firmware_id = $5) AND c.deleted_at IS NULL \
         ORDER BY c.number DESC LIMIT $1 OFFSET $2"
    );
    CAMPAIGNS_OFFERING = select_campaign!(
        "WHERE c.status IN ('in_progress', 'paused') AND c.firmware_id = $1 ORDER BY c.number {for_update}"
    );
    RING_DEPLOYMENT = select_campaign!(
        "WHERE c.firmware_id = $1 AND c.ring_deployment = 1 AND c.deleted_at IS NULL \
         ORDER BY c.number DESC LIMIT 1 {for_update}"
    );
    CAMPAIGNS_TO_PLAN = select_campaign!(
        "WHERE c.status IN ('in_progress', 'paused', 'rolling_back') OR (c.status = 'cancelled' AND EXISTS ( \
         SELECT 1 FROM campaign_stages s WHERE s.campaign_id = c.campaign_id AND s.pending + s.in_flight + s.staged > 0)) \
         OR (c.status = 'completed' AND c.deleted_at IS NULL AND c.campaign_id IN ( \
             SELECT s.campaign_id FROM campaign_stages s WHERE s.regressed_at > $1)) \
         OR (c.status = 'rolled_back' AND (SELECT SUM(CASE WHEN s.action = 'update' THEN s.completed \
             ELSE -(s.pending + s.in_flight + s.staged + s.completed + s.failed + s.cancelled) END) \
             FROM campaign_stages s WHERE s.campaign_id = c.campaign_id) > 0) \
         ORDER BY c.priority DESC, c.number"
    );
    // Of the same model as the image `$3`, or of any: devices have one model each.
    RIVALS = select_campaign!(
        "WHERE (c.status = 'rolling_back' OR (c.status = 'in_progress' AND c.priority >= $2)) AND c.campaign_id <> $1 \
         AND EXISTS (SELECT 1 FROM campaign_stages s WHERE s.campaign_id = c.campaign_id AND s.pending > 0) \
         AND (CAST($3 AS TEXT) IS NULL OR (SELECT f.device_model FROM firmware f WHERE f.firmware_id = c.firmware_id) \
             = (SELECT f.device_model FROM firmware f WHERE f.firmware_id = $3)) ORDER BY c.number"
    );
    CAMPAIGNS_WATCHED = select_campaign!(
        "WHERE c.status = 'completed' AND c.deleted_at IS NULL AND EXISTS (SELECT 1 FROM device_updates u \
         WHERE u.campaign_id = c.campaign_id AND u.watch_until IS NOT NULL) ORDER BY c.number"
    );
    INSERT_CAMPAIGN = "INSERT INTO update_campaigns (campaign_id, firmware_id, status, priority, spec, state, \
         target_count, revision, created_at, updated_at, created_by, approval, ring_deployment) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
    SAVE_CAMPAIGN = "UPDATE update_campaigns SET status = $3, state = $4, target_count = $5, updated_at = $6, \
         approval = $7, deleted_at = $8, revision = revision + 1 WHERE campaign_id = $1 AND revision = $2";
    PACE = "UPDATE update_campaigns SET next_offer_at = $2 WHERE campaign_id = $1";
    NAMED = "SELECT n.named FROM campaign_names n WHERE n.campaign_id = $1";
    FORGET_NAMED = "DELETE FROM campaign_names WHERE campaign_id = $1";
    SAVE_NAMED = "INSERT INTO campaign_names (campaign_id, named) VALUES ($1, $2)";
    REPLACE_SPEC = "UPDATE update_campaigns SET firmware_id = $2, priority = $3, spec = $4 WHERE campaign_id = $1";
}

/// One campaign.
pub(crate) async fn campaign<D: Dialect>(
    conn: &mut D::Connection,
    id: &CampaignId,
) -> Result<Option<Campaign>, DbError> {
    sql::fetch_optional(
        conn,
        &CAMPAIGN,
        Args::<D>::new().text(id.as_str()),
        read_campaign,
    )
    .await
}

/// One campaign, locked until the transaction ends.
pub(crate) async fn locked<D: Dialect>(
    conn: &mut D::Connection,
    id: &CampaignId,
) -> Result<Option<Campaign>, DbError> {
    let args = Args::<D>::new().text(id.as_str());
    sql::fetch_optional(conn, &CAMPAIGN_LOCKED, args, read_campaign).await
}

/// Whom a campaign names.
pub(crate) async fn named<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &Campaign,
) -> Result<Named, DbError> {
    if !campaign.spec.names_devices() {
        return Ok(Named::default());
    }
    let args = Args::<D>::new().text(campaign.id.as_str());
    let named = sql::fetch_optional(conn, &NAMED, args, |row| row.json("named")).await?;
    named.ok_or_else(|| DbError::corrupt("a campaign that names devices, and none of them"))
}

/// Writes whom a campaign names.
pub(crate) async fn save_named<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
    named: &Named,
) -> Result<(), DbError> {
    let id = || Args::<D>::new().text(campaign.as_str());
    sql::execute::<D>(conn, &FORGET_NAMED, id()).await?;
    if !named.is_empty() {
        let named = to_json(named)?;
        sql::execute::<D>(conn, &SAVE_NAMED, id().text(named.as_str())).await?;
    }
    Ok(())
}

/// Campaigns, newest first.
pub(crate) async fn list<D: Dialect>(
    conn: &mut D::Connection,
    filter: &CampaignFilter,
    page: Page,
) -> Result<Vec<Campaign>, DbError> {
    let args = Args::<D>::new()
        .page(page)
        .text(filter.status.as_deref())
        .int(filter.priority.map(|priority| i64::from(priority.rank())))
        .text(filter.firmware.as_ref().map(FirmwareId::as_str));
    sql::fetch_all(conn, &CAMPAIGNS, args, read_campaign).await
}

/// Campaigns that offer this firmware, locked.
pub(crate) async fn offering<D: Dialect>(
    conn: &mut D::Connection,
    firmware: &FirmwareId,
) -> Result<Vec<Campaign>, DbError> {
    let args = Args::<D>::new().text(firmware.as_str());
    sql::fetch_all(conn, &CAMPAIGNS_OFFERING, args, read_campaign).await
}

/// The newest campaign that deploys this firmware ring by ring, locked.
pub(crate) async fn ring_deployment<D: Dialect>(
    conn: &mut D::Connection,
    firmware: &FirmwareId,
) -> Result<Option<Campaign>, DbError> {
    let args = Args::<D>::new().text(firmware.as_str());
    sql::fetch_optional(conn, &RING_DEPLOYMENT, args, read_campaign).await
}

/// Campaigns that the planner still has something to do with, or has again since one of their devices has regressed.
pub(crate) async fn to_plan<D: Dialect>(
    conn: &mut D::Connection,
    regressed_since: Timestamp,
) -> Result<Vec<Campaign>, DbError> {
    let args = Args::<D>::new().time(regressed_since);
    sql::fetch_all(conn, &CAMPAIGNS_TO_PLAN, args, read_campaign).await
}

/// Campaigns of which something waits that may go before what waits of this one, or of none.
pub(crate) async fn rivals<D: Dialect>(
    conn: &mut D::Connection,
    campaign: Option<&Campaign>,
) -> Result<Vec<Campaign>, DbError> {
    // What is of no campaign waits for none that goes forward.
    let priority = campaign.map_or(i64::MAX, |c| i64::from(c.spec.priority.rank()));
    let args = Args::<D>::new()
        .text(campaign.map_or("", |campaign| campaign.id.as_str()))
        .int(priority)
        .text(campaign.map(|campaign| campaign.spec.firmware_id.as_str()));
    sql::fetch_all(conn, &RIVALS, args, read_campaign).await
}

/// Campaigns that have completed and whose devices are watched.
pub(crate) async fn watched<D: Dialect>(
    conn: &mut D::Connection,
) -> Result<Vec<Campaign>, DbError> {
    sql::fetch_all(conn, &CAMPAIGNS_WATCHED, Args::<D>::new(), read_campaign).await
}

/// Inserts a campaign and its stages, with counters of zero.
pub(crate) async fn insert<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &Campaign,
) -> Result<(), DbError> {
    let (spec, state) = (to_json(&campaign.spec)?, to_json(&campaign.state)?);
    let approval = to_json(&campaign.approval)?;
    let args = Args::new()
        .text(campaign.id.as_str())
        .text(campaign.spec.firmware_id.as_str())
        .text(campaign.state.status())
        .int(i64::from(campaign.spec.priority.rank()))
        .text(spec.as_str())
        .text(state.as_str())
        .uint(campaign.target_count)
        .int(campaign.revision)
        .time(campaign.created_at)
        .time(campaign.updated_at)
        .text(campaign.created_by.as_str())
        .text(approval.as_str())
        .flag(campaign.spec.ring_deployment);
    sql::execute::<D>(conn, &INSERT_CAMPAIGN, args).await?;
    counts::insert_stages::<D>(conn, campaign).await
}

/// Writes what the campaign shall do, and makes its stages anew.
pub(crate) async fn replace_spec<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &Campaign,
) -> Result<(), DbError> {
    let spec = to_json(&campaign.spec)?;
    let args = Args::new()
        .text(campaign.id.as_str())
        .text(campaign.spec.firmware_id.as_str())
        .int(i64::from(campaign.spec.priority.rank()))
        .text(spec.as_str());
    sql::execute::<D>(conn, &REPLACE_SPEC, args).await?;
    counts::delete_stages::<D>(conn, &campaign.id).await?;
    counts::insert_stages::<D>(conn, campaign).await
}

/// Writes what changes of a campaign, and raises its revision.
pub(crate) async fn save<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &Campaign,
) -> Result<(), DbError> {
    let (state, approval) = (to_json(&campaign.state)?, to_json(&campaign.approval)?);
    let args = Args::new()
        .text(campaign.id.as_str())
        .int(campaign.revision)
        .text(campaign.state.status())
        .text(state.as_str())
        .uint(campaign.target_count)
        .time(campaign.updated_at)
        .text(approval.as_str())
        .time(campaign.deleted_at);
    match sql::execute::<D>(conn, &SAVE_CAMPAIGN, args).await? {
        0 => Err(DbError::Conflict("the campaign")),
        _ => Ok(()),
    }
}

/// Writes when the campaign's next offer is due.
pub(crate) async fn pace<D: Dialect>(
    conn: &mut D::Connection,
    campaign: &CampaignId,
    next_offer_at: Timestamp,
) -> Result<(), DbError> {
    let args = Args::new().text(campaign.as_str()).time(next_offer_at);
    sql::execute::<D>(conn, &PACE, args).await.map(drop)
}

fn read_campaign<D: Dialect>(row: &Record<'_, D>) -> Result<Campaign, DbError> {
    Ok(Campaign {
        id: row.parse("campaign_id")?,
        spec: row.json("spec")?,
        state: row.json("state")?,
        approval: row.json("approval")?,
        target_count: row.uint("target_count")?,
        revision: row.int("revision")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        created_by: row.string("created_by")?,
        next_offer_at: row.time_opt("next_offer_at")?,
        readings: match row.text_opt("readings")? {
            Some(_) => row.json("readings")?,
            None => Vec::new(),
        },
        deleted_at: row.time_opt("deleted_at")?,
    })
}

#[cfg(test)]
mod tests {
    use device_ota_domain::campaign::{Approval, CampaignDraft, CampaignState};
    use device_ota_domain::ring::Shares;
    use serde_json::{Value, json};

    use super::*;
    use crate::SqlStore;
    use crate::sql::Statement;
    use crate::testing::{PostgresDatabase, SqliteDatabase};

    const IMAGE: &str = r"INSERT INTO firmware (firmware_id, name, version, device_model, manufacturer, is_beta,
        is_security_update, metadata, format, size, sha256, md5, release_envelope, release_sha256, created_at, updated_at,
        created_by) VALUES ('770987aca3a746dfa5bef4f8b0e59f22', 'n', '1', 'm', '', 0, 0, '{}', '', 1, '', '', '', '', 0, 0, '')";

    static OLD_SPEC: Statement = Statement::new(
        "OLD_SPEC",
        &[],
        "UPDATE update_campaigns SET spec = $2 WHERE campaign_id = $1",
    );

    fn campaign(number: u8, fields: &Value) -> (Campaign, Named) {
        let mut draft =
            json!({"name": "spring", "firmware_id": "770987aca3a746dfa5bef4f8b0e59f22"});
        let members = draft.as_object_mut().expect("an object");
        members.extend(fields.as_object().expect("an object").clone());
        let draft: CampaignDraft = serde_json::from_value(draft).expect("a draft");
        let named = draft.named();
        let at = Timestamp::UNIX_EPOCH;
        let campaign = Campaign {
            id: CampaignId::from_entropy([number; 8]),
            spec: draft.into_spec(10.0, 0, Shares::default()).expect("a spec"),
            state: CampaignState::Created,
            approval: Approval::NotRequired,
            target_count: 0,
            revision: 0,
            created_at: at,
            updated_at: at,
            created_by: "admin".into(),
            next_offer_at: None,
            readings: Vec::new(),
            deleted_at: None,
        };
        (campaign, named)
    }

    /// The spec as it was kept when it held the names.
    fn old(campaign: &Campaign, named: &Named) -> String {
        let mut spec = serde_json::to_value(&campaign.spec).expect("serializes");
        let mut put = |at: &str, value| *spec.pointer_mut(at).expect("is there") = value;
        let targets = json!({"devices": named.targets, "groups": [], "filter": null});
        put("/targets", targets);
        for (stage, devices) in &named.stages {
            let takes = json!({ "devices": devices });
            put(&format!("/stages/{stage}/takes"), takes);
        }
        spec.to_string()
    }

    /// The migration's own statements take the names out of the specs there are.
    async fn taken_out<D: Dialect>(store: &SqlStore<D>, migration: &str) {
        let mut conn = store.writer.acquire().await.expect("a connection");
        D::batch(&mut conn, IMAGE.to_owned()).await.expect("runs");
        let campaigns = [
            json!({}),
            json!({"target_devices": ["b", "a", "c"]}),
            json!({"stages": [{"percent": 0.5}, {"devices": ["d", "a"]}, {"count": 5}, {"devices": ["e"]}]}),
            json!({"target_devices": ["x"], "stages": [{"devices": ["d"]}]}),
        ];
        let campaigns = (1..).zip(&campaigns);
        let campaigns: Vec<_> = campaigns.map(|(n, json)| campaign(n, json)).collect();
        for (campaign, named) in &campaigns {
            insert::<D>(&mut conn, campaign).await.expect("is new");
            let (id, spec) = (campaign.id.as_str(), old(campaign, named));
            let args = Args::<D>::new().text(id).text(spec.as_str());
            sql::execute::<D>(&mut conn, &OLD_SPEC, args)
                .await
                .expect("runs");
        }
        let (_, take_out) = migration.split_once(");\n").expect("the table is there");
        D::batch(&mut conn, take_out.to_owned())
            .await
            .expect("runs");
        for (made, names) in &campaigns {
            let found = super::campaign::<D>(&mut conn, &made.id)
                .await
                .expect("reads");
            assert_eq!(found.as_ref(), Some(made));
            let found = super::named::<D>(&mut conn, made).await.expect("reads");
            assert_eq!(found, *names);
        }
    }

    #[tokio::test]
    async fn the_migration_takes_names_out_of_specs_on_sqlite() {
        let database = SqliteDatabase::new();
        let store = database.open().await;
        let migration = include_str!("../../migrations/sqlite/0029_campaign_names.sql");
        taken_out(&store, migration.replace(") STRICT;\n", ");\n").as_str()).await;
        store.close().await;
    }

    #[tokio::test]
    async fn the_migration_takes_names_out_of_specs_on_postgres() {
        let database = PostgresDatabase::create().await;
        let store = database.open().await;
        let migration = include_str!("../../migrations/postgres/0029_campaign_names.sql");
        taken_out(&store, migration).await;
        store.close().await;
    }
}

//! Tests that the statements which run all the time find their rows by an index on both databases, in a large fleet.

use device_ota_domain::CampaignId;
use device_ota_domain::campaign::{Group, OpenFor, Priority, Requires};
use device_ota_domain::device::DeviceKey;
use device_ota_domain::page::Page;
use device_ota_domain::planner::Claim;
use device_ota_domain::ring::Ring;
use device_ota_domain::update::{Action, Phase};
use device_ota_engine::ports::replicas::ReplicaKey;
use device_ota_engine::ports::store::{Ahead, ClaimQuery, Prior, UpdateFilter};
use device_ota_engine::ports::telemetry::{DeviceFilter, Telemetry as _};
use jiff::Timestamp;
use sqlx::SqlSafeStr as _;
use sqlx::{AssertSqlSafe, SqlStr};

use crate::days::DAY;
use crate::sql::{Args, Statement};
use crate::testing::{PostgresDatabase, SqliteDatabase};
use crate::{
    Dialect, SqlStore, campaigns, counts, devices, dispatch, figures, history, lists, outbox,
    presence, rollbacks, updates, vitals,
};

/// Devices of the fleet, each with an update of one campaign and one of none: so many that to read them all never pays for a few
/// hundred that are due.
const DEVICES: u32 = 40_000;

/// A fleet in rows made by the database itself: 1 % of the updates in flight, half of the rest ended, the last half due.
fn fleet(series: &str) -> String {
    format!(
        "INSERT INTO devices (device_id, device_model, firmware_version, group_names, tags, bucket, verifier, \
             registered_at) SELECT 'd' || n, 'm', '1', '[]', '{{}}', n % 10000, '', 0 FROM {series};
         INSERT INTO device_latest (device_key, online, session) SELECT device_key, 1, 1 FROM devices;
         INSERT INTO device_seqs (device_key) SELECT device_key FROM devices;
         INSERT INTO device_groups (group_name, device_key) SELECT 'g' || (device_key % 100), device_key FROM devices;
         INSERT INTO firmware (firmware_id, name, version, device_model, manufacturer, is_beta, is_security_update, \
             metadata, format, size, sha256, md5, release_envelope, release_sha256, created_at, updated_at, created_by) \
             VALUES ('f', 'n', '2', 'm', '', 0, 0, '{{}}', 'bin', 1, 's', 'm', '', '', 0, 0, '');
         INSERT INTO update_campaigns (campaign_id, firmware_id, status, priority, spec, state, target_count, revision, \
             created_at, updated_at, created_by) VALUES ('camp_1', 'f', 'in_progress', 1, '{{}}', '{{}}', 1, 0, 0, 0, '');
         INSERT INTO device_updates (update_id, device_key, device_id, campaign_id, action, firmware_id, to_version, \
             stage, priority, max_retries, timeout_seconds, state, due_at, check_at, nudge_at, ended_at, watch_until, phase, since, \
             lease_until, deadline, created_at, updated_at) \
             SELECT 'upd_' || k || '_' || device_key, device_key, device_id, CASE WHEN k = 1 THEN 'camp_1' END, \
             'update', 'f', '2', device_key % 4, 1, 3, 60, \
             CASE WHEN k = 1 AND device_key % 100 = 0 THEN 'in_flight' WHEN device_key % 2 = 0 THEN 'completed' \
                 ELSE 'pending' END, \
             CASE WHEN device_key % 2 = 1 THEN device_key END, \
             CASE WHEN k = 1 AND device_key % 100 = 0 THEN device_key END, \
             CASE WHEN k = 1 AND device_key % 100 = 0 THEN device_key END, \
             CASE WHEN device_key % 2 = 0 THEN 1 END, \
             CASE WHEN k = 2 AND device_key % 2 = 0 THEN 1 END, 'offered', 1, 1, 1, 0, 0 \
             FROM devices, (SELECT 1 AS k UNION ALL SELECT 2) AS kinds;
         INSERT INTO device_heartbeats (device_key, received_at, payload) SELECT device_key, device_key, '{{}}' FROM devices;
         INSERT INTO heartbeat_segments (segment, last_number, first_at, last_at) \
             SELECT device_key, device_key * 200, 0, {DEVICES} FROM devices WHERE device_key <= {DEVICES} / 200;
         INSERT INTO heartbeat_index (segment, device_key, number) \
             SELECT (number - 1) / 200 + 1, device_key, number FROM device_heartbeats;
         INSERT INTO outbox (event_type, entity, data, at) SELECT 'e', 'x', '{{}}', 0 FROM devices;
         INSERT INTO outbox_places (sink, place) VALUES ('bus', {DEVICES} - 10);"
    )
}

/// A claim as in daily life.
fn claim() -> ClaimQuery {
    ClaimQuery {
        campaign: "camp_0000000000000001".parse().expect("an id"),
        action: Action::Update,
        up_to_stage: 1,
        limit: 100,
        here: Some(ReplicaKey(1)),
        now: Timestamp::from_microsecond(1_000).expect("a time"),
        requires: Requires::default(),
        hold: false,
        open_for: OpenFor::All,
        offers: true,
        busy: Vec::new(),
        ahead: Ahead::default(),
    }
}

/// The hot statements, each with values as in daily life.
fn hot<D: Dialect>() -> Vec<(&'static Statement, Args<D>)> {
    let now = Timestamp::from_microsecond(1_000).expect("a time");
    let claim = claim();
    let page = Page::default();
    vec![
        (&devices::CREDENTIALS, Args::new().text("d77")),
        (
            &devices::MANY_CREDENTIALS,
            Args::new().texts(&["d7", "d77"]),
        ),
        (&devices::DEVICE, Args::new().text("d77")),
        (&devices::DEVICES_BY_KEY, Args::new().ints(&[7, 77])),
        (&devices::ALL_CREDENTIALS, Args::new().text("d77").int(100)),
        (&dispatch::CLAIMABLE, dispatch::bind_claim(&claim)),
        (&dispatch::CLAIMABLE_BACK, dispatch::bind_claim(&claim)),
        (
            &dispatch::CLAIMABLE_SINGLE,
            dispatch::bind_single_claim(Action::Update, now, 100, Some(ReplicaKey(1))),
        ),
        (&dispatch::NEWEST_OPEN, Args::new().int(77).int(9)),
        (&dispatch::DUE_SINGLE, Args::new().time(now).int(1)),
        (&dispatch::ANY_SINGLE, Args::new()),
        (&dispatch::WAITING, Args::new().ints(&[7, 77])),
        (&dispatch::IN_FLIGHT, Args::new().int(77)),
        (&dispatch::IN_FLIGHT_LOCKED, Args::new().ints(&[7, 77, 777])),
        (
            &dispatch::CANCELLABLE,
            Args::new().text("camp_1").int(100).text("update").int(1),
        ),
        (
            &dispatch::UNANSWERED,
            Args::new().time(now).int(100).time(now).int(1),
        ),
        (&dispatch::EXPIRED, Args::new().time(now).int(100).int(1)),
        (&updates::UPDATE, Args::new().text("upd_1_7")),
        (
            &updates::UPDATES,
            Args::new().texts(&["upd_1_7", "upd_2_7"]),
        ),
        (
            &updates::UPDATES_LOCKED,
            Args::new().texts(&["upd_1_7", "upd_2_7"]),
        ),
        (
            &rollbacks::ROLLBACKS_OF_CAMPAIGN,
            Args::new().page(page).text("camp_1"),
        ),
        (&campaigns::CAMPAIGN, Args::new().text("camp_1")),
        (&counts::COUNTS, Args::new().text("camp_1")),
        (&counts::UNANSWERED, Args::new().text("camp_1")),
        (
            &outbox::TELL_CANCELLED,
            Args::new().ints(&[7, 77, 777]).text("1970").time(now),
        ),
        (
            &presence::DRAW_SEQS,
            Args::new().ints(&[DeviceKey(7).0, 77]),
        ),
        (&presence::RESET_PRESENCE, Args::new().time(now)),
        (
            &history::HEARTBEATS_INDEXED,
            Args::new()
                .int(100)
                .int(77)
                .int(i64::MIN)
                .int(i64::MAX)
                .page(page),
        ),
        (
            &history::HEARTBEATS_BEHIND,
            Args::new()
                .int(1_000_000)
                .int(77)
                .int(i64::MIN)
                .int(i64::MAX)
                .int(50),
        ),
    ]
}

/// A claim of a campaign that others go before.
fn claim_behind() -> ClaimQuery {
    let prior = |campaign: u8| Prior {
        campaign: CampaignId::from_entropy([campaign; 8]),
        wants: Claim {
            action: Action::Update,
            up_to_stage: 1,
            hold: false,
            open_for: OpenFor::AllBut(vec!["Asia/Tokyo".into()]),
            offers: true,
        },
        requires: Requires {
            min_battery_percent: Some(20),
            min_free_storage_bytes: Some(1_000),
        },
        by_age: true,
    };
    ClaimQuery {
        ahead: Ahead {
            campaigns: vec![prior(1), prior(2)],
            singles: true,
        },
        ..claim()
    }
}

/// Those that such a claim makes.
fn of_claims_behind<D: Dialect>() -> impl Iterator<Item = (String, SqlStr, Args<D>)> {
    let of = |statement: &'static Statement| {
        let (condition, args) = dispatch::conditions::<D>(&claim_behind(), &[]);
        let text = statement.text_given::<D>((&condition).into());
        (format!("{} behind others", statement.name), text, args)
    };
    [&dispatch::CLAIMABLE, &dispatch::CLAIMABLE_STAGED]
        .into_iter()
        .map(of)
}

/// Those of devices that hold an image.
fn of_held<D: Dialect>() -> Vec<(&'static Statement, Args<D>)> {
    let claim = claim();
    vec![
        (&dispatch::CLAIMABLE_STAGED, dispatch::bind_claim(&claim)),
        (&dispatch::HELD_LOCKED, Args::new().ints(&[7, 77, 777])),
        (&dispatch::BUSY_WITH, Args::new().ints(&[7, 77])),
    ]
}

/// Those of devices that have completed and are watched.
fn of_watched<D: Dialect>() -> Vec<(&'static Statement, Args<D>)> {
    vec![
        (&dispatch::WATCHED_LOCKED, Args::new().ints(&[7, 77, 777])),
        (
            &dispatch::SUPERSEDED,
            Args::new().texts(&["upd_1_7", "upd_2_7"]),
        ),
        (&dispatch::END_WATCHES, Args::new().ints(&[7, 77])),
        (
            &vitals::COMPLETED_SAMPLE,
            Args::new().text("camp_1").int(0).int(100),
        ),
        (&vitals::WAITING_SAMPLE, Args::new().text("camp_1").int(100)),
    ]
}

/// Those of statistics.
fn of_figures<D: Dialect>() -> Vec<(&'static Statement, Args<D>)> {
    vec![
        (&figures::FIGURES_OF_CAMPAIGN, Args::new().text("camp_1")),
        (&counts::FAILURES, Args::new().text("camp_1")),
        (&figures::ENDS_SINCE, Args::new().int(7)),
    ]
}

/// The same for events, and for what is told by them.
fn hot_events<D: Dialect>() -> Vec<(&'static Statement, Args<D>)> {
    let now = Timestamp::from_microsecond(1_000).expect("a time");
    vec![
        (&outbox::EVENTS_FOR, Args::new().text("bus").int(100)),
        (&outbox::EVENTS_AFTER, Args::new().int(77).int(100)),
        (&outbox::EVENTS_KEPT, Args::new()),
        (&presence::AWAY, Args::new().time(now).int(100)),
    ]
}

/// Lists of updates, each with the index that SQLite finds them by; without one, in the order of their numbers, from the
/// end until the page is full.
fn lists_of_updates() -> Vec<(UpdateFilter, Option<&'static str>)> {
    let all = UpdateFilter::default;
    let of_device = UpdateFilter {
        device: Some("d77".parse().expect("an id")),
        ..all()
    };
    let of_campaign = UpdateFilter {
        campaign: Some(CampaignId::from_entropy([1; 8])),
        ..all()
    };
    let of_firmware = UpdateFilter {
        firmware: Some("0".repeat(32).parse().expect("an id")),
        ..all()
    };
    let in_group = |group| UpdateFilter {
        group: Some(group),
        ..all()
    };
    let in_phase = |phase| UpdateFilter {
        phase: Some(phase),
        ..all()
    };
    let of_priority = |priority| UpdateFilter {
        priority: Some(priority),
        ..all()
    };
    vec![
        (all(), None),
        (of_device, Some("device_updates_of_device")),
        (of_campaign, Some("device_updates_of_campaign")),
        (of_firmware, Some("device_updates_of_firmware")),
        (in_group(Group::Pending), Some("device_updates_pending")),
        (in_group(Group::InFlight), Some("device_updates_live")),
        (in_group(Group::Completed), Some("device_updates_completed")),
        (in_group(Group::Failed), Some("device_updates_failed")),
        (in_group(Group::Cancelled), Some("device_updates_cancelled")),
        (in_group(Group::Staged), Some("device_updates_staged")),
        (in_phase(Phase::Downloading), Some("device_updates_live")),
        (in_phase(Phase::Staged), Some("device_updates_live")),
        (of_priority(Priority::Low), Some("device_updates_low")),
        (of_priority(Priority::Normal), None),
        (of_priority(Priority::High), Some("device_updates_high")),
        (
            of_priority(Priority::Critical),
            Some("device_updates_critical"),
        ),
    ]
}

/// Lists of devices, likewise, each with what its plan says.
fn lists_of_devices() -> Vec<(DeviceFilter, &'static str)> {
    let all = DeviceFilter::default;
    let some = || Some("some".to_owned());
    let of_model = DeviceFilter {
        device_model: some(),
        ..all()
    };
    let of_type = DeviceFilter {
        device_type: some(),
        ..all()
    };
    let of_maker = DeviceFilter {
        manufacturer: some(),
        ..all()
    };
    let in_group = DeviceFilter {
        group: some(),
        ..all()
    };
    let in_ring = DeviceFilter {
        ring: Some(Ring::Canary),
        ..all()
    };
    vec![
        (of_model, "devices_by_model"),
        (of_type, "devices_by_type"),
        (of_maker, "devices_by_manufacturer"),
        (in_group, "SEARCH g USING PRIMARY KEY (group_name=?)"),
        (in_ring, "devices_by_ring"),
    ]
}

/// The statements of all these lists, each with its filter as its name.
fn of_lists<D: Dialect>() -> Vec<(String, SqlStr, Args<D>)> {
    let page = Page::default();
    let updates = lists_of_updates().into_iter().map(|(filter, _)| {
        let (statement, asked) = lists::ask_updates::<D>(&filter, page);
        let (condition, args) = asked.finish();
        let text = statement.text_given::<D>((&condition).into());
        (format!("{filter:?}"), text, args)
    });
    let devices = lists_of_devices().into_iter().map(|(filter, _)| {
        let asked = lists::ask_devices::<D>(Args::new().page(page), 2, &filter);
        let (condition, args) = asked.finish();
        let text = lists::DEVICES.text_given::<D>((&condition).into());
        (format!("{filter:?}"), text, args)
    });
    updates.chain(devices).collect()
}

/// The plans of all hot statements and lists, by name.
async fn plans<D: Dialect>(
    store: &SqlStore<D>,
    explain: &str,
    column: &str,
) -> Vec<(String, String)> {
    let mut conn = store.writer.acquire().await.expect("a connection");
    let mut plans = Vec::new();
    let hot = hot::<D>().into_iter().chain(of_held()).chain(of_figures());
    let hot = hot
        .chain(of_watched())
        .chain(hot_events())
        .map(|(statement, args)| (statement.name.to_owned(), statement.text::<D>(), args));
    for (name, text, args) in hot.chain(of_claims_behind()).chain(of_lists()) {
        let plan = plan::<D>(&mut conn, explain, column, (&name, text, args)).await;
        plans.push((name, plan));
    }
    plans
}

/// The plan of one statement.
async fn plan<D: Dialect>(
    conn: &mut D::Connection,
    explain: &str,
    column: &str,
    (name, text, args): (&str, SqlStr, Args<D>),
) -> String {
    let text = format!("{explain} {}", text.as_str());
    let args = args.finish().expect("arguments encode");
    let rows = D::fetch_all(conn, AssertSqlSafe(text).into_sql_str(), args).await;
    let lines: Vec<String> = rows
        .unwrap_or_else(|error| panic!("{name}: {error}"))
        .iter()
        .map(|row| {
            D::text(row, column)
                .ok()
                .flatten()
                .unwrap_or_default()
                .to_owned()
        })
        .collect();
    lines.join("\n")
}

/// What looks at every row of a table that grows with the fleet.
fn offenders(plans: &[(String, String)], scans: impl Fn(&str) -> bool) -> Vec<String> {
    plans
        .iter()
        .filter(|(_, plan)| plan.lines().any(&scans))
        .map(|(name, plan)| format!("{name}:\n{plan}"))
        .collect()
}

#[tokio::test]
async fn no_hot_statement_scans_a_table_on_sqlite() {
    let database = SqliteDatabase::new();
    let store = database.open().await;
    let series = format!(
        "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {DEVICES}) SELECT n FROM s)"
    );
    let mut conn = store.writer.acquire().await.expect("a connection");
    sqlx::Sqlite::batch(&mut conn, fleet(&series))
        .await
        .expect("the fleet is made");
    drop(conn);
    let plans = plans(&store, "EXPLAIN QUERY PLAN", "detail").await;
    let scans = |line: &str| {
        line.starts_with("SCAN")
            && !["INDEX", "json_each", "CONSTANT ROW"]
                .iter()
                .any(|harmless| line.contains(harmless))
    };
    let (updates, devices) = (lists_of_updates(), lists_of_devices());
    let walked = |name: &str| {
        let mut lists = updates.iter();
        lists.any(|(filter, index)| index.is_none() && name == format!("{filter:?}"))
    };
    let (walked, searched): (Vec<_>, Vec<_>) =
        plans.into_iter().partition(|(name, _)| walked(name));
    assert_eq!(offenders(&searched, scans), Vec::<String>::new());
    for (name, plan) in walked {
        assert_eq!(plan, "SCAN u", "{name} is in order and needs no sorting");
    }
    let updates = updates
        .iter()
        .filter_map(|(filter, index)| Some((format!("{filter:?}"), (*index)?)));
    let devices = devices
        .iter()
        .map(|(filter, index)| (format!("{filter:?}"), *index));
    for (list, index) in updates.chain(devices) {
        let (_, plan) = searched.iter().find(|(name, _)| *name == list).expect("is");
        assert!(plan.contains(index), "{list}: {plan}");
    }
    // A large backlog is not sorted anew for each claim of it.
    let sorts = |(name, plan): &&(String, String)| {
        name.starts_with("CLAIMABLE") && plan.contains("ORDER BY")
    };
    assert_eq!(searched.iter().find(sorts), None);
    store.close().await;
}

#[tokio::test]
async fn no_hot_statement_scans_a_table_on_postgres() {
    let database = PostgresDatabase::create().await;
    let store = database.open().await;
    let mut conn = store.writer.acquire().await.expect("a connection");
    let series = format!("generate_series(1, {DEVICES}) AS s(n)");
    sqlx::Postgres::batch(&mut conn, fleet(&series))
        .await
        .expect("the fleet is made");
    // And more of the history, in partitions of days and in the default one.
    let day = Timestamp::from_second(4_102_444_800).expect("a time");
    let made = store.keep_heartbeat_days(day, Timestamp::UNIX_EPOCH).await;
    made.expect("the days are made");
    let more = format!(
        "INSERT INTO device_heartbeats (device_key, received_at, payload) \
         SELECT device_key, {} + device_key % 5 * {DAY}, '{{}}' FROM devices",
        day.as_microsecond()
    );
    let inserted = sqlx::Postgres::batch(&mut conn, more).await;
    inserted.expect("more is made");
    drop(conn);
    for analysed in [false, true] {
        if analysed {
            let mut conn = store.writer.acquire().await.expect("a connection");
            sqlx::Postgres::batch(&mut conn, "ANALYZE".to_owned())
                .await
                .expect("analyses");
        }
        let plans = plans(&store, "EXPLAIN", "QUERY PLAN").await;
        // The whole fleet is online here, so going offline does touch every row; the rest may not.
        let found: Vec<String> = offenders(&plans, |line| line.contains("Seq Scan on device"))
            .into_iter()
            .filter(|plan| !plan.starts_with("RESET_PRESENCE"))
            .collect();
        assert_eq!(found, Vec::<String>::new(), "analysed: {analysed}");
    }
    // Of the partitions, a read touches those of its segments' times.
    let statement = &history::HEARTBEATS_INDEXED;
    let args = Args::new().int(100).int(77).int(i64::MIN).int(i64::MAX);
    let args = args.page(Page::default());
    let read = (statement.name, statement.text::<sqlx::Postgres>(), args);
    let mut conn = store.writer.acquire().await.expect("a connection");
    let plan = plan::<sqlx::Postgres>(&mut conn, "EXPLAIN (ANALYZE)", "QUERY PLAN", read).await;
    let touched: Vec<&str> = plan
        .lines()
        .filter(|line| line.contains(" on device_heartbeats_") && !line.contains("never executed"))
        .collect();
    assert_eq!(touched.len(), 1, "{plan}");
    drop(conn);
    store.close().await;
}

//! The schema's history, embedded in the binary: one list, a text a database under each number.

use std::borrow::Cow;

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// One step of the schema on both databases.
struct Step {
    number: i64,
    name: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

macro_rules! steps {
    ($(($number:literal, $name:literal, $file:literal)),+ $(,)?) => {
        [$(Step {
            number: $number,
            name: $name,
            sqlite: include_str!(concat!("../../migrations/sqlite/", $file)),
            postgres: include_str!(concat!("../../migrations/postgres/", $file)),
        }),+]
    };
}

/// Every step, oldest first. A step that has been released is never edited: the databases remember its checksum.
const STEPS: &[Step] = &steps![
    (1, "initial", "0001_initial.sql"),
    (2, "api keys", "0002_api_keys.sql"),
    (3, "approval and deletion", "0003_approval_and_deletion.sql"),
    (4, "latest telemetry", "0004_latest_telemetry.sql"),
    (9, "rollback timeout", "0009_rollback_timeout.sql"),
    (10, "telemetry", "0010_telemetry.sql"),
    (11, "audit", "0011_audit.sql"),
    (12, "firmware", "0012_firmware.sql"),
    (13, "rings", "0013_rings.sql"),
    (14, "webhooks", "0014_webhooks.sql"),
    (15, "statistics", "0015_statistics.sql"),
    (16, "absence", "0016_absence.sql"),
    (17, "deleted devices", "0017_deleted_devices.sql"),
    (18, "staged", "0018_staged.sql"),
    (19, "pace", "0019_pace.sql"),
    (20, "single claims", "0020_single_claims.sql"),
    (22, "lists", "0022_lists.sql"),
    (23, "regressions", "0023_regressions.sql"),
    (24, "vitals", "0024_vitals.sql"),
    (25, "revisions", "0025_revisions.sql"),
    (29, "campaign names", "0029_campaign_names.sql"),
    (30, "batches", "0030_batches.sql"),
    (31, "continuous", "0031_continuous.sql"),
    (32, "bandwidth", "0032_bandwidth.sql"),
    (33, "storage", "0033_storage.sql"),
    (35, "last boot", "0035_last_boot.sql"),
    (36, "security version", "0036_security_version.sql"),
    (37, "sample of health", "0037_vitals.sql"),
    (39, "times", "0039_times.sql"),
    (40, "rollback permits", "0040_permits.sql"),
    (41, "replicas", "0041_replicas.sql"),
    (42, "days", "0042_days.sql"),
];

/// The steps for SQLite.
pub(crate) fn sqlite() -> Migrator {
    migrator(|step| step.sqlite)
}

/// The steps for PostgreSQL.
pub(crate) fn postgres() -> Migrator {
    migrator(|step| step.postgres)
}

fn migrator(text: impl Fn(&Step) -> &'static str) -> Migrator {
    let migrations = STEPS
        .iter()
        .map(|step| {
            Migration::new(
                step.number,
                Cow::Borrowed(step.name),
                MigrationType::Simple,
                text(step).into_sql_str(),
                false,
            )
        })
        .collect();
    Migrator::with_migrations(migrations)
}

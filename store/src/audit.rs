//! The audit trail: records behind the end of their chain, and read back.

use device_ota_domain::audit::{Act, Entity, Entry, Head, Record as AuditRecord};
use device_ota_domain::page::Page;
use device_ota_engine::ports::audit::{AuditFilter, AuditLog};
use device_ota_engine::ports::error::Result;

use crate::SqlStore;
use crate::dialect::Dialect;
use crate::error::DbError;
use crate::sql::{self, Args, Record, present, statements};

macro_rules! select_record {
    ($rest:literal) => {
        concat!(
            "SELECT number, at, subject, roles, authentication, request_id, peer, action, entity, entity_id, \
             state_before, state_after, prev, hash FROM audit_log ",
            $rest
        )
    };
}

statements! {
    AUDIT = select_record!("WHERE {given} ORDER BY number DESC LIMIT $1 OFFSET $2");
    AUDIT_FROM = select_record!("WHERE number >= $1 ORDER BY number LIMIT $2");
    AUDIT_HEAD = "SELECT number, hash FROM audit_head WHERE one = 1";
    AUDIT_HEAD_LOCKED = "SELECT number, hash FROM audit_head WHERE one = 1 {for_update}";
    APPEND_AUDIT[Int, Int, Text, Text, Text, Text, Text, Text, Text, Text, Text, Text, Text, Text] =
        "INSERT INTO audit_log (number, at, subject, roles, authentication, request_id, peer, action, entity, entity_id, \
         state_before, state_after, prev, hash) VALUES {rows}";
    MOVE_AUDIT_HEAD = "UPDATE audit_head SET number = $1, hash = $2 WHERE one = 1";
}

/// Gives the entries their places in the chain. To be called last in a transaction: from here to its commit, others that
/// append wait.
pub(crate) async fn append<D: Dialect>(
    conn: &mut D::Connection,
    entries: &[Entry],
) -> std::result::Result<Option<Head>, DbError> {
    if entries.is_empty() {
        return Ok(None);
    }
    let mut head = head::<D>(conn, &AUDIT_HEAD_LOCKED).await?;
    let link = |entry| {
        let record = AuditRecord::behind(&head, entry);
        head = record.head();
        record
    };
    let records: Vec<AuditRecord> = entries.iter().map(link).collect();
    sql::execute_rows::<D, _>(conn, &APPEND_AUDIT, &records, |args, record| {
        args.int(record.number)
            .int(record.at)
            .text(record.subject.as_str())
            .text(record.roles.as_str())
            .text(record.authentication.as_str())
            .text(record.request_id.as_str())
            .text(record.peer.as_deref())
            .text(record.action.as_str())
            .text(record.entity.as_str())
            .text(record.entity_id.as_str())
            .text(record.before.as_deref())
            .text(record.after.as_deref())
            .text(record.prev.as_str())
            .text(record.hash.as_str())
    })
    .await?;
    let args = Args::new().int(head.number).text(head.hash.as_str());
    sql::execute::<D>(conn, &MOVE_AUDIT_HEAD, args).await?;
    Ok(Some(head))
}

async fn head<D: Dialect>(
    conn: &mut D::Connection,
    statement: &'static sql::Statement,
) -> std::result::Result<Head, DbError> {
    let found = sql::fetch_optional::<D, _>(conn, statement, Args::new(), |row| {
        Ok(Head {
            number: row.int("number")?,
            hash: row.string("hash")?,
        })
    });
    present("audit_head", found.await?)
}

/// The filter as a condition behind a page, whose limit and offset are `$1` and `$2`.
fn given<D: Dialect>(filter: &AuditFilter, page: Page) -> (String, Args<D>) {
    let mut args = Args::new().page(page);
    let mut wanted = vec!["1 = 1".to_owned()];
    let texts = [
        ("subject", filter.subject.as_deref()),
        ("action", filter.action.map(Act::name)),
        ("entity", filter.entity.map(Entity::name)),
        ("entity_id", filter.entity_id.as_deref()),
        ("request_id", filter.request_id.as_deref()),
    ];
    for (column, text) in texts {
        if let Some(text) = text {
            args = args.text(text);
            wanted.push(format!("{column} = ${}", wanted.len() + 2));
        }
    }
    for (test, time) in [("at >=", filter.from), ("at <", filter.to)] {
        if let Some(time) = time {
            args = args.time(time);
            wanted.push(format!("{test} ${}", wanted.len() + 2));
        }
    }
    (wanted.join(" AND "), args)
}

#[async_trait::async_trait]
impl<D: Dialect> AuditLog for SqlStore<D> {
    async fn audit(&self, filter: &AuditFilter, page: Page) -> Result<Vec<AuditRecord>> {
        let (condition, args) = given::<D>(filter, page);
        let conn = &mut *self.read().await?;
        Ok(sql::fetch_given(conn, &AUDIT, &condition, args, read_record).await?)
    }

    async fn audit_from(&self, number: i64, limit: u32) -> Result<Vec<AuditRecord>> {
        let args = Args::<D>::new().int(number).int(i64::from(limit));
        Ok(sql::fetch_all(&mut *self.read().await?, &AUDIT_FROM, args, read_record).await?)
    }

    async fn audit_head(&self) -> Result<Head> {
        Ok(head::<D>(&mut *self.read().await?, &AUDIT_HEAD).await?)
    }
}

fn read_record<D: Dialect>(row: &Record<'_, D>) -> std::result::Result<AuditRecord, DbError> {
    Ok(AuditRecord {
        number: row.int("number")?,
        at: row.int("at")?,
        subject: row.string("subject")?,
        roles: row.string("roles")?,
        authentication: row.string("authentication")?,
        request_id: row.string("request_id")?,
        peer: row.string_opt("peer")?,
        action: row.string("action")?,
        entity: row.string("entity")?,
        entity_id: row.string("entity_id")?,
        before: row.string_opt("state_before")?,
        after: row.string_opt("state_after")?,
        prev: row.string("prev")?,
        hash: row.string("hash")?,
    })
}

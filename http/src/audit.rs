//! The audit trail (PRD, NFR-4), for admins alone: it tells of people and their addresses.

use std::sync::Arc;

use device_ota_domain::Role;
use device_ota_domain::audit::{Act, Entity};
use device_ota_engine::ports::audit::AuditFilter;
use jiff::Timestamp;
use utoipa::{IntoParams, OpenApi};
use warp::Filter as _;

use crate::dto::audit::{AuditDto, actions, entities};
use crate::dto::{self, AuditList, List, PageQuery};
use crate::request::{Call, call};
use crate::shared::{Answer, Routes, Shared, reply};

/// What the document says of these routes.
#[derive(OpenApi)]
#[openapi(paths(list))]
pub(crate) struct Documented;

pub(crate) fn routes(shared: &Arc<Shared>) -> Routes {
    warp::get()
        .and(warp::path!("audit"))
        .and(call(shared))
        .then(list)
        .map(reply)
        .boxed()
}

/// The filters of the trail.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `list` reads")]
struct AuditQuery {
    /// Done by this subject.
    subject: Option<String>,
    /// This was done.
    #[param(schema_with = actions)]
    action: Option<String>,
    /// To one of these.
    #[param(schema_with = entities)]
    entity: Option<String>,
    /// To this one.
    entity_id: Option<String>,
    /// In this request.
    request_id: Option<String>,
    /// At this time or later.
    from: Option<Timestamp>,
    /// Before this time.
    to: Option<Timestamp>,
}

/// The audit trail, newest first
///
/// Every change that an admin asked for, and every stop and rollback of a campaign that the service decided, written with
/// the change itself. Requests that were refused or changed nothing are not here. `device-ota audit verify` shows
/// whether the chain of hashes is whole.
#[utoipa::path(get, path = "/api/v1/ota/audit", tag = "audit", params(PageQuery, AuditQuery), responses(
    (status = 200, description = "A page of it", body = AuditList),
))]
async fn list(call: Call) -> Answer {
    call.require(Role::Admin)?;
    let mut query = call.query()?;
    let page = query.page()?;
    let named_acts: Vec<_> = Act::ALL.iter().map(|act| (act.name(), *act)).collect();
    let named_entities: Vec<_> = Entity::ALL.iter().map(|e| (e.name(), *e)).collect();
    let filter = AuditFilter {
        subject: query.text("subject")?,
        action: query.one_of("action", &named_acts)?,
        entity: query.one_of("entity", &named_entities)?,
        entity_id: query.text("entity_id")?,
        request_id: query.text("request_id")?,
        from: query.time("from")?,
        to: query.time("to")?,
    };
    let filters = query.done()?;
    let records = call.shared.engine.audit(&filter, page).await?;
    Ok(dto::ok(&List {
        plural: "audit",
        items: records.iter().map(AuditDto::from).collect(),
        page,
        filters,
    }))
}

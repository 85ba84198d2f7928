//! What an operation need not say, because it follows from its path, its method and the access rules: path
//! parameters, credentials, and the refusals that every operation of its kind can answer.

use device_ota_domain::{
    ApiKeyId, CampaignId, DeviceId, FirmwareId, RollbackId, UpdateId, WebhookId,
};
use http::Method;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Ref, Schema, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{ContentBuilder, OpenApi, RefOr, Required, Response, ResponseBuilder};
use utoipa::{PartialSchema as _, ToSchema};

use crate::access::is_open;
use crate::errors::ErrorBody;
use crate::limits::is_counted;

/// A refusal that many operations share: status, its name among the components, when it is answered.
type Refusal = (u16, &'static str, &'static str);

const BAD_REQUEST: Refusal = (
    400,
    "BadRequest",
    "A parameter or the body is not of its form; `detail` names what and why",
);
const UNAUTHORIZED: Refusal = (401, "Unauthorized", "No credential, or not a valid one");
const FORBIDDEN: Refusal = (403, "Forbidden", "The credential's roles do not allow this");
const NOT_FOUND: Refusal = (404, "NotFound", "There is nothing of that id");
const CONFLICT: Refusal = (
    409,
    "Conflict",
    "Somebody else changed it at the same time; read it and try again",
);
const TOO_SLOW: Refusal = (408, "TooSlow", "The body did not arrive in time");
const TOO_LARGE: Refusal = (
    413,
    "TooLarge",
    "The body is larger than what is taken here",
);
const UNSUPPORTED: Refusal = (
    415,
    "UnsupportedMedia",
    "The body is of another content type",
);
const TOO_MANY: Refusal = (
    429,
    "TooMany",
    "Too many requests; `Retry-After` says when to come back",
);
const INTERNAL: Refusal = (500, "Internal", "A defect; the log knows the `request_id`");
const UNAVAILABLE: Refusal = (
    503,
    "Unavailable",
    "The database, the storage or a service that has to be asked is away; `Retry-After` says when to come back",
);
const REFUSALS: [Refusal; 11] = [
    BAD_REQUEST,
    UNAUTHORIZED,
    FORBIDDEN,
    NOT_FOUND,
    CONFLICT,
    TOO_SLOW,
    TOO_LARGE,
    UNSUPPORTED,
    TOO_MANY,
    INTERNAL,
    UNAVAILABLE,
];

/// Images have the paths of both requirement documents, and one resource behind them.
const ALIASES: (&str, &str) = ("/api/v1/ota/firmware", "/api/v1/firmware");

/// Adds the operations of images under their other paths.
pub(super) fn add_aliases(document: &mut OpenApi) {
    let (from, to) = ALIASES;
    let paths = document.paths.paths.iter();
    let aliases: Vec<(String, PathItem)> = paths
        .filter_map(|(path, item)| {
            let rest = path.strip_prefix(from)?;
            let mut item = item.clone();
            for (_, operation) in operations(&mut item) {
                operation.operation_id = operation.operation_id.take().map(|id| id + "_alias");
                operation.description = Some(format!("The same as `{path}`."));
            }
            Some((format!("{to}{rest}"), item))
        })
        .collect();
    document.paths.paths.extend(aliases);
}

/// Completes every operation, and adds the components that this refers to.
pub(super) fn complete(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            name(operation);
            add_parameters(path, operation);
            protect(path, operation);
            add_refusals(path, &method, operation);
            complete_refusals(operation);
        }
    }
    add_components(document);
    for schema in document
        .components
        .iter_mut()
        .flat_map(|all| all.schemas.values_mut())
    {
        if let RefOr::T(schema) = schema {
            drop_sources(schema);
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (Method, &mut Operation)> {
    [
        (Method::GET, &mut item.get),
        (Method::POST, &mut item.post),
        (Method::PUT, &mut item.put),
        (Method::PATCH, &mut item.patch),
        (Method::DELETE, &mut item.delete),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Handlers are named within their resource only; an operation's name is unique.
fn name(operation: &mut Operation) {
    let tag = operation.tags.iter().flatten().next();
    if let (Some(tag), Some(name)) = (tag, &operation.operation_id) {
        operation.operation_id = Some(format!("{tag}_{name}"));
    }
}

/// The parameters that the path's template names and the operation does not.
fn add_parameters(path: &str, operation: &mut Operation) {
    let names = path
        .split('/')
        .filter_map(|level| level.strip_prefix('{')?.strip_suffix('}'));
    let parameters = operation.parameters.get_or_insert_default();
    for name in names {
        let said =
            |known: &RefOr<Parameter>| matches!(known, RefOr::T(known) if known.name == name);
        if !parameters.iter().any(said) {
            parameters.push(RefOr::T(parameter(name)));
        }
    }
}

fn parameter(name: &str) -> Parameter {
    let (schema, description) = match name {
        "campaign_id" => (CampaignId::schema(), "The campaign"),
        "webhook_id" => (WebhookId::schema(), "The webhook"),
        "number" => (number(), "Which of them"),
        "key_id" => (ApiKeyId::schema(), "The key"),
        "device_id" => (DeviceId::schema(), "The device"),
        "firmware_id" => (FirmwareId::schema(), "The image"),
        "rollback_id" => (RollbackId::schema(), "The rollback"),
        "update_id" => (UpdateId::schema(), "The update"),
        _ => (text(), ""),
    };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .schema(Some(schema))
        .description((!description.is_empty()).then_some(description))
        .build()
}

fn number() -> RefOr<Schema> {
    let number = ObjectBuilder::new().schema_type(Type::Integer);
    RefOr::T(Schema::Object(number.minimum(Some(1)).build()))
}

fn text() -> RefOr<Schema> {
    let text = ObjectBuilder::new().schema_type(Type::String);
    RefOr::T(Schema::Object(text.min_length(Some(1)).build()))
}

fn protect(path: &str, operation: &mut Operation) {
    if operation.security.is_none() && !is_open(path) {
        let ways = ["bearer", "api_key"];
        let none = std::iter::empty::<String>;
        operation.security = Some(
            ways.map(|way| SecurityRequirement::new(way, none()))
                .to_vec(),
        );
    }
}

fn add_refusals(path: &str, method: &Method, operation: &mut Operation) {
    let mut refusals = vec![BAD_REQUEST, INTERNAL, UNAVAILABLE];
    if !is_open(path) {
        refusals.extend([UNAUTHORIZED, FORBIDDEN]);
    }
    if path.contains('{') {
        refusals.push(NOT_FOUND);
    }
    if is_counted(path) {
        refusals.push(TOO_MANY);
    }
    // Even those that want no body look at what comes.
    if method != Method::GET {
        refusals.extend([CONFLICT, TOO_SLOW, TOO_LARGE, UNSUPPORTED]);
    }
    for (status, name, _) in refusals {
        operation
            .responses
            .responses
            .entry(status.to_string())
            .or_insert_with(|| RefOr::Ref(Ref::from_response_name(name)));
    }
}

/// Refusals that the operation names itself have the body of all errors, unless it says otherwise.
fn complete_refusals(operation: &mut Operation) {
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response
            && status.starts_with(['4', '5'])
            && response.content.is_empty()
        {
            let content = RefOr::T(error_content());
            response.content.insert(JSON.to_owned(), content);
        }
    }
}

const JSON: &str = "application/json";

fn error_content() -> utoipa::openapi::Content {
    let schema = RefOr::Ref(Ref::from_schema_name(ErrorBody::name()));
    ContentBuilder::new().schema(Some(schema)).build()
}

fn refusal((status, _, description): Refusal) -> Response {
    let header = |kind, text: &str| {
        let schema = ObjectBuilder::new().schema_type(kind).build();
        HeaderBuilder::new()
            .schema(Some(schema))
            .description(Some(text))
            .build()
    };
    let response = ResponseBuilder::new()
        .description(description)
        .content(JSON, error_content());
    match status {
        401 => response.header("WWW-Authenticate", header(Type::String, "How to sign in")),
        429 | 503 => response.header("Retry-After", header(Type::Integer, "Seconds to wait")),
        _ => response,
    }
    .build()
}

/// How the brackets begin in which a doc comment names the document that a rule comes from.
const SOURCES: [&str; 4] = ["PRD", "DESIGN.md", "PROTOCOL.md", "rings-and-heartbeat"];

/// Where a rule comes from is for readers of the code: the schema's own description goes without.
fn drop_sources(schema: &mut Schema) {
    let description = match schema {
        Schema::Object(object) => &mut object.description,
        Schema::OneOf(choice) => &mut choice.description,
        Schema::AllOf(parts) => &mut parts.description,
        _ => return,
    };
    if let Some(text) = description {
        *text = without_sources(text);
    }
}

fn without_sources(text: &str) -> String {
    let mut parts = text.split(" (");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |kept, part| match part.split_once(')') {
        Some((source, rest)) if SOURCES.iter().any(|known| source.starts_with(known)) => {
            kept + rest
        }
        _ => kept + " (" + part,
    })
}

fn add_components(document: &mut OpenApi) {
    let components = document.components.get_or_insert_default();
    for shared in REFUSALS {
        components
            .responses
            .insert(shared.1.to_owned(), RefOr::T(refusal(shared)));
    }
    components
        .schemas
        .insert(ErrorBody::name().into_owned(), ErrorBody::schema());
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token or a key"));
    let device = HttpBuilder::new()
        .scheme(HttpAuthScheme::Basic)
        .description(Some("A device's id and secret"));
    let key = ApiKeyValue::with_description("X-API-Key", "A key");
    for (name, scheme) in [
        ("bearer", SecurityScheme::Http(bearer.build())),
        ("api_key", SecurityScheme::ApiKey(ApiKey::Header(key))),
        ("device", SecurityScheme::Http(device.build())),
    ] {
        components
            .security_schemes
            .insert(name.to_owned(), RefOr::T(scheme));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_goes_without_its_source_and_keeps_other_brackets() {
        assert_eq!(
            without_sources("An image (PRD, E1; DESIGN.md, *HTTP*), one (of many)."),
            "An image, one (of many)."
        );
    }
}

//! What a handler gets of a request: who calls, ids from the path, the query, the body.

pub(crate) mod body;
pub(crate) mod json;
pub(crate) mod linger;
mod query;
pub(crate) mod revision;

use std::convert::Infallible;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use device_ota_domain::Role;
use device_ota_engine::Caller;
use device_ota_engine::inbound::DeviceRef;
use http::HeaderMap;
use percent_encoding::percent_decode_str;
use warp::{Filter, Rejection};

use crate::errors::ApiError;
use crate::shared::Shared;
pub(crate) use query::Query;

/// What the gate found out before routing; travels as an extension of the request.
#[derive(Clone)]
pub(crate) struct Visit {
    /// Who.
    pub(crate) visitor: Visitor,
    /// Where it comes from, as limits count it: an IPv6 address by its network.
    pub(crate) network: IpAddr,
    /// The client wants the headers alone.
    pub(crate) head: bool,
}

/// Who a request comes from.
#[derive(Clone)]
pub(crate) enum Visitor {
    /// Nobody was asked for: the path is open.
    Nobody,
    /// A person or a service.
    Person(Caller),
    /// A device, which may do what concerns itself.
    Device(DeviceRef),
}

/// One request, but for its body.
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    pub(crate) headers: HeaderMap,
    pub(crate) visit: Visit,
    query: String,
}

impl Call {
    /// Who calls, when they may do what `role` may; else 403. The first line of every handler that is not open.
    pub(crate) fn require(&self, role: Role) -> Result<&Caller, ApiError> {
        match &self.visit.visitor {
            Visitor::Person(caller) => {
                caller.require(role)?;
                Ok(caller)
            }
            Visitor::Device(_) => Err(device_ota_engine::Error::forbidden(
                "forbidden",
                format!("this needs the role {role}, which no device has"),
            )
            .into()),
            Visitor::Nobody => Err(ApiError::unauthorized("this needs a key or a token")),
        }
    }

    /// The device that calls, if it is one.
    pub(crate) fn device(&self) -> Option<&DeviceRef> {
        match &self.visit.visitor {
            Visitor::Device(device) => Some(device),
            Visitor::Person(_) | Visitor::Nobody => None,
        }
    }

    /// The query's parameters.
    pub(crate) fn query(&self) -> Result<Query, ApiError> {
        Query::parse(&self.query)
    }

    /// For handlers that take no parameters: none may be given.
    pub(crate) fn no_query(&self) -> Result<(), ApiError> {
        self.query()?.done().map(drop)
    }
}

/// Makes the [`Call`].
pub(crate) fn call(
    shared: &Arc<Shared>,
) -> impl Filter<Extract = (Call,), Error = Rejection> + Clone + use<> {
    let shared = Arc::clone(shared);
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::any()
        .map(move || Arc::clone(&shared))
        .and(warp::header::headers_cloned())
        .and(warp::ext::get::<Visit>())
        .and(query)
        .map(|shared, headers, visit, query| Call {
            shared,
            headers,
            visit,
            query,
        })
}

/// One level of the path, percent-decoded. Bytes that are no UTF-8 become something that no id holds.
pub(crate) struct Segment(String);

impl Segment {
    /// The id that it is, or 404: what cannot be an id names nothing.
    pub(crate) fn id<T: FromStr>(&self, what: &'static str) -> Result<T, ApiError> {
        self.0
            .parse()
            .map_err(|_| ApiError::not_found(what, &self.0))
    }

    /// As text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Segment {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(
            percent_decode_str(text).decode_utf8_lossy().into_owned(),
        ))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use device_ota_domain::DeviceId;

    use super::*;

    #[test]
    fn ids_are_decoded_and_what_is_none_is_not_found() {
        let id = |text: &str| text.parse::<Segment>().unwrap().id::<DeviceId>("device");
        assert_eq!(id("cam%3A1").unwrap().as_str(), "cam:1");
        for none in ["a%2Fb", "%ff", "a%00", "", "%"] {
            assert_eq!(id(none).unwrap_err().render("r").status(), 404, "{none}");
        }
    }
}

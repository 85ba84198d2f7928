//! Lists of devices and of updates by what they are asked for.
//!
//! Only what is asked stands in a condition, so that each list goes by the index of what it asks for: `IS NULL OR` would
//! hide that from both databases. What belongs to a closed set stands there as itself, because the indexes of parts of a
//! table are found by it; all else is bound.

use device_ota_domain::campaign::Group;
use device_ota_domain::device::Device;
use device_ota_domain::page::Page;
use device_ota_domain::ring::Ring;
use device_ota_domain::update::{Phase, Update};
use device_ota_domain::{CampaignId, DeviceId, FirmwareId};
use device_ota_engine::ports::store::UpdateFilter;
use device_ota_engine::ports::telemetry::{DeviceFilter, Presence};

use crate::devices::{read_device, select_device};
use crate::dialect::Dialect;
use crate::error::DbError;
use crate::filter::running;
use crate::sql::{self, Args, Statement, statements};
use crate::updates::{read_update, select_update};

/// A list of updates in this order.
macro_rules! list_updates {
    ($order:literal) => {
        select_update!(
            " FROM device_updates u WHERE {given} ORDER BY ",
            $order,
            " LIMIT $1 OFFSET $2"
        )
    };
}

statements! {
    DEVICES = select_device!("WHERE {given} ORDER BY d.device_id LIMIT $1 OFFSET $2");
    UPDATES = list_updates!("u.number DESC");
    // The order is that of the one index: PostgreSQL would else read all newer updates backwards to find a few old ones.
    UPDATES_OF_CAMPAIGN = list_updates!("u.campaign_id DESC, u.number DESC");
    UPDATES_OF_FIRMWARE = list_updates!("u.firmware_id DESC, u.number DESC");
    // Few, and sorted: both databases would else look for them from the end of the table.
    UPDATES_IN_FLIGHT = list_updates!("u.number + 0 DESC");
}

/// A condition in the making, with the values that it binds.
pub(crate) struct Asked<D: Dialect> {
    condition: String,
    args: Args<D>,
    bound: usize,
}

impl<D: Dialect> Asked<D> {
    /// Asks for nothing yet; goes on behind the `bound` values in `args`.
    fn new(args: Args<D>, bound: usize) -> Self {
        Self {
            condition: "1 = 1".to_owned(),
            args,
            bound,
        }
    }

    /// The condition, and all values in the order of their places.
    pub(crate) fn finish(self) -> (String, Args<D>) {
        (self.condition, self.args)
    }

    /// Binds a text and answers its place.
    fn bind(&mut self, text: &str) -> String {
        self.args = std::mem::take(&mut self.args).text(text);
        self.bound += 1;
        format!("${}", self.bound)
    }

    fn and(&mut self, test: &str) {
        self.condition.push_str(" AND ");
        self.condition.push_str(test);
    }

    fn equal(&mut self, column: &str, value: Option<&str>) {
        if let Some(value) = value {
            let place = self.bind(value);
            self.and(&format!("{column} = {place}"));
        }
    }

    /// Equality said as a range, so that the order of an index by this column is the order of the list.
    fn within(&mut self, column: &str, value: &str) {
        let place = self.bind(value);
        self.and(&format!("{column} >= {place} AND {column} <= {place}"));
    }
}

/// Devices in id order.
pub(crate) async fn devices<D: Dialect>(
    conn: &mut D::Connection,
    filter: &DeviceFilter,
    page: Page,
) -> Result<Vec<Device>, DbError> {
    let (condition, args) = ask_devices::<D>(Args::new().page(page), 2, filter).finish();
    sql::fetch_given(conn, &DEVICES, &condition, args, read_device).await
}

/// What a filter asks of `devices d` and `device_latest l`.
pub(crate) fn ask_devices<D: Dialect>(
    args: Args<D>,
    bound: usize,
    filter: &DeviceFilter,
) -> Asked<D> {
    let mut asked = Asked::new(args, bound);
    asked.equal("d.device_model", filter.device_model.as_deref());
    asked.equal("d.device_type", filter.device_type.as_deref());
    asked.equal("d.manufacturer", filter.manufacturer.as_deref());
    asked.equal("d.ring", filter.ring.map(Ring::name));
    asked.equal(running!(), filter.firmware_version.as_deref());
    if let Some(group) = &filter.group {
        let group = asked.bind(group);
        asked.and(&format!(
            "d.device_key IN (SELECT g.device_key FROM device_groups g WHERE g.group_name = {group})"
        ));
    }
    if let Some(tag) = &filter.tag {
        let key = asked.bind(&tag.key);
        let value = D::member_text("d.tags", &key);
        match tag.value.as_deref() {
            None => asked.and(&format!("{value} IS NOT NULL")),
            wanted => asked.equal(&value, wanted),
        }
    }
    match filter.presence {
        None => {}
        Some(Presence::Online) => asked.and("l.online = 1"),
        Some(Presence::Offline) => asked.and("l.online = 0"),
        Some(Presence::NeverSeen) => asked.and("l.last_seen IS NULL"),
    }
    asked
}

/// Updates, newest first.
pub(crate) async fn updates<D: Dialect>(
    conn: &mut D::Connection,
    filter: &UpdateFilter,
    page: Page,
) -> Result<Vec<Update>, DbError> {
    let (statement, asked) = ask_updates::<D>(filter, page);
    let (condition, args) = asked.finish();
    sql::fetch_given(conn, statement, &condition, args, read_update).await
}

/// What a filter asks of `device_updates u`, and the statement whose order fits the index that leads to them.
pub(crate) fn ask_updates<D: Dialect>(
    filter: &UpdateFilter,
    page: Page,
) -> (&'static Statement, Asked<D>) {
    let mut asked = Asked::new(Args::new().page(page), 2);
    let device = filter.device.as_ref().map(DeviceId::as_str);
    let campaign = filter.campaign.as_ref().map(CampaignId::as_str);
    let firmware = filter.firmware.as_ref().map(FirmwareId::as_str);
    let statement = match (device, campaign, firmware) {
        (Some(device), _, _) => {
            let device = asked.bind(device);
            asked.and(&format!(
                "u.device_key = (SELECT d.device_key FROM devices d WHERE d.device_id = {device})"
            ));
            asked.equal("u.campaign_id", campaign);
            asked.equal("u.firmware_id", firmware);
            &UPDATES
        }
        (None, Some(campaign), _) => {
            asked.within("u.campaign_id", campaign);
            asked.equal("u.firmware_id", firmware);
            &UPDATES_OF_CAMPAIGN
        }
        (None, None, Some(firmware)) => {
            asked.within("u.firmware_id", firmware);
            &UPDATES_OF_FIRMWARE
        }
        (None, None, None) if filter.group == Some(Group::InFlight) || filter.phase.is_some() => {
            &UPDATES_IN_FLIGHT
        }
        (None, None, None) => &UPDATES,
    };
    if let Some(group) = filter.group {
        asked.and(&format!("u.state = '{}'", group.name()));
    }
    match filter.phase {
        None => {}
        Some(Phase::Staged) => asked.and(
            "u.number IN (SELECT s.number FROM device_updates s WHERE s.state = 'staged' UNION ALL \
             SELECT s.number FROM device_updates s WHERE s.state = 'in_flight' AND s.phase = 'staged')",
        ),
        Some(phase) => {
            let phase = phase.name();
            asked.and(&format!("u.state = 'in_flight' AND u.phase = '{phase}'"));
        }
    }
    if let Some(action) = filter.action {
        asked.and(&format!("u.action = '{}'", action.name()));
    }
    if let Some(priority) = filter.priority {
        asked.and(&format!("u.priority = {}", priority.rank()));
    }
    (statement, asked)
}

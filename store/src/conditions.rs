//! Conditions on updates that are looked for, such as that the lines before their devices are not busy.

use std::collections::BTreeMap;

use device_ota_domain::bandwidth::Line;
use device_ota_domain::campaign::{OpenFor, Requires, TIME_ZONE_TAG};
use device_ota_engine::ports::store::{Ahead, Prior};
use jiff::Timestamp;

use crate::dialect::Dialect;
use crate::sql::Args;

/// What a device must have for an update of it alone, called `$update`: what the image asks for by now. What it never said does not
/// hold it back.
macro_rules! fits_image {
    ($update:literal) => {
        concat!(
            "NOT EXISTS (SELECT 1 FROM firmware f WHERE f.firmware_id = ",
            $update,
            ".firmware_id AND (l.battery_percent < f.min_battery_percent OR l.free_storage_bytes < f.min_free_storage_bytes))"
        )
    };
}
pub(crate) use fits_image;

/// An update `o` is older than `u`, as `Update::goes_before` has it.
const OLDER: &str =
    "(o.created_at < u.created_at OR (o.created_at = u.created_at AND o.update_id < u.update_id))";

/// Conditions on an update `u`, and the values that they need behind those that are bound.
pub(crate) struct Conditions<D: Dialect> {
    texts: Vec<String>,
    args: Args<D>,
    bound: usize,
}

impl<D: Dialect> Conditions<D> {
    /// None yet, behind `bound` values.
    pub(crate) fn new(args: Args<D>, bound: usize) -> Self {
        Self {
            texts: Vec::new(),
            args,
            bound,
        }
    }

    /// Binds a value; answers its place.
    fn place(&mut self, add: impl FnOnce(Args<D>) -> Args<D>) -> String {
        self.args = add(std::mem::take(&mut self.args));
        self.bound += 1;
        format!("${}", self.bound)
    }

    /// Binds texts; answers "is one of them".
    fn one_of(&mut self, values: &[&str]) -> String {
        let list = self.place(|args| args.texts(values));
        D::within(&list)
    }

    /// The device of `u` is behind none of these lines; lines of all devices are not looked at.
    pub(crate) fn behind_none(&mut self, busy: &[Line]) {
        let mut groups = Vec::new();
        let mut tags: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for line in busy {
            match line {
                Line::Service | Line::Campaign(_) => {}
                Line::Group(group) => groups.push(group.as_str()),
                Line::Tag { name, value } => tags.entry(name).or_default().push(value),
            }
        }
        if !groups.is_empty() {
            let is_one = self.one_of(&groups);
            self.texts.push(format!(
                "NOT EXISTS (SELECT 1 FROM device_groups g WHERE g.device_key = u.device_key AND g.group_name {is_one})"
            ));
        }
        for (name, values) in tags {
            let name = self.place(|args| args.text(name));
            let tag = D::member_text("d.tags", &name);
            let is_one = self.one_of(&values);
            self.texts.push(format!(
                "NOT COALESCE((SELECT {tag} FROM devices d WHERE d.device_key = u.device_key) {is_one}, FALSE)"
            ));
        }
    }

    /// The maintenance window of the device of `u` is open.
    pub(crate) fn is_open(&mut self, open_for: &OpenFor) {
        let open = self.in_zones(open_for);
        self.texts.extend(open);
    }

    /// The text for that; `None`: it is open for everybody.
    fn in_zones(&mut self, open_for: &OpenFor) -> Option<String> {
        let (not, zones) = match open_for {
            OpenFor::All => return None,
            OpenFor::Zones(zones) => ("", zones),
            OpenFor::AllBut(zones) => ("NOT ", zones),
        };
        // A device whose tag names none has none.
        let zone = D::member_text("d.tags", &format!("'{TIME_ZONE_TAG}'"));
        let zone = format!("(SELECT {zone} FROM devices d WHERE d.device_key = u.device_key)");
        let zones: Vec<&str> = zones.iter().map(String::as_str).collect();
        let is_one = self.one_of(&zones);
        Some(format!("{not}(COALESCE({zone}, '') {is_one})"))
    }

    /// Nothing that goes before `u` waits for its device, and for nothing but its pace. Counted, and told apart by cases, so that each
    /// row looks at its own device whatever the planner thinks of the table; of `l`, so that devices that are away are not looked at.
    pub(crate) fn behind_nothing(&mut self, ahead: &Ahead, now: Timestamp) {
        if ahead.is_empty() {
            return;
        }
        let now = self.place(|args| args.time(now));
        let singles = if ahead.singles {
            fits_image!("o")
        } else {
            "FALSE"
        };
        let campaigns: Vec<String> = ahead.campaigns.iter().map(|one| self.waits(one)).collect();
        self.texts.push(format!(
            "(SELECT COUNT(*) FROM device_updates o WHERE o.device_key = l.device_key AND o.state = 'pending' \
             AND o.due_at <= {now} AND CASE WHEN o.campaign_id IS NULL THEN {singles} {} ELSE FALSE END) = 0",
            campaigns.join(" ")
        ));
    }

    /// The case of an update `o` of that campaign: whether only its pace holds it back.
    fn waits(&mut self, prior: &Prior) -> String {
        let campaign = self.place(|args| args.text(prior.campaign.as_str()));
        let action = self.place(|args| args.text(prior.wants.action.name()));
        let stage = self.place(|args| args.int(i64::from(prior.wants.up_to_stage)));
        let mut all = vec![format!("o.action = {action} AND o.stage <= {stage}")];
        let Requires {
            min_battery_percent,
            min_free_storage_bytes,
        } = prior.requires;
        if let Some(least) = min_battery_percent {
            let least = self.place(|args| args.real(f64::from(least)));
            all.push(format!(
                "(l.battery_percent IS NULL OR l.battery_percent >= {least})"
            ));
        }
        if let Some(least) = min_free_storage_bytes {
            let least = self.place(|args| args.int(least));
            all.push(format!(
                "(l.free_storage_bytes IS NULL OR l.free_storage_bytes >= {least})"
            ));
        }
        all.extend(self.in_zones(&prior.wants.open_for));
        if prior.by_age {
            all.push(OLDER.to_owned());
        }
        format!("WHEN o.campaign_id = {campaign} THEN {}", all.join(" AND "))
    }

    /// All of them as one, which holds when there are none; and all values.
    pub(crate) fn finish(self) -> (String, Args<D>) {
        let all = if self.texts.is_empty() {
            "1 = 1".to_owned()
        } else {
            self.texts.join(" AND ")
        };
        (all, self.args)
    }
}

//! Conditions on updates that are looked for, such as that the lines before their devices are not busy.

use std::collections::BTreeMap;

use device_ota_domain::bandwidth::Line;

use crate::dialect::Dialect;
use crate::sql::Args;

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

    /// Adds one about a list of texts, of the text "is one of them".
    pub(crate) fn add(&mut self, values: &[&str], text: impl FnOnce(&str) -> String) {
        let list = self.place(|args| args.texts(values));
        self.texts.push(text(&D::within(&list)));
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
            self.add(&groups, |is_one| {
                format!(
                    "NOT EXISTS (SELECT 1 FROM device_groups g WHERE g.device_key = u.device_key AND g.group_name {is_one})"
                )
            });
        }
        for (name, values) in tags {
            let name = self.place(|args| args.text(name));
            let tag = D::member_text("d.tags", &name);
            self.add(&values, |is_one| {
                format!(
                    "NOT COALESCE((SELECT {tag} FROM devices d WHERE d.device_key = u.device_key) {is_one}, FALSE)"
                )
            });
        }
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

//! How a story ended: what was expected, and what was seen.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::matching::{Compared, compare};
use super::operator::{Deeds, Done};
use super::{Error, Scenario};
use crate::fleet::Summary;

/// How a story ended.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Which story.
    pub name: String,
    /// What happens in it.
    pub about: String,
    /// What the operator did.
    pub done: Vec<Done>,
    /// Steps whose time never came.
    pub never_came: Vec<String>,
    /// What was expected and seen of the campaign, of the devices' versions and of the fleet's totals.
    pub compared: Vec<Compared>,
    /// Settings that the service has to run with for this story.
    pub settings: Vec<String>,
    /// The fleet at the end.
    pub summary: Summary,
    /// From the first registration to the last goodbye, in seconds.
    pub elapsed_s: f64,
}

impl Outcome {
    pub(super) fn of(
        scenario: &Scenario,
        deeds: Deeds,
        summary: Summary,
        elapsed: Duration,
    ) -> Result<Self, Error> {
        let expect = &scenario.expect;
        let mut compared = compare("campaign", &expect.campaign.clone().into(), &deeds.campaign)?;
        if !expect.versions.is_empty() {
            // Both ways, so that a version that nobody should run is seen as well.
            for version in expect.versions.keys().chain(summary.by_version.keys()) {
                let field = format!("versions.{version}");
                if compared.iter().all(|it| it.field != field) {
                    let of = |counts: &std::collections::BTreeMap<String, usize>| {
                        counts.get(version).copied().unwrap_or_default()
                    };
                    let (expected, seen) = (of(&expect.versions), of(&summary.by_version));
                    compared.push(Compared {
                        field,
                        expected: json!(expected),
                        seen: json!(seen),
                        holds: expected == seen,
                    });
                }
            }
        }
        compared.extend(compare(
            "totals",
            &expect.totals.clone().into(),
            &summary.totals,
        )?);
        let never_came = scenario.steps.iter().skip(deeds.done.len());
        Ok(Self {
            name: scenario.name.clone(),
            about: scenario.about.clone(),
            never_came: never_came.map(|step| step.act.name().to_owned()).collect(),
            done: deeds.done,
            compared,
            settings: scenario
                .settings()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            summary,
            elapsed_s: elapsed.as_secs_f64(),
        })
    }

    /// Whether it ended as the story says.
    pub fn is_as_expected(&self) -> bool {
        self.exit_code() == 0
    }

    /// What a process says by its exit: 0 as expected, 1 not so, 2 the service broke a promise.
    pub fn exit_code(&self) -> u8 {
        if self.summary.violations > 0 {
            return 2;
        }
        let all = self.compared.iter().all(|it| it.holds) && self.never_came.is_empty();
        u8::from(!all || self.summary.audit_failed.is_some())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.name, self.about)?;
        for Done { step, after_s } in &self.done {
            writeln!(f, "  {after_s:5.1} s  {step}")?;
        }
        for step in &self.never_came {
            writeln!(f, "  never    {step}: its time did not come")?;
        }
        for it in &self.compared {
            let mark = if it.holds { "ok   " } else { "WRONG" };
            let Compared {
                field,
                expected,
                seen,
                ..
            } = it;
            writeln!(f, "  {mark}    {field}: expected {expected}, seen {seen}")?;
        }
        for text in &self.summary.violation_texts {
            writeln!(f, "  VIOLATION {text}")?;
        }
        if let Some(why) = &self.summary.audit_failed {
            writeln!(f, "  not compared with the service: {why}")?;
        }
        let verdict = match self.exit_code() {
            0 => "as expected",
            1 => "not as expected",
            _ => "the service broke its promises",
        };
        if !self.is_as_expected() && !self.settings.is_empty() {
            writeln!(
                f,
                "  the service has to run with {}",
                self.settings.join(", ")
            )?;
        }
        write!(f, "{verdict} ({:.1} s)", self.elapsed_s)
    }
}

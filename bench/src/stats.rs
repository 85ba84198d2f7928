//! Figures of several rounds, and how they are printed: least, middle and most, the ratio of the middles, the target.

use std::fmt;

/// One side's figures.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
}

/// What a ratio or a figure should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::AtMost(most) => write!(f, "at most {most}"),
        }
    }
}

impl Series {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            unit,
            values: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.values.push(value);
    }

    /// The middle of all rounds; of an even number, the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = |at: usize| sorted.get(at).copied().unwrap_or(f64::NAN);
        let half = sorted.len() / 2;
        if sorted.len() % 2 == 1 {
            middle(half)
        } else {
            f64::midpoint(middle(half.wrapping_sub(1)), middle(half))
        }
    }

    /// Nineteen of twenty are at most this.
    pub(crate) fn slowest_of_20(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (sorted.len() * 19).div_ceil(20).saturating_sub(1);
        sorted.get(at).copied().unwrap_or(f64::NAN)
    }

    fn least(&self) -> f64 {
        self.values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn most(&self) -> f64 {
        self.values
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max)
    }

    /// One line: name, least, middle and most.
    pub(crate) fn print(&self) {
        println!(
            "  {:<44} min {:>11}  median {:>11}  max {:>11}  {} ({} rounds)",
            self.name,
            number(self.least()),
            number(self.median()),
            number(self.most()),
            self.unit,
            self.values.len()
        );
    }

    /// The middle itself against a target.
    pub(crate) fn judge(&self, target: Target) {
        verdict(&self.name, self.median(), self.unit, target);
    }
}

/// The ratio of two middles against a target.
pub(crate) fn ratio(what: &str, ours: &Series, peer: &Series, target: Target) {
    verdict(what, ours.median() / peer.median(), "", target);
}

/// One value beside another, where no target would say anything of the service.
pub(crate) fn compared(what: &str, ours: &Series, other: &Series) {
    println!("  => {what}: {}", number(ours.median() / other.median()));
}

/// A value against a target.
pub(crate) fn verdict(what: &str, value: f64, unit: &str, target: Target) {
    let said = if target.is_met(value) {
        "reached"
    } else {
        "MISSED"
    };
    println!(
        "  => {what}: {} {unit} (target {target}) {said}",
        number(value)
    );
}

/// A heading.
pub(crate) fn title(text: &str) {
    println!("\n{text}");
}

/// Three significant digits below ten, whole numbers with thousands separated above a thousand.
fn number(value: f64) -> String {
    if value.abs() < 10.0 {
        return format!("{value:.2}");
    }
    if value.abs() < 1_000.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count as a number to calculate with.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts of a run are far below 2^52"
)]
pub(crate) fn real(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_the_middle_of_the_sorted_values() {
        let mut series = Series::new("x", "s");
        for value in [9.0, 1.0, 4.0] {
            series.push(value);
        }
        assert!((series.median() - 4.0).abs() < f64::EPSILON);
        series.push(6.0);
        assert!((series.median() - 5.0).abs() < f64::EPSILON);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(number(1.234), "1.23");
        assert_eq!(number(56.78), "56.8");
        assert_eq!(number(1_234_567.0), "1,234,567");
        assert_eq!(number(999_999.0), "999,999");
    }
}

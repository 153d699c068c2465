//! The table at the end, and the same as JSON.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::json;

use crate::stats::{Pairs, Samples};

/// What a figure has to reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// Warren's side by the baseline's.
    RatioAtLeast(f64),
    RatioAtMost(f64),
    /// Warren's side alone, in the row's unit.
    AtMost(f64),
    /// The slowest of a hundred on Warren's side, in the row's unit.
    P99AtMost(f64),
    /// How much more Warren's side is than the baseline's, in the row's unit.
    MoreAtMost(f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Unit {
    #[serde(rename = "Gb/s")]
    GigabitsPerSecond,
    #[serde(rename = "us")]
    Microseconds,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "/s")]
    PerSecond,
    #[serde(rename = "kB")]
    Kilobytes,
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub name: &'static str,
    pub what: String,
    pub unit: Unit,
    pub warren: Samples,
    pub baseline: Option<Samples>,
    /// The ratio of each pair.
    pub ratio: Option<Samples>,
    /// How much more Warren's side of each pair is, in the row's unit.
    pub difference: Option<Samples>,
    pub wanted: Vec<Wanted>,
    /// Lines below the table.
    pub notes: Vec<String>,
}

/// What was measured, and what could not be.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    failures: Vec<(String, String)>,
}

impl Row {
    /// A comparison.
    pub fn compared(name: &'static str, what: impl Into<String>, unit: Unit, pairs: Pairs, wanted: Wanted) -> Self {
        let (ratio, difference) = (Some(pairs.ratios()), Some(pairs.differences()));
        let (what, warren, baseline) = (what.into(), pairs.warren, Some(pairs.baseline));
        Self { name, what, unit, warren, baseline, ratio, difference, wanted: vec![wanted], notes: Vec::new() }
    }

    /// A figure that stands alone.
    pub fn alone(name: &'static str, what: impl Into<String>, unit: Unit, samples: Samples, wanted: Wanted) -> Self {
        Self {
            name,
            what: what.into(),
            unit,
            warren: samples,
            baseline: None,
            ratio: None,
            difference: None,
            wanted: vec![wanted],
            notes: Vec::new(),
        }
    }

    pub fn and(mut self, wanted: Wanted) -> Self {
        self.wanted.push(wanted);
        self
    }

    pub fn note(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.notes.extend(lines);
        self
    }

    /// Whether everything that is wanted was reached, by the medians.
    pub fn reached(&self) -> bool {
        let ratio = self.ratio.as_ref().map_or(f64::NAN, Samples::median);
        let difference = self.difference.as_ref().map_or(f64::NAN, Samples::median);
        self.wanted.iter().all(|wanted| match wanted {
            Wanted::RatioAtLeast(least) => ratio >= *least,
            Wanted::RatioAtMost(most) => ratio <= *most,
            Wanted::AtMost(most) => self.warren.median() <= *most,
            Wanted::P99AtMost(most) => self.warren.percentile(99.0) <= *most,
            Wanted::MoreAtMost(most) => difference <= *most,
        })
    }

    fn cells(&self) -> [String; 6] {
        let side = |samples: &Samples| {
            let text = |value| self.unit.number(value);
            let (median, min, max) = (samples.median(), samples.min(), samples.max());
            format!("{} {} ({}..{})", text(median), self.unit.name(), text(min), text(max))
        };
        let range = |samples: &Samples, text: &dyn Fn(f64) -> String| {
            format!("{} ({}..{})", text(samples.median()), text(samples.min()), text(samples.max()))
        };
        let more = self.wanted.iter().any(|wanted| matches!(wanted, Wanted::MoreAtMost(_)));
        let ratio = match (&self.ratio, &self.difference) {
            (_, Some(difference)) if more => {
                range(difference, &|value| format!("{value:+.0}")) + &format!(" {}", self.unit.name())
            }
            (Some(ratio), _) => range(ratio, &|value| format!("{value:.2}")),
            _ => "-".to_owned(),
        };
        let wanted: Vec<String> = self
            .wanted
            .iter()
            .map(|wanted| match wanted {
                Wanted::RatioAtLeast(least) => format!(">= {least:.2}"),
                Wanted::RatioAtMost(most) => format!("<= {most:.2}"),
                Wanted::AtMost(most) => format!("<= {most} {}", self.unit.name()),
                Wanted::P99AtMost(most) => format!("p99 <= {most} {}", self.unit.name()),
                Wanted::MoreAtMost(most) => format!("<= +{most} {}", self.unit.name()),
            })
            .collect();
        [
            self.what.clone(),
            side(&self.warren),
            self.baseline.as_ref().map_or("-".to_owned(), side),
            ratio,
            wanted.join(", "),
            if self.reached() { "ok" } else { "missed" }.to_owned(),
        ]
    }
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::GigabitsPerSecond => "Gb/s",
            Self::Microseconds => "us",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::PerSecond => "/s",
            Self::Kilobytes => "kB",
        }
    }

    fn number(self, value: f64) -> String {
        let digits = match self {
            Self::PerSecond => 0,
            _ if value < 10.0 => 2,
            _ => 1,
        };
        format!("{value:.digits$}")
    }
}

impl Report {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// A figure that could not be measured.
    pub fn fail(&mut self, what: impl Into<String>, error: &anyhow::Error) {
        let (what, error) = (what.into(), format!("{error:#}"));
        eprintln!("{what} could not be measured: {error}");
        self.failures.push((what, error));
    }

    pub fn is_complete(&self) -> bool {
        self.failures.is_empty()
    }

    pub fn table(&self) -> String {
        let head = ["what", "Warren", "baseline", "ratio", "wanted", ""].map(str::to_owned);
        let mut lines: Vec<[String; 6]> = vec![head];
        lines.extend(self.rows.iter().map(Row::cells));
        let absent =
            |(what, _): &(String, String)| [what.as_str(), "not measured", "", "", "", "failed"].map(str::to_owned);
        lines.extend(self.failures.iter().map(absent));
        let widths: [usize; 6] =
            std::array::from_fn(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0));

        let mut text = String::from("\n");
        for (number, line) in lines.iter().enumerate() {
            let padded: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            push(&mut text, padded.join("  ").trim_end());
            if number == 0 {
                push(&mut text, &widths.map(|width| "-".repeat(width)).join("  "));
            }
        }
        push(
            &mut text,
            "\nmedian (min..max); the ratio, or the difference where it has a sign and a unit, is the median over all pairs",
        );
        for row in self.rows.iter().filter(|row| !row.notes.is_empty()) {
            push(&mut text, &format!("\n{}", row.what));
            row.notes.iter().for_each(|note| push(&mut text, &format!("  {note}")));
        }
        for (what, error) in &self.failures {
            push(&mut text, &format!("\n{what} could not be measured: {error}"));
        }
        text
    }

    pub fn json(&self) -> anyhow::Result<String> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let mut value = serde_json::to_value(row)?;
                value["median"] = json!({
                    "warren": row.warren.median(),
                    "baseline": row.baseline.as_ref().map(Samples::median),
                    "ratio": row.ratio.as_ref().map(Samples::median),
                    "difference": row.difference.as_ref().map(Samples::median),
                });
                value["reached"] = json!(row.reached());
                Ok(value)
            })
            .collect::<Result<_, serde_json::Error>>()?;
        let failures: Vec<_> =
            self.failures.iter().map(|(what, error)| json!({"what": what, "error": error})).collect();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        let whole = json!({"kernel": kernel.trim(), "processors": processors, "rows": rows, "not_measured": failures});
        Ok(serde_json::to_string_pretty(&whole)? + "\n")
    }
}

fn push(text: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(warren: f64, baseline: f64) -> Pairs {
        Pairs { warren: Samples::new(vec![warren]).unwrap(), baseline: Samples::new(vec![baseline]).unwrap() }
    }

    #[test]
    fn a_figure_is_reached_when_everything_that_is_wanted_holds() {
        let row = |warren| {
            Row::compared("x", "x", Unit::Milliseconds, pairs(warren, 50.0), Wanted::RatioAtMost(1.8))
                .and(Wanted::AtMost(80.0))
        };
        assert!(row(79.0).reached());
        assert!(!row(81.0).reached());
        let slow = Row::compared("x", "x", Unit::PerSecond, pairs(89.0, 100.0), Wanted::RatioAtLeast(0.9));
        assert!(!slow.reached());
    }

    #[test]
    fn a_difference_is_what_warren_takes_more_than_the_baseline() {
        let row = |warren| Row::compared("x", "x", Unit::Microseconds, pairs(warren, 100.0), Wanted::MoreAtMost(400.0));
        assert!(row(500.0).reached());
        assert!(!row(501.0).reached());
        assert_eq!(row(350.0).cells()[3], "+250 (+250..+250) us");
    }

    #[test]
    fn what_could_not_be_measured_stands_in_the_table() {
        let mut report = Report::new();
        report.add(Row::compared("x", "this", Unit::Microseconds, pairs(8.0, 7.0), Wanted::RatioAtMost(1.4)));
        assert!(report.is_complete());
        report.fail("that", &anyhow::anyhow!("no such thing"));
        assert!(!report.is_complete());
        let table = report.table();
        assert!(table.contains("8.00 us (8.00..8.00)") && table.contains("1.14 (1.14..1.14)"), "{table}");
        assert!(table.contains("that could not be measured: no such thing"), "{table}");
        assert!(report.json().unwrap().contains("\"reached\": true"));
    }
}

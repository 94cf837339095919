//! One metric: its running statistics, and the map of texts that it is told as (`agent-protocol.md` 3.7.2).

use std::time::Instant;

use serde_json::{Map, Value};

/// Which of the running statistics are told beside the current value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stat {
    Max,
    Avg,
    Rate,
}

/// What the numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Milliseconds,
    Percent,
    /// Bytes in a second, whatever the name says.
    Rate,
}

impl Unit {
    fn hint(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Milliseconds => "msec",
            Self::Percent => "percent",
            Self::Rate => "bps",
        }
    }
}

/// Numbers of one kind, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Series {
    count: u64,
    sum: f64,
    max: f64,
    last: f64,
    /// Difference and seconds between the last two.
    step: Option<(f64, f64)>,
    at: Option<Instant>,
}

impl Default for Series {
    fn default() -> Self {
        Self {
            count: 0,
            sum: 0.0,
            max: f64::NEG_INFINITY,
            last: 0.0,
            step: None,
            at: None,
        }
    }
}

impl Series {
    pub fn add(&mut self, value: f64, at: Instant) {
        self.step = self.at.map(|before| {
            (
                value - self.last,
                at.saturating_duration_since(before).as_secs_f64(),
            )
        });
        self.count += 1;
        self.sum += value;
        self.max = self.max.max(value);
        (self.last, self.at) = (value, Some(at));
    }

    /// Nothing when there was no number yet.
    pub fn last(&self) -> f64 {
        self.last
    }

    pub fn max(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.max }
    }

    /// How much more the last number is than the one before; nothing for a counter that began anew.
    pub fn diff(&self) -> f64 {
        self.step.map_or(0.0, |(diff, _)| diff.max(0.0))
    }

    /// Seconds between the last two numbers; none before there are two.
    pub fn elapsed(&self) -> Option<f64> {
        self.step
            .map(|(_, seconds)| seconds)
            .filter(|seconds| *seconds > 0.0)
    }

    /// The difference in a second.
    pub fn rate(&self) -> f64 {
        self.elapsed().map_or(0.0, |seconds| self.diff() / seconds)
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of samples")]
    fn avg(&self) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            self.sum / self.count as f64
        }
    }

    fn stat(&self, stat: Stat) -> (&'static str, f64) {
        match stat {
            Stat::Max => ("stats.max", self.max()),
            Stat::Avg => ("stats.avg", self.avg()),
            Stat::Rate => ("stats.rate", self.rate()),
        }
    }

    /// The metric with its last number as the current one.
    pub fn metric(&self, unit: Unit, capacity: Option<f64>, stats: &[Stat]) -> Value {
        let mut metric = metric(self.last, capacity, unit);
        for (name, value) in stats.iter().map(|stat| self.stat(*stat)) {
            metric.insert(name.to_owned(), Value::from(number(value, 3)));
        }
        Value::Object(metric)
    }
}

/// A metric of one number.
pub fn metric(current: f64, capacity: Option<f64>, unit: Unit) -> Map<String, Value> {
    let share = capacity
        .filter(|capacity| *capacity > 0.0)
        .map(|capacity| number(current * 100.0 / capacity, 2));
    let text = |text: Option<String>| text.map_or(Value::Null, Value::from);
    Map::from_iter([
        ("current".to_owned(), Value::from(number(current, 3))),
        (
            "capacity".to_owned(),
            text(capacity.map(|capacity| number(capacity, 3))),
        ),
        ("pct".to_owned(), text(share)),
        ("unit_hint".to_owned(), Value::from(unit.hint())),
    ])
}

/// Plain decimal digits without needless zeros.
pub fn number(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return "0".to_owned();
    }
    let text = format!("{value:.digits$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    if text == "-0" {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_plain_and_short() {
        for (value, expected) in [
            (1234.5, "1234.5"),
            (100.0, "100"),
            (0.0, "0"),
            (-0.0001, "0"),
            (2000.1234, "2000.123"),
            (25_276_502_016.0, "25276502016"),
            (f64::NAN, "0"),
        ] {
            assert_eq!(number(value, 3), expected);
        }
    }

    #[test]
    fn a_metric_is_that_of_the_specification() {
        // `agent-protocol.md` 3.7.2, the example.
        let expected = json!({"current": "100", "capacity": "2000.123", "pct": "5", "unit_hint": "msec"});
        let said = metric(100.0, Some(2000.123), Unit::Milliseconds);
        assert_eq!(Value::Object(said), expected);
        assert_eq!(metric(1.0, Some(0.0), Unit::Bytes)["pct"], Value::Null);
    }

    #[test]
    fn running_statistics_are_over_all_and_over_the_last_two() {
        let begun = Instant::now();
        let mut series = Series::default();
        assert_eq!((series.max(), series.rate(), series.diff()), (0.0, 0.0, 0.0));
        for (value, seconds) in [(10.0, 0), (40.0, 2), (30.0, 4)] {
            series.add(value, begun + Duration::from_secs(seconds));
            let stats = series.metric(Unit::Bytes, None, &[Stat::Max, Stat::Avg, Stat::Rate]);
            if seconds == 2 {
                assert_eq!(stats["stats.rate"], "15");
            }
        }
        let told = series.metric(Unit::Bytes, None, &[Stat::Max, Stat::Avg, Stat::Rate]);
        assert_eq!(told["stats.max"], "40");
        assert_eq!(told["stats.avg"], "26.667");
        assert_eq!(told["stats.rate"], "0", "a counter does not go back");
    }
}

//! Prometheus' text format, written family by family.

use std::fmt::Write;

use jiff::Timestamp;

/// A scrape under way.
#[derive(Default)]
pub(crate) struct Exposition {
    text: String,
    family: &'static str,
}

/// Name, whether it counts, help, and the value of one thing that it is about.
pub(crate) type Family<T> = (&'static str, bool, &'static str, fn(&T) -> f64);

/// Pairs of a label's name and its value.
pub(crate) type Labels<'a> = &'a [(&'a str, &'a str)];

impl Exposition {
    /// Begins a family; its samples follow.
    pub(crate) fn counter(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.begin(name, "counter", help)
    }

    /// Begins a family; its samples follow.
    pub(crate) fn gauge(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.begin(name, "gauge", help)
    }

    /// Begins a family of a table.
    pub(crate) fn family<T>(&mut self, (name, counts, help, _): &Family<T>) -> &mut Self {
        self.begin(name, if *counts { "counter" } else { "gauge" }, help)
    }

    fn begin(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Self {
        self.family = name;
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        self
    }

    pub(crate) fn sample(&mut self, labels: Labels<'_>, value: f64, at: Option<Timestamp>) {
        self.text.push_str(self.family);
        if !labels.is_empty() {
            self.text.push('{');
            for (index, (name, value)) in labels.iter().enumerate() {
                let comma = if index > 0 { "," } else { "" };
                let _ = write!(self.text, "{comma}{name}=\"{}\"", escaped(value));
            }
            self.text.push('}');
        }
        let _ = write!(self.text, " {value}");
        if let Some(at) = at {
            let _ = write!(self.text, " {}", at.as_millisecond());
        }
        self.text.push('\n');
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

pub(crate) fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

pub(crate) fn unix_seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_prometheus_reads_them() {
        let mut out = Exposition::default();
        let at = Timestamp::from_millisecond(1_700_000_000_123).expect("in range");
        out.counter("a_total", "Things").sample(&[("n", "x\"y\\z"), ("m", "")], 1.5, Some(at));
        out.gauge("b", "Others").sample(&[], 3.0, None);
        let expected = "# HELP a_total Things\n# TYPE a_total counter\n\
                        a_total{n=\"x\\\"y\\\\z\",m=\"\"} 1.5 1700000000123\n\
                        # HELP b Others\n# TYPE b gauge\nb 3\n";
        assert_eq!(out.finish(), expected);
    }
}

//! What is printed in the end.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;

use crate::client::Measured;

pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

pub fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// Ours, for itself and beside a bare server.
#[derive(Default)]
pub struct Table(Vec<[String; 4]>);

impl Table {
    pub fn row(&mut self, what: &str, measured: &str, target: &str) {
        self.0.push([
            what.to_owned(),
            measured.to_owned(),
            String::new(),
            target.to_owned(),
        ]);
    }

    pub fn rate(&mut self, what: &str, rate: f64, limit: f64, target: &str) {
        let ratio = format!("{:.0} %", 100.0 * rate / limit);
        self.0
            .push([what.to_owned(), format!("{rate:.0}/s"), ratio, target.to_owned()]);
    }

    pub fn print(&self) -> Result<()> {
        let mut out = io::stdout().lock();
        writeln!(
            out,
            "{:<36} {:>12} {:>10} {:>10}",
            "median of a run", "measured", "of bare", "target"
        )?;
        for [what, measured, ratio, target] in &self.0 {
            writeln!(out, "{what:<36} {measured:>12} {ratio:>10} {target:>10}")?;
        }
        Ok(())
    }
}

/// Ours beside the original: the same requests, the same services, one after the other.
#[derive(Default)]
pub struct Comparison(Vec<[String; 6]>);

impl Comparison {
    /// `None` for who does not serve it.
    pub fn row(&mut self, what: &str, ours: Option<Measured>, its: Option<Measured>) {
        let rate = |of: Option<Measured>| of.map_or("-".to_owned(), |of| format!("{:.0}/s", of.rate));
        let times = |of: Option<Measured>| {
            of.map_or("-".to_owned(), |of| {
                format!("{} {}", short(of.p50), short(of.p99))
            })
        };
        let ratio = match (ours, its) {
            (Some(ours), Some(its)) => format!("{:.0} x", ours.rate / its.rate),
            _ => "-".to_owned(),
        };
        self.0.push([
            what.to_owned(),
            rate(ours),
            rate(its),
            ratio,
            times(ours),
            times(its),
        ]);
    }

    pub fn print(&self) -> Result<()> {
        let mut out = io::stdout().lock();
        writeln!(
            out,
            "\n{:<44} {:>10} {:>10} {:>7} {:>17} {:>17}",
            "on PostgreSQL, etcd and Redis", "ours", "original", "ratio", "ours p50 p99 ms", "its p50 p99 ms"
        )?;
        for [what, ours, its, ratio, our_times, its_times] in &self.0 {
            writeln!(
                out,
                "{what:<44} {ours:>10} {its:>10} {ratio:>7} {our_times:>17} {its_times:>17}"
            )?;
        }
        writeln!(out, "targets: 20 x its rate, p99 below a tenth of its")?;
        Ok(())
    }
}

fn short(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

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
            "{:<46} {:>12} {:>10} {:>10}",
            "median of a run", "measured", "of bare", "target"
        )?;
        for [what, measured, ratio, target] in &self.0 {
            writeln!(out, "{what:<46} {measured:>12} {ratio:>10} {target:>10}")?;
        }
        Ok(())
    }
}

/// How many times the original's rate ours shall have.
const RATE_TARGET: f64 = 20.0;
/// And how many times its p99 fits into the original's.
const P99_TARGET: u32 = 10;

/// Ours beside the original: the same requests, the same services, one after the other.
#[derive(Default)]
pub struct Comparison(Vec<[String; 6]>);

impl Comparison {
    /// `its` is nothing where the original fails to answer.
    pub fn row(&mut self, what: &str, ours: Measured, its: Option<Measured>) {
        let rate = |of: Measured| format!("{:.0}/s", of.rate);
        let times = |of: Measured| format!("{} {}", short(of.p50), short(of.p99));
        let missed = |is_missed: bool| if is_missed { "!" } else { "" };
        let ratio = its.map(|its| {
            let ratio = ours.rate / its.rate;
            format!("{}{ratio:.0} x", missed(ratio < RATE_TARGET))
        });
        let is_late = its.is_some_and(|its| ours.p99 * P99_TARGET > its.p99);
        let none = || "fails".to_owned();
        self.0.push([
            what.to_owned(),
            rate(ours),
            its.map_or_else(none, rate),
            ratio.unwrap_or_default(),
            format!("{}{}", missed(is_late), times(ours)),
            its.map_or_else(none, times),
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
        writeln!(
            out,
            "targets: {RATE_TARGET} x its rate, p99 below 1/{P99_TARGET} of its; ! where that is missed"
        )?;
        Ok(())
    }
}

fn short(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

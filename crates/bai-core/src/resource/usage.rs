//! What sessions that have ended used, by group (`http-api.md` 4.12, `data-model.md` 18, with the verdicts Q-24 and
//! DM-22).
//!
//! Invariant: a report is read page by page, so that any number of sessions fits into bounded memory.

use bai_model::time::rest_timestamp;
use bai_model::{GroupId, KernelId};
use bai_store::Store;
use bai_store::usage::{UsageQuery, UsageRow};
use chrono::{
    DateTime, Datelike as _, LocalResult, Months, NaiveDate, NaiveDateTime, TimeDelta, TimeZone as _, Utc,
};
use chrono_tz::Tz;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive as _;
use serde::Serialize;
use serde_json::Value;

use crate::{Error, Manager, Op, Result};

/// Kernels that are read at a time.
const PAGE: u16 = 500;
/// Groups that one report may name.
const MAX_GROUPS: usize = 1000;
/// In which days are counted.
const ZONE_KEY: &str = "config/system/timezone";

/// The group of some sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageGroup {
    pub id: GroupId,
    pub name: String,
    pub domain_name: String,
}

/// The sessions that ended in some time, by group. What it says of each is read by [`UsageReport::pages`].
#[derive(Clone, Debug)]
pub struct UsageReport {
    pub groups: Vec<UsageGroup>,
    store: Store,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
    zone: Tz,
}

/// The sessions of one group, a page after the other.
#[derive(Debug)]
pub struct UsagePages {
    store: Store,
    query: UsageQuery,
    zone: Tz,
    last: Option<UsageRow>,
    is_over: bool,
}

/// What one session used, with the members and units of `data-model.md` 18.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ContainerUsage {
    pub id: KernelId,
    pub name: Option<String>,
    pub access_key: Option<String>,
    /// Milliseconds.
    pub cpu_used: f64,
    pub mem_allocated: i64,
    pub mem_used: i64,
    pub shared_memory: i64,
    pub disk_used: i64,
    pub io_read: i64,
    pub io_write: i64,
    /// `[D day[s], ]H:MM:SS[.ffffff]`.
    pub used_time: String,
    /// Days of the calendar in which it ran.
    pub used_days: i64,
    /// These three are never known.
    pub device_type: Option<String>,
    pub smp: Option<i64>,
    pub nfs: Option<String>,
    pub image_name: Option<String>,
    pub created_at: Option<String>,
    pub terminated_at: String,
}

/// What the sessions of a group used together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct UsageSums {
    pub g_cpu_used: f64,
    pub g_mem_used: i64,
    pub g_shared_memory: i64,
    pub g_disk_used: i64,
    pub g_io_read: i64,
    pub g_io_write: i64,
    pub g_device_type: Vec<String>,
    pub g_smp: i64,
}

impl UsageSums {
    /// Adds a session.
    pub fn add(&mut self, container: &ContainerUsage) {
        let sum = |total: &mut i64, amount: i64| *total = total.saturating_add(amount);
        self.g_cpu_used += container.cpu_used;
        sum(&mut self.g_mem_used, container.mem_used);
        sum(&mut self.g_shared_memory, container.shared_memory);
        sum(&mut self.g_disk_used, container.disk_used);
        sum(&mut self.g_io_read, container.io_read);
        sum(&mut self.g_io_write, container.io_write);
        sum(&mut self.g_smp, container.smp.unwrap_or(0));
        if let Some(device) = &container.device_type
            && !self.g_device_type.contains(device)
        {
            self.g_device_type.push(device.clone());
        }
    }
}

impl UsageReport {
    /// The sessions of one of its groups, in the order of their ends.
    pub fn pages(&self, group: &UsageGroup) -> UsagePages {
        UsagePages {
            store: self.store.clone(),
            query: UsageQuery {
                from: self.from,
                until: self.until,
                groups: vec![group.id],
            },
            zone: self.zone,
            last: None,
            is_over: false,
        }
    }
}

impl UsagePages {
    /// The next sessions; none at the end.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn next(&mut self) -> Result<Vec<ContainerUsage>> {
        if self.is_over {
            return Ok(Vec::new());
        }
        let reader = self.store.reader();
        let mut page = reader.usage_page(&self.query, self.last.as_ref(), PAGE).await?;
        self.is_over = page.len() < usize::from(PAGE);
        let containers = page.iter().map(|row| container(row, self.zone)).collect();
        self.last = page.pop();
        Ok(containers)
    }
}

impl Manager {
    /// The sessions that ended in a month (`YYYYMM`), of these groups or of all. For superadmins.
    ///
    /// # Errors
    /// [`Error::Unauthorized`]; [`Error::InvalidParameters`] for no month and for what is no group id.
    pub async fn resource_usage_per_month(
        &self,
        op: &Op,
        groups: &[String],
        month: &str,
    ) -> Result<UsageReport> {
        op.superadmin()?;
        let first = date(&format!("{month}01"))?;
        let next = first.checked_add_months(Months::new(1)).filter(is_writable);
        let next = next.ok_or_else(invalid_date)?;
        if groups.len() > MAX_GROUPS {
            return Err(Error::invalid(format!(
                "at most {MAX_GROUPS} groups may be named; an empty list means all"
            )));
        }
        let groups = groups
            .iter()
            .map(|group| group_id(group))
            .collect::<Result<Vec<_>>>()?;
        let mut report = self.usage_report(first, next).await?;
        let query = UsageQuery {
            from: report.from,
            until: report.until,
            groups,
        };
        let groups = self.store.reader().usage_groups(&query).await?.into_iter();
        report.groups = groups
            .map(|row| UsageGroup {
                id: row.id,
                name: row.name,
                domain_name: row.domain_name,
            })
            .collect();
        Ok(report)
    }

    /// The sessions of one group that ended in a period: from the first date (`YYYYMMDD`) on, before the second. For
    /// superadmins.
    ///
    /// # Errors
    /// [`Error::Unauthorized`]; [`Error::InvalidParameters`] for what are no dates, a period that is none, and what is
    /// no group id; [`Error::NotFound`] for a group that does not exist.
    pub async fn resource_usage_per_period(
        &self,
        op: &Op,
        group: &str,
        start: &str,
        end: &str,
    ) -> Result<UsageReport> {
        op.superadmin()?;
        let (start, end) = (date(start)?, date(end)?);
        if end <= start {
            return Err(Error::invalid("end_date must be later than start_date."));
        }
        let id = group_id(group)?;
        let row = self.store.reader().group_by_id(id).await?;
        let row = row.ok_or_else(|| Error::NotFound(format!("No such group: {group}")))?;
        let mut report = self.usage_report(start, end).await?;
        report.groups = vec![UsageGroup {
            id,
            name: row.name,
            domain_name: row.domain_name,
        }];
        Ok(report)
    }

    /// A report without groups on the time between two midnights.
    async fn usage_report(&self, start: NaiveDate, end: NaiveDate) -> Result<UsageReport> {
        let zone = self.config.get(ZONE_KEY).await?;
        let zone = zone.as_deref().filter(|zone| !zone.is_empty()).unwrap_or("UTC");
        let zone = zone.parse::<Tz>().map_err(|_| {
            Error::General(format!(
                "{ZONE_KEY} in the configuration store is '{zone}', which is no time zone; set one such as Asia/Seoul"
            ))
        })?;
        Ok(UsageReport {
            groups: Vec::new(),
            store: self.store.clone(),
            from: midnight(start, zone),
            until: midnight(end, zone),
            zone,
        })
    }
}

fn invalid_date() -> Error {
    Error::invalid("Invalid date values")
}

fn date(text: &str) -> Result<NaiveDate> {
    let date = NaiveDate::parse_from_str(text, "%Y%m%d").ok();
    date.filter(is_writable).ok_or_else(invalid_date)
}

/// Databases and the original know the years 1 to 9999.
fn is_writable(date: &NaiveDate) -> bool {
    (1..=9999).contains(&date.year())
}

fn group_id(text: &str) -> Result<GroupId> {
    let id = text.parse().map(GroupId);
    id.map_err(|_| Error::invalid(format!("not a group id: {text}")))
}

/// When a day begins: at midnight, or later where the clocks leap over it.
fn midnight(date: NaiveDate, zone: Tz) -> DateTime<Utc> {
    let mut local: NaiveDateTime = date.into();
    // Clocks leap by an hour or so; a zone that leapt over a whole day has the next one's beginning.
    for _ in 0..=48 {
        match zone.from_local_datetime(&local) {
            LocalResult::Single(at) | LocalResult::Ambiguous(at, _) => return at.to_utc(),
            LocalResult::None => local += TimeDelta::minutes(30),
        }
    }
    local.and_utc()
}

fn container(row: &UsageRow, zone: Tz) -> ContainerUsage {
    let stat = |metric: &str, member: &str| {
        let metric = row.last_stat.as_ref().and_then(|stat| stat.get(metric));
        number(metric.and_then(|metric| metric.get(member)))
    };
    let whole = |metric: &str, member: &str| stat(metric, member).trunc().to_i64().unwrap_or(0);
    let created_at = row.created_at.unwrap_or(row.terminated_at);
    let day = |at: DateTime<Utc>| i64::from(at.with_timezone(&zone).num_days_from_ce());
    ContainerUsage {
        id: row.id,
        name: row.sess_id.clone(),
        access_key: row.access_key.as_ref().map(ToString::to_string),
        cpu_used: stat("cpu_used", "current").to_f64().unwrap_or(0.0),
        mem_allocated: row
            .occupied_slots
            .amount("mem")
            .whole()
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or(0),
        // Not `current`, as in the original: the kernel had ended.
        mem_used: whole("mem", "capacity"),
        disk_used: whole("io_scratch_size", "stats.max"),
        io_read: whole("io_read", "current"),
        io_write: whole("io_write", "current"),
        shared_memory: 0,
        used_time: duration(row.terminated_at - created_at),
        used_days: day(row.terminated_at) - day(created_at) + 1,
        image_name: row.image.clone(),
        created_at: row.created_at.map(rest_timestamp),
        terminated_at: rest_timestamp(row.terminated_at),
        device_type: None,
        smp: None,
        nfs: None,
    }
}

/// A statistic, which is a decimal text; 0 where there is none.
fn number(value: Option<&Value>) -> Decimal {
    let parsed = match value {
        Some(Value::String(text)) => text.parse().ok(),
        Some(Value::Number(number)) => number.to_string().parse().ok(),
        _ => None,
    };
    parsed.unwrap_or_default()
}

/// As Python writes a `timedelta`.
fn duration(time: TimeDelta) -> String {
    let micros = time.num_microseconds().unwrap_or(0);
    let (seconds, micros) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let (days, seconds) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let days = match days {
        0 => String::new(),
        1 | -1 => format!("{days} day, "),
        _ => format!("{days} days, "),
    };
    let micros = match micros {
        0 => String::new(),
        _ => format!(".{micros:06}"),
    };
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{days}{hours}:{minutes:02}:{seconds:02}{micros}")
}

#[cfg(test)]
mod tests {
    use bai_model::ResourceSlot;
    use serde_json::json;

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().expect("a timestamp")
    }

    fn row() -> UsageRow {
        UsageRow {
            id: KernelId(uuid::Uuid::nil()),
            sess_id: Some("s".to_owned()),
            access_key: None,
            group_id: GroupId(uuid::Uuid::nil()),
            group_name: "default".to_owned(),
            domain_name: "default".to_owned(),
            image: None,
            occupied_slots: ResourceSlot::from_stored(&json!({ "mem": "536870912" })).0,
            last_stat: None,
            created_at: Some(at("2019-07-14T23:59:59Z")),
            terminated_at: at("2019-07-15T00:00:01Z"),
        }
    }

    #[test]
    fn durations_are_written_as_python_does() {
        for (micros, text) in [
            (10_746, "0:00:00.010746"),
            (5_400_250_000, "1:30:00.250000"),
            (86_401_000_000, "1 day, 0:00:01"),
            (176_523_000_000, "2 days, 1:02:03"),
            (0, "0:00:00"),
            (-1_000_000, "-1 day, 23:59:59"),
        ] {
            assert_eq!(duration(TimeDelta::microseconds(micros)), text);
        }
    }

    #[test]
    fn days_are_those_of_the_configured_zone() {
        assert_eq!(container(&row(), Tz::UTC).used_days, 2);
        assert_eq!(container(&row(), Tz::Asia__Seoul).used_days, 1);
    }

    #[test]
    fn statistics_are_read_from_texts_and_may_be_missing() {
        let mut row = row();
        let bare = container(&row, Tz::UTC);
        assert_eq!(
            (bare.cpu_used, bare.mem_used, bare.mem_allocated),
            (0.0, 0, 536_870_912)
        );
        row.last_stat = Some(json!({
            "cpu_used": { "current": "1234.567" }, "mem": { "capacity": "2097152", "current": "1" },
            "io_scratch_size": { "stats.max": "6000000000" }, "io_read": { "current": "4096.5" }, "io_write": { "current": 7 },
        }));
        let full = container(&row, Tz::UTC);
        assert_eq!(
            (
                full.cpu_used,
                full.mem_used,
                full.disk_used,
                full.io_read,
                full.io_write
            ),
            (1234.567, 2_097_152, 6_000_000_000, 4096, 7)
        );
    }

    #[test]
    fn a_day_without_midnight_begins_later() {
        let date = |text: &str| super::date(text).expect("a date");
        assert_eq!(
            midnight(date("20190715"), Tz::Asia__Seoul),
            at("2019-07-14T15:00:00Z")
        );
        // Clocks in Sao Paulo went from 00:00 to 01:00, and those of Samoa left a whole day out.
        assert_eq!(
            midnight(date("20181104"), Tz::America__Sao_Paulo),
            at("2018-11-04T03:00:00Z")
        );
        assert_eq!(
            midnight(date("20111230"), Tz::Pacific__Apia),
            at("2011-12-30T10:00:00Z")
        );
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in ["20201301", "20190229", "00000101", "2019071", "x"] {
            assert!(date(text).is_err(), "{text}");
        }
    }
}

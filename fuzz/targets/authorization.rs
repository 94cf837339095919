//! The `Authorization` header and the date (`http-api.md` 3.2, 3.3): the first line is the header, the second the date.
#![no_main]

use bai_gateway::auth::signature::Algorithm;
use bai_gateway::auth::{authorization, date};
use chrono::NaiveDate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (header, stamp) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(parsed) = authorization::parse(header) {
        // What is taken out of the header stands in it.
        for part in [parsed.sign_method, parsed.access_key, parsed.signature] {
            assert!(header.contains(part));
        }
        let _ = Algorithm::parse(parsed.sign_method);
    }
    let today = NaiveDate::from_ymd_opt(2019, 7, 15).expect("a date");
    if let Some(parsed) = date::parse(stamp, today) {
        assert_eq!(parsed.key_date().len(), 8);
    }
});

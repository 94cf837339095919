//! Slot strings and sizes (`data-model.md` 10, 11): what was read is written so that it is read as the same.
#![no_main]

use bai_model::{BinarySize, ResourceSlot, SlotTypes, SlotUnit, SlotValue};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for unit in [SlotUnit::Count, SlotUnit::Bytes] {
        let Ok(value) = SlotValue::parse(text, unit) else {
            continue;
        };
        let again = SlotValue::parse(&value.to_string(), unit).expect("what we write can be read");
        // Not a number is not equal to itself.
        assert_eq!(again.to_string(), value.to_string());
        let _ = value.humanized(unit);
    }
    if let Ok(size) = BinarySize::parse(text) {
        let _ = (size.short(), size.long());
    }
    let Ok(json) = serde_json::from_str(text) else {
        return;
    };
    let types = SlotTypes::intrinsic();
    let (slots, _) = ResourceSlot::from_stored(&json);
    let (again, complaints) = ResourceSlot::from_stored(&slots.to_json());
    assert!(complaints.is_empty());
    assert_eq!(again.to_stored_json(), slots.to_stored_json());
    let _ = slots.humanized(&types);
});

//! The laws of the arithmetic and of its order, and that no input panics.

use proptest::prelude::*;
use rust_decimal::Decimal;

use super::tests::{object, slots, types};
use super::*;

fn finite() -> impl Strategy<Value = SlotValue> {
    (-(1_i64 << 50)..(1_i64 << 50), 0..4_u32).prop_map(|(n, scale)| Decimal::new(n, scale).into())
}

fn any_amount() -> impl Strategy<Value = SlotValue> {
    prop_oneof![
        8 => finite(),
        1 => Just(SlotValue::Infinity),
        1 => Just(SlotValue::NegativeInfinity),
        1 => Just(Decimal::MAX.into()),
        1 => Just(Decimal::MIN.into()),
    ]
}

fn any_slots(amount: impl Strategy<Value = SlotValue>) -> impl Strategy<Value = ResourceSlot> {
    prop::collection::vec(("[abc]", amount), 0..4).prop_map(|entries| entries.into_iter().collect())
}

/// Numbers around the limits of the types that hold them, with all that may follow the digits.
fn near_the_edges() -> impl Strategy<Value = String> {
    let limits = prop::sample::select(vec![
        i128::MAX,
        i128::MIN,
        (1 << 96) - 1,
        10_i128.pow(28),
        10_i128.pow(25),
    ]);
    (
        limits,
        -2..3_i128,
        "(|[.][0-9]{1,3}|[.]5)(|e[-+]?[0-9]{1,2})[kgy]?",
    )
        .prop_map(|(limit, step, rest)| format!("{}{rest}", limit.saturating_add(step)))
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
        "[-+]?[0-9_.]{0,40}(e[-+]?[0-9]{1,25})?[kmgy]?".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec(("(cpu|mem|cuda.mem|x)", inner), 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn taking_back_what_was_added_leaves_the_rest(a in any_slots(finite()), b in any_slots(finite())) {
        let back = a.plus(&b).minus(&b);
        prop_assert!(back.fits_within(&a) && a.fits_within(&back));
    }

    #[test]
    fn addition_commutes_and_associates(
        a in any_slots(finite()), b in any_slots(finite()), c in any_slots(finite()),
    ) {
        prop_assert_eq!(a.plus(&b), b.plus(&a));
        prop_assert_eq!(a.plus(&b).plus(&c), a.plus(&b.plus(&c)));
    }

    #[test]
    fn fitting_is_a_partial_order(
        a in any_slots(any_amount()), b in any_slots(any_amount()), c in any_slots(any_amount()),
    ) {
        prop_assert!(a.fits_within(&a));
        prop_assert!(!(a.fits_within(&b) && b.fits_within(&c)) || a.fits_within(&c));
        if a.fits_within(&b) && b.fits_within(&a) {
            prop_assert!(["a", "b", "c"].iter().all(|name| a.amount(name) == b.amount(name)));
        }
        prop_assert_eq!(a.fits_within(&b), b.names_below(&a).is_empty());
    }

    #[test]
    fn arithmetic_never_panics(a in any_slots(any_amount()), b in any_slots(any_amount())) {
        let _ = (a.plus(&b), a.minus(&b), a.filled_with_minimum(&b), a.humanized(&types()));
        prop_assert!(ResourceSlot::default().fits_within(&a.clamped_at_zero()));
    }

    #[test]
    fn what_is_stored_comes_back(a in any_slots(any_amount())) {
        prop_assert_eq!(&slots(a.to_json()), &a);
        let stored: Value = serde_json::from_str(&a.to_stored_json()).expect("valid JSON");
        prop_assert_eq!(slots(stored), a);
    }

    #[test]
    fn what_a_user_sent_means_the_same_when_sent_again(value in any_json()) {
        if let Some(input) = value.as_object() {
            if let Ok(read) = ResourceSlot::from_user_input(input, None) {
                let again = read.to_json();
                let again = ResourceSlot::from_user_input(object(&again), None).map(|read| read.to_string());
                let negative = read.iter().any(|(_, amount)| matches!(amount, SlotValue::NegativeInfinity));
                prop_assert!(negative || again == Ok(read.to_string()));
            }
            let _ = ResourceSlot::from_user_input(input, Some(&types()));
        }
    }

    #[test]
    fn reading_never_panics(value in any_json(), text in ".*", edge in near_the_edges()) {
        let _ = ResourceSlot::from_stored(&value);
        for unit in [SlotUnit::Count, SlotUnit::Bytes] {
            let _ = (SlotValue::parse(&text, unit), SlotValue::parse(&edge, unit));
            let _ = SlotValue::from_json(&value, unit);
            let _ = SlotValue::from_stored(&Value::from(edge.as_str()), unit);
        }
    }
}

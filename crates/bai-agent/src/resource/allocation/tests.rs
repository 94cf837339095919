use bai_model::{KernelId, SlotUnit, SlotValue};
use proptest::prelude::*;

use super::*;
use crate::resource::{Grant, Ledger, Ports, Refused};

fn slots(entries: &[(&str, &str)]) -> ResourceSlot {
    let parse = |(name, text): &(&str, &str)| {
        let amount = SlotValue::parse(text, SlotUnit::guess(name)).expect("an amount");
        ((*name).to_owned(), amount)
    };
    entries.iter().map(parse).collect()
}

#[test]
fn the_emptiest_cores_come_first() {
    // `agent-protocol.md` 7.6: four cores of two units.
    let mut pool = Pool::new(&[0, 1, 2, 3], 8, 0);
    let mut ask = |amount| pool.allocate(&slots(&[("cpu", amount)])).expect("enough").cpu;
    assert_eq!(ask("3"), BTreeMap::from([(0, 2), (1, 1)]));
    assert_eq!(ask("1"), BTreeMap::from([(2, 1)]));
    assert_eq!(ask("0.5"), BTreeMap::from([(3, 0)]));
}

#[test]
fn what_the_host_does_not_have_is_only_ignored_when_nothing_of_it_is_asked_for() {
    let mut pool = Pool::new(&[0], 1, 100);
    assert!(
        pool.allocate(&slots(&[("cpu", "1"), ("cuda.shares", "0")]))
            .is_ok()
    );
    let error = pool
        .allocate(&slots(&[("cuda.shares", "0.5")]))
        .expect_err("no such device");
    assert_eq!(
        (
            error.device.as_str(),
            error.slot.as_str(),
            error.available.as_str()
        ),
        ("cuda", "cuda.shares", "0")
    );
}

#[test]
fn devices_are_given_whole_or_in_parts() {
    // `agent-protocol.md` 7.6: two devices of which parts are given.
    let accelerators = [Accelerator::mock(2, true), Accelerator::mock(3, false)];
    let mut pool = Pool::new(&[0], 1, 100).with(accelerators);
    let mut ask = |slot: &str, amount: &str| {
        let share = pool.allocate(&slots(&[(slot, amount)]))?;
        let told = |(number, amount): (&u32, &Thousandths)| (*number, amount.to_string());
        let parts = share.devices.get(slot).into_iter().flatten().map(told);
        Ok::<_, Insufficient>(parts.collect::<Vec<_>>())
    };
    let owned = |number, amount: &str| (number, amount.to_owned());
    assert_eq!(ask("mock.shares", "0.5"), Ok(vec![owned(0, "0.5")]));
    assert_eq!(
        ask("mock.shares", "1.2"),
        Ok(vec![owned(0, "0.2"), owned(1, "1")])
    );
    let refused = ask("mock.shares", "0.4").expect_err("only 0.3 is left");
    assert_eq!(
        (refused.device.as_str(), refused.available.as_str()),
        ("mock", "0.3")
    );
    assert_eq!(ask("mock.device", "0.5"), Ok(vec![]), "no part of a whole device");
    assert_eq!(ask("mock.device", "2"), Ok(vec![owned(0, "1"), owned(1, "1")]));
    assert_eq!(ask("mock.device", "1"), Ok(vec![owned(2, "1")]));
    assert!(ask("mock.device", "1").is_err());
}

#[test]
fn devices_come_back() {
    let mut pool = Pool::new(&[0], 1, 100).with([Accelerator::mock(1, false)]);
    let wanted = slots(&[("mock.device", "1")]);
    let share = pool.allocate(&wanted).expect("one is there");
    assert!(pool.allocate(&wanted).is_err());
    assert_eq!(pool.give(&share).environ["MOCK_VISIBLE_DEVICES"], "0");
    pool.release(&share);
    pool.restore(&share);
    assert!(pool.allocate(&wanted).is_err(), "an adopted kernel has it");
    pool.release(&share);
    assert!(pool.allocate(&wanted).is_ok());
}

#[test]
fn a_refused_request_takes_nothing() {
    let mut pool = Pool::new(&[0, 1], 2, 100);
    let error = pool
        .allocate(&slots(&[("cpu", "1"), ("mem", "101")]))
        .expect_err("too much memory");
    assert_eq!(
        (error.requested.as_str(), error.available.as_str()),
        ("101", "100")
    );
    assert!(pool.allocate(&slots(&[("cpu", "2"), ("mem", "100")])).is_ok());
}

#[test]
fn unlimited_and_negative_amounts_are_refused() {
    let mut pool = Pool::new(&[0], 1, 100);
    for amount in ["Infinity", "-1"] {
        assert!(pool.allocate(&slots(&[("cpu", amount)])).is_err(), "{amount}");
    }
}

#[test]
fn units_spread_evenly_over_cores() {
    let pool = Pool::new(&[4, 7], 5, 0);
    assert_eq!(pool.cpu_capacity(), 5);
    assert_eq!(Pool::new(&[0, 1, 2], 2, 0).cores.len(), 2);
    assert_eq!(Pool::new(&[], 2, 0).cpu_capacity(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Take { kernel: u8, cpu: u8, mem: u8 },
    Release { kernel: u8 },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..12u8, 0..5u8, 0..40u8).prop_map(|(kernel, cpu, mem)| Step::Take { kernel, cpu, mem }),
        3 => (0..12u8).prop_map(|kernel| Step::Release { kernel }),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 0..60)
}

fn ledger() -> Ledger {
    Ledger::new(Pool::new(&[0, 1, 2], 6, 100), Ports::new(30000..=30009))
}

proptest! {
    #[test]
    fn nothing_is_handed_out_twice_or_lost(steps in steps()) {
        let mut ledger = ledger();
        let mut held: BTreeMap<u8, Grant> = BTreeMap::new();
        let id = |kernel: u8| KernelId(uuid::Uuid::from_u128(u128::from(kernel)));
        for step in steps {
            match step {
                Step::Take { kernel, cpu, mem } => {
                    let asked = slots(&[("cpu", &cpu.to_string()), ("mem", &mem.to_string())]);
                    let used_cpu: u64 = held.values().flat_map(|grant| grant.share.cpu.values()).sum();
                    let used_mem: u64 = held.values().map(|grant| grant.share.mem).sum();
                    let fits = used_cpu + u64::from(cpu) <= 6 && used_mem + u64::from(mem) <= 100;
                    match ledger.take(id(kernel), &asked, 2) {
                        Ok(grant) => { held.insert(kernel, grant); }
                        Err(Refused::Insufficient(_)) => prop_assert!(!fits && !held.contains_key(&kernel)),
                        Err(Refused::NoPorts) => prop_assert!(held.len() >= 5),
                    }
                }
                // Releasing twice changes nothing.
                Step::Release { kernel } => {
                    ledger.release(id(kernel));
                    ledger.release(id(kernel));
                    held.remove(&kernel);
                }
                Step::Restart => {
                    ledger = self::ledger();
                    for (kernel, grant) in &held {
                        ledger.restore(id(*kernel), grant);
                        ledger.restore(id(*kernel), grant);
                    }
                }
            }
            let mut by_core: BTreeMap<usize, u64> = BTreeMap::new();
            for (core, units) in held.values().flat_map(|grant| &grant.share.cpu) {
                *by_core.entry(*core).or_default() += units;
            }
            prop_assert!(by_core.values().all(|units| *units <= 2));
            prop_assert!(held.values().map(|grant| grant.share.mem).sum::<u64>() <= 100);
            let mut ports: Vec<u16> = held.values().flat_map(|grant| grant.ports.clone()).collect();
            let count = ports.len();
            ports.sort_unstable();
            ports.dedup();
            prop_assert_eq!(ports.len(), count);
            let mut indices: Vec<u32> = held.values().map(|grant| grant.index).collect();
            indices.sort_unstable();
            indices.dedup();
            prop_assert_eq!(indices.len(), held.len());
        }
        for kernel in 0..12 {
            ledger.release(id(kernel));
        }
        prop_assert!(ledger.take(id(99), &slots(&[("cpu", "6"), ("mem", "100")]), 10).is_ok());
    }
}

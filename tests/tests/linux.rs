//! A stock Debian kernel recorded by the engine and replayed interval by interval. The images come from
//! `tests/guest-images/build.sh`; without them this does nothing, or fails under `SB_REQUIRE_IMAGES=1`.

use kvm_recorder::{Kicks, Length, Options, Positions, Summary};
use machine::checkpoint::CheckpointSource;
use machine::checkpoint::memory::MemoryStore;
use machine::clock::{HostClock, InsnClock, VirtualClock};
use machine::units::VirtualNanos;
use replay_log::RecordingId;
use simuboost_tests::recording::linux::{Linux, images};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use tcg_sim::EngineOptions;
use tcg_sim::replay::{Limits, Outcome, SearchCounts};

fn insn_clock(per_second: u64) -> VirtualClock {
    let rate = NonZeroU64::new(per_second).expect("a clock that runs");
    VirtualClock::Insn(InsnClock::new(rate))
}

fn random_kicks(late_by_steps: u64) -> Positions {
    Positions::Landmark(Kicks::Random {
        seed: 11,
        late_by_steps,
    })
}

fn have_images() -> bool {
    let found = images().is_some();
    let required = std::env::var_os("SB_REQUIRE_IMAGES").is_some_and(|value| value == "1");
    assert!(found || !required, "run tests/guest-images/build.sh first");
    if !found {
        eprintln!("skipped: no guest images");
    }
    found
}

/// Records the first steps of a boot and verifies all intervals.
fn verified(
    clock: VirtualClock,
    positions: Positions,
    interval: Length,
    steps: u64,
) -> (Summary, SearchCounts) {
    let linux = Linux {
        image: "minimal".into(),
        ram_bytes: 256 << 20,
        append: String::new(),
        engine: EngineOptions::default(),
    };
    let options = Options {
        recording: RecordingId([9; 16]),
        clock,
        positions,
        interval,
        stop_after: Some(Length::Steps(steps)),
        queue_pages: Options::DEFAULT_QUEUE_PAGES,
    };
    let what = format!("{options:?}");
    let store = MemoryStore::default();
    let console = Box::new(std::io::sink());
    let summary = linux
        .record(options, console, Box::new(store.clone()))
        .expect("the guest runs");
    assert!(summary.intervals > 2, "{what}: {summary:?}");
    let source: Arc<dyn CheckpointSource> = Arc::new(store);
    let search = Mutex::new(SearchCounts::default());
    linux.replay_all(&source, 2, &Limits::default(), |number, report| {
        let report = report.expect("a verdict");
        if let Outcome::Diverged(divergence) = &report.outcome {
            panic!("{what}: interval {number}: {}", divergence.first);
        }
        let mut search = search.lock().expect("no panic under the lock");
        search.landmarks += report.search.landmarks;
        search.arrivals += report.search.arrivals;
        search.wrong_memory += report.search.wrong_memory;
        search.backtracks += report.search.backtracks;
    });
    let search = search.into_inner().expect("no panic under the lock");
    eprintln!("{what}: {:?}, {search:?}", summary.positions);
    (summary, search)
}

#[test]
fn a_boot_verifies_in_both_clocks_and_with_both_kinds_of_positions() {
    if !have_images() {
        return;
    }
    const STEPS: u64 = 400_000_000;
    let interval = Length::Steps(50_000_000);
    let prompt = Positions::Landmark(Kicks::Prompt);
    verified(insn_clock(1_000_000_000), Positions::Count, interval, STEPS);
    verified(
        insn_clock(1_000_000_000),
        random_kicks(1_000),
        interval,
        STEPS,
    );
    verified(
        VirtualClock::Host(HostClock::new()),
        Positions::Count,
        interval,
        STEPS,
    );
    verified(
        VirtualClock::Host(HostClock::new()),
        prompt,
        interval,
        STEPS,
    );
}

#[test]
fn a_boot_with_a_thousand_events_of_each_rule_verifies() {
    if !have_images() {
        return;
    }
    // Two million steps a second, so that the timer ticks every 8,000 steps, and kicks so late that the
    // guest often comes to an I/O step or opens its interrupt window first.
    let interval = Length::Steps(50_000_000);
    let (summary, search) = verified(
        insn_clock(2_000_000),
        random_kicks(100_000),
        interval,
        450_000_000,
    );
    let positions = summary.positions;
    for (rule, events) in [
        (1, positions.after_io),
        (2, positions.window),
        (3, positions.landmark),
    ] {
        assert!(events >= 1_000, "rule {rule}: {positions:?}");
    }
    assert!(search.landmarks >= positions.landmark, "{search:?}");
}

#[test]
fn intervals_in_guest_time_verify_on_the_hosts_clock() {
    if !have_images() {
        return;
    }
    let clock = VirtualClock::Host(HostClock::new());
    let interval = Length::Time(VirtualNanos(200_000_000));
    verified(
        clock,
        Positions::Landmark(Kicks::Prompt),
        interval,
        600_000_000,
    );
}

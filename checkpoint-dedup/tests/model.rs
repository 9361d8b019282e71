//! Random sequences of operations against a model in memory.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use checkpoint_dedup::*;
use common::*;
use proptest::prelude::*;
use proptest::test_runner::Config;

const FRAMES: usize = 24;

/// One operation. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    /// The live writer publishes a checkpoint; a recording is begun if none is being written.
    Publish {
        seed: u8,
    },
    /// The live writer finishes its recording.
    Finish,
    /// The live writer is dropped: its recording is dead.
    Die,
    Remove(u8),
    Trim(u8, u8, u8),
    Collect,
    /// A reader opens a recording and keeps it.
    OpenReader(u8),
    /// All kept readers read everything they saw when they were opened.
    UseReaders,
    CloseReaders,
    Rebuild,
    Copy(u8),
    Reopen,
    Check,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any::<u8>().prop_map(|seed| Step::Publish { seed }),
        2 => Just(Step::Finish),
        1 => Just(Step::Die),
        2 => any::<u8>().prop_map(Step::Remove),
        2 => any::<(u8, u8, u8)>().prop_map(|(a, b, c)| Step::Trim(a, b, c)),
        4 => Just(Step::Collect),
        2 => any::<u8>().prop_map(Step::OpenReader),
        2 => Just(Step::UseReaders),
        1 => Just(Step::CloseReaders),
        1 => Just(Step::Rebuild),
        1 => any::<u8>().prop_map(Step::Copy),
        1 => Just(Step::Reopen),
        1 => Just(Step::Check),
    ]
}

/// The store and what it must hold.
struct World {
    root: PathBuf,
    repository: Repository,
    model: BTreeMap<String, History>,
    live: Option<(String, Guest)>,
    readers: Vec<(Recording, History)>,
    begun: u32,
}

impl World {
    fn new(root: PathBuf) -> Self {
        Self {
            repository: Repository::create(&root).unwrap(),
            root,
            model: BTreeMap::new(),
            live: None,
            readers: Vec::new(),
            begun: 0,
        }
    }

    /// A recording that is not being written.
    fn choose(&self, number: u8) -> Option<String> {
        let live = self.live.as_ref().map(|(name, _)| name);
        let all: Vec<&String> = self.model.keys().filter(|n| Some(*n) != live).collect();
        let count = all.len().max(1);
        all.get(usize::from(number) % count).map(|n| n.to_string())
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Publish { seed } => self.publish(*seed),
            Step::Finish => {
                if let Some((_, guest)) = self.live.take() {
                    guest.finish().unwrap();
                }
            }
            Step::Die => self.live = None,
            Step::Remove(number) => {
                if let Some(of) = self.choose(*number) {
                    self.repository.remove(&name(&of)).unwrap();
                    self.model.remove(&of);
                }
            }
            Step::Trim(number, from, to) => self.trim(*number, *from, *to),
            Step::Collect => {
                let report = collect(&self.repository).unwrap();
                assert!(report.waiting_for.is_empty(), "{report:?}");
            }
            Step::OpenReader(number) => {
                if let Some(of) = self.choose(*number) {
                    let recording = self.repository.recording(&name(&of)).unwrap();
                    self.readers.push((recording, self.model[&of].clone()));
                }
            }
            Step::UseReaders => self.use_readers(),
            Step::CloseReaders => self.readers.clear(),
            Step::Rebuild => {
                self.repository.rebuild_index(&Silent).unwrap();
            }
            Step::Copy(number) => self.copy(*number),
            Step::Reopen => self.repository = Repository::open(&self.root).unwrap(),
            Step::Check => assert_clean(&self.repository),
        }
    }

    fn publish(&mut self, seed: u8) {
        if self.live.is_none() {
            let of = format!("r{}", self.begun);
            self.begun += 1;
            // Few seeds: recordings share pages.
            let guest = Guest::start(&self.repository, &of, FRAMES, u64::from(seed % 3));
            self.model.insert(of.clone(), History::default());
            self.live = Some((of, guest.unwrap()));
        }
        if let Some((of, guest)) = &mut self.live {
            guest.step().unwrap();
            self.model.insert(of.clone(), guest.history.clone());
        }
    }

    fn trim(&mut self, number: u8, from: u8, to: u8) {
        let Some(of) = self.choose(number) else {
            return;
        };
        let history = self.model.get_mut(&of).unwrap();
        let numbers: Vec<u32> = history.checkpoints.keys().copied().collect();
        if numbers.is_empty() {
            return;
        }
        let pick = |n: u8| numbers[usize::from(n) % numbers.len()];
        let (from, to) = (pick(from).min(pick(to)), pick(from).max(pick(to)));
        let range = TrimRange {
            from: Some(CheckpointNo(from)),
            to: Some(CheckpointNo(to)),
        };
        self.repository.trim(&name(&of), range).unwrap();
        history.checkpoints.retain(|n, _| (from..=to).contains(n));
        history.logs.retain(|n, _| (from..to).contains(n));
        // Readers of what was cut off may find it gone, and of the rest not.
        for (recording, seen) in &mut self.readers {
            if recording.info().name == name(&of) {
                seen.checkpoints.retain(|n, _| (from..=to).contains(n));
                seen.logs.retain(|n, _| (from..to).contains(n));
            }
        }
    }

    fn use_readers(&self) {
        for (recording, seen) in &self.readers {
            for (&number, expected) in &seen.checkpoints {
                let found = moment(recording, number).unwrap();
                assert!(found == *expected, "{} {number}", recording.info().name);
            }
        }
    }

    fn copy(&mut self, number: u8) {
        // A copy needs the writer's lock.
        if self.live.is_some() {
            return;
        }
        let Some(of) = self.choose(number) else {
            return;
        };
        let history = self.model[&of].clone();
        let Some(&first) = history.checkpoints.keys().next() else {
            return;
        };
        let copy = format!("c{}", self.begun);
        self.begun += 1;
        let report = self
            .repository
            .copy_to(&name(&of), &self.repository, &name(&copy), &Silent)
            .unwrap();
        assert_eq!(report.checkpoints, history.checkpoints.len() as u64);
        let shift = |(n, value)| (n - first, value);
        let copied = History {
            checkpoints: history.checkpoints.into_iter().map(shift).collect(),
            logs: history
                .logs
                .into_iter()
                .map(|(n, v)| (n - first, v))
                .collect(),
        };
        self.model.insert(copy, copied);
    }

    /// Everything reads as the model says, with old and new eyes.
    fn verify(&self) {
        self.use_readers();
        let fresh = Repository::open(&self.root).unwrap();
        for repository in [&self.repository, &fresh] {
            let names: Vec<String> = repository
                .recordings()
                .unwrap()
                .iter()
                .map(|info| info.name.to_string())
                .collect();
            let expected: Vec<String> = self.model.keys().cloned().collect();
            assert_eq!(names, expected);
            for (of, history) in &self.model {
                assert_reads(repository, of, history);
            }
        }
        assert_clean(&fresh);
    }
}

fn cases() -> u32 {
    let set = std::env::var("SB_MODEL_CASES").ok();
    set.and_then(|n| n.parse().ok()).unwrap_or(12)
}

proptest! {
    #![proptest_config(Config {
        cases: cases(),
        max_shrink_iters: 200,
        failure_persistence: None,
        ..Config::default()
    })]

    #[test]
    fn the_store_does_what_the_model_does(steps in prop::collection::vec(step(), 1..50)) {
        let directory = tempfile::tempdir().unwrap();
        let mut world = World::new(directory.path().join("r"));
        for step in &steps {
            world.apply(step);
        }
        world.verify();
        world.readers.clear();
        world.live = None;
        collect(&world.repository).unwrap();
        world.verify();
        // Without anything left to hold it, everything goes.
        for of in std::mem::take(&mut world.model).into_keys() {
            world.repository.remove(&name(&of)).unwrap();
        }
        collect(&world.repository).unwrap();
        let left = files(&world.root);
        prop_assert!(
            left.iter().all(|f| !f.starts_with("packs/") && !f.starts_with("series/")),
            "{:?}", left
        );
    }
}

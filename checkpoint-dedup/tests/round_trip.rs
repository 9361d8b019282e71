//! Series of checkpoints come back bit for bit.

mod common;

use checkpoint_dedup::*;
use common::{Dice, Memory, mutate};

const FRAMES: u32 = 200;

fn options() -> WriterOptions {
    WriterOptions {
        spaces: vec![("ram".into(), FRAMES)],
        ..WriterOptions::default()
    }
}

#[test]
fn every_page_of_every_checkpoint_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::create(directory.path().join("r")).unwrap();
    let name = RecordingName::new("a").unwrap();
    let mut writer = repository.write(&name, options()).unwrap();
    let mut memory: Memory = vec![[0; PAGE_BYTES]; FRAMES as usize];
    let mut dice = Dice(12345);
    let mut history = Vec::new();
    for number in 0..75u32 {
        let changed = mutate(&mut memory, &mut dice, 40);
        let mut draft = writer.draft();
        for frame in changed {
            draft
                .put_page(SpaceNo(0), frame, &memory[frame.0 as usize])
                .unwrap();
        }
        draft.put_blob("cpu", vec![number as u8; 100]);
        draft.put_blob(
            "big",
            (0..200_000u32)
                .map(|i| (u64::from(i).pow(2) >> 7) as u8)
                .collect(),
        );
        writer.publish(draft).unwrap();
        history.push(memory.clone());
        let mut log = LogDraft::new(vec![number as u8; 10]);
        log.put_page(&memory[number as usize]);
        writer.publish_log(CheckpointNo(number), log).unwrap();
    }
    writer.finish().unwrap();

    for repository in [
        &repository,
        &Repository::open(directory.path().join("r")).unwrap(),
    ] {
        let recording = repository.recording(&name).unwrap();
        assert_eq!(recording.info().state, RecordingState::Finished);
        assert_eq!(recording.checkpoints().unwrap().len(), 75);
        for (number, memory) in (0..).map(CheckpointNo).zip(&history) {
            let checkpoint = recording.checkpoint(number).unwrap();
            let ram = checkpoint.space("ram").unwrap();
            for (frame, expected) in (0..).map(Frame).zip(memory) {
                let mut page = [1; PAGE_BYTES];
                ram.read(frame, &mut page).unwrap();
                assert!(page == *expected, "checkpoint {number} frame {frame}");
            }
            let mut whole = vec![3; memory.len() * PAGE_BYTES];
            ram.restore(&mut whole).unwrap();
            assert!(whole == memory.concat());
            assert_eq!(checkpoint.blob("cpu").unwrap(), [number.0 as u8; 100]);
            assert_eq!(checkpoint.blob("big").unwrap().len(), 200_000);
            let log = recording.log(number).unwrap();
            let id = PageId::of(&memory[number.0 as usize]);
            assert!(*log.page(id).unwrap() == memory[number.0 as usize]);
        }
        let ram_79 = recording.checkpoint(CheckpointNo(74)).unwrap();
        assert!(
            ram_79
                .space("ram")
                .unwrap()
                .page_ref(Frame(FRAMES))
                .is_err()
        );
    }
}

#[test]
fn one_writer_at_a_time_and_no_name_twice() {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::create(directory.path()).unwrap();
    let (a, b) = (
        RecordingName::new("a").unwrap(),
        RecordingName::new("b").unwrap(),
    );
    let writer = repository.write(&a, options()).unwrap();
    assert_eq!(
        repository.recording_info(&a).unwrap().state,
        RecordingState::Running
    );
    let error = repository.write(&b, options()).err().unwrap();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    drop(writer);
    assert_eq!(
        repository.recording_info(&a).unwrap().state,
        RecordingState::Dead
    );
    let error = repository.write(&a, options()).err().unwrap();
    assert!(matches!(error, Error::RecordingExists { .. }), "{error}");
    assert!(Repository::create(directory.path()).is_err());
    assert!(Repository::open(directory.path().join("x")).is_err());
}

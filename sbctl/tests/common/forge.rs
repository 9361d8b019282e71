//! Recordings with something wrong in them, though every checksum is right.

use super::Lab;
use checkpoint_dedup::{
    CheckpointNo, Frame, LogDraft, PAGE_BYTES, Page, RecordingName, Repository, SpaceNo,
    WriterOptions,
};

/// What is made wrong.
pub(crate) struct Forgery<'a> {
    /// Changes a blob of a checkpoint.
    pub(crate) blob: &'a dyn Fn(u32, &str, &mut Vec<u8>),
    /// Changes a page of a checkpoint.
    pub(crate) page: &'a dyn Fn(u32, Frame, &mut Page),
    /// Changes the log of an interval.
    pub(crate) log: &'a dyn Fn(u32, &mut Vec<u8>),
    /// Changes what the recording says about itself.
    pub(crate) note: &'a dyn Fn(&mut Vec<u8>),
}

/// Nothing is made wrong.
pub(crate) const FAITHFUL: Forgery<'static> = Forgery {
    blob: &|_, _, _| (),
    page: &|_, _, _| (),
    log: &|_, _| (),
    note: &|_| (),
};

impl Lab {
    /// A page of a checkpoint.
    pub(crate) fn page(&self, name: &str, number: u32, frame: u32) -> Page {
        let repository = Repository::open(self.repository()).expect("the lab's repository");
        let name = RecordingName::new(name).expect("a good name");
        let recording = repository.recording(&name).expect("a recording");
        let checkpoint = recording
            .checkpoint(CheckpointNo(number))
            .expect("a checkpoint");
        let mut page = [0; PAGE_BYTES];
        let ram = checkpoint.space("ram").expect("RAM");
        ram.read(Frame(frame), &mut page).expect("a page");
        page
    }

    /// Copies recording `from` under the name `to`, with changes.
    pub(crate) fn forge(&self, from: &str, to: &str, forgery: &Forgery<'_>) {
        let name = |text| RecordingName::new(text).expect("a good name");
        let repository = Repository::open(self.repository()).expect("the lab's repository");
        let recording = repository.recording(&name(from)).expect("a recording");
        let checkpoints = recording.checkpoints().expect("checkpoints");
        let first = recording.checkpoint(CheckpointNo(0)).expect("the first");
        let frames = first.space("ram").expect("RAM").frames();
        let mut note = recording.info().note.clone();
        (forgery.note)(&mut note);
        let options = WriterOptions {
            spaces: vec![("ram".into(), frames)],
            note,
            ..WriterOptions::default()
        };
        let mut writer = repository
            .write(&name(to), options)
            .expect("a new recording");
        for number in checkpoints {
            let checkpoint = recording.checkpoint(number).expect("a checkpoint");
            let ram = checkpoint.space("ram").expect("RAM");
            let mut draft = writer.draft();
            let changed = match number.0 {
                0 => ram.nonzero_frames(),
                n => recording
                    .changed_frames("ram", CheckpointNo(n - 1))
                    .expect("what changed"),
            };
            for frame in changed {
                let mut page = [0; PAGE_BYTES];
                ram.read(frame, &mut page).expect("a page");
                (forgery.page)(number.0, frame, &mut page);
                draft.put_page(SpaceNo(0), frame, &page).expect("it fits");
            }
            let names: Vec<String> = checkpoint.blobs().map(|(name, _)| name.into()).collect();
            for name in names {
                let mut blob = checkpoint.blob(&name).expect("a blob");
                (forgery.blob)(number.0, &name, &mut blob);
                draft.put_blob(&name, blob);
            }
            if let Some(before) = number.0.checked_sub(1) {
                let log = recording.log(CheckpointNo(before)).expect("a log");
                let mut bytes = log.bytes().to_vec();
                (forgery.log)(before, &mut bytes);
                let ticket = writer.publish_log(CheckpointNo(before), LogDraft::new(bytes));
                ticket.expect("it is taken").wait().expect("it is stored");
            }
            writer.publish(draft).expect("it is taken");
        }
        writer.finish().expect("everything is stored");
    }
}

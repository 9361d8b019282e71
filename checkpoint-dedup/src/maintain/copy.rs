//! Copying recordings: only what the target does not hold already is stored.

use super::progress::{Progress, report};
use super::repair::ReadableRun;
use crate::error::Error;
use crate::id::{CheckpointNo, Frame, RecordingName, new_page};
use crate::lock::Patience;
use crate::reader::Checkpoint;
use crate::repository::{RecordingState, Repository};
use crate::writer::{Draft, Haste, LogDraft, Published, SpaceNo, Writer, WriterOptions};

/// Pages that are handed over at once.
const PART: usize = 8192;

/// What a copy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Checkpoints copied.
    pub checkpoints: u64,
    /// Log segments copied.
    pub logs: u64,
    /// Pages that the target did not hold.
    pub new_pages: u64,
    /// Bytes written to the target.
    pub written_bytes: u64,
}

impl CopyReport {
    fn add(&mut self, done: Published) {
        self.new_pages += done.deltas + done.whole;
        self.written_bytes += done.pack_bytes + done.manifest_bytes;
    }
}

impl Repository {
    /// Copies a recording to another repository, under the same or another name. The copy is a
    /// recording of its own, and starts at checkpoint 0 even if this one was trimmed. If it fails
    /// or is interrupted, nothing of it is left but pages that a later copy finds again.
    ///
    /// # Errors
    /// [`Error::RecordingExists`], [`Error::Locked`] while the target is being written, damage of
    /// this one, [`Error::Interrupted`].
    pub fn copy_to(
        &self,
        name: &RecordingName,
        target: &Self,
        as_name: &RecordingName,
        progress: &dyn Progress,
    ) -> Result<CopyReport, Error> {
        let info = self.recording_info(name)?;
        let (Some(first), Some(last)) = (info.first, info.last) else {
            return Err(Error::Refused(format!(
                "recording {name} has no checkpoint"
            )));
        };
        copy_range(
            self,
            name,
            ReadableRun { first, last },
            target,
            as_name,
            progress,
        )
    }
}

/// Copies a run of checkpoints and the log segments between them.
pub(super) fn copy_range(
    source: &Repository,
    name: &RecordingName,
    run: ReadableRun,
    target: &Repository,
    as_name: &RecordingName,
    progress: &dyn Progress,
) -> Result<CopyReport, Error> {
    let recording = source.recording(name)?;
    let first = recording.checkpoint(run.first)?;
    let spaces = first.spaces().iter();
    let options = WriterOptions {
        spaces: spaces.map(|s| (s.name().to_owned(), s.frames())).collect(),
        note: recording.info().note.clone(),
        patience: Patience::BRIEF,
        haste: Haste::Thorough,
        ..WriterOptions::default()
    };
    let finish = recording.info().state == RecordingState::Finished;
    let mut writer = target.write(as_name, options)?;
    let copied = copy_all(&recording, run, &mut writer, progress);
    match copied {
        Ok(out) if finish => writer.finish().map(|()| out),
        Ok(out) => {
            drop(writer);
            Ok(out)
        }
        Err(error) => {
            drop(writer);
            target.remove(as_name)?;
            Err(error)
        }
    }
}

fn copy_all(
    recording: &crate::reader::Recording,
    run: ReadableRun,
    writer: &mut Writer,
    progress: &dyn Progress,
) -> Result<CopyReport, Error> {
    let mut out = CopyReport::default();
    let logs = recording.logs()?;
    let total = (run.last.0 - run.first.0 + 1) as usize;
    for number in (run.first.0..=run.last.0).map(CheckpointNo) {
        let done = (number.0 - run.first.0) as usize;
        report(progress, "copying checkpoints", done, total)?;
        let before = number.0.checked_sub(1).map(CheckpointNo);
        if let Some(before) = before.filter(|b| *b >= run.first && logs.contains(b)) {
            let segment = recording.log(before)?;
            let mut log = LogDraft::new(segment.bytes().to_vec());
            for id in segment.pages() {
                log.put_page(&*segment.page(id)?);
            }
            let at = CheckpointNo(before.0 - run.first.0);
            out.add(writer.publish_log(at, log)?.wait()?);
            out.logs += 1;
        }
        let checkpoint = recording.checkpoint(number)?;
        let mut draft = writer.draft();
        for (at, space) in checkpoint.spaces().iter().enumerate() {
            let frames = match before.filter(|b| *b >= run.first) {
                Some(before) => recording.changed_frames(space.name(), before)?,
                None => space.nonzero_frames(),
            };
            put_frames(&checkpoint, SpaceNo(at), &frames, writer, &mut draft)?;
        }
        let names: Vec<String> = checkpoint.blobs().map(|(n, _)| n.to_owned()).collect();
        for name in names {
            draft.put_blob(&name, checkpoint.blob(&name)?);
        }
        out.add(writer.publish(draft)?.wait()?);
        out.checkpoints += 1;
    }
    Ok(out)
}

fn put_frames(
    checkpoint: &Checkpoint,
    space: SpaceNo,
    frames: &[Frame],
    writer: &mut Writer,
    draft: &mut Draft,
) -> Result<(), Error> {
    let view = &checkpoint.spaces()[space.0];
    let mut page = new_page();
    for &frame in frames {
        view.read(frame, &mut page)?;
        draft.put_page(space, frame, &page)?;
        if draft.pages() >= PART {
            writer.hand_over(draft)?;
        }
    }
    Ok(())
}

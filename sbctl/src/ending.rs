//! Why a guest stopped, in words.

use replay_log::EndReason;

/// How a guest ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    /// For programs.
    pub(crate) code: &'static str,
    /// For people.
    pub(crate) sentence: &'static str,
    /// Whether that is how a guest should end.
    pub(crate) orderly: bool,
}

impl From<EndReason> for Ending {
    fn from(reason: EndReason) -> Self {
        let (code, sentence, orderly) = match reason {
            EndReason::PoweredOff => ("powered-off", "the guest powered off", true),
            // `Checkpoint` ends an interval, never a run.
            EndReason::Stopped | EndReason::Checkpoint => ("stopped", "stopped", true),
            EndReason::Reset => ("reset", "the guest reset the machine", false),
            EndReason::Shutdown => ("triple-fault", "the guest caused a triple fault", false),
            EndReason::Idle => (
                "idle",
                "the guest waits for an interrupt that cannot come",
                false,
            ),
        };
        Self {
            code,
            sentence,
            orderly,
        }
    }
}

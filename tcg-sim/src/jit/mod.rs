//! The translator and the memory its code runs on.

pub(crate) mod asm;
pub(crate) mod block;
pub(crate) mod code;
pub(crate) mod layout;
pub(crate) mod mode;
pub(crate) mod regs;
pub(crate) mod translate;

//! Recording loop and checkpointer.

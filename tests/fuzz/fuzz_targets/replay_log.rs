//! Any bytes as a segment of a replay log.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| replay_log::fuzz::read_segment(data));

//! Test and benchmark targets only; there is no library code here.

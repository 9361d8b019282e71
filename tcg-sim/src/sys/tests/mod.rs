//! Tests of system semantics on flat RAM with real page tables.

//! An API in memory for the controllers' tests.

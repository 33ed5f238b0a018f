//! Placeholder while the crate is laid out.
pub(crate) fn register(_starts: &mut crate::Starts<'_>) {}

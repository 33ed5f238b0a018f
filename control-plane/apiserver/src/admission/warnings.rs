//! Warnings: what admission tells the author of a write that it lets pass.
//!
//! They belong to the request, not to the object, so they travel beside both: with the task that works on the request.

use std::cell::RefCell;

/// Of one write; nobody reads more, and they are headers of the answer.
pub(crate) const MAX_WARNINGS: usize = 64;

tokio::task_local! {
    static WARNINGS: RefCell<Vec<String>>;
}

/// Runs `work` and returns what plugins warned of meanwhile, each once.
pub(crate) async fn collect<T>(work: impl Future<Output = T>) -> (T, Vec<String>) {
    let collected = async {
        let outcome = work.await;
        (outcome, WARNINGS.with(RefCell::take))
    };
    WARNINGS.scope(RefCell::default(), collected).await
}

/// Warns the author of the request at hand; nobody, where none is.
pub(super) fn warn(text: String) {
    let _ = WARNINGS.try_with(|warnings| {
        let mut warnings = warnings.borrow_mut();
        // A write that is tried again on a newer version is looked at again.
        if warnings.len() < MAX_WARNINGS && !warnings.contains(&text) {
            warnings.push(text);
        }
    });
}

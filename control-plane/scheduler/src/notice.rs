//! Waits for what a watch handler tells.

use tokio::sync::Notify;

/// Looks, and looks again after each notice, until there is an answer. No notice is missed: each is asked for before the
/// look. Cancel-safe, as far as looking is.
pub(crate) async fn until<T>(changed: &Notify, mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        let changed = changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if let Some(answer) = look() {
            return answer;
        }
        changed.await;
    }
}

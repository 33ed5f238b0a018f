//! Reading a large range page by page, all pages at one revision.

use futures::{Stream, stream};

use crate::{Error, RangeRequest, RangeResponse, Store};

/// Reads `request` in pages of `page_size` keys, all at the revision of the first.
///
/// The request's own limit is ignored. Ends after the last page or the first error; a reader that takes longer
/// than history is kept ends with [`Error::Compacted`]. There is always one page, if an empty one.
pub fn pages<S: Store + ?Sized>(
    store: &S,
    request: RangeRequest,
    page_size: usize,
) -> impl Stream<Item = Result<RangeResponse, Error>> + Send {
    assert!(page_size > 0, "a page holds at least one key");
    stream::try_unfold(Some(request.limit(page_size)), move |request| async move {
        let Some(request) = request else { return Ok(None) };
        let page = store.range(request.clone()).await?;
        let next = match page.kvs.last() {
            Some(last) if page.more => Some(request.after(&last.key).at(page.revision)),
            _ => None,
        };
        Ok(Some((page, next)))
    })
}

//! What `events.k8s.io` asks of an event beyond what the core group does. Both are stored as one kind, whose rules do not
//! know by which of its two versions a request came.

use async_trait::async_trait;
use hawser_api::Error;

use super::{Operation, Plugin, Request};
use crate::kinds;

pub(super) struct NewerEvents;

#[async_trait]
impl Plugin for NewerEvents {
    fn name(&self) -> &'static str {
        "NewerEvents"
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if !writes || !request.is("events.k8s.io", "events") {
            return Ok(());
        }
        let errors = kinds::validate_newer_event(request.object, request.old);
        if errors.is_empty() {
            return Ok(());
        }
        let row = request.resource.row;
        Err(Error::invalid(row.group, row.kind, request.name, &errors))
    }
}

//! Tells the authors of writes what [`kinds::warnings`] has to say of their objects. It is asked last of all: of what is
//! refused nothing is to be warned of.

use async_trait::async_trait;
use hawser_api::Error;

use super::{Operation, Plugin, Request, warnings::warn};
use crate::kinds;

pub(super) struct Deprecations;

#[async_trait]
impl Plugin for Deprecations {
    fn name(&self) -> &'static str {
        "Deprecations"
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Error> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if writes && request.subresource.is_empty() {
            let said = kinds::warnings(request.resource.stored, request.object, request.old);
            said.into_iter().for_each(warn);
        }
        Ok(())
    }
}
